"""Rows → tables: chunks of an import, each in one transaction."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from visual_search.catalog.arrays import Mask, Positions, joined
from visual_search.catalog.chunk import Chunk, collect
from visual_search.catalog.readers import Source
from visual_search.catalog.rows import BadRow, BadRows
from visual_search.catalog.tables import (
    add_to_count,
    copy,
    lock_catalogue,
    lock_products,
    look_up_by_index,
)
from visual_search.database.connection import Database

# Chunks that are sorted or stored at a time.
_STORING: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What an import did; rows = new + updated + unchanged.

    Attributes:
        rows: Rows taken.
        new: Images that were not there before.
        updated: Images whose URL is another now.
        products_new: Products that were not there before.
        products_updated: Products whose attributes are others now.
        bad: Rows not taken.
        bad_rows: The first `MAX_LISTED_BAD_ROWS` of them.
    """

    rows: int = 0
    new: int = 0
    updated: int = 0
    products_new: int = 0
    products_updated: int = 0
    bad: int = 0
    bad_rows: tuple[BadRow, ...] = ()

    @property
    def unchanged(self) -> int:
        """Rows whose image was there with this URL, repeated rows included."""
        return self.rows - self.new - self.updated


@dataclass(kw_only=True, slots=True)
class _Tally:
    rows: int = 0
    new: int = 0
    updated: int = 0
    products_new: int = 0
    products_updated: int = 0

    def __add__(self, other: "_Tally") -> "_Tally":
        return _Tally(
            rows=self.rows + other.rows,
            new=self.new + other.new,
            updated=self.updated + other.updated,
            products_new=self.products_new + other.products_new,
            products_updated=self.products_updated + other.products_updated,
        )


def import_images(
    database: Database,
    source: Source,
    *,
    on_progress: Callable[[int, int], None] = lambda _rows, _bad: None,
) -> Imported:
    """Bring the catalogue up to a source's rows; doing it again changes nothing.

    A known key with another URL gets that URL and is not embedded again. A product's attributes
    are those of its last row that has any; products lose no image here. Bad rows are left out.

    Args:
        database: Whose catalogue.
        source: Read once, while earlier rows are stored.
        on_progress: Told, after each chunk, how many rows were taken and were bad so far.

    Raises:
        UsageError: The source cannot be read on; what was stored before stays.
        DatabaseGoneError: The database was away for too long; what was stored before stays.
    """
    bad, tally, hopes = BadRows(), _Tally(), _Hopes()
    storing: deque[Future[_Tally]] = deque()

    def next_stored() -> _Tally:
        stored = tally + storing.popleft().result()
        on_progress(stored.rows, bad.count)
        return stored

    # Postgres works in processes of its own: while one stores a chunk's images and another its
    # products, the next chunk is sorted and the one after that is read.
    with (
        ThreadPoolExecutor(1, "catalog-products") as aside,
        ThreadPoolExecutor(1, "catalog-images") as images,
        ThreadPoolExecutor(1, "catalog-sort") as sorting,
    ):
        for collected in collect(source.blocks, bad.add):
            if len(storing) == _STORING:
                tally = next_stored()
            chunk = sorting.submit(collected.chunk)
            storing.append(images.submit(_store, database, chunk, hopes, aside))
        while storing:
            tally = next_stored()
    return Imported(
        rows=tally.rows,
        new=tally.new,
        updated=tally.updated,
        products_new=tally.products_new,
        products_updated=tally.products_updated,
        bad=bad.count,
        bad_rows=tuple(bad.first),
    )


@dataclass(slots=True)
class _Hopes:
    """Whether the chunk before had nothing known: then the next is copied without being asked for.

    That saves a tenth of the work of a first import. A key that is known after all undoes the copy.
    """

    images: bool = False
    products: bool = False


