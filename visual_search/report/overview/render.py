"""The page about all models' work."""

from datetime import datetime
from html import escape
from typing import Final

from visual_search.redaction import printable
from visual_search.report.overview.content import ModelFacts, Overview
from visual_search.report.overview.trouble_sections import failures_section, slowest_hosts_section
from visual_search.report.overview.work_sections import (
    progress_section,
    shards_section,
    throughput_section,
)
from visual_search.report.page.document import document
from visual_search.report.page.stage_table import stage_section
from visual_search.report.page.table import Column, table
from visual_search.report.page.tiles import Tile, share_bar, tiles
from visual_search.report.page.wording import (
    count,
    headline,
    percent,
    short_moment,
    shortened,
    size,
)
from visual_search.runs import STAGES, RunRecord
from visual_search.status import duration

_PLACE_CHARACTERS: Final = 72


def render(content: Overview) -> str:
    """The page. All text in `content` is taken for text, never for HTML."""
    return document(
        title=shortened(printable(content.place), _PLACE_CHARACTERS),
        made_at=content.made_at,
        header=_header(content),
        sections=(
            _models_section(content),
            progress_section(content),
            throughput_section(content),
            _stages(content),
            failures_section(content),
            slowest_hosts_section(content),
            shards_section(content),
        ),
    )


def _header(content: Overview) -> str:
    statuses = [model.status for model in content.models]
    done, total = sum(s.done for s in statuses), sum(s.total for s in statuses)
    failed, waiting = sum(s.failed for s in statuses), sum(s.waiting for s in statuses)
    left = sum(s.left for s in statuses)
    if not statuses:
        return f"""\
<h1>No model has run on this catalogue yet</h1>
<p class="lead">It has {count(content.images, "image")}. <code>vsearch extract --model NAME</code> \
begins, <code>vsearch models list</code> names the models.</p>"""
    what = (
        f"{done:,} of {count(total, 'image')} have a vector"
        if len(statuses) == 1
        else f"{len(statuses):,} models, {percent(done, total)} done"
    )
    workers = sum(s.workers for s in statuses)
    rate = sum(s.images_per_second or 0 for s in statuses)
    slowest = max((s.eta_seconds for s in statuses if s.eta_seconds), default=None)
    numbers = (
        Tile(label="Vectors", value=headline(done), note=f"{percent(done, total)} of {total:,}"),
        Tile(
            label="Still to do",
            value=headline(left),
            note=_until_done(left, slowest),
        ),
        Tile(
            label="Failed for good",
            value=headline(failed),
            note=f"{percent(failed, total)} of {headline(total)}",
            kind="failed" if failed else "",
        ),
        Tile(
            label="Waiting",
            value=headline(waiting),
            note="tried again later",
            kind="waiting" if waiting else "",
        ),
        Tile(
            label="Workers",
            value=f"{workers:,}",
            note=f"{rate:,.1f} images per second" if rate else "at work now",
        ),
        Tile(
            label="On disk",
            value=size(sum(model.bytes for model in content.models)),
            note=count(sum(model.shards for model in content.models), "Parquet shard"),
        ),
    )
    return f"""\
<h1>{what}</h1>
<p class="lead">{_lead(content)}</p>
{tiles(numbers, done=done, failed=failed, waiting=waiting, left=left)}"""


def _until_done(left: int, seconds: float | None) -> str:
    if not left:
        return "all is done"
    return "due now" if seconds is None else f"about {duration(seconds)}"


def _lead(content: Overview) -> str:
    latest = content.runs[0] if content.runs else None
    said = f"The catalogue has <strong>{count(content.images, 'image')}</strong>."
    if latest is not None:
        said += (
            f" The latest run, of <strong>{escape(latest.model)}</strong>, "
            f"{_ended(latest, content.made_at)}."
        )
    return said


def _ended(run: RunRecord, now: datetime) -> str:
    ago = duration(max(0.0, (now - (run.finished_at or run.heartbeat_at)).total_seconds()))
    if run.finished_at is None:
        return f"last gave a sign of life {ago} ago"
    return f"{escape(run.outcome or 'ended')} {ago} ago"


def _models_section(content: Overview) -> str:
    if not content.models:
        return ""
    columns = (
        Column(head="Model", number=False),
        Column(head="Progress", number=False),
        Column(head="Done"),
        Column(head="Still to do"),
        Column(head="Waiting"),
        Column(head="Failed"),
        Column(head="On disk"),
        Column(head="Latest run (UTC)", number=False),
    )
    rows = [_model_row(model) for model in content.models]
    return f"""\
<section>
<h2>Models</h2>
<p>Every model has its own vectors, failures and shards. For each, the catalogue’s images are \
done, still to do, waiting or failed.</p>
{table("Models and how far they are", columns, rows)}
</section>"""


def _model_row(model: ModelFacts) -> tuple[str, ...]:
    status, run = model.status, model.status.last_run
    about = " · ".join(filter(None, (status.model_id, f"{model.dim:,} numbers", model.precision)))
    bar = share_bar(
        done=status.done, failed=status.failed, waiting=status.waiting, left=status.left
    )
    latest = "–"
    if run is not None:
        latest = (
            f'<span class="time">{short_moment(run.started_at)}</span><span class="note">'
            f"{escape(run.outcome or ('at work' if status.workers else 'no end recorded'))}</span>"
        )
    return (
        f'{escape(status.model)}<span class="note">{escape(about)}</span>',
        f'{bar}<span class="note">{percent(status.done, status.total)}</span>',
        f"{status.done:,}",
        f"{status.left:,}",
        f"{status.waiting:,}",
        f"{status.failed:,}",
        f'{size(model.bytes)}<span class="note">{count(model.shards, "shard")}</span>',
        latest,
    )


def _stages(content: Overview) -> str:
    runs = content.runs
    seconds = {
        stage: sum(run.core_seconds_per_stage.get(stage, 0.0) for run in runs) for stage in STAGES
    }
    of = "the latest run" if len(runs) == 1 else f"the latest {len(runs)} runs"
    return stage_section(seconds, sum(run.done + run.failed for run in runs), of=of)
