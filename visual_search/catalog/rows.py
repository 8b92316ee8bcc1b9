"""What a row of a catalogue says, and why one is refused."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from heapq import merge
from itertools import repeat
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import pyarrow as pa
from yarl import URL

MAX_URL_CHARS: Final = 8_192
MAX_ATTRIBUTES_BYTES: Final = 1_000_000
# Both columns of product_images' key fit one index entry (2,704 bytes) up to this length.
MAX_PRODUCT_ID_BYTES: Final = 2_000
MAX_LISTED_BAD_ROWS: Final = 1_000
BLOCK_ROWS: Final = 512
_BLOCK_BYTES: Final = 4_000_000

# Not by IGNORECASE, for which "ſ" is an "s".
_ORIGIN: Final = re.compile(r"[hH][tT][tT][pP][sS]?://[^/?#]+")
_NEVER_IN_URLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NOT_TEXT: Final = re.compile(r"[\x00\ud800-\udfff]")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# JSON in ASCII whose escapes Postgres takes: no NUL, surrogates in pairs only.
_STORABLE_JSON: Final = re.compile(
    r"(?:[^\\]++|\\[^u]|\\u(?!0000|d[89a-f])[0-9a-f]{4}"
    r"|\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})*+"
)


class Record(NamedTuple):
    """A row as a reader finds it, nothing checked yet.

    Attributes:
        line: Where the row begins: line of a text file, row of a Parquet file or a query, from 1.
        image_key: `None` where no column holds keys.
        product_id: `None` where no column holds ids, or this row has none.
        attributes: A JSON object in ASCII; `None` if the row says nothing about the product.
    """

    line: int
    url: object
    image_key: object
    product_id: object
    attributes: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRow:
    """A row that was not taken, and why. The reason quotes nothing of a URL: it may be signed."""

    line: int
    reason: str


class BadRows:
    """Counts bad rows, remembers the first."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[BadRow] = []

    def add(self, row: BadRow) -> None:
        """Count a row."""
        self.count += 1
        if len(self.first) < MAX_LISTED_BAD_ROWS:
            self.first.append(row)


class RefusedRowError(ValueError):
    """The row at hand cannot be taken; the message is a `BadRow`'s reason."""


# `None`: nothing but `None`.
Column: TypeAlias = pa.StringArray | Sequence[object] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Some rows, column by column: the cells of `Record`s, and the bad rows among them."""

    lines: Sequence[int]
    urls: Column
    image_keys: Column
    product_ids: Column
    attributes: Column
    bad: Sequence[BadRow] = ()

    def rows(self) -> Iterator[Record | BadRow]:
        """All rows in their order."""
        columns = (self.urls, self.image_keys, self.product_ids, self.attributes)
        cells: list[Iterable[Any]] = [
            column.to_pylist()
            if isinstance(column, pa.StringArray)
            else repeat(None, len(self.lines))
            if column is None
            else column
            for column in columns
        ]
        return merge(map(Record, self.lines, *cells), self.bad, key=lambda row: row.line)


Blocks = Iterator[Block]


def in_blocks(rows: Iterable[Record | BadRow]) -> Blocks:
    """Rows together, few enough to stay in the processor's cache while they are worked on."""
    records: list[Record] = []
    bad: list[BadRow] = []
    size = 0
    for row in rows:
        if isinstance(row, BadRow):
            bad.append(row)
        else:
            records.append(row)
            size += sum(len(cell) for cell in row if isinstance(cell, str))
        if len(records) + len(bad) >= BLOCK_ROWS or size >= _BLOCK_BYTES:
            yield _block(records, bad)
            records, bad, size = [], [], 0
    if records or bad:
        yield _block(records, bad)


def _block(records: Sequence[Record], bad: Sequence[BadRow]) -> Block:
    if not records:
        return Block(
            lines=(), urls=None, image_keys=None, product_ids=None, attributes=None, bad=bad
        )
    lines, urls, keys, products, attributes = zip(*records, strict=True)
    return Block(
        lines=lines,
        urls=_given(urls),
        image_keys=_given(keys),
        product_ids=_given(products),
        attributes=_given(attributes),
        bad=bad,
    )


