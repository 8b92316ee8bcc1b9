"""What of a URL may be shown: never its credentials, never its query."""

import re
from urllib.parse import urlsplit, urlunsplit

_MAX_SHOWN = 300
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)
_PLACE = r"(?:\[[^\s=\]]*\]|[^\s=:/,\[]*)(?::[0-9]*)?"
_ADDRESS = re.compile(rf"{_PLACE}(?:,{_PLACE})*(?:/[^\s=:]*)?")
_HARMLESS = frozenset({"host", "port", "sslmode", "dbname", "region", "scheme"})


def redact_url(url: str) -> str:
    """`url` without user, password, query and fragment, control characters escaped.

    Signed URLs carry their secret in the query, others in the user part. A URL that cannot be
    parsed is shown as its scheme only.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if ":" in host:
            host = f"[{host}]"
        if parts.port is not None:
            host = f"{host}:{parts.port}"
    except ValueError:
        return f"{url.partition(':')[0][:20]!r}: unreadable URL"
    query = "…" if parts.query else ""
    shown = urlunsplit((parts.scheme, host, parts.path, query, ""))
    return printable(shown)


def redact_urls(text: str) -> str:
    """`text`, whatever it is, with each URL in it as `redact_url` shows it."""
    return _URL.sub(lambda found: redact_url(found[0]), text)


def printable(text: str, limit: int | None = _MAX_SHOWN) -> str:
    """`text` on one line, without control characters, cut at `limit` characters if there is one."""
    start = text if limit is None else text[: limit + 1]
    clean = "".join(c if c.isprintable() else repr(c)[1:-1] for c in start)
    return clean if limit is None or len(clean) <= limit else clean[:limit] + "…"


def mask_dsn(dsn: str) -> str:
    """A database URL with its password, and what its query may hide, replaced by `***`.

    Passwords are often pasted in unescaped, and SQLAlchemy takes them so: everything up to the
    last `@` counts as credentials.
    """
    scheme, there, rest = dsn.partition("://")
    credentials, at, place = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    if not there or any(mark in user for mark in "/?#"):
        return "***"
    address, asked, query = place.partition("?")
    # What is not a host, a port of digits and a name may be anything.
    if not _ADDRESS.fullmatch(address):
        return "***"
    shown = "&".join(
        item if name in _HARMLESS else f"{name}=***"
        for item in query.split("&")
        if (name := item.partition("=")[0])
    )
    return f"{scheme}://{user}{':***' if colon else ''}{at}{address}{asked}{shown}"
