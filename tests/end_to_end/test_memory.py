"""Memory stays within its budget, however slow the network and however large the pictures."""

import os
import statistics
import time
from io import BytesIO
from mmap import mmap
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor, nn

from tests.catalogue import add_urls
from tests.end_to_end.workplace import TINY, Workplace, jpeg
from tests.faults.watching import Watch

_MIB = 1 << 20
_IMAGES = 20_000
_OUTLIERS = 40
_BUDGET = 512 * _MIB
_BATCH_S = 0.1


class _Slow(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        time.sleep(_BATCH_S)
        return images.mean(dim=(2, 3)).repeat(1, 3)[:, :8]


def build_slow() -> nn.Module:
    return _Slow()


def watch_memory(pid: int) -> Watch[int]:
    """Samples what a process and its children hold, in bytes; 0 once it has ended."""
    return Watch(lambda: _resident(pid), every_s=0.05)


def _resident(pid: int) -> int:
    """Of a process and all below it; what two of them share counts twice."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(_resident(child) for child in children)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_peak_and_growth(place: Workplace) -> None:
    place.models["slow"] = TINY | {"builder": f"{__name__}:build_slow"}
    place.server.serve("/small.jpg", jpeg(0))
    file = BytesIO()
    Image.effect_noise((8165, 6123), 20).convert("RGB").save(file, "JPEG", quality=60)
    place.server.serve("/large.jpg", file.getvalue())
    base = _run(place, "few", 2_000, outliers=0)
    whole = _run(place, "all", _IMAGES, outliers=_OUTLIERS)
    first, last = (
        statistics.median(part) for part in (_part(whole, 0.3, 0.4), _part(whole, 0.9, 1.0))
    )
    growth = (last / first - 1) * 10_000 / (0.6 * _IMAGES)
    print(
        f"base {max(base) / _MIB:.0f} MiB, peak {max(whole) / _MIB:.0f} MiB, "
        f"budget {_BUDGET / _MIB:.0f} MiB, growth {growth:.2%} for 10,000 images"
    )
    assert max(whole) <= max(base) + 1.2 * _BUDGET
    assert growth <= 0.01


def _part(samples: list[int], begin: float, end: float) -> list[int]:
    return samples[int(begin * len(samples)) : int(end * len(samples))]


def _run(place: Workplace, label: str, images: int, *, outliers: int) -> list[int]:
    """The samples of one run over so many images, the large ones spread among the small."""
    every = images // outliers if outliers else images + 1
    add_urls(
        place.database,
        [
            place.server.url(f"/{'large' if n % every == every - 1 else 'small'}.jpg?{label}{n}")
            for n in range(images)
        ],
    )
    with (
        place.start(
            *("extract", "--model", "slow", "--memory-budget", str(_BUDGET)),
            VSEARCH_DECODE__WORKERS="2",
        ) as process,
        watch_memory(process.pid) as memory,
    ):
        _, err = process.communicate(timeout=1500)
    assert process.returncode == 0, err
    assert place.status("slow").pending == 0
    return [held for held in memory.seen if held]


def test_the_sampler_sees_what_a_process_holds() -> None:
    with watch_memory(os.getpid()) as memory, mmap(-1, 64 * _MIB) as block:
        time.sleep(0.2)
        block.write(bytes(64 * _MIB))
        time.sleep(0.2)
    assert max(memory.seen) - min(memory.seen) >= 60 * _MIB
