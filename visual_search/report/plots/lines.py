"""What grew over time: lines that step up."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Final

from visual_search.report.page.wording import short_number
from visual_search.report.plots.figure import (
    AXES_HEIGHT_PX,
    PLOT_HEIGHT_PX,
    PLOT_TOP_PX,
    Paint,
    Words,
    axes,
    down,
    figure,
)
from visual_search.report.plots.scale import number_ticks, time_ticks

# A drawing of its own inside, which is stretched to the width; its lines keep theirs.
_WIDTH: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A value that stays what it is until the next point; nought before the first.

    Attributes:
        points: In the order of time.
    """

    label: str
    paint: Paint
    points: Sequence[tuple[datetime, float]]


def line_plot(
    words: Words,
    lines: Sequence[Line],
    *,
    begins_at: datetime,
    ends_at: datetime,
    goal: tuple[str, float] | None = None,
) -> str:
    """Lines from `begins_at` to `ends_at`, which is later.

    Args:
        words: Of the plot.
        lines: Those that come first lie on top.
        begins_at: The left end.
        ends_at: The right end.
        goal: A level to be reached, and its name.
    """
    top = max([value for line in lines for _, value in line.points], default=0)
    values = number_ticks(max(top, goal[1] if goal else 0), whole=True)
    highest = values[-1]
    span_s = (ends_at - begins_at).total_seconds()

    def path(line: Line) -> str:
        steps = "".join(
            f"H{_WIDTH * (time - begins_at).total_seconds() / span_s:.1f}"
            f"V{PLOT_HEIGHT_PX * (1 - value / highest):.1f}"
            for time, value in line.points
        )
        return f'<path class="line {line.paint}" d="M0 {PLOT_HEIGHT_PX}{steps}H{_WIDTH}"/>'

    drawing = axes(
        [(value / highest, short_number(value)) for value in values],
        time_ticks(begins_at, ends_at),
    )
    if goal is not None:
        y = down(goal[1] / highest)
        drawing += (
            f'<line class="goal" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="100%" y="{y - 6:.1f}" text-anchor="end">{escape(goal[0])}'
            "</text>"
        )
    drawing += (
        f'<svg class="stretched" x="0" y="{PLOT_TOP_PX}" width="100%" height="{PLOT_HEIGHT_PX}" '
        f'viewBox="0 0 {_WIDTH} {PLOT_HEIGHT_PX}" preserveAspectRatio="none">'
        f"{''.join(path(line) for line in reversed(lines))}</svg>"
    )
    return figure(
        words,
        drawing,
        height_px=AXES_HEIGHT_PX,
        axed=True,
        legend=[(line.paint, line.label) for line in lines],
    )
