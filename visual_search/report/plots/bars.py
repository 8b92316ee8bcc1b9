"""Values by name, the largest on top: lying bars."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from visual_search.report.page.wording import shortened
from visual_search.report.plots.figure import Paint, Words, figure

_ROW_PX: Final = 40
_BAR_PX: Final = 9
# What fits above a bar on a telephone, beside the value.
_LABEL_CHARACTERS: Final = 36


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A bar in parts, from the left.

    Attributes:
        label: In full; what is too long for the plot is cut in the middle.
        shown: The value as it is to be read.
        parts: Colours and values; their sum is the bar's length.
    """

    label: str
    shown: str
    parts: Sequence[tuple[Paint, float]]

    @property
    def length(self) -> float:
        """Of all parts."""
        return sum(value for _, value in self.parts)


def bar_plot(words: Words, bars: Sequence[Bar], *, legend: Sequence[tuple[Paint, str]] = ()) -> str:
    """Bars in the order they are given, as long as the longest lets them; at least one."""
    longest = max(bar.length for bar in bars) or 1
    return figure(
        words,
        "".join(_bar(bar, n * _ROW_PX, longest) for n, bar in enumerate(bars)),
        height_px=_ROW_PX * len(bars),
        legend=legend,
    )


def _bar(bar: Bar, top_px: int, longest: float) -> str:
    y = top_px + 22
    drawn, begins = "", 0.0
    for paint, value in bar.parts:
        if value:
            drawn += (
                f'<rect class="{paint}" x="{100 * begins / longest:.2f}%" y="{y}" '
                f'width="{100 * value / longest:.2f}%" height="{_BAR_PX}"/>'
            )
            begins += value
    return (
        f"<g><title>{escape(bar.label)}: {escape(bar.shown)}</title>"
        f'<text class="label" x="0" y="{y - 7}">{escape(shortened(bar.label, _LABEL_CHARACTERS))}'
        f'</text><text class="value" x="100%" y="{y - 7}" text-anchor="end">{escape(bar.shown)}'
        f'</text><rect class="track" x="0" y="{y}" width="100%" height="{_BAR_PX}"/>{drawn}</g>'
    )
