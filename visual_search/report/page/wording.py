"""Numbers, sizes and times as people read them."""

from datetime import UTC, datetime


def moment(time: datetime) -> str:
    """`5 November 2026, 12:00 UTC`."""
    return f"{time.astimezone(UTC):%d %B %Y, %H:%M} UTC".lstrip("0")


def short_moment(time: datetime) -> str:
    """`2026-11-05 12:00`, for tables whose head says that it is UTC."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M}"


def percent(part: float, whole: float) -> str:
    """Never 100 % with something missing, nor 0 % with something there."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.1:
        return "< 0.1 %"
    shown = f"{min(share, 99.9) if part < whole else share:.1f}"
    return f"{shown.removesuffix('.0')} %"


def headline(number: int) -> str:
    """A number in large letters: exact up to a hundred million, then `330.4M`."""
    return f"{number:,}" if number < 100_000_000 else short_number(number)


def short_number(value: float) -> str:
    """`2.5M`, `750k`, `0.25`."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"


def count(number: int, thing: str) -> str:
    """`1 shard`, `2 shards`, `1,000 shards`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def size(size_bytes: float) -> str:
    """In the unit that fits: `1.0 MB`."""
    amount = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if round(amount, 1) < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def elapsed(seconds: float) -> str:
    """A short time, to three digits or so: `84 ms`, `2.51 s`, `31.0 s`."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def shortened(text: str, most: int) -> str:
    """`text` with `…` in its middle where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[len(text) - end :]}"
