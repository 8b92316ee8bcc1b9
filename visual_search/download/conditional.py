"""Conditional requests: what to keep of an answer, to ask later whether anything has changed."""

import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from hashlib import sha256
from typing import Final

from multidict import CIMultiDictProxy
from yarl import URL

from visual_search.images import Validators

# RFC 9110, 8.8.3, in ASCII. Without quotes a tag could mean others: * is any version at all.
_ETAG: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e]*"')
_MAX_ETAG_CHARACTERS: Final = 256
_HASH_BYTES: Final = 8
_IF_NONE_MATCH: Final = "If-None-Match"
_IF_MODIFIED_SINCE: Final = "If-Modified-Since"
ASKING: Final = frozenset({_IF_NONE_MATCH, _IF_MODIFIED_SINCE})
_RESOLUTION: Final = timedelta(seconds=1)


def validators_of(url: URL, headers: CIMultiDictProxy[str]) -> Validators | None:
    """What `url` said of the version that it sent; `None` if nothing that can be relied on."""
    etag = headers.get("ETag", "").strip()
    if len(etag) > _MAX_ETAG_CHARACTERS or not _ETAG.fullmatch(etag):
        etag = ""
    modified, sent = _moment(headers.get("Last-Modified")), _moment(headers.get("Date"))
    # A picture may change twice in a second, and its date be the same before and after: only once
    # that second is over does a date stand for one version.
    if modified is None or sent is None or sent - modified < _RESOLUTION:
        modified = None
    if not etag and modified is None:
        return None
    return Validators(url_hash=_hash(url), etag=etag or None, last_modified=modified)


def conditions(url: URL, known: Validators | None) -> dict[str, str]:
    """The headers that ask `url` for a picture unless it is still the known one.

    None for another URL than the one that sent it, such as that of a placeholder, to which a
    picture that is gone redirects: its date may be older, and "not modified since" true.
    """
    if known is None or known.url_hash != _hash(url):
        return {}
    asked = {}
    if known.etag is not None:
        asked[_IF_NONE_MATCH] = known.etag
    if known.last_modified is not None:
        asked[_IF_MODIFIED_SINCE] = format_datetime(known.last_modified.astimezone(UTC), True)
    return asked


def _hash(url: URL) -> bytes:
    return sha256(str(url).encode()).digest()[:_HASH_BYTES]


def _moment(text: str | None) -> datetime | None:
    """An HTTP date; `None` if it is none."""
    try:
        date = parsedate_to_datetime(text or "")
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
