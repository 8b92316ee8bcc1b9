"""Checked rows, ready to be stored in one transaction."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from operator import add
from typing import Final, cast

from visual_search.catalog.readers import Rows
from visual_search.catalog.rows import (
    MAX_PRODUCT_ID_BYTES,
    BadRow,
    Record,
    RefusedRowError,
    are_plain,
    check_attributes,
    checked_hosts,
    checked_id,
    checked_ids,
)

MAX_ROWS: Final = 50_000
_MAX_BYTES: Final = 32_000_000
# Checked column by column, which takes half the time of row by row. Few, since a row can be large.
_ROWS_AT_ONCE: Final = 64
_HASH_CHARS: Final = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Rows for one transaction; of rows with the same key or product the last one counts.

    Attributes:
        rows: How many rows it was made of.
        images: By key hash, in hex: key, key hash, URL, host, a line of COPY's text format.
        products: By product id: product id, attributes, a line; `None` if no row has any.
        links: Product id, a field, and key hash, one after the other.
    """

    rows: int
    images: dict[str, str] = field(repr=False)
    products: dict[str, str | None] = field(repr=False)
    links: dict[str, None] = field(repr=False)


def chunks(rows: Rows, refuse: Callable[[BadRow], None]) -> Iterator[Chunk]:
    """Collect rows in chunks, hand bad ones to `refuse`."""
    collector = _Collector()
    while block := list(islice(rows, min(_ROWS_AT_ONCE, MAX_ROWS - collector.rows))):
        for bad in collector.add(block):
            refuse(bad)
        if collector.full:
            yield collector.chunk()
            collector = _Collector()
    if collector.rows:
        yield collector.chunk()


class _Collector:
    def __init__(self) -> None:
        self.rows = 0
        self._images: dict[str, str] = {}
        self._products: dict[str, str | None] = {}
        self._links: dict[str, None] = {}
        self._bytes = 0

    @property
    def full(self) -> bool:
        return self.rows >= MAX_ROWS or self._bytes >= _MAX_BYTES

    def add(self, block: Sequence[Record | BadRow]) -> list[BadRow]:
        """Take the rows that are good; return the others, of which nothing is taken."""
        records = [row for row in block if isinstance(row, Record)]
        try:
            self._take(records)
        except RefusedRowError as error:
            if len(block) == 1:
                return [BadRow(line=records[0].line, reason=str(error))]
        else:
            if len(records) == len(block):
                return []
            return [row for row in block if isinstance(row, BadRow)]
        middle = len(block) // 2
        return self.add(block[:middle]) + self.add(block[middle:])

    def _take(self, records: Sequence[Record]) -> None:
        """Check rows, and take all of them.

        Raises:
            RefusedRowError: One is a bad one; none is taken.
        """
        if not records:
            return
        _, urls, given_keys, given_products, attributes = zip(*records, strict=True)
        hosts = checked_hosts(urls)
        keys = _keys(given_keys, urls)
        products = _product_ids(given_products, keys)
        said = [document for document in attributes if document is not None]
        check_attributes(said)
        hashes = [hash_of_key(key) for key in keys]
        shown = zip(_fields(keys), hashes, _fields(urls), _fields(hosts), strict=True)
        lines = [f"{key}\t\\\\x{hashed}\t{url}\t{host}\n" for key, hashed, url, host in shown]
        self._images.update(zip(hashes, lines, strict=True))
        named = _fields(products)
        self._links.update(dict.fromkeys(map(add, named, hashes)))
        self._bytes += sum(map(len, lines)) + sum(map(len, said))
        self.rows += len(records)
        if len(said) < len(records):
            for product in products:
                self._products.setdefault(product, None)
            products = [p for p, a in zip(products, attributes, strict=True) if a is not None]
            named = _fields(products)
        lines = [f"{name}\t{data}\n" for name, data in zip(named, _fields(said), strict=True)]
        self._products.update(zip(products, lines, strict=True))

    def chunk(self) -> Chunk:
        return Chunk(
            rows=self.rows, images=self._images, products=self._products, links=self._links
        )


def hash_of_key(image_key: str) -> str:
    """`images.key_hash` in hex: the first 16 bytes of the key's sha256."""
    return sha256(image_key.encode()).hexdigest()[:_HASH_CHARS]


def linked(links: Iterable[str], ids: Mapping[str, int]) -> Iterator[str]:
    """Links of images that have ids as lines of COPY's text format: product id, image id."""
    for link in links:
        if (image_id := ids.get(link[-_HASH_CHARS:])) is not None:
            yield f"{link[:-_HASH_CHARS]}\t{image_id}\n"


def escaped(text: str) -> str:
    """`text` as a field of COPY's text format."""
    return text.replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n").replace("\r", r"\r")


def _fields(texts: Sequence[str]) -> Sequence[str]:
    together = "".join(texts)
    if "\\" not in together and together.isprintable():
        return texts
    return [escaped(text) for text in texts]


def _keys(given: Sequence[object], urls: Sequence[str]) -> Sequence[str]:
    """The keys of images: their own, or their URLs."""
    if given.count(None) == len(given):
        return urls
    return checked_ids(
        [url if key is None else key for key, url in zip(given, urls, strict=True)], "image key"
    )


def _product_ids(given: Sequence[object], keys: Sequence[str]) -> Sequence[str]:
    """The products of images: their own, or the image keys, however long those are."""
    ids = keys if given.count(None) == len(given) else given
    if are_plain(ids) and max(map(len, cast("Sequence[str]", ids))) <= MAX_PRODUCT_ID_BYTES:
        return cast("Sequence[str]", ids)
    return [_product_id(own, key) for own, key in zip(given, keys, strict=True)]


def _product_id(given: object, key: str) -> str:
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
