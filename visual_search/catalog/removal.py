"""Images that leave the catalogue, with all that hangs on them but their rows in written shards."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import pyarrow as pa
from sqlalchemy import Connection, text

from visual_search.catalog.chunk import escaped, hash_of_key
from visual_search.catalog.readers import Source
from visual_search.catalog.rows import (
    BadRow,
    BadRows,
    Record,
    RefusedRowError,
    checked_id,
    checked_url,
)
from visual_search.catalog.tables import add_to_count, copy, lock_catalogue, look_up_by_index
from visual_search.database.connection import Database
from visual_search.errors import InternalError

_MAX_NAMES: Final = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Removed:
    """What a removal did, or would do.

    Attributes:
        rows: Rows taken, each the name of an image.
        images: Images that are gone.
        products: Products that are gone, since no image of theirs is left.
        vectors: Rows of written shards, of all models, whose image is gone: they are still in the
            files, and readers leave them out by asking the catalogue.
        unknown: Names that no image had.
        bad: Rows not taken.
        bad_rows: The first of them.
    """

    rows: int = 0
    images: int = 0
    products: int = 0
    vectors: int = 0
    unknown: int = 0
    bad: int = 0
    bad_rows: tuple[BadRow, ...] = ()


class _Names:
    """Names of images for one transaction, as lines of COPY's text format, by key hash."""

    def __init__(self) -> None:
        self.rows = 0
        self.lines: dict[str, str] = {}

    def add(self, record: Record) -> None:
        """Take a row: its key where a column holds keys, else its URL."""
        if record.image_key is None:
            url, _ = checked_url(record.url)
            hashed = hash_of_key(url)
            self.lines[hashed] = f"\\\\x{hashed}\t{escaped(url)}\n"
        else:
            hashed = hash_of_key(checked_id(record.image_key, "image key"))
            self.lines[hashed] = f"\\\\x{hashed}\t\\N\n"
        self.rows += 1


def remove_images(
    database: Database,
    source: Source,
    *,
    on_progress: Callable[[int, int], None] = lambda _rows, _bad: None,
) -> Removed:
    """Delete the images that a source names; doing it again changes nothing.

    A URL names the image whose key it is, and all whose URL it is now. With an image go its
    history, claims on it, and products that have no other image. A worker that is embedding it
    is not disturbed: its shard counts the row as removed.

    Args:
        database: Whose catalogue.
        source: Its keys are names where it has a column of keys, else its URLs are.
        on_progress: Told, after each chunk, how many rows were taken and were bad so far.

    Raises:
        UsageError: The source cannot be read on; what was removed before stays so.
        DatabaseGoneError: The database was away for too long; what was removed before stays so.
    """
    bad, total = BadRows(), Removed()
    for names in _chunks(source, bad):
        done = database.run(partial(_remove, names=names))
        total = Removed(
            rows=total.rows + names.rows,
            images=total.images + done.images,
            products=total.products + done.products,
            vectors=total.vectors + done.vectors,
            unknown=total.unknown + done.unknown,
        )
        on_progress(total.rows, bad.count)
    return replace(total, bad=bad.count, bad_rows=tuple(bad.first))


def preview_removal(database: Database, source: Source) -> Removed:
    """What `remove_images` would do. Nothing is changed, and nobody is kept waiting."""
    bad, rows, unknown = BadRows(), 0, 0
    with database.transaction() as connection:
        # The source may pause for as long as it likes: no lock is held meanwhile.
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
        _make_tables(connection)
        for names in _chunks(source, bad):
            _copy(connection, names)
            unknown += len(names.lines) - _find_images(connection)
            rows += names.rows
        images = connection.execute(text("SELECT count(*) FROM leaving")).scalar_one()
        vectors = connection.execute(
            text("""
                SELECT count(*) FROM extractions
                WHERE status = 'done' AND image_id IN (SELECT image_id FROM leaving)
            """)
        ).scalar_one()
        products = _find_products(connection)
    return Removed(
        rows=rows,
        images=images,
        products=products,
        vectors=vectors,
        unknown=unknown,
        bad=bad.count,
        bad_rows=tuple(bad.first),
    )


def _chunks(source: Source, bad: BadRows) -> Iterator[_Names]:
    names = _Names()
    for record in source.rows:
        if isinstance(record, BadRow):
            bad.add(record)
            continue
        try:
            names.add(record)
        except RefusedRowError as error:
            bad.add(BadRow(line=record.line, reason=str(error)))
            continue
        if names.rows >= _MAX_NAMES:
            yield names
            names = _Names()
    if names.rows:
        yield names


