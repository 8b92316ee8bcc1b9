"""Checked rows, ready to be copied into the database in one transaction."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from visual_search.catalog.readers import Rows
from visual_search.catalog.rows import (
    MAX_PRODUCT_ID_BYTES,
    BadRow,
    Record,
    RefusedRowError,
    checked_attributes,
    checked_id,
    checked_url,
)

MAX_ROWS: Final = 50_000
_MAX_BYTES: Final = 32_000_000
_NULL: Final = r"\N"


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Rows for one transaction, as tables in COPY's text format, in UTF-8.

    Each is sorted, so that storing it goes through the pages of its index in their order.

    Attributes:
        rows: How many rows it was made of.
        images: Key hash, image key, URL, host; each key once.
        products: Product id, attributes or NULL; each id once.
        links: Key hash and product id.
    """

    rows: int
    images: bytes = field(repr=False)
    products: bytes = field(repr=False)
    links: bytes = field(repr=False)


def chunks(rows: Rows, refuse: Callable[[BadRow], None]) -> Iterator[Chunk]:
    """Collect rows in chunks, hand bad ones to `refuse`. Of rows with one key the last one wins."""
    collector = _Collector()
    for record in rows:
        if isinstance(record, BadRow):
            refuse(record)
            continue
        try:
            collector.add(record)
        except RefusedRowError as error:
            refuse(BadRow(line=record.line, reason=str(error)))
            continue
        if collector.full:
            yield collector.chunk()
            collector = _Collector()
    if collector.rows:
        yield collector.chunk()


class _Collector:
    def __init__(self) -> None:
        self.rows = 0
        self._images: dict[str, str] = {}
        self._products: dict[str, str] = {}
        self._links: dict[str, None] = {}
        self._bytes = 0

    @property
    def full(self) -> bool:
        return self.rows >= MAX_ROWS or self._bytes >= _MAX_BYTES

    def add(self, record: Record) -> None:
        """Check a row and take it.

        Raises:
            RefusedRowError: It is a bad one; nothing of it is taken.
        """
        _, given_url, given_key, given_product, attributes = record
        url, host = checked_url(given_url)
        key = url if given_key is None else checked_id(given_key, "image key")
        product = _product_id(given_product, key)
        if attributes is not None:
            checked_attributes(attributes)
        hashed, product_id = hash_of_key(key), escaped(product)
        # Neither a URL nor a host has control characters.
        shown_url = url.replace("\\", r"\\")
        shown_key = shown_url if given_key is None else escaped(key)
        shown_host = host.replace("\\", r"\\")
        self._images[hashed] = f"{hashed}\t{shown_key}\t{shown_url}\t{shown_host}\n"
        self._links[f"{hashed}\t{product_id}\n"] = None
        if attributes is not None:
            # Nor has JSON outside its escapes.
            shown = attributes.replace("\\", r"\\")
            self._products[product] = f"{product_id}\t{shown}\n"
            self._bytes += len(attributes)
        elif product not in self._products:
            self._products[product] = f"{product_id}\t{_NULL}\n"
        self._bytes += len(key) + 2 * len(url)
        self.rows += 1

    def chunk(self) -> Chunk:
        return Chunk(
            rows=self.rows,
            images=in_order(self._images.values()),
            products=in_order(self._products.values()),
            links=in_order(self._links),
        )


def in_order(lines: Iterable[str]) -> bytes:
    """Lines of a table, sorted by how they begin."""
    return "".join(sorted(lines)).encode()


def hash_of_key(image_key: str) -> str:
    """`images.key_hash` as COPY reads it: the first 16 bytes of the key's sha256 in hex."""
    return rf"\\x{sha256(image_key.encode()).hexdigest()[:32]}"


def escaped(text: str) -> str:
    """`text` as a field of COPY's text format."""
    return text.replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n").replace("\r", r"\r")


def _product_id(given: object, key: str) -> str:
    """The product of a row: its own, or the image key, however long that is."""
    if given is None or given == "":
        if len(key) * 4 <= MAX_PRODUCT_ID_BYTES or len(key.encode()) <= MAX_PRODUCT_ID_BYTES:
            return key
        return f"sha256:{sha256(key.encode()).hexdigest()}"
    product = checked_id(given, "product id")
    if len(product) * 4 > MAX_PRODUCT_ID_BYTES < len(product.encode()):
        raise RefusedRowError(
            f"the product id has {len(product.encode()):,} bytes, limit {MAX_PRODUCT_ID_BYTES:,}"
        )
    return product
