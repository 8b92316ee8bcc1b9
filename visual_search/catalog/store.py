"""Rows → tables: chunks of an import, each in one transaction."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Final, cast

import psycopg2
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from visual_search.catalog.chunk import Chunk, chunks, escaped, linked
from visual_search.catalog.readers import Source
from visual_search.catalog.rows import BadRow
from visual_search.database.connection import Database
from visual_search.database.schema import SEEDING_LOCK

MAX_LISTED_BAD_ROWS: Final = 1_000
# Imports and removals take turns, chunk by chunk: they touch the same rows in any order.
CATALOGUE_LOCK: Final = 0x76_73_65_64
# Two imports would both add a product if the connection broke by which one holds the lock above.
PRODUCTS_LOCK: Final = CATALOGUE_LOCK + 1
_IMAGE: Final = "(image_id, image_key, key_hash, url, host)"
_PRODUCT: Final = "(product_id, attributes)"


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
    bad, tally = BadRows(), _Tally()
    # Postgres works in processes of its own: while one stores a chunk's images and another its
    # products, the next chunk is read here.
    with (
        ThreadPoolExecutor(1, "catalog-products") as aside,
        ThreadPoolExecutor(1, "catalog-images") as executor,
    ):
        storing: Future[_Tally] | None = None
        for chunk in chunks(source.rows, bad.add):
            if storing is not None:
                tally += storing.result()
                on_progress(tally.rows, bad.count)
            storing = executor.submit(_store, database, chunk, aside)
        if storing is not None:
            tally += storing.result()
            on_progress(tally.rows, bad.count)
    return Imported(
        rows=tally.rows,
        new=tally.new,
        updated=tally.updated,
        products_new=tally.products_new,
        products_updated=tally.products_updated,
        bad=bad.count,
        bad_rows=tuple(bad.first),
    )


def copy(connection: Connection, table: str, lines: Iterable[str]) -> None:
    """Fill a table from lines of COPY's text format."""
    # Not what the environment or the server has for an encoding.
    statement = f"COPY {table} FROM STDIN (ENCODING 'UTF8')"
    content = "".join(lines).encode()
    driver = cast("psycopg2.extensions.connection", connection.connection.driver_connection)
    try:
        with driver.cursor() as cursor:
            # In one piece: while the next rows are read, each piece waits for the interpreter.
            cursor.copy_expert(statement, BytesIO(content), len(content) + 1)
    except psycopg2.Error as error:
        # By the name under which all other statements' errors come.
        raise DBAPIError.instance(
            statement, None, error, psycopg2.Error, dialect=connection.dialect
        ) from error


def lock_catalogue(connection: Connection) -> None:
    """Change the catalogue alone, and while nothing is seeded, until the transaction ends."""
    connection.execute(
        text("SELECT pg_advisory_xact_lock(:catalogue), pg_advisory_xact_lock_shared(:seeding)"),
        {"catalogue": CATALOGUE_LOCK, "seeding": SEEDING_LOCK},
    )


def look_up_by_index(connection: Connection) -> None:
    """For this transaction.

    The planner knows little of the temporary tables and often less of ours: it would rather read
    all images for each chunk, which is quicker now and takes forever in a large catalogue.
    """
    connection.execute(
        text("""
            SELECT set_config('enable_hashjoin', 'off', true),
                   set_config('enable_mergejoin', 'off', true),
                   set_config('enable_seqscan', 'off', true)
        """)
    )


def _store(database: Database, chunk: Chunk, aside: Executor) -> _Tally:
    """Bring the tables up to a chunk, products and images at the same time.

    What is new is copied straight into the tables, in half the time of any statement that finds
    out by itself what is.
    """
    attempts: list[Future[_Tally]] = []

    def step(connection: Connection) -> _Tally:
        lock_catalogue(connection)
        # In a transaction within this one: no link is ever there without its product.
        products = aside.submit(database.run, partial(_store_products, chunk=chunk))
        attempts.append(products)
        try:
            images = _store_images(connection, chunk)
        finally:
            wait((products,))
        products.result()
        return images

    images = database.run(step)
    stored = (products.result() for products in attempts if products.exception() is None)
    return sum(stored, images)


def _store_images(connection: Connection, chunk: Chunk) -> _Tally:
    look_up_by_index(connection)
    known = _known_images(connection, chunk)
    new = _add_images(connection, chunk, known)
    # No link of theirs can be there.
    copy(connection, "product_images (product_id, image_id)", sorted(linked(chunk.links, new)))
    updated = _update_images(connection, chunk, known) if known else 0
    return _Tally(rows=chunk.rows, new=len(new), updated=updated)


