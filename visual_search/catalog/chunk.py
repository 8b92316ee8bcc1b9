"""Checked rows, ready to be stored in one transaction.

Whole columns are worked on: taken one by one, rows would cost twice as much.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visual_search.catalog.arrays import Positions, joined, patched, where
from visual_search.catalog.rows import (
    MAX_ATTRIBUTES_BYTES,
    MAX_PRODUCT_ID_BYTES,
    MAX_URL_CHARS,
    BadRow,
    Block,
    Blocks,
    Column,
    RefusedRowError,
    checked_attributes,
    checked_id,
    checked_url,
)

MAX_ROWS: Final = 20_000
_MAX_BYTES: Final = 32_000_000

# A URL whose host is what it looks like, and in which nothing is escaped. Nearly all are such.
_PLAIN_URL: Final = r"^https?://(?P<host>[a-z0-9][a-z0-9._-]*)(?:/[ -\[\]-~]*)?$"
# Some of these Postgres cannot hold.
_ODD_ATTRIBUTES: Final = r"\\u(?:d|0000)"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Rows for one transaction; of rows with the same key or product the last one counts.

    Lines are those of COPY's text format. All is sorted, so that storing it goes through the
    pages of an index in their order.

    Attributes:
        rows: How many rows it was made of.
        hashes: (images,) of their keys, in hex.
        images: (images,) key, key hash, URL, host: lines without a first field, the image id.
        product_ids: (products,)
        products: (products,) id, attributes: lines.
        described: (products,) Whether a row has attributes.
        linked_products: (links,) product ids as fields of a line.
        linked_images: (links,) the positions of their images in `hashes`.
    """

    rows: int
    hashes: pa.StringArray = field(repr=False)
    images: pa.StringArray = field(repr=False)
    product_ids: pa.StringArray = field(repr=False)
    products: pa.StringArray = field(repr=False)
    described: pa.BooleanArray = field(repr=False)
    linked_products: pa.StringArray = field(repr=False)
    linked_images: Positions = field(repr=False)


def collect(blocks: Blocks, refuse: Callable[[BadRow], None]) -> Iterator["Collected"]:
    """Check rows and hand them on, so many at a time as a chunk has; hand bad ones to `refuse`."""
    collected = Collected()
    for block in blocks:
        for bad in collected.add(block):
            refuse(bad)
        if collected.full:
            yield collected
            collected = Collected()
    if collected.rows:
        yield collected


