"""The document around a page's content: it needs nothing but itself, and may load nothing else."""

from datetime import datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Final

from visual_search import __version__
from visual_search.errors import StorageError
from visual_search.report.page.wording import moment
from visual_search.storage import Folder

_LOGO: Final = (
    '<svg viewBox="0 0 26 26" aria-hidden="true"><g fill="var(--line)">'
    '<circle cx="4" cy="4" r="3"/><circle cx="22" cy="4" r="3"/><circle cx="4" cy="22" r="3"/>'
    '<circle cx="13" cy="4" r="3"/><circle cx="22" cy="13" r="3"/></g><g fill="var(--done)">'
    '<circle cx="13" cy="13" r="4.4"/><circle cx="4" cy="13" r="3"/>'
    '<circle cx="13" cy="22" r="3"/><circle cx="22" cy="22" r="3"/></g></svg>'
)
_DOCUMENT: Final = Template("""\
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
<div class="brand">$logo<span>vsearch</span><span class="muted">$title</span></div>
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


def document(*, title: str, made_at: datetime, header: str, sections: tuple[str, ...]) -> str:
    """The whole page.

    Args:
        title: As text.
        made_at: When its numbers were read.
        header: HTML.
        sections: HTML of each; an empty one has nothing to say.
    """
    return _DOCUMENT.substitute(
        title=escape(title),
        style=Path(__file__).with_name("page.css").read_text(encoding="utf-8"),
        logo=_LOGO,
        header=header,
        main="\n".join(section for section in sections if section),
        version=escape(__version__),
        made_at=moment(made_at),
    )


def write_page(path: Path, html: str) -> int:
    """Write a page to `path`, whole or not at all; says how many bytes it has.

    Raises:
        StorageError: It cannot be written there.
    """
    content = html.encode()
    try:
        Folder(path.parent).write(path.name, content)
    except OSError as error:
        raise StorageError(f"cannot write the report {path}: {error.strerror}") from error
    return len(content)
