"""Rows → tables: chunks of an import, each in one transaction."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from io import BytesIO
from typing import Final, cast

import psycopg2
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from visual_search.catalog.chunk import Chunk, chunks
from visual_search.catalog.readers import Source
from visual_search.catalog.rows import BadRow
from visual_search.database.connection import Database
from visual_search.database.schema import SEEDING_LOCK

MAX_LISTED_BAD_ROWS: Final = 1_000
# Chunks in the database's hands at a time; each takes a connection, and a process has two.
_STORING: Final = 2
# Imports and removals take turns, chunk by chunk: they touch the same rows in any order.
CATALOGUE_LOCK: Final = 0x76_73_65_64


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
    storing: deque[Future[_Tally]] = deque()
    # Postgres works in processes of its own: one stores a chunk, another takes in the next, and
    # the one after that is read here meanwhile.
    with ThreadPoolExecutor(_STORING, "catalog-store") as executor:
        for chunk in chunks(source.rows, bad.add):
            if len(storing) == _STORING:
                tally = storing.popleft().result()
                on_progress(tally.rows, bad.count)
            before = storing[-1] if storing else _already(tally)
            storing.append(executor.submit(_store_after, database, before, chunk))
    for stored in storing:
        tally = stored.result()
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


def _already(tally: _Tally) -> Future[_Tally]:
    future: Future[_Tally] = Future()
    future.set_result(tally)
    return future


def _store_after(database: Database, before: Future[_Tally], chunk: Chunk) -> _Tally:
    """Store a chunk once the one before it is stored: of equal keys the last one wins."""

    def step(connection: Connection) -> _Tally:
        _copy(connection, chunk)
        wait((before,))
        # If that failed nothing may be stored after it, and the error is raised below.
        return _Tally() if before.exception() else _store(connection, chunk)

    done, earlier = database.run(step), before.result()
    return _Tally(
        rows=earlier.rows + chunk.rows,
        new=earlier.new + done.new,
        updated=earlier.updated + done.updated,
        products_new=earlier.products_new + done.products_new,
        products_updated=earlier.products_updated + done.products_updated,
    )


def copy(connection: Connection, table: str, content: bytes) -> None:
    """Fill a table of our own from COPY's text format in UTF-8."""
    # Not what the environment or the server has for an encoding.
    statement = f"COPY {table} FROM STDIN (ENCODING 'UTF8')"
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


def _store(connection: Connection, chunk: Chunk) -> _Tally:
    """Bring the tables up to a chunk that `_copy` has taken in."""
    lock_catalogue(connection)
    look_up_by_index(connection)
    newest = connection.execute(text("SELECT coalesce(max(image_id), 0) FROM images")).scalar_one()
    new, updated = _store_images(connection)
    products_new, products_updated = _store_products(connection)
    _store_links(connection, newest)
    return _Tally(
        rows=chunk.rows,
        new=new,
        updated=updated,
        products_new=products_new,
        products_updated=products_updated,
    )


def _store_images(connection: Connection) -> tuple[int, int]:
    """How many were new, and how many got another URL.

    What is not new is not inserted, not even in vain, so no numbers are lost.
    """
    found = connection.execute(
        text("""
            WITH changed AS MATERIALIZED (
                SELECT n.image_key, n.key_hash, n.url, n.host, i.image_id
                FROM incoming_images n LEFT JOIN images i USING (key_hash)
                WHERE i.image_id IS NULL OR (i.url, i.host) IS DISTINCT FROM (n.url, n.host)
            ), added AS (
                INSERT INTO images (image_key, key_hash, url, host)
                SELECT image_key, key_hash, url, host FROM changed WHERE image_id IS NULL
            ), updated AS (
                UPDATE images i SET url = c.url, host = c.host
                FROM changed c WHERE i.image_id = c.image_id
            )
            SELECT count(*) FILTER (WHERE image_id IS NULL) AS new, count(image_id) AS updated
            FROM changed
        """)
    ).one()
    return found.new, found.updated


def _store_products(connection: Connection) -> tuple[int, int]:
    """How many were new, and how many got other attributes."""
    found = connection.execute(
        text("""
            WITH changed AS MATERIALIZED (
                SELECT n.product_id, n.attributes, p.product_id IS NULL AS new
                FROM incoming_products n LEFT JOIN products p USING (product_id)
                WHERE p.product_id IS NULL OR p.attributes <> n.attributes
            ), added AS (
                INSERT INTO products (product_id, attributes)
                SELECT product_id, coalesce(attributes, '{}') FROM changed WHERE new
            ), updated AS (
                UPDATE products p SET attributes = c.attributes, updated_at = now()
                FROM changed c WHERE p.product_id = c.product_id AND NOT c.new
            )
            SELECT count(*) FILTER (WHERE new) AS new, count(*) FILTER (WHERE NOT new) AS updated
            FROM changed
        """)
    ).one()
    return found.new, found.updated


def _store_links(connection: Connection, newest_before: int) -> None:
    """Images above `newest_before` came with this chunk: no link of theirs can be there."""
    connection.execute(
        text("""
            INSERT INTO product_images (product_id, image_id)
            SELECT n.product_id, i.image_id
            FROM incoming_links n JOIN images i USING (key_hash)
            WHERE i.image_id > :newest_before OR NOT EXISTS (
                SELECT FROM product_images k
                WHERE k.product_id = n.product_id AND k.image_id = i.image_id
            )
        """),
        {"newest_before": newest_before},
    )


def _copy(connection: Connection, chunk: Chunk) -> None:
    """Before any lock is taken: nobody waits for what travels over the network."""
    connection.execute(
        text("""
            CREATE TEMPORARY TABLE incoming_images
                (key_hash bytea, image_key text, url text, host text) ON COMMIT DROP;
            CREATE TEMPORARY TABLE incoming_products
                (product_id text, attributes jsonb) ON COMMIT DROP;
            CREATE TEMPORARY TABLE incoming_links
                (key_hash bytea, product_id text) ON COMMIT DROP
        """)
    )
    copy(connection, "incoming_images", chunk.images)
    copy(connection, "incoming_products", chunk.products)
    copy(connection, "incoming_links", chunk.links)
