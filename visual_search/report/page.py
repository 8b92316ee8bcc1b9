"""The report as HTML: one page that needs nothing but itself, and may load nothing else."""

from base64 import b64encode
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Final

from visual_search import __version__
from visual_search.errors import StorageError
from visual_search.report import reasons
from visual_search.report.content import (
    Facet,
    FailureGroup,
    Match,
    Picture,
    Query,
    ReportContent,
)
from visual_search.runs import STAGES, RunRecord
from visual_search.status import duration

_STAGE_NOTES: Final = {
    "download": "network, checks, hashing",
    "decode": "JPEG, PNG, WebP … to pixels",
    "embed": "the model itself",
    "write": "Parquet shards",
    "database": "claims, records, heartbeats",
}
_LOGO: Final = (
    '<svg viewBox="0 0 26 26" aria-hidden="true"><g fill="var(--line)">'
    '<circle cx="4" cy="4" r="3"/><circle cx="22" cy="4" r="3"/><circle cx="4" cy="22" r="3"/>'
    '<circle cx="13" cy="4" r="3"/><circle cx="22" cy="13" r="3"/></g><g fill="var(--done)">'
    '<circle cx="13" cy="13" r="4.4"/><circle cx="4" cy="13" r="3"/>'
    '<circle cx="13" cy="22" r="3"/><circle cx="22" cy="22" r="3"/></g></svg>'
)
_PAGE: Final = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; \
style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">
<title>$title · vsearch report</title>
<style>
$style</style>
</head>
<body>
<header class="top">
$header
</header>
<main>
$main
</main>
<footer><p>Made by vsearch $version on $made_at. This page is complete in itself and loads nothing \
from anywhere.</p></footer>
</body>
</html>
""")


def write_report(path: Path, content: ReportContent) -> None:
    """Write the page to `path`, whole or not at all.

    Raises:
        StorageError: It cannot be written there.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(render(content), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write the report {path}: {error.strerror}") from error


def render(content: ReportContent) -> str:
    """The page. All text in `content` is taken for text, never for HTML."""
    sections = (
        _contact_sheet(content),
        _stages(content.status.last_run),
        _failures(content.failures),
        _facets(content.facets),
    )
    return _PAGE.substitute(
        title=escape(content.title),
        style=Path(__file__).with_name("page.css").read_text(encoding="utf-8"),
        header=_header(content),
        main="\n".join(section for section in sections if section),
        version=escape(__version__),
        made_at=_moment(content.made_at),
    )


def _header(content: ReportContent) -> str:
    status, run = content.status, content.status.last_run
    took = _took(run)
    lead = (
        f"<strong>{escape(status.model)}</strong> turned them into vectors of "
        f"{content.dim:,} numbers" + (f" in <strong>{escape(took)}</strong>" if took else "") + "."
    )
    left = [
        f"{count:,} {words}"
        for count, words in (
            (status.failed, "failed for good, each with its reason"),
            (status.waiting, "will be tried again"),
            (status.pending + status.claimed - status.waiting, "still to do"),
        )
        if count
    ]
    if left:
        lead += f" {escape('; '.join(left))}."
    return f"""\
<div class="brand">{_LOGO}<span>vsearch</span>\
<span class="muted">{escape(content.title)}</span></div>
<h1>{status.done:,} of {status.total:,} images can be searched by their looks</h1>
<p class="lead">{lead}</p>
<div class="figures card">{_tiles(content)}</div>
<dl class="facts">{_facts(content)}</dl>"""


def _tiles(content: ReportContent) -> str:
    status, run = content.status, content.status.last_run
    rate = run.images_per_second if run else None
    tiles = (
        ("", "Done", f"{status.done:,}", f"{_percent(status.done, status.total)} of all"),
        (
            "failed" if status.failed else "",
            "Failed for good",
            f"{status.failed:,}",
            "reasons below",
        ),
        (
            "waiting" if status.waiting else "",
            "Waiting",
            f"{status.waiting:,}",
            "tried again later",
        ),
        ("", "Speed", f"{rate:,.1f}" if rate else "–", "images per second"),
        ("", "Vector", f"{content.dim:,}", "dimensions"),
        ("", "On disk", _size(content.bytes), _count(content.shards, "Parquet shard")),
    )
    told = "".join(
        f'<div class="tile {kind}"><dt>{label}</dt><dd class="value">{value}</dd>'
        f'<dd class="note">{note}</dd></div>'
        for kind, label, value, note in tiles
    )
    still_open = status.pending + status.claimed - status.waiting
    parts = (
        ("done", status.done),
        ("failed", status.failed),
        ("waiting", status.waiting),
        ("open", still_open),
    )
    bar = "".join(f'<span class="{kind}" style="flex:{n}"></span>' for kind, n in parts if n)
    return f'<dl class="tiles">{told}</dl><div class="share" aria-hidden="true">{bar}</div>'


def _facts(content: ReportContent) -> str:
    status, run = content.status, content.status.last_run
    where = " · ".join(filter(None, (content.device, content.precision)))
    facts = [("Model", status.model), ("Model id", status.model_id)]
    if where:
        facts.append(("Device and precision" if content.device else "Precision", where))
    if run:
        facts.append(("Run", f"{_moment(run.started_at)}, {run.outcome or 'no end recorded'}"))
    return "".join(
        f'<div><dt>{label}</dt><dd class="{"code" if label == "Model id" else ""}">'
        f"{escape(value)}</dd></div>"
        for label, value in facts
    )


def _contact_sheet(content: ReportContent) -> str:
    if not content.queries:
        return ""
    rows = "\n".join(_query(query) for query in content.queries)
    return f"""\
<section>
<h2>What looks alike</h2>
<p>{_count(len(content.queries), "image")} as queries, each with its nearest neighbours among \
{content.compared:,} vectors by cosine similarity (1 is the same picture), the query itself left \
out. Nothing but the pictures decides: no title, category or colour name is looked at.\
{_agreement(content.queries)}</p>
<div class="rows">
{rows}
</div>
</section>"""


def _agreement(queries: Iterable[Query]) -> str:
    pairs = [
        match.picture.category == query.picture.category
        for query in queries
        for match in query.matches
        if query.picture.category and match.picture.category
    ]
    if not pairs:
        return ""
    agree = f"{sum(pairs):,} of the {len(pairs):,} neighbours"
    return f" <strong>{agree} are of their query’s category.</strong>"


def _query(query: Query) -> str:
    price = f'<p class="price">{escape(query.picture.price)}</p>' if query.picture.price else ""
    matches = "\n".join(_match(match) for match in query.matches)
    return f"""\
<article class="row card">
<div class="query"><p class="tag">Query</p>{_image(query.picture)}\
<h3>{escape(query.picture.title)}</h3>{price}</div>
<ol class="matches">
{matches}
</ol>
</article>"""


def _match(match: Match) -> str:
    price = match.picture.price
    return (
        f'<li class="match">{_image(match.picture)}'
        f'<span class="similarity">{match.similarity:.3f}</span>'
        f'<span class="title">{escape(match.picture.title)}</span>'
        + (f'<span class="price">{escape(price)}</span>' if price else "")
        + "</li>"
    )


def _image(picture: Picture) -> str:
    if picture.thumbnail is None:
        return '<div class="mat none">picture not available</div>'
    data = b64encode(picture.thumbnail).decode("ascii")
    return (
        f'<div class="mat"><img src="data:image/jpeg;base64,{data}" '
        f'alt="{escape(picture.title)}" decoding="async"></div>'
    )


def _stages(run: RunRecord | None) -> str:
    seconds = run.core_seconds_per_stage if run else {}
    total = sum(seconds.values())
    if run is None or total <= 0:
        return ""
    longest = max(seconds.values())
    images = max(1, run.done + run.failed)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(stage.capitalize())}<span class="note">'
        f"{escape(_STAGE_NOTES[stage])}</span></th>"
        f'<td class="bar"><svg aria-hidden="true" preserveAspectRatio="none" viewBox="0 0 100 1">'
        f'<rect width="{100 * seconds.get(stage, 0) / longest:.2f}" height="1"/></svg></td>'
        f'<td class="number">{seconds.get(stage, 0):,.2f} s</td>'
        f'<td class="number muted">{_percent(seconds.get(stage, 0), total)}</td></tr>'
        for stage in STAGES
    )
    return f"""\
<section>
<h2>Where the time went</h2>
<p>Processor time of the last run by stage, in core-seconds. The stages run at the same time, so \
their sum is not the time on the clock. It comes to {1000 * total / images:,.1f} core-milliseconds \
for each of {images:,} images.</p>
<div class="panel card"><table class="stages">
<thead><tr><th scope="col">Stage</th><td></td><th scope="col" class="number">Core-seconds</th>\
<th scope="col" class="number">Share</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
</section>"""


