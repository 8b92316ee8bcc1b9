"""What was done: progress over time, speed run by run, the shards that were written."""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Final

from visual_search.redaction import printable, redact_urls
from visual_search.report.overview.content import Overview, Progress, ShardSizes, SizeBin
from visual_search.report.overview.growth import at_times
from visual_search.report.page.table import Column, table
from visual_search.report.page.wording import (
    count,
    moment,
    short_moment,
    short_number,
    shortened,
    size,
)
from visual_search.report.plots.columns import Upright, column_plot
from visual_search.report.plots.figure import SERIES, Paint, Words
from visual_search.report.plots.lines import Line, line_plot
from visual_search.report.plots.scale import Tick
from visual_search.runs import RunRecord
from visual_search.status import duration

_PERIODS: Final = 8
_SHORT_S: Final = 3600
_HEAD_CHARACTERS: Final = 18
# How many runs leave room for the time of the last one beside the first one's, and of one between.
_RUNS_FOR_LAST: Final = 8
_RUNS_FOR_MIDDLE: Final = 12
_MOST_EDGES: Final = 3


def progress_section(content: Overview) -> str:
    """Nothing where there was no run."""
    progress = content.progress
    if progress is None:
        return ""
    lines = [
        Line(label=growth.model, paint=paint, points=growth.points)
        for growth, paint in zip(progress.models, SERIES, strict=False)
    ]
    others = len(content.models) - len(lines)
    left_out = (
        f" The {len(lines)} models with the latest work are drawn; "
        "<code>vsearch report --model NAME</code> draws another."
        if others
        else ""
    )
    plot = line_plot(
        Words(
            name="progress",
            title="Images with a vector, over time (UTC)",
            description=_described(progress),
        ),
        lines,
        begins_at=progress.begins_at,
        ends_at=progress.ends_at,
        goal=("catalogue today", content.images) if content.images else None,
    )
    return f"""\
<section>
<h2>Progress</h2>
<p>From {moment(progress.begins_at)} to {moment(progress.ends_at)}, as shards were written. Images \
that were taken out of the catalogue since are not counted.{left_out}</p>
{plot}
{_periods(progress)}
</section>"""


def _described(progress: Progress) -> str:
    reached = "; ".join(
        f"{growth.model} reached {growth.points[-1][1] if growth.points else 0:,}"
        for growth in progress.models
    )
    return (
        f"Lines from {moment(progress.begins_at)} to {moment(progress.ends_at)}: {reached}. "
        "The table below has the numbers."
    )


def _periods(progress: Progress) -> str:
    step = (progress.ends_at - progress.begins_at) / _PERIODS
    times = [progress.begins_at + step * n for n in range(1, _PERIODS)] + [progress.ends_at]
    short = (progress.ends_at - progress.begins_at).total_seconds() < _SHORT_S
    reached = [at_times(growth.points, times) for growth in progress.models]
    columns = (
        Column(head="Until (UTC)", number=False),
        *(Column(head=shortened(growth.model, _HEAD_CHARACTERS)) for growth in progress.models),
    )
    rows = [
        (
            _time(f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if short else short_moment(time)),
            *(f"{numbers[n]:,}" for numbers in reached),
        )
        for n, time in enumerate(times)
    ]
    return table("Images with a vector, by time and model", columns, rows)


def throughput_section(content: Overview) -> str:
    """Nothing where there was no run."""
    if not content.runs:
        return ""
    drawn = [growth.model for growth in content.progress.models] if content.progress else []
    paints: dict[str, Paint] = dict(zip(drawn, SERIES, strict=False))
    oldest_first = content.runs[::-1]
    fastest = max(run.images_per_second or 0.0 for run in content.runs)
    shown = {run.model: paints.get(run.model, "other") for run in oldest_first}
    plot = column_plot(
        Words(
            name="throughput",
            title="Images per second, run by run",
            description=(
                f"Columns for the latest {count(len(content.runs), 'run')}, the newest at the "
                f"right; the fastest reached {fastest:,.1f} images per second. The table below "
                "has the numbers."
            ),
        ),
        [
            Upright(
                value=run.images_per_second or 0.0,
                paint=shown[run.model],
                note=f"{run.model}, {moment(run.started_at)}: {_rate(run)} images/s",
            )
            for run in oldest_first
        ],
        lambda breadth: _run_ticks(oldest_first, breadth),
        legend=_legend(shown),
    )
    columns = (
        Column(head="Started (UTC)", number=False),
        Column(head="Model", number=False),
        Column(head="Took"),
        Column(head="Done"),
        Column(head="Failed"),
        Column(head="Images/s"),
        Column(head="Outcome", number=False, wide=True),
    )
    return f"""\
<section>
<h2>Throughput</h2>
<p>The steady rate of each run: without start-up, loading of models and the last shard. Workers \
that run side by side have a run each.</p>
{plot}
{table("The latest runs", columns, [_run_row(run) for run in content.runs])}
</section>"""


