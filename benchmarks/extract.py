"""How close `vsearch extract` comes to the model's own speed, and how far from a plain script.

    python benchmarks/extract.py --images FOLDER [--model NAME] [--precision fp32|bf16] [--rounds N]

Each round measures the same pictures in three ways, one after the other on the same machine:

- `vsearch`: the command itself in a process of its own, from a server on loopback to the recorded
  shard, once by its own steady rate and once by the clock, start-up included;
- `script`: what one would write in an afternoon: download an image, decode and resize it with
  Pillow, next; batches of 32 through the same network;
- `model`: the network alone on ready batches, with memory handled as in `vsearch`: with this model
  and this device nothing can be faster.

Machines are noisy, so what counts are the ratios within a round; their medians are printed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Final, Literal
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from visual_search import models
from visual_search.cli.memory import keep_freed_memory
from visual_search.demo.server import ShopServer
from visual_search.embed import Embedder, choose_device
from visual_search.models import weights
from visual_search.settings import load_settings

Precision = Literal["fp32", "bf16"]
_BATCH: Final = 32


@dataclass(frozen=True, kw_only=True)
class Round:
    """Images per second."""

    steady: float
    by_the_clock: float
    script: float
    model: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="a folder of pictures")
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--count", type=int, default=1200, help="images in a round")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    names = sorted(path.name for path in asked.images.iterdir() if path.is_file())
    model = (asked.model, asked.precision)
    rounds = []
    with ShopServer(asked.images) as server:
        # Each URL is another image to vsearch, whatever file is behind it.
        urls = [
            f"{server.url(name)}?{number}"
            for number, name in enumerate(islice(cycle(names), asked.count))
        ]
        for number in range(asked.rounds):
            steady, by_the_clock = _vsearch(urls, *model)
            result = Round(
                steady=steady,
                by_the_clock=by_the_clock,
                script=_apart(_script, urls, *model),
                model=_apart(_model, len(urls), *model),
            )
            rounds.append(result)
            print(
                f"round {number + 1}: vsearch {steady:.1f} images/s steady, "
                f"{by_the_clock:.1f} by the clock; script {result.script:.1f}; "
                f"model alone {result.model:.1f}"
            )
    _print_ratios(rounds)


def _apart(measure: Callable[..., float], *arguments: object) -> float:
    """`measure` in a new process, so that no measurement finds what another one has set."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(measure, *arguments).result()


def _print_ratios(rounds: Sequence[Round]) -> None:
    for label, ratios in (
        ("vsearch steady / script", [r.steady / r.script for r in rounds]),
        ("vsearch by the clock / script", [r.by_the_clock / r.script for r in rounds]),
        ("vsearch steady / model alone", [r.steady / r.model for r in rounds]),
    ):
        print(
            f"{label}: median {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        )


def _vsearch(urls: Sequence[str], model: str, precision: Precision) -> tuple[float, float]:
    """Steady rate, and images over the whole time of the command."""
    # Not below a folder that only root may enter: the database has another user.
    with tempfile.TemporaryDirectory(prefix="vsearch-benchmark-") as home:
        environment = os.environ | {
            "VSEARCH_HOME": home,
            "VSEARCH_DOWNLOAD__ALLOW_NETWORKS": '["127.0.0.1/32"]',
        }
        environment.pop("VSEARCH_DATABASE_URL", None)

        def vsearch(*arguments: str, say: str = "") -> str:
            return subprocess.run(
                [sys.executable, "-m", "visual_search", *arguments],
                input=say,
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout

        vsearch("catalog", "import", "-", say="\n".join(urls))
        started = time.monotonic()
        said = vsearch("extract", "--model", model, "--precision", precision, "--json")
        took = time.monotonic() - started
        (result,) = json.loads(said)["results"]
        if result["counts"]["done"] != len(urls):
            raise SystemExit(f"not all images were embedded: {result}")
        return float(result["images_per_second"]), len(urls) / took


def _script(urls: Sequence[str], model: str, precision: Precision) -> float:
    embedder, size_px = _embedder(model, precision)
    started = time.monotonic()
    for begin in range(0, len(urls), _BATCH):
        pixels = []
        for url in urls[begin : begin + _BATCH]:
            with urlopen(url) as answer:
                image = Image.open(answer).convert("RGB")
            # Which part of the picture it shows makes no difference to the speed.
            resized = image.resize((size_px, size_px), Image.Resampling.BILINEAR)
            pixels.append(pil_to_tensor(resized))
        embedder.embed(torch.stack(pixels))
    return len(urls) / (time.monotonic() - started)


def _model(images: int, model: str, precision: Precision) -> float:
    keep_freed_memory()
    embedder, size_px = _embedder(model, precision)
    noise = np.random.default_rng(0).integers(0, 256, (_BATCH, 3, size_px, size_px), dtype=np.uint8)
    batch = torch.from_numpy(noise)
    batches = max(1, images // _BATCH)
    started = time.monotonic()
    for _ in range(batches):
        embedder.embed(batch)
    return batches * _BATCH / (time.monotonic() - started)


def _embedder(model: str, precision: Precision) -> tuple[Embedder, int]:
    """The model, and how wide and high its pictures are."""
    settings = load_settings()
    spec = models.resolve(model, settings.models, precision=precision, home=settings.home)
    path = weights.obtain(spec, settings.weights, home=settings.home)
    return Embedder(spec, path, choose_device("auto")), spec.preprocessing.size


if __name__ == "__main__":
    main()