def _given(cells: Sequence[object]) -> Sequence[object] | None:
    return None if cells.count(None) == len(cells) else cells


def host_of(url: str) -> str:
    """The host of an http(s) URL as `images.host` has it: `shop.test`, `shop.test:8080`, `[::1]`.

    In ASCII and lower case, as downloads name it, with the port unless it is the scheme's own.

    Raises:
        ValueError: Host or port cannot be read.
    """
    parts = urlsplit(url)
    host = parts.hostname
    if not host:
        raise ValueError("no host")
    if not host.isascii():
        host = URL.build(scheme="http", host=host).raw_host or ""
    if ":" in host:
        host = f"[{host}]"
    if parts.port is None or parts.port == _DEFAULT_PORTS.get(parts.scheme):
        return host
    return f"{host}:{parts.port}"


# A catalogue has few hosts; a hostile one must not fill the memory.
@lru_cache(maxsize=4096)
def _host_of_origin(origin: str) -> str:
    if not _ORIGIN.match(origin):
        raise ValueError("no origin")
    return host_of(origin)


def checked_url(url: object) -> tuple[str, str]:
    """`url` and its host.

    Raises:
        RefusedRowError: It is empty, too long, not http(s), or has control characters.
    """
    if type(url) is str and len(url) <= MAX_URL_CHARS and not _NEVER_IN_URLS.search(url):
        # Without its path, a URL is one of few.
        end = url.find("/", len("https://"))
        with suppress(ValueError):
            return url, _host_of_origin(url if end < 0 else url[:end])
    raise RefusedRowError(_what_is_wrong(url))


def checked_id(value: object, name: str) -> str:
    """An image key or product id as text; whole numbers are written in digits.

    Raises:
        RefusedRowError: It is empty, too long, or not text that Postgres can hold.
    """
    if type(value) is not str:
        value = _whole_number(value, name)
    if not value:
        raise RefusedRowError(f"the {name} is empty")
    if len(value) > MAX_URL_CHARS:
        raise RefusedRowError(f"the {name} has {len(value):,} characters, limit {MAX_URL_CHARS:,}")
    if (not value.isascii() or "\0" in value) and _NOT_TEXT.search(value):
        raise RefusedRowError(f"the {name} has a NUL character or is not UTF-8")
    return value


def checked_attributes(attributes: str) -> str:
    """A JSON object in ASCII, as jsonb takes it.

    Raises:
        RefusedRowError: It is too large, or has text that Postgres cannot hold.
    """
    if len(attributes) > MAX_ATTRIBUTES_BYTES:
        raise RefusedRowError(
            f"the attributes have {len(attributes):,} bytes, limit {MAX_ATTRIBUTES_BYTES:,}"
        )
    if not _STORABLE_JSON.fullmatch(attributes):
        raise RefusedRowError("an attribute has a NUL character or is not UTF-8")
    return attributes


def _what_is_wrong(url: object) -> str:  # noqa: PLR0911 - one for each thing that can be wrong
    if url is None or url == "":
        return "the URL is empty"
    if not isinstance(url, str):
        return f"the URL is not text but {type(url).__name__}"
    if len(url) > MAX_URL_CHARS:
        return f"the URL has {len(url):,} characters, limit {MAX_URL_CHARS:,}"
    if control := _CONTROL.search(url):
        return f"the URL has a control character at position {control.start() + 1}"
    if _NOT_TEXT.search(url):
        return "the URL is not UTF-8"
    if _ORIGIN.match(url):
        return "the URL's host or port cannot be read"
    if url.lower().startswith(("http://", "https://")):
        return "the URL has no host"
    return "the URL does not begin with http:// or https://"


def _whole_number(value: object, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    # Columns of whole numbers with gaps arrive as floats from pandas, as decimals from Postgres.
    try:
        whole = int(value)  # type: ignore[call-overload] # whatever has no __int__ raises
    except (TypeError, ValueError, OverflowError):
        whole = None
    if whole is None or isinstance(value, bool) or whole != value:
        raise RefusedRowError(f"the {name} is neither text nor a whole number")
    return str(whole)
