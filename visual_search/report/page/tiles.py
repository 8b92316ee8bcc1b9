"""The few numbers that come first, and how far all of it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """A number with its name; `kind` colours it."""

    label: str
    value: str
    note: str
    kind: Literal["", "failed", "waiting"] = ""


def tiles(numbers: Sequence[Tile], *, done: int, failed: int, waiting: int, left: int) -> str:
    """The numbers, over a bar of what became of all images."""
    told = "".join(
        f'<div class="tile {tile.kind}"><dt>{escape(tile.label)}</dt>'
        f'<dd class="value">{escape(tile.value)}</dd>'
        f'<dd class="note">{escape(tile.note)}</dd></div>'
        for tile in numbers
    )
    bar = share_bar(done=done, failed=failed, waiting=waiting, left=left)
    return f'<div class="figures card"><dl class="tiles">{told}</dl>{bar}</div>'


def share_bar(*, done: int, failed: int, waiting: int, left: int) -> str:
    """Done, failed, waiting and still to do, as parts of one bar."""
    parts = (("done", done), ("failed", failed), ("waiting", waiting), ("open", left))
    bar = "".join(f'<span class="{kind}" style="flex:{n}"></span>' for kind, n in parts if n)
    return f'<div class="share" aria-hidden="true">{bar}</div>'
