"""The page that shows what a model's vectors find, with pictures of it."""

from base64 import b64encode
from collections.abc import Iterable
from html import escape

from visual_search.report.page.document import document
from visual_search.report.page.failure_table import failure_table
from visual_search.report.page.stage_table import stage_section
from visual_search.report.page.tiles import Tile, tiles
from visual_search.report.page.wording import count, moment, percent, size
from visual_search.report.showcase.content import Facet, Match, Picture, Query, Showcase
from visual_search.runs import RunRecord
from visual_search.status import duration


def render(content: Showcase) -> str:
    """The page. All text in `content` is taken for text, never for HTML."""
    sections = (
        _contact_sheet(content),
        _stages(content.status.last_run),
        _failures(content),
        _facets(content.facets),
    )
    return document(
        title=content.title,
        made_at=content.made_at,
        header=_header(content),
        sections=sections,
    )


def _header(content: Showcase) -> str:
    status, run = content.status, content.status.last_run
    took = _took(run)
    lead = (
        f"<strong>{escape(status.model)}</strong> turned them into vectors of "
        f"{content.dim:,} numbers" + (f" in <strong>{escape(took)}</strong>" if took else "") + "."
    )
    left = [
        f"{images:,} {words}"
        for images, words in (
            (status.failed, "failed for good, each with its reason"),
            (status.waiting, "will be tried again"),
            (status.left, "still to do"),
        )
        if images
    ]
    if left:
        lead += f" {escape('; '.join(left))}."
    return f"""\
<h1>{status.done:,} of {status.total:,} images can be searched by their looks</h1>
<p class="lead">{lead}</p>
{_tiles(content)}
<dl class="facts">{_facts(content)}</dl>"""


def _tiles(content: Showcase) -> str:
    status, run = content.status, content.status.last_run
    rate = run.images_per_second if run else None
    return tiles(
        (
            Tile(
                label="Done",
                value=f"{status.done:,}",
                note=f"{percent(status.done, status.total)} of all",
            ),
            Tile(
                label="Failed for good",
                value=f"{status.failed:,}",
                note="reasons below",
                kind="failed" if status.failed else "",
            ),
            Tile(
                label="Waiting",
                value=f"{status.waiting:,}",
                note="tried again later",
                kind="waiting" if status.waiting else "",
            ),
            Tile(label="Speed", value=f"{rate:,.1f}" if rate else "–", note="images per second"),
            Tile(label="Vector", value=f"{content.dim:,}", note="dimensions"),
            Tile(
                label="On disk",
                value=size(content.bytes),
                note=count(content.shards, "Parquet shard"),
            ),
        ),
        done=status.done,
        failed=status.failed,
        waiting=status.waiting,
        left=status.left,
    )


def _facts(content: Showcase) -> str:
    status, run = content.status, content.status.last_run
    where = " · ".join(filter(None, (content.device, content.precision)))
    facts = [("Model", status.model), ("Model id", status.model_id)]
    if where:
        facts.append(("Device and precision" if content.device else "Precision", where))
    if run:
        facts.append(("Run", f"{moment(run.started_at)}, {run.outcome or 'no end recorded'}"))
    return "".join(
        f'<div><dt>{label}</dt><dd class="{"code" if label == "Model id" else ""}">'
        f"{escape(value)}</dd></div>"
        for label, value in facts
    )


def _contact_sheet(content: Showcase) -> str:
    if not content.queries:
        return ""
    rows = "\n".join(_query(query) for query in content.queries)
    return f"""\
<section>
<h2>What looks alike</h2>
<p>{count(len(content.queries), "image")} as queries, each with its nearest neighbours among \
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
    if run is None:
        return ""
    return stage_section(run.core_seconds_per_stage, run.done + run.failed, of="the last run")


def _failures(content: Showcase) -> str:
    if not content.failures:
        return ""
    return f"""\
<section>
<h2>What has no vector, and why</h2>
<p>An image that fails costs only itself. Each has its line in the ledger, with its reason: \
<code>vsearch failures list</code>.</p>
{failure_table(content.failures)}
</section>"""


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
