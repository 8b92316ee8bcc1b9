"""How imports and removals write: COPY, their locks, and look-ups by index alone."""

from typing import Final, cast

import psycopg2
import pyarrow as pa
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from visual_search.database.schema import SEEDING_LOCK

# Imports and removals take turns, chunk by chunk: they touch the same rows in any order.
_CATALOGUE_LOCK: Final = 0x76_73_65_64
# Two imports would both add a product if the connection broke by which one holds the lock above.
_PRODUCTS_LOCK: Final = _CATALOGUE_LOCK + 1
# Each piece waits for the interpreter while the next rows are read: few, then.
_COPIED_BYTES: Final = 8_000_000


def copy(connection: Connection, table: str, lines: pa.StringArray) -> None:
    """Fill a table from lines of COPY's text format."""
    # Not what the environment or the server has for an encoding.
    statement = f"COPY {table} FROM STDIN (ENCODING 'UTF8')"
    driver = cast("psycopg2.extensions.connection", connection.connection.driver_connection)
    # One after the other they lie in memory already.
    content = pa.BufferReader(pa.concat_arrays([lines]).buffers()[2] or b"")
    try:
        with driver.cursor() as cursor:
            cursor.copy_expert(statement, content, _COPIED_BYTES)
    except psycopg2.Error as error:
        # By the name under which all other statements' errors come.
        raise DBAPIError.instance(
            statement, None, error, psycopg2.Error, dialect=connection.dialect
        ) from error


def lock_catalogue(connection: Connection) -> None:
    """Change the catalogue alone, and while nothing is seeded, until the transaction ends."""
    connection.execute(
        text("SELECT pg_advisory_xact_lock(:catalogue), pg_advisory_xact_lock_shared(:seeding)"),
        {"catalogue": _CATALOGUE_LOCK, "seeding": SEEDING_LOCK},
    )


def lock_products(connection: Connection) -> None:
    """Add and change products alone until the transaction ends."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _PRODUCTS_LOCK})


def add_to_count(connection: Connection, images: int) -> None:
    """Keep the number of images that `status` tells; the caller changes the catalogue alone."""
    connection.execute(text("UPDATE catalogue SET images = images + :images"), {"images": images})


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