def _store(database: Database, prepared: Future[Chunk], hopes: _Hopes, aside: Executor) -> _Tally:
    """Bring the tables up to a chunk, products and images at the same time.

    What is new is copied straight into the tables, in half the time of any statement that finds
    out by itself what is.
    """
    chunk = prepared.result()
    attempts: list[Future[_Tally]] = []

    def step(connection: Connection) -> _Tally:
        lock_catalogue(connection)
        # In a transaction within this one: no link is ever there without its product.
        products = aside.submit(database.run, partial(_store_products, chunk=chunk, hopes=hopes))
        attempts.append(products)
        try:
            images = _store_images(connection, chunk, hopes)
        finally:
            wait((products,))
        products.result()
        return images

    images = database.run(step)
    stored = (products.result() for products in attempts if products.exception() is None)
    return sum(stored, images)


def _store_images(connection: Connection, chunk: Chunk, hopes: _Hopes) -> _Tally:
    look_up_by_index(connection)
    every = np.arange(len(chunk.hashes))
    if hopes.images:
        ids = _take_numbers(connection, len(every))
        hopes.images = _copy_unless_known(connection, _copy_images, _images(chunk, ids, every))
        if hopes.images:
            _copy_links(connection, _links(chunk, ids, np.ones(len(chunk.linked_images), bool)))
            return _Tally(rows=chunk.rows, new=len(every))
    ids = _known_images(connection, chunk)
    known, new = np.flatnonzero(ids), np.flatnonzero(ids == 0)
    hopes.images = not len(known)
    of_known = ids[chunk.linked_images] > 0
    if len(new):
        ids[new] = _take_numbers(connection, len(new))
        _copy_images(connection, _images(chunk, ids, new))
        # No link of theirs can be there.
        _copy_links(connection, _links(chunk, ids, ~of_known))
    updated = 0
    if len(known):
        updated = _update_images(connection, _images(chunk, ids, known))
        _add_links(connection, _links(chunk, ids, of_known))
    return _Tally(rows=chunk.rows, new=len(new), updated=updated)


def _copy_images(connection: Connection, lines: pa.StringArray) -> None:
    copy(connection, "images (image_id, image_key, key_hash, url, host)", lines)
    add_to_count(connection, len(lines))


def _copy_links(connection: Connection, lines: pa.StringArray) -> None:
    copy(connection, "product_images (product_id, image_id)", lines)


def _copy_products(connection: Connection, lines: pa.StringArray) -> None:
    copy(connection, "products (product_id, attributes)", lines)


def _copy_unless_known(
    connection: Connection,
    copier: Callable[[Connection, pa.StringArray], None],
    lines: pa.StringArray,
) -> bool:
    """Copy all lines, or none if one of their keys is there already."""
    try:
        with connection.begin_nested():
            copier(connection, lines)
    except IntegrityError:
        return False
    return True


def _images(chunk: Chunk, ids: Positions, positions: Positions) -> pa.StringArray:
    return joined(_digits(ids[positions]), "\t", chunk.images.take(positions))


def _links(chunk: Chunk, ids: Positions, mask: Mask) -> pa.StringArray:
    images = _digits(ids[chunk.linked_images[mask]])
    return joined(chunk.linked_products.filter(mask), "\t", images, "\n")


def _digits(numbers: Positions) -> pa.StringArray:
    return pa.array(numbers).cast(pa.string())


def _known_images(connection: Connection, chunk: Chunk) -> Positions:
    """The ids of images that are there already, 0 for others."""
    found = connection.execute(
        # As arrays: fifty thousand rows would take the driver longer than the database.
        text("""
            SELECT array_agg(encode(key_hash, 'hex')) AS hashes, array_agg(image_id) AS ids
            FROM images WHERE key_hash = ANY(CAST(:hashes AS bytea[]))
        """),
        {"hashes": _array(joined("\\x", chunk.hashes))},
    ).one()
    ids = np.zeros(len(chunk.hashes), np.int64)
    if found.hashes:
        ids[pc.index_in(pa.array(found.hashes), chunk.hashes)] = found.ids
    return ids