def _known_images(connection: Connection, chunk: Chunk) -> dict[str, int]:
    """The ids of images that are there already, by key hash."""
    hashes = '","\\\\x'.join(sorted(chunk.images))
    found = connection.execute(
        # As arrays: a hundred thousand rows would take the driver longer than the database.
        text("""
            SELECT array_agg(encode(key_hash, 'hex')) AS hashes, array_agg(image_id) AS ids
            FROM images WHERE key_hash = ANY(CAST(:hashes AS bytea[]))
        """),
        {"hashes": rf'{{"\\x{hashes}"}}'},
    ).one()
    return dict(zip(found.hashes or (), found.ids or (), strict=True))


def _add_images(connection: Connection, chunk: Chunk, known: Mapping[str, int]) -> dict[str, int]:
    """Insert the images that are not known. Returns their ids by key hash."""
    hashes = sorted(chunk.images.keys() - known.keys())
    if not hashes:
        return {}
    # Nobody else takes numbers meanwhile: all who do hold the lock.
    last = connection.execute(
        text("""
            SELECT setval(images_id, nextval(images_id) + :more)
            FROM CAST(pg_get_serial_sequence('images', 'image_id') AS regclass) AS images_id
        """),
        {"more": len(hashes) - 1},
    ).scalar_one()
    new = dict(zip(hashes, range(last - len(hashes) + 1, last + 1), strict=True))
    copy(connection, f"images {_IMAGE}", _lines(chunk, new))
    return new


def _update_images(connection: Connection, chunk: Chunk, known: Mapping[str, int]) -> int:
    """Give known images their URLs and links. Returns how many had another URL."""
    connection.execute(
        text("""
            CREATE TEMPORARY TABLE given_images
                (image_id bigint, image_key text, key_hash bytea, url text, host text)
                ON COMMIT DROP;
            CREATE TEMPORARY TABLE given_links
                (product_id text, image_id bigint) ON COMMIT DROP
        """)
    )
    copy(connection, f"given_images {_IMAGE}", _lines(chunk, known))
    copy(connection, "given_links (product_id, image_id)", linked(chunk.links, known))
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
    return connection.execute(
        text("""
            UPDATE images i SET url = g.url, host = g.host
            FROM given_images g
            WHERE i.image_id = g.image_id AND (i.url, i.host) IS DISTINCT FROM (g.url, g.host)
        """)
    ).rowcount


def _lines(chunk: Chunk, ids: Mapping[str, int]) -> Iterator[str]:
    return (f"{image_id}\t{chunk.images[hashed]}" for hashed, image_id in ids.items())


def _store_products(connection: Connection, chunk: Chunk) -> _Tally:
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": PRODUCTS_LOCK})
    look_up_by_index(connection)
    known = set(
        connection.execute(
            text("""
                SELECT coalesce(array_agg(product_id), '{}')
                FROM products WHERE product_id = ANY(CAST(:ids AS text[]))
            """),
            {"ids": _array(chunk.products)},
        ).scalar_one()
    )
    lines = chunk.products
    new = sorted(lines.keys() - known)
    added = (lines[product_id] or f"{escaped(product_id)}\t{{}}\n" for product_id in new)
    copy(connection, f"products {_PRODUCT}", added)
    described = [line for product_id in known if (line := lines[product_id])]
    updated = _update_products(connection, described) if described else 0
    return _Tally(products_new=len(new), products_updated=updated)


def _update_products(connection: Connection, lines: Iterable[str]) -> int:
    """Give known products their attributes. Returns how many had others."""
    connection.execute(
        text("""
            CREATE TEMPORARY TABLE given_products
                (product_id text, attributes jsonb) ON COMMIT DROP
        """)
    )
    copy(connection, f"given_products {_PRODUCT}", lines)
    return connection.execute(
        text("""
            UPDATE products p SET attributes = g.attributes, updated_at = now()
            FROM given_products g
            WHERE p.product_id = g.product_id AND p.attributes <> g.attributes
        """)
    ).rowcount


def _array(texts: Iterable[str]) -> str:
    """Texts as Postgres reads an array of them."""
    inner = '","'.join(text.replace("\\", r"\\").replace('"', r"\"") for text in texts)
    return f'{{"{inner}"}}'
