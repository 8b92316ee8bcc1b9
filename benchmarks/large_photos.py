"""What `decode = "draft"` saves on large photos, and what it does to their vectors.

    python -m benchmarks.large_photos --images FOLDER

Photos of 1,600 x 1,200 and 4,000 x 3,000 pixels are made from smaller ones, with some noise as
cameras have it. Plain Pillow, `exact` and `draft` bring each to 224 x 224, one after the other on
one core; the ratios of their processor time are of the same photo. Vectors are compared with those
of the exact path, once as they are and once without what all of them have in common, since random
weights make any two photos nearly the same vector.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from benchmarks.throughput.figures import Agreement, Spread
from visual_search import models
from visual_search.decode import decode
from visual_search.embed import Embedder, choose_device, prepare
from visual_search.models import weights
from visual_search.models.spec import ModelSpec
from visual_search.settings import ModelTable, load_settings

SIZES = ((1600, 1200), (4000, 3000))
QUALITY = 85
NOISE = 2.0
MAX_PIXELS = 50_000_000
# Decoded into, as in vsearch, where it is the memory that a decoder shares.
ROOM = np.empty(3 * MAX_PIXELS, np.uint8)
TABLES = {"resnet18_random": ModelTable(builder="torchvision:resnet18", weights="random:0")}
MODELS = ("resnet18_random", "efficientnet_lite0")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Photos of one size. Times are core-milliseconds a photo, ratios of plain Pillow's.

    Attributes:
        cosine: Of each model, the least of draft's vectors to exact's.
        agreement: The same, without what all vectors have in common.
    """

    size: tuple[int, int]
    bytes_per_pixel: float
    plain_ms: Spread
    exact_ratio: Spread
    draft_ratio: Spread
    cosine: dict[str, float]
    agreement: dict[str, Agreement]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="a folder of pictures")
    parser.add_argument("--count", type=int, default=12, help="photos of each size")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    # One photo is a core's work; a second thread would be counted, too.
    torch.set_num_threads(1)
    files = sorted(path for path in given.images.iterdir() if path.is_file())
    chosen = files[:: max(1, len(files) // given.count)][: given.count]
    results = [
        _measure(size, [_enlarged(file, size, seed) for seed, file in enumerate(chosen)])
        for size in SIZES
    ]
    if given.json:
        print(json.dumps([asdict(measured) for measured in results], indent=2))
        return
    for measured in results:
        _show(measured)


def _enlarged(file: Path, size: tuple[int, int], seed: int) -> bytes:
    """A JPEG of the picture with a camera's noise."""
    with Image.open(file) as image:
        large = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.float32)
    noise = np.random.default_rng(seed).normal(0, NOISE, large.shape[:2])
    noisy = (large + noise[:, :, None]).clip(0, 255).astype(np.uint8)
    encoded = BytesIO()
    Image.fromarray(noisy).save(encoded, "JPEG", quality=QUALITY)
    return encoded.getvalue()


def _measure(size: tuple[int, int], photos: Sequence[bytes]) -> Measured:
    specs = {name: _spec(name) for name in MODELS}
    timed = specs[MODELS[0]]
    ways = (_plain, lambda body: _exact(body, timed), lambda body: _draft(body, timed))
    # All ways on one photo, then on the next: what slows the machine down slows them all.
    plain, exact, draft = zip(
        *(tuple(_core_ms(way, body) for way in ways) for body in photos), strict=True
    )
    agreement, cosine = {}, {}
    for name, spec in specs.items():
        path = weights.obtain(spec, load_settings().weights, home=Path("vsearch-data"))
        embedder = Embedder(spec, path, choose_device("cpu"))
        ours = embedder.embed(torch.stack([_draft(body, spec) for body in photos]))
        theirs = embedder.embed(torch.stack([_exact(body, spec) for body in photos]))
        lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        cosine[name] = float(((ours * theirs).sum(axis=1) / lengths).min())
        agreement[name] = Agreement.of(
            {str(n): vector for n, vector in enumerate(ours)},
            {str(n): vector for n, vector in enumerate(theirs)},
        )
    return Measured(
        size=size,
        bytes_per_pixel=sum(map(len, photos)) / len(photos) / (size[0] * size[1]),
        plain_ms=Spread.of(plain),
        exact_ratio=Spread.of(a / b for a, b in zip(plain, exact, strict=True)),
        draft_ratio=Spread.of(a / b for a, b in zip(plain, draft, strict=True)),
        cosine=cosine,
        agreement=agreement,
    )


def _spec(name: str) -> ModelSpec:
    return models.resolve(name, TABLES, precision="fp32", home=Path("vsearch-data"))


def _plain(body: bytes) -> Tensor:
    with Image.open(BytesIO(body)) as image:
        resized = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
    pixels: Tensor = pil_to_tensor(resized)
    return pixels


def _exact(body: bytes, spec: ModelSpec) -> Tensor:
    picture = decode(body, max_pixels=MAX_PIXELS, room=ROOM)
    return prepare(picture.pixels, spec.preprocessing)


def _draft(body: bytes, spec: ModelSpec) -> Tensor:
    least_px = replace(spec, decode="draft").least_px
    picture = decode(body, max_pixels=MAX_PIXELS, least_px=least_px, room=ROOM)
    return prepare(picture.pixels, spec.preprocessing)


def _core_ms(way: Callable[[bytes], Tensor], body: bytes) -> float:
    """The best of three."""

    def once() -> float:
        started = time.process_time()
        way(body)
        return time.process_time() - started

    return 1000 * min(once() for _ in range(3))


def _show(measured: Measured) -> None:
    width, height = measured.size
    print(
        f"{width} x {height}, {measured.bytes_per_pixel:.2f} bytes a pixel: "
        f"Pillow {measured.plain_ms.median:.1f} core-ms a photo"
    )
    for name, ratio in (("exact", measured.exact_ratio), ("draft", measured.draft_ratio)):
        print(f"  {name}: {ratio.median:.2f} times as fast ({ratio.least:.2f}–{ratio.most:.2f})")
    for name, agreement in measured.agreement.items():
        print(
            f"  {name}: cosine of draft to exact at least {measured.cosine[name]:.5f}, "
            f"{agreement.least_cosine:.4f} without what all have in common"
        )


if __name__ == "__main__":
    main()