def _take_numbers(connection: Connection, count: int) -> Positions:
    """Numbers for new images. All who take some hold the lock: nobody else does now."""
    last: int = connection.execute(
        text("""
            SELECT setval(images_id, nextval(images_id) + :more)
            FROM CAST(pg_get_serial_sequence('images', 'image_id') AS regclass) AS images_id
        """),
        {"more": count - 1},
    ).scalar_one()
    return np.arange(last - count + 1, last + 1)


def _update_images(connection: Connection, lines: pa.StringArray) -> int:
    """Give known images their URLs. Returns how many had another one."""
    connection.execute(
        text("""
            CREATE TEMPORARY TABLE given_images
                (image_id bigint, image_key text, key_hash bytea, url text, host text)
                ON COMMIT DROP
        """)
    )
    copy(connection, "given_images", lines)
    return connection.execute(
        text("""
            UPDATE images i SET url = g.url, host = g.host
            FROM given_images g
            WHERE i.image_id = g.image_id AND (i.url, i.host) IS DISTINCT FROM (g.url, g.host)
        """)
    ).rowcount


def _add_links(connection: Connection, lines: pa.StringArray) -> None:
    """Give known images the products that they do not have yet."""
    connection.execute(
        text("""
            CREATE TEMPORARY TABLE given_links
                (product_id text, image_id bigint) ON COMMIT DROP
        """)
    )
    copy(connection, "given_links", lines)
    connection.execute(
        text("""
            INSERT INTO product_images (product_id, image_id)
            SELECT product_id, image_id FROM given_links g
            WHERE NOT EXISTS (
                SELECT FROM product_images k
                WHERE k.product_id = g.product_id AND k.image_id = g.image_id
            )
        """)
    )


def _store_products(connection: Connection, chunk: Chunk, hopes: _Hopes) -> _Tally:
    lock_products(connection)
    look_up_by_index(connection)
    if hopes.products:
        hopes.products = _copy_unless_known(connection, _copy_products, chunk.products)
        if hopes.products:
            return _Tally(products_new=len(chunk.products))
    found = connection.execute(
        text("""
            SELECT coalesce(array_agg(product_id), '{}')
            FROM products WHERE product_id = ANY(CAST(:ids AS text[]))
        """),
        {"ids": _array(chunk.product_ids)},
    ).scalar_one()
    known = pc.is_in(chunk.product_ids, pa.array(found, pa.string()))
    new = chunk.products.filter(pc.invert(known))
    _copy_products(connection, new)
    hopes.products = len(new) == len(chunk.products)
    described = chunk.products.filter(pc.and_(known, chunk.described))
    updated = _update_products(connection, described) if len(described) else 0
    return _Tally(products_new=len(new), products_updated=updated)


def _update_products(connection: Connection, lines: pa.StringArray) -> int:
    """Give known products their attributes. Returns how many had others."""
    connection.execute(
        text("""
            CREATE TEMPORARY TABLE given_products
                (product_id text, attributes jsonb) ON COMMIT DROP
        """)
    )
    copy(connection, "given_products", lines)
    return connection.execute(
        text("""
            UPDATE products p SET attributes = g.attributes, updated_at = now()
            FROM given_products g
            WHERE p.product_id = g.product_id AND p.attributes <> g.attributes
        """)
    ).rowcount


def _array(texts: pa.StringArray) -> str:
    """Texts as Postgres reads an array of them: a column at once, not each as a list would be."""
    escaped = pc.replace_substring(pc.replace_substring(texts, "\\", r"\\"), '"', r"\"")
    together = pa.ListArray.from_arrays(pa.array([0, len(escaped)], pa.int32()), escaped)
    (elements,) = pc.binary_join(together, '","')
    return f'{{"{elements}"}}'