def _remove(connection: Connection, names: _Names) -> Removed:
    _make_tables(connection)
    _copy(connection, names)
    lock_catalogue(connection)
    look_up_by_index(connection)
    unknown = len(names.lines) - _find_images(connection)
    products = _find_products(connection)
    _lock_workers(connection)
    vectors = _delete_history(connection)
    images = 0
    for statement in (
        "DELETE FROM products p USING leaving_products l WHERE p.product_id = l.product_id",
        "DELETE FROM product_images k USING leaving l WHERE k.image_id = l.image_id",
        "DELETE FROM images i USING leaving l WHERE i.image_id = l.image_id",
    ):
        images = connection.execute(text(statement)).rowcount
    add_to_count(connection, -images)
    return Removed(images=images, products=products, vectors=vectors, unknown=unknown)


def _make_tables(connection: Connection) -> None:
    connection.execute(
        text("""
            CREATE TEMPORARY TABLE named (key_hash bytea, url text) ON COMMIT DROP;
            CREATE TEMPORARY TABLE named_by_url
                (key_hash bytea, image_id bigint, url text) ON COMMIT DROP;
            CREATE TEMPORARY TABLE leaving (image_id bigint PRIMARY KEY) ON COMMIT DROP;
            CREATE TEMPORARY TABLE leaving_products (product_id text PRIMARY KEY) ON COMMIT DROP
        """)
    )


def _copy(connection: Connection, names: _Names) -> None:
    """Take the names in; and whom they name by URL, since there is no index for that.

    One pass over all images takes longer than everything else: it comes before any lock.
    """
    connection.execute(text("TRUNCATE named, named_by_url"))
    copy(connection, "named", pa.array(sorted(names.lines.values()), pa.string()))
    connection.execute(text("ANALYZE named"))
    connection.execute(
        text("""
            INSERT INTO named_by_url (key_hash, image_id, url)
            SELECT n.key_hash, i.image_id, i.url FROM named n JOIN images i USING (url)
        """)
    )


def _find_images(connection: Connection) -> int:
    """Add the images that are named to `leaving`.

    Returns:
        How many names were those of images.
    """
    known: int = connection.execute(
        text("""
            WITH known AS MATERIALIZED (
                SELECT n.key_hash, i.image_id FROM named n JOIN images i USING (key_hash)
                UNION
                SELECT n.key_hash, i.image_id
                FROM named_by_url n JOIN images i USING (image_id, url)
            ), added AS (
                INSERT INTO leaving SELECT DISTINCT image_id FROM known ON CONFLICT DO NOTHING
            )
            SELECT count(DISTINCT key_hash) FROM known
        """)
    ).scalar_one()
    connection.execute(text("ANALYZE leaving"))
    return known


def _find_products(connection: Connection) -> int:
    return connection.execute(
        text("""
            INSERT INTO leaving_products (product_id)
            SELECT DISTINCT k.product_id
            FROM leaving JOIN product_images k USING (image_id)
            WHERE NOT EXISTS (
                SELECT FROM product_images other
                WHERE other.product_id = k.product_id
                  AND NOT EXISTS (SELECT FROM leaving l WHERE l.image_id = other.image_id)
            )
        """)
    ).rowcount


def _lock_workers(connection: Connection) -> None:
    """Wait for commits of shards under way.

    In the order of their own locks, shards, then leases, then history: no two wait for each
    other.
    """
    connection.execute(
        text("""
            SELECT FROM shards WHERE shard_id IN (
                SELECT e.shard_id
                FROM leaving l, models m JOIN extractions e USING (model_key)
                WHERE e.image_id = l.image_id AND e.status = 'done'
            )
            ORDER BY shard_id FOR UPDATE
        """)
    )
    connection.execute(
        text("""
            SELECT FROM leases WHERE lease_token IN (
                SELECT e.lease_token
                FROM leaving l, models m JOIN extractions e USING (model_key)
                WHERE e.image_id = l.image_id AND e.lease_token IS NOT NULL
            )
            ORDER BY lease_token FOR UPDATE
        """)
    )


def _delete_history(connection: Connection) -> int:
    """Forget what was and is done about `leaving`.

    Returns:
        How many rows of written shards that takes out.
    """
    removed = connection.execute(
        text("""
            WITH deleted AS (
                DELETE FROM extractions e USING leaving l, models m
                WHERE e.model_key = m.model_key AND e.image_id = l.image_id
                RETURNING e.shard_id
            )
            SELECT shard_id, count(*) AS rows FROM deleted
            WHERE shard_id IS NOT NULL GROUP BY shard_id
        """)
    ).all()
    # A later statement: it sees as committed the shard whose commit the first one waited for.
    counted = connection.execute(
        text("""
            UPDATE shards s SET removed_rows = s.removed_rows + r.rows
            FROM unnest(CAST(:shard_ids AS uuid[]), CAST(:rows AS integer[]))
                 AS r (shard_id, rows)
            WHERE s.shard_id = r.shard_id AND s.state = 'committed'
        """),
        {
            "shard_ids": [str(row.shard_id) for row in removed],
            "rows": [row.rows for row in removed],
        },
    ).rowcount
    if counted != len(removed):
        raise InternalError(
            f"images in {len(removed)} shards are done, but only {counted} of these are "
            "committed; nothing was removed"
        )
    return sum(row.rows for row in removed)
