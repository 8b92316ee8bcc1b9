"""Values side by side: upright columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from visual_search.report.page.wording import short_number
from visual_search.report.plots.figure import (
    AXES_HEIGHT_PX,
    PLOT_HEIGHT_PX,
    Paint,
    Words,
    axes,
    down,
    figure,
)
from visual_search.report.plots.scale import Tick, number_ticks

# Few columns are no broader than if there were so many.
_FEWEST: Final = 12
_BREADTH: Final = 0.78


@dataclass(frozen=True, kw_only=True, slots=True)
class Upright:
    """A column; `note` says what it is when it is pointed at."""

    value: float
    paint: Paint
    note: str


def column_plot(
    words: Words,
    columns: Sequence[Upright],
    ticks: Callable[[float], Sequence[Tick]],
    *,
    legend: Sequence[tuple[Paint, str]] = (),
    whole: bool = False,
) -> str:
    """Columns from the left.

    Args:
        words: Of the plot.
        columns: What is to be seen.
        ticks: Given the breadth of a column's place as a share of the whole, what stands below.
        legend: Colours and what they stand for.
        whole: Values are numbers of things.
    """
    values = number_ticks(max((column.value for column in columns), default=0), whole=whole)
    highest = values[-1]
    breadth = 1 / max(_FEWEST, len(columns))
    drawn = "".join(
        f'<rect class="{column.paint}" x="{100 * breadth * (n + (1 - _BREADTH) / 2):.3f}%" '
        f'width="{100 * breadth * _BREADTH:.3f}%" y="{down(height):.1f}" '
        f'height="{PLOT_HEIGHT_PX * height:.1f}"><title>{escape(column.note)}</title></rect>'
        for n, column in enumerate(columns)
        if (height := column.value / highest) > 0
    )
    drawing = axes([(value / highest, short_number(value)) for value in values], ticks(breadth))
    return figure(words, drawing + drawn, height_px=AXES_HEIGHT_PX, axed=True, legend=legend)
