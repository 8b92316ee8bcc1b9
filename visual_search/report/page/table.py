"""Tables; those of several columns become a list of their rows where the page is narrow."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A column and its head.

    Attributes:
        number: Its cells stand at the right.
        wide: They may be long, and get a line of their own where the page is narrow.
    """

    head: str
    number: bool = True
    wide: bool = False


def table(name: str, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> str:
    """A table.

    Args:
        name: What it is about, for those who do not see where it stands.
        columns: The first one's cells name their rows.
        rows: HTML of each cell.
    """
    heads = "".join(
        f'<th scope="col"{_classes(column)}>{escape(column.head)}</th>' for column in columns
    )
    body = "\n".join(_row(columns, row) for row in rows)
    kind = "list stacks" if len(columns) > 2 else "list"
    return f"""\
<div class="panel card"><table class="{kind}"><caption>{escape(name)}</caption>
<thead><tr>{heads}</tr></thead>
<tbody>
{body}
</tbody></table></div>"""


def _row(columns: Sequence[Column], row: Sequence[str]) -> str:
    first, *others = row
    cells = "".join(
        f'<td{_classes(column)} data-head="{escape(column.head)}">{cell}</td>'
        for column, cell in zip(columns[1:], others, strict=True)
    )
    return f'<tr><th scope="row">{first}</th>{cells}</tr>'


def _classes(column: Column) -> str:
    names = ["number"] * column.number + ["wide"] * column.wide
    return f' class="{" ".join(names)}"' if names else ""