def _failures(groups: tuple[FailureGroup, ...]) -> str:
    if not groups:
        return ""
    final = [group for group in groups if group.next_attempt_at is None]
    waiting = [group for group in groups if group.next_attempt_at is not None]
    bodies = _failure_body(
        final, "failed", "Failed for good", "the image itself is at fault; a retry cannot help"
    ) + _failure_body(
        waiting,
        "waiting",
        "Waiting",
        "the network or the server is at fault; tried again by itself",
    )
    return f"""\
<section>
<h2>What has no vector, and why</h2>
<p>An image that fails costs only itself. Each has its line in the ledger, with its reason: \
<code>vsearch failures list</code>.</p>
<div class="panel card"><table class="failures">
<thead><tr><th scope="col">Reason</th><th scope="col" class="number">Images</th>\
<th scope="col">For example</th></tr></thead>
{bodies}
</table></div>
</section>"""


def _failure_body(groups: list[FailureGroup], kind: str, label: str, note: str) -> str:
    if not groups:
        return ""
    rows = "\n".join(_failure_row(group) for group in groups)
    images = sum(group.images for group in groups)
    return (
        f'<tbody><tr class="group"><th scope="rowgroup" colspan="3">'
        f'<span class="badge {kind}">{label}: {images:,}</span>'
        f'<span class="note">{note}</span></th></tr>\n{rows}</tbody>\n'
    )