def _legend(shown: dict[str, Paint]) -> list[tuple[Paint, str]]:
    """Models with a colour of their own, then all others."""
    named = sorted((paint, model) for model, paint in shown.items() if paint != "other")
    others: list[tuple[Paint, str]] = [("other", "other models")] * ("other" in shown.values())
    return named + others


def _run_ticks(runs: Sequence[RunRecord], breadth: float) -> list[Tick]:
    """When the first run began, the last one, and one in the middle."""
    ticks = [(0, False)]
    if len(runs) >= _RUNS_FOR_MIDDLE:
        ticks.append((len(runs) // 2, True))
    if len(runs) >= _RUNS_FOR_LAST:
        ticks.append((len(runs) - 1, False))
    return [
        Tick(at=breadth * (n + 0.5), label=_day_and_time(runs[n].started_at), minor=minor)
        for n, minor in ticks
    ]


def _day_and_time(time: datetime) -> str:
    time = time.astimezone(UTC)
    return f"{time.day} {time:%b %H:%M}"


def _run_row(run: RunRecord) -> tuple[str, ...]:
    outcome = escape(run.outcome or "no end recorded")
    if run.message:
        said = escape(redact_urls(printable(run.message, 200)))
        outcome += f'<span class="note">{said}</span>'
    host = escape(printable(run.host, 100))
    ended = run.finished_at or run.heartbeat_at
    return (
        _time(short_moment(run.started_at)),
        f'<span class="name">{escape(run.model)}</span><span class="note">on {host}</span>',
        duration((ended - run.started_at).total_seconds()),
        f"{run.done:,}",
        f"{run.failed:,}",
        _rate(run),
        outcome,
    )


def _time(shown: str) -> str:
    return f'<span class="time">{shown}</span>'


def _rate(run: RunRecord) -> str:
    return "–" if run.images_per_second is None else f"{run.images_per_second:,.1f}"


def shards_section(content: Overview) -> str:
    """Nothing where there is no shard."""
    rows, sizes = content.shard_rows, content.shard_bytes
    if rows is None or sizes is None:
        return ""
    return f"""\
<section>
<h2>Shard sizes</h2>
<p>A shard is full at <code>extract.shard_rows</code>, and closed earlier after \
<code>extract.shard_max_s</code> or at the end of a run. Many small ones cost readers time: \
<code>vsearch shards compact</code> merges them.</p>
<div class="pair">
<div>{_histogram(rows, "rows", "Rows", _rows_between, short_number)}</div>
<div>{_histogram(sizes, "bytes", "Size", _bytes_between, size)}</div>
</div>
</section>"""


def _histogram(
    sizes: ShardSizes,
    name: str,
    head: str,
    between: Callable[[SizeBin], str],
    edge: Callable[[float], str],
) -> str:
    shards = sum(bin_.shards for bin_ in sizes.bins)
    plot = column_plot(
        Words(
            name=f"shard-{name}",
            title=f"Shards by {name}",
            description=(
                f"A histogram of {count(shards, 'shard')}; half of them have {edge(sizes.median)} "
                f"or less, the largest has {edge(sizes.largest)}. The table below has the numbers."
            ),
        ),
        [
            Upright(
                value=bin_.shards,
                paint="done",
                note=f"{between(bin_)}: {count(bin_.shards, 'shard')}",
            )
            for bin_ in sizes.bins
        ],
        lambda breadth: _edges(sizes.bins, breadth, edge),
        whole=True,
    )
    rows = [(between(bin_), f"{bin_.shards:,}") for bin_ in sizes.bins if bin_.shards]
    columns = (Column(head=head, number=False), Column(head="Shards"))
    return f"{plot}\n{table(f'Shards by {name}', columns, rows)}"


def _edges(bins: Sequence[SizeBin], breadth: float, edge: Callable[[float], str]) -> list[Tick]:
    """Where some of the bins begin."""
    every = math.ceil(1 / breadth / _MOST_EDGES)
    return [
        Tick(at=breadth * n, label=edge(bin_.begins))
        for n, bin_ in enumerate(bins)
        if n % every == 0
    ]


def _rows_between(bin_: SizeBin) -> str:
    return f"{bin_.begins:,.0f} – {bin_.ends - 1:,.0f}"


def _bytes_between(bin_: SizeBin) -> str:
    return f"{size(bin_.begins)} – {size(bin_.ends)}"
