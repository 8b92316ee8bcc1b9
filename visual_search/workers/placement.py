"""How many workers there are on this machine, and what each of them may take of it.

What a setting limits, it limits for the whole command: workers get parts of it whose sum it is.
"""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from visual_search.cores import usable_cores
from visual_search.errors import SettingsError, TemporaryError
from visual_search.settings import DownloadSettings, Settings

_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_COUNT_TIMEOUT_S: Final = 300
_COUNT: Final = "import torch; print(torch.cuda.device_count())"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """What one worker has to itself.

    Attributes:
        settings: With its parts of the limits.
        environment: With its device, if there are any to choose from.
        limit: As of `extract`.
    """

    settings: Settings
    environment: Mapping[str, str]
    limit: int | None


def places(settings: Settings, environment: Mapping[str, str], *, limit: int | None) -> list[Place]:
    """Where the workers of this machine are put; those that would have nothing to do are left out.

    Args:
        settings: `extract.workers` says how many: `auto` is one for each CUDA device, or one.
        environment: Of this process.
        limit: Images to claim, at most, in all.

    Raises:
        SettingsError: There are more workers than requests allowed at once.
        TemporaryError: Devices cannot be counted.
    """
    devices = _devices(settings, environment)
    asked = settings.extract.workers or 1
    workers = max(1, len(devices)) if asked == "auto" else asked
    check_requests(settings.download, workers, option=f"--workers {asked}")
    cores = usable_cores()
    limits = [None] * workers if limit is None else split(limit, workers)
    return [
        Place(
            settings=share_machine(
                share_requests(settings, number, workers), number, workers, cores=cores
            ),
            environment=dict(environment)
            | ({_VISIBLE: devices[number % len(devices)]} if devices else {}),
            limit=limits[number],
        )
        for number in range(workers)
        if limits[number] != 0
    ]


def check_requests(settings: DownloadSettings, workers: int, *, option: str) -> None:
    """See that each worker may have one request at a time, to any host.

    Raises:
        SettingsError: Some could not, since all of them together must not ask for more.
    """
    for name in ("per_host", "concurrency"):
        allowed = getattr(settings, name)
        if allowed < workers:
            raise SettingsError(
                f"{option} means {workers} workers, but download.{name} = {allowed} requests at "
                f"once are allowed in all; take fewer workers, or set download.{name} to {workers} "
                "or more"
            )


def split(total: int, parts: int) -> list[int]:
    """`total` in whole parts as equal as can be, the larger ones first: 8 in 3 is 3, 3, 2."""
    each, more = divmod(total, parts)
    return [each + (number < more) for number in range(parts)]


def share_requests(settings: Settings, number: int, workers: int) -> Settings:
    """The settings with one worker's part of the requests to hosts; `number` from 0."""
    download = settings.download
    pace = download.requests_per_second
    shares = {
        "concurrency": split(download.concurrency, workers)[number],
        "per_host": split(download.per_host, workers)[number],
        "requests_per_second": None if pace is None else pace / workers,
    }
    return settings.model_copy(update={"download": download.model_copy(update=shares)})


def share_machine(settings: Settings, number: int, workers: int, *, cores: int) -> Settings:
    """The settings with one worker's part of cores and memory, at least one of each."""

    def mine(total: int) -> int:
        return max(1, split(total, workers)[number])

    decode, embed, extract = settings.decode, settings.embed, settings.extract
    passes = {
        "workers": None if embed.workers is None else mine(embed.workers),
        "threads": mine(embed.threads or cores),
    }
    return settings.model_copy(
        update={
            "decode": decode.model_copy(update={"workers": mine(decode.workers or cores)}),
            "embed": embed.model_copy(update=passes),
            "extract": extract.model_copy(update={"memory_budget": mine(extract.memory_budget)}),
        }
    )


def _devices(settings: Settings, environment: Mapping[str, str]) -> list[str]:
    """What to set as `CUDA_VISIBLE_DEVICES` for each device that torch can use here."""
    if settings.embed.device not in ("auto", "cuda"):
        return []
    count = _count_devices(environment)
    visible = environment.get(_VISIBLE)
    names = visible.split(",") if visible else [str(number) for number in range(count)]
    return names[:count]


def _count_devices(environment: Mapping[str, str]) -> int:
    """Only torch knows what it can use, and who has asked for a device holds some of its memory.

    So a child asks, and not this process, which outlives all workers.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", _COUNT],
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=_COUNT_TIMEOUT_S,
            check=True,
        )
        return int(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise TemporaryError(
            f"cannot ask torch for its devices ({type(error).__name__}); name one with --device, "
            "or run `vsearch doctor`"
        ) from error
