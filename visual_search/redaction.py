"""What of a URL may be shown: never its credentials, never its query."""

from urllib.parse import urlsplit, urlunsplit

_MAX_SHOWN = 300


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


def printable(text: str, limit: int = _MAX_SHOWN) -> str:
    """`text` on one line, without control characters, cut at `limit` characters."""
    clean = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: limit + 1])
    return clean if len(clean) <= limit else clean[:limit] + "…"


def mask_dsn(dsn: str) -> str:
    """A database URL with its password, and any in its query, replaced by `***`."""
    try:
        parts = urlsplit(dsn)
        netloc = parts.netloc
    except ValueError:
        return "***"
    if not parts.scheme or ("@" in dsn and not netloc):
        return "***"
    user, at, host = netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    query = "&".join(
        item if item.partition("=")[0] in ("host", "port", "sslmode", "dbname") else
        f"{item.partition('=')[0]}=***"
        for item in parts.query.split("&") if item
    )
    masked = f"{name}{':***' if colon else ''}{at}{host}"
    return urlunsplit((parts.scheme, masked, parts.path, query, ""))
