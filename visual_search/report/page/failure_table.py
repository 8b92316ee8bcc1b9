"""What has no vector, reason by reason."""

from collections.abc import Sequence
from html import escape

from visual_search.report.failure_groups import FailureGroup
from visual_search.report.page import reasons
from visual_search.report.page.wording import moment


def failure_table(groups: Sequence[FailureGroup]) -> str:
    """Those that failed for good, then those that wait, each with an example."""
    bodies = _body(
        [group for group in groups if not group.waiting],
        "failed",
        "Failed for good",
        "the image itself is at fault; a retry cannot help",
    ) + _body(
        [group for group in groups if group.waiting],
        "waiting",
        "Waiting",
        "the network or the server is at fault; tried again by itself",
    )
    return f"""\
<div class="panel card"><table class="failures">
<thead><tr><th scope="col">Reason</th><th scope="col" class="number">Images</th>\
<th scope="col">For example</th></tr></thead>
{bodies}
</table></div>"""


def _body(groups: Sequence[FailureGroup], kind: str, label: str, note: str) -> str:
    if not groups:
        return ""
    rows = "\n".join(_row(group) for group in groups)
    images = sum(group.images for group in groups)
    return (
        f'<tbody><tr class="group"><th scope="rowgroup" colspan="3">'
        f'<span class="badge {kind}">{label}: {images:,}</span>'
        f'<span class="note">{note}</span></th></tr>\n{rows}</tbody>\n'
    )


def _row(group: FailureGroup) -> str:
    due = group.next_attempt_at
    notes = [group.detail] if group.detail else []
    if due is not None:
        notes.append(f"next try {moment(due)}")
    example = "" if group.example is None else f"<code>{escape(group.example)}</code>"
    return (
        f'<tr><th scope="row">{escape(reasons.words(group.reason))}'
        f'<span class="note code">{escape(group.reason)}</span></th>'
        f'<td class="number">{group.images:,}</td><td class="example">{example}'
        f'<span class="note">{escape(" · ".join(notes))}</span></td></tr>'
    )
