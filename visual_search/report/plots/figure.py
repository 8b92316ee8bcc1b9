"""The frame of a plot: what it shows in words, its legend, its axes.

The drawing is as wide as the page lets it. What is along the width stands in per cent, all else in
pixels, so that text keeps its size and nothing has to be computed when the page is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal

from visual_search.report.plots.scale import Tick

# How far the plots go down; below are the labels of the horizontal axis.
PLOT_TOP_PX: Final = 20
PLOT_HEIGHT_PX: Final = 196
_AXIS_PX: Final = 26
AXES_HEIGHT_PX: Final = PLOT_TOP_PX + PLOT_HEIGHT_PX + _AXIS_PX

Paint = Literal["s0", "s1", "s2", "s3", "s4", "s5", "other", "done", "failed", "waiting"]
"""A class of the style: the colours of series, in their order, and those with a meaning."""

SERIES: Final[tuple[Paint, ...]] = ("s0", "s1", "s2", "s3", "s4", "s5")


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """What a plot says to those who do not see it, too.

    Attributes:
        name: Different for each plot of a page; part of ids.
        title: What is shown.
        description: What is to be seen in it.
    """

    name: str
    title: str
    description: str


def figure(
    words: Words,
    drawing: str,
    *,
    height_px: int,
    axed: bool = False,
    legend: Sequence[tuple[Paint, str]] = (),
) -> str:
    """A plot.

    Args:
        words: Shown, and read out.
        drawing: SVG.
        height_px: Of the drawing.
        axed: It has `axes`, and labels left of it.
        legend: Colours and what they stand for; a single one is left out.
    """
    keys = "".join(
        f'<li><svg class="key" aria-hidden="true"><line class="{paint}" x1="0" x2="22" y1="6" '
        f'y2="6"/></svg>{escape(label)}</li>'
        for paint, label in legend
    )
    return f"""\
<figure class="plot card">
<figcaption>{escape(words.title)}</figcaption>
{f'<ul class="legend">{keys}</ul>' if len(legend) > 1 else ""}
<svg{' class="axed"' if axed else ""} role="img" width="100%" height="{height_px}" \
aria-labelledby="{words.name}-title {words.name}-description">
<title id="{words.name}-title">{escape(words.title)}</title>
<desc id="{words.name}-description">{escape(words.description)}</desc>
{drawing}
</svg>
</figure>"""


def axes(values: Sequence[tuple[float, str]], ticks: Sequence[Tick]) -> str:
    """Lines across at `values` (from 0, the bottom, to 1), and `ticks` below."""
    lines = "".join(_across(down(at), label) for at, label in values)
    below = "".join(
        f'<text class="tick{" minor" if tick.minor else ""}" x="{100 * tick.at:.2f}%" '
        f'y="{AXES_HEIGHT_PX - 6}" text-anchor="{_anchor(tick.at)}">{escape(tick.label)}</text>'
        for tick in ticks
    )
    return lines + below


def _across(y: float, label: str) -> str:
    return (
        f'<line class="grid" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick" x="-8" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>'
    )


def down(at: float) -> float:
    """How many pixels from the top a value from 0 to 1 is."""
    return PLOT_TOP_PX + PLOT_HEIGHT_PX * (1 - at)


def _anchor(at: float) -> str:
    """Labels at the sides stay inside."""
    return "start" if at < 0.08 else "end" if at > 0.92 else "middle"