class Collected:
    """Good rows in the order of their source."""

    def __init__(self) -> None:
        self.rows = 0
        self._bytes = 0
        self._blocks: list[_Columns] = []

    @property
    def full(self) -> bool:
        return self.rows >= MAX_ROWS or self._bytes >= _MAX_BYTES

    def add(self, block: Block) -> list[BadRow]:
        """Take the rows that are good; return all others in their order."""
        if not len(block.lines):
            return list(block.bad)
        checked = _Checked(block)
        columns = checked.columns()
        self._blocks.append(columns)
        self._bytes += sum(column.nbytes for column in columns)
        self.rows += len(columns.keys)
        refused = (
            BadRow(line=block.lines[position], reason=reason)
            for position, reason in checked.refused.items()
        )
        return sorted((*block.bad, *refused), key=lambda row: row.line)

    def chunk(self) -> Chunk:
        """All of them in the order and form in which they are stored."""
        rows = _Columns(*map(pa.concat_arrays, zip(*self._blocks, strict=True)))
        hashes, image_of = _grouped(rows.hashes)
        product_ids, product_of = _grouped(rows.products)
        last = _last(image_of, np.arange(self.rows), of=len(hashes))
        key, url, host = (column.take(last) for column in (rows.keys, rows.urls, rows.hosts))
        said = np.flatnonzero(rows.attributes.is_valid())
        last = _last(product_of[said], said, of=len(product_ids))
        attributes = rows.attributes.take(pa.array(last, mask=last < 0))
        # JSON in ASCII has nothing else to escape.
        shown_attributes = pc.replace_substring(attributes.fill_null("{}"), "\\", r"\\")
        product = _fields(product_ids)
        pairs = np.unique(product_of * len(hashes) + image_of)
        return Chunk(
            rows=self.rows,
            hashes=hashes,
            images=joined(key, "\t\\\\x", hashes, "\t", url, "\t", host, "\n"),
            product_ids=product_ids,
            products=joined(product, "\t", shown_attributes, "\n"),
            described=attributes.is_valid(),
            linked_products=product.take(pairs // len(hashes)),
            linked_images=pairs % len(hashes),
        )


class _Columns(NamedTuple):
    """Rows that were checked, column by column; keys, URLs and hosts as fields of a line."""

    keys: pa.StringArray
    hashes: pa.StringArray
    urls: pa.StringArray
    hosts: pa.StringArray
    products: pa.StringArray
    attributes: pa.StringArray


class _Checked:
    """Columns of rows that can be taken, but for the positions in `refused`.

    What is plain is seen for a column as a whole, what is not is looked at row by row.
    """

    def __init__(self, block: Block) -> None:
        self.refused: dict[int, str] = {}
        self._odd = False
        self._rows = len(block.lines)
        self._urls, self._hosts = self._checked_urls(block.urls)
        self._keys = self._checked_keys(block.image_keys)
        self._products = self._checked_products(block.product_ids)
        self._attributes = self._checked_attributes(block.attributes)

    def columns(self) -> _Columns:
        """All that is not refused."""
        rows = self._keys, self._urls, self._hosts, self._products, self._attributes
        if self.refused:
            kept = np.ones(self._rows, bool)
            kept[list(self.refused)] = False
            rows = tuple(column.filter(kept) for column in rows)
        keys, urls, hosts, products, attributes = rows
        hashes = pa.array([hash_of_key(key) for key in keys.to_pylist()], pa.string())
        if self._odd:
            keys, urls, hosts = map(_fields, (keys, urls, hosts))
        return _Columns(keys, hashes, urls, hosts, products, attributes)

    def _checked_urls(self, values: Column) -> tuple[pa.StringArray, pa.StringArray]:
        urls = self._text(values)
        hosts = pc.struct_field(pc.extract_regex(urls, _PLAIN_URL), "host")
        odd = where(pc.invert(pc.and_(pc.is_valid(hosts), _is_short(urls, MAX_URL_CHARS))))
        checked = self._each(odd, lambda position: checked_url(_cell(values, position)))
        found = [("", "") if pair is None else pair for pair in checked]
        return patched(urls, odd, [u for u, _ in found]), patched(hosts, odd, [h for _, h in found])

    def _checked_keys(self, values: Column) -> pa.StringArray:
        if values is None:
            return self._urls
        keys = self._text(values)
        odd = where(pc.invert(_is_plain(keys, MAX_URL_CHARS)))

        def check(position: int) -> str:
            given = _cell(values, position)
            return checked_id(_cell(self._urls, position) if given is None else given, "image key")

        return patched(keys, odd, self._each(odd, check))

    def _checked_products(self, values: Column) -> pa.StringArray:
        """The products of images: their own, or the image keys, however long those are."""
        products = self._keys if values is None else self._text(values)
        odd = where(pc.invert(_is_plain(products, MAX_PRODUCT_ID_BYTES)))
        checked = self._each(
            odd, lambda position: _product_id(_cell(values, position), _cell(self._keys, position))
        )
        return patched(products, odd, checked)

    def _checked_attributes(self, values: Column) -> pa.StringArray:
        attributes = self._text(values)
        suspicious = pc.or_(
            pc.match_substring_regex(attributes, _ODD_ATTRIBUTES),
            pc.invert(_is_short(attributes, MAX_ATTRIBUTES_BYTES)),
        )
        odd = where(pc.and_kleene(pc.is_valid(attributes), suspicious))
        self._each(odd, lambda position: checked_attributes(_cell(attributes, position)))
        return attributes

    def _text(self, values: Column) -> pa.StringArray:
        """Values as text, null where there is none."""
        if isinstance(values, pa.StringArray):
            return values
        if values is None:
            return pa.nulls(self._rows, pa.string())
        if set(map(type, values)) <= {str, type(None)}:
            with suppress(ValueError):  # not UTF-8
                return pa.array(values, pa.string())
        return pa.array(
            [value if type(value) is str and value.isprintable() else None for value in values],
            pa.string(),
        )

    def _each(self, positions: Positions, check: Callable[[int], T]) -> list[T | None]:
        """Check rows one by one, unless they are refused already; `None` where one is refused."""
        self._odd |= len(positions) > 0
        checked: list[T | None] = []
        for position in positions.tolist():
            try:
                checked.append(None if position in self.refused else check(position))
            except RefusedRowError as error:
                self.refused[position] = str(error)
                checked.append(None)
        return checked


def hash_of_key(image_key: str) -> str:
    """`images.key_hash` in hex: the first 16 bytes of the key's sha256."""
    return sha256(image_key.encode()).hexdigest()[:32]


def escaped(text: str) -> str:
    """`text` as a field of COPY's text format."""
    return text.replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n").replace("\r", r"\r")


def _fields(texts: pa.StringArray) -> pa.StringArray:
    if pc.all(_is_plain(texts, MAX_URL_CHARS)).as_py():
        return texts
    return pa.array([escaped(text) for text in texts.to_pylist()], pa.string())


def _cell(column: Column, position: int) -> Any:
    if column is None:
        return None
    return column[position].as_py() if isinstance(column, pa.StringArray) else column[position]


def _is_plain(texts: pa.StringArray, max_bytes: int) -> pa.BooleanArray:
    """Which are printable ASCII without a backslash, neither null nor empty nor too long."""
    printable = pc.and_not(pc.ascii_is_printable(texts), pc.match_substring(texts, "\\"))
    size = pc.and_(_is_short(texts, max_bytes), pc.greater(pc.binary_length(texts), 0))
    return pc.fill_null(pc.and_(printable, size), fill_value=False)


def _is_short(texts: pa.StringArray, max_bytes: int) -> pa.BooleanArray:
    return pc.less_equal(pc.binary_length(texts), max_bytes)


def _grouped(values: pa.StringArray) -> tuple[pa.StringArray, Positions]:
    """Each value once, sorted, and where among these each one is."""
    encoded = values.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return encoded.dictionary.take(order), place[encoded.indices]


def _last(group_of: Positions, rows: Positions, *, of: int) -> Positions:
    """The last row of each of the groups; -1: it has none."""
    last = np.full(of, -1)
    last[group_of] = rows
    return last


def _product_id(given: Any, key: str) -> str:
    if given is None or given == "":
        if len(key.encode()) <= MAX_PRODUCT_ID_BYTES:
            return key
        return f"sha256:{sha256(key.encode()).hexdigest()}"
    product = checked_id(given, "product id")
    if len(product.encode()) > MAX_PRODUCT_ID_BYTES:
        raise RefusedRowError(
            f"the product id has {len(product.encode()):,} bytes, limit {MAX_PRODUCT_ID_BYTES:,}"
        )
    return product
