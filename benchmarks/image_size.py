"""How large the CPU image is, estimated from what is installed here.

    python -m benchmarks.image_size

No image is built. What `Dockerfile.cpu` installs is followed from package to package, and the files
that each has in this environment are added up, less what only wheels with CUDA have: the packages
of `_CUDA_PACKAGES`, and in torch the libraries of `_CUDA_LIBRARIES`. Where a compiled module, which
pip makes in the image, is missing here, it counts as large as its source.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
DOCKERFILE = ROOT / "Dockerfile.cpu"
# python:3.11-slim-bookworm on amd64: Debian, Python and pip. Taken from what such images have been,
# not measured here, and rounded up.
BASE_BYTES = 150_000_000

_CUDA_PACKAGES = re.compile(r"nvidia-.*|cuda-.*|triton")
_CUDA_LIBRARIES = re.compile(r"lib(torch_cuda.*|torch_nvshmem|c10_cuda|caffe2_nvrtc)\.so")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One installed package.

    Attributes:
        bytes: Of its files, as the CPU image has them.
        left_out: Of its files that the CPU image lacks.
    """

    name: str
    version: str
    bytes: int
    left_out: int


def parts() -> list[Part]:
    """What the image installs, the largest first.

    Raises:
        PackageNotFoundError: Something of it is not installed here.
    """
    named = re.search(r"^ARG EXTRAS=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert named is not None
    wanted = [Requirement(f"visual-search[{named[1]}]")]
    found: dict[str, set[str]] = {}
    while wanted:
        requirement = wanted.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        extras = {"", *requirement.extras}
        if extras <= found.get(name, set()) or _CUDA_PACKAGES.fullmatch(name):
            continue
        found[name] = found.get(name, set()) | extras
        wanted += _needed(distribution(name), extras)
    measured = [_part(name) for name in found]
    return sorted(measured, key=lambda part: part.bytes, reverse=True)


def total_bytes(found: Sequence[Part]) -> int:
    """Of the whole image."""
    return BASE_BYTES + sum(part.bytes for part in found)


def _needed(package: Distribution, extras: set[str]) -> list[Requirement]:
    requirements = [Requirement(line) for line in package.requires or ()]
    return [
        requirement
        for requirement in requirements
        if requirement.marker is None
        or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def _part(name: str) -> Part:
    package = distribution(name)
    if name == "visual-search":  # installed editable, its files lie in the checkout
        files = [*(ROOT / "visual_search").rglob("*.py"), *(ROOT / "migrations").rglob("*.py")]
    else:
        files = [Path(str(package.locate_file(file))) for file in package.files or ()]
    kept = left_out = 0
    for file in files:
        if file.suffix == ".pyc" or not file.is_file():
            continue
        size = file.stat().st_size
        if _CUDA_LIBRARIES.fullmatch(file.name):
            left_out += size
        else:
            kept += size + (_compiled_bytes(file) if file.suffix == ".py" else 0)
    return Part(name=name, version=package.version, bytes=kept, left_out=left_out)


def _compiled_bytes(source: Path) -> int:
    compiled = list((source.parent / "__pycache__").glob(f"{source.stem}.*[0-9].pyc"))
    return compiled[0].stat().st_size if compiled else source.stat().st_size


def main() -> None:
    try:
        found = parts()
    except PackageNotFoundError as missing:
        raise SystemExit(f"{missing} is not installed; `make setup` installs it") from None
    large = [part for part in found if part.bytes >= 10_000_000]
    small = [part for part in found if part.bytes < 10_000_000]
    print("| what | MB, estimated |\n|---|---:|")
    print(f"| Debian and Python (`python:3.11-slim-bookworm`) | {BASE_BYTES / 1e6:.0f} |")
    for part in large:
        less = f", less {part.left_out / 1e6:.0f} MB for CUDA" if part.left_out else ""
        print(f"| {part.name} {part.version}{less} | {part.bytes / 1e6:.0f} |")
    print(f"| {len(small)} smaller packages | {sum(part.bytes for part in small) / 1e6:.0f} |")
    print(f"| **together** | **{total_bytes(found) / 1e6:,.0f}** |")


if __name__ == "__main__":
    main()
