"""Where an axis has its ticks, and what stands beside them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

_STEPS_S: Final = (
    *(1, 2, 5, 10, 15, 30),
    *(60 * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(3600 * hours for hours in (1, 2, 3, 6, 12)),
    *(86_400 * days for days in (1, 2, 4, 7, 14)),
)
_STEPS_MONTHS: Final = (1, 2, 3, 6, 12, 24, 60, 120)
_MONTH_S: Final = 30.4 * 86_400
_DAY_S: Final = 86_400


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """A mark on an axis.

    Attributes:
        at: From 0, where the axis begins, to 1.
        minor: Left out where the page is narrow.
    """

    at: float
    label: str
    minor: bool = False


def nice_step(top: float, most: int) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that cuts `top` into `most` at most."""
    raw = top / most
    power = 10.0 ** math.floor(math.log10(raw))
    return next(
        (power * factor for factor in (1, 2, 2.5, 5) if power * factor >= raw * (1 - 1e-9)),
        power * 10,
    )


def number_ticks(top: float, *, most: int = 4, whole: bool = False) -> list[float]:
    """From nought to the first tick that is not below `top`.

    Args:
        top: The largest value; where it is nought, the axis goes to 1.
        most: So many parts at most.
        whole: There is nothing between 1 and 2, such as of images.
    """
    step = nice_step(top or 1, most)
    if whole:
        step = max(1.0, math.ceil(step))
    return [step * n for n in range(math.ceil((top or 1) / step - 1e-9) + 1)]


def time_ticks(begins_at: datetime, ends_at: datetime, *, most: int = 6) -> list[Tick]:
    """Round times from `begins_at` to `ends_at`, which is later; in UTC."""
    span_s = (ends_at - begins_at).total_seconds()
    step_s = next((step for step in _STEPS_S if span_s / step <= most), None)
    times = _months(begins_at, ends_at, most) if step_s is None else _even(begins_at, step_s)
    ticks = []
    for time in times:
        if time > ends_at:
            break
        ticks.append((time, (time - begins_at).total_seconds() / span_s))
    same_day = begins_at.astimezone(UTC).date() == ends_at.astimezone(UTC).date()
    dated = step_s is not None and step_s < _DAY_S and not same_day
    every = math.ceil(len(ticks) / (2 if dated else 3))
    return [
        Tick(at=at, label=_label(time, step_s, dated=dated), minor=n % every > 0)
        for n, (time, at) in enumerate(ticks)
    ]


def _even(begins_at: datetime, step_s: int) -> Iterator[datetime]:
    first = math.ceil(begins_at.timestamp() / step_s) * step_s
    time = datetime.fromtimestamp(first, UTC)
    while True:
        yield time
        time += timedelta(seconds=step_s)


def _months(begins_at: datetime, ends_at: datetime, most: int) -> Iterator[datetime]:
    """The beginnings of months."""
    months = (ends_at - begins_at).total_seconds() / _MONTH_S
    step = next((step for step in _STEPS_MONTHS if months / step <= most), _STEPS_MONTHS[-1])
    begins = begins_at.astimezone(UTC)
    month = -(-(begins.year * 12 + begins.month) // step) * step
    while True:
        yield datetime(month // 12, month % 12 + 1, 1, tzinfo=UTC)
        month += step


def _label(time: datetime, step_s: int | None, *, dated: bool) -> str:
    if step_s is None:
        return f"{time:%b %Y}"
    if step_s >= _DAY_S:
        return f"{time.day} {time:%b}"
    clock = f"{time:%H:%M:%S}" if step_s < 60 else f"{time:%H:%M}"
    return f"{time.day} {time:%b} {clock}" if dated else clock