def _failure_row(group: FailureGroup) -> str:
    due = group.next_attempt_at
    notes = [group.detail] if group.detail else []
    if due is not None:
        notes.append(f"next try {_moment(due)}")
    return (
        f'<tr><th scope="row">{escape(reasons.words(group.reason))}'
        f'<span class="note code">{escape(group.reason)}</span></th>'
        f'<td class="number">{group.images:,}</td><td class="example"><code>'
        f"{escape(group.example)}</code>"
        f'<span class="note">{escape(" · ".join(notes))}</span></td></tr>'
    )


def _facets(facets: tuple[Facet, ...]) -> str:
    if not facets:
        return ""
    cards = "\n".join(_facet(facet) for facet in facets)
    return f"""\
<section>
<h2>What the catalogue holds</h2>
<p>Products by the attributes that came with them: what a search can be narrowed by.</p>
<div class="facets">
{cards}
</div>
</section>"""


def _facet(facet: Facet) -> str:
    most = max(products for _, products in facet.products)
    values = "".join(
        f'<li><span>{escape(value)}</span><span class="number">{products:,}</span>'
        f'<span class="meter" aria-hidden="true"><span style="width:{100 * products / most:.1f}%">'
        "</span></span></li>"
        for value, products in facet.products
    )
    return (
        f'<div class="facet card"><h3>{escape(facet.attribute.replace("_", " "))}</h3>'
        f"<ul>{values}</ul></div>"
    )


def _took(run: RunRecord | None) -> str:
    if run is None or run.finished_at is None:
        return ""
    seconds = (run.finished_at - run.started_at).total_seconds()
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def _moment(time: datetime) -> str:
    return f"{time.astimezone(UTC):%d %B %Y, %H:%M} UTC".lstrip("0")


def _percent(part: float, whole: float) -> str:
    """Never 100 % with something missing, nor 0 % with something there."""
    share = 100 * part / whole if whole else 0.0
    if 0 < share < 0.1:
        return "< 0.1 %"
    shown = f"{min(share, 99.9) if part < whole else share:.1f}"
    return f"{shown.removesuffix('.0')} %"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _size(size: int) -> str:
    amount = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if round(amount, 1) < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"
