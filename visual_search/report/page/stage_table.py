"""Where processor time went, stage by stage."""

from collections.abc import Mapping
from html import escape
from typing import Final

from visual_search.report.page.wording import percent
from visual_search.runs import STAGES

_NOTES: Final = {
    "download": "network, checks, hashing",
    "decode": "JPEG, PNG, WebP … to pixels",
    "embed": "the model itself",
    "write": "Parquet shards",
    "database": "claims, records, heartbeats",
}


def stage_section(seconds: Mapping[str, float], images: int, *, of: str) -> str:
    """A section with a bar for each stage; nothing where no time was measured.

    Args:
        seconds: Processor time by stage.
        images: How many images it was spent on.
        of: Whose time it is, such as `the last run`.
    """
    total = sum(seconds.values())
    if total <= 0:
        return ""
    longest = max(seconds.values())
    rows = "\n".join(
        f'<tr><th scope="row">{escape(stage.capitalize())}<span class="note">'
        f"{escape(_NOTES[stage])}</span></th>"
        f'<td class="bar"><svg aria-hidden="true" preserveAspectRatio="none" viewBox="0 0 100 1">'
        f'<rect width="{100 * seconds.get(stage, 0) / longest:.2f}" height="1"/></svg></td>'
        f'<td class="number">{seconds.get(stage, 0):,.2f} s</td>'
        f'<td class="number muted">{percent(seconds.get(stage, 0), total)}</td></tr>'
        for stage in STAGES
    )
    return f"""\
<section>
<h2>Where the time went</h2>
<p>Processor time of {escape(of)} by stage, in core-seconds. The stages run at the same time, so \
their sum is not the time on the clock. It comes to {1000 * total / max(1, images):,.1f} \
core-milliseconds for each of {max(1, images):,} images.</p>
<div class="panel card"><table class="stages">
<thead><tr><th scope="col">Stage</th><td></td><th scope="col" class="number">Core-seconds</th>\
<th scope="col" class="number">Share</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
</section>"""
