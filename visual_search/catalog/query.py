"""The user's own tables → rows: a query's result, read in batches while earlier rows are stored."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast

import psycopg2
from sqlalchemy import Connection, CursorResult, text
from sqlalchemy.exc import DBAPIError

from visual_search.catalog.columns import Columns
from visual_search.catalog.readers import Source, table_blocks
from visual_search.database.connection import Database, sqlstate
from visual_search.errors import UsageError
from visual_search.redaction import printable

_NAME: Final = "the query"
_ROWS_AT_ONCE: Final = 2_000
# SQLSTATEs of a connection that breaks, and of a server that goes away.
_NOT_THE_QUERYS: Final = ("08", "57P")
_WRITES: Final = frozenset({"25006", "42P11"})


@contextmanager
def open_query(database: Database, sql: str, *, columns: Columns | None = None) -> Iterator[Source]:
    """The rows of a query, numbered from 1. It sees the user's search path and cannot write.

    A transaction stays open on one of the process's two connections until the last row.

    Args:
        database: Where the user's tables are, beside ours.
        sql: One statement that reads.
        columns: `None`: the names of `Columns`.

    Raises:
        UsageError: The query is wrong, writes, or lacks a column. While rows are read: it fails.
        DatabaseGoneError: The database does not answer.
    """
    with database.users_transaction() as connection:
        _open_cursor(connection, sql)
        first = _fetch(connection)
        names = list(first.keys())
        rows = _cells(connection, _rows_of(first))
        yield Source(name=_NAME, blocks=table_blocks(names, rows, columns or Columns(), _NAME))


def _open_cursor(connection: Connection, sql: str) -> None:
    # Not DECLARE … FOR, which takes more statements after the query: a COMMIT among them would
    # end the transaction that forbids writing. EXECUTE takes one, and DO takes no parameters.
    with _named():
        connection.execute(
            # It is idle while earlier rows are stored, however long that takes.
            text("""
                SELECT set_config('idle_in_transaction_session_timeout', '0', true),
                       set_config('vsearch.query', :sql, true)
            """),
            {"sql": sql},
        )
        connection.execute(
            text("""
                DO $$
                DECLARE
                    vsearch_query CONSTANT refcursor := 'vsearch_query';
                BEGIN
                    OPEN vsearch_query NO SCROLL FOR EXECUTE current_setting('vsearch.query');
                END $$
            """)
        )


def _cells(connection: Connection, rows: Sequence[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    while rows:
        yield from rows
        rows = _rows_of(_fetch(connection))


def _fetch(connection: Connection) -> CursorResult[Any]:
    with _named():
        return connection.exec_driver_sql(f"FETCH {_ROWS_AT_ONCE} FROM vsearch_query")


def _rows_of(result: CursorResult[Any]) -> Sequence[Sequence[Any]]:
    try:
        with _named():
            return result.all()
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"the query has a value that Python cannot hold ({printable(str(error), 100)}); "
            "cast that column to text"
        ) from error


@contextmanager
def _named() -> Iterator[None]:
    """The query's own errors in one sentence; those of the connection pass."""
    try:
        yield
    except DBAPIError as error:
        state = sqlstate(error)
        if state is None or state.startswith(_NOT_THE_QUERYS):
            raise
        said = printable(cast("psycopg2.Error", error.orig).diag.message_primary or state)
        if state in _WRITES:
            raise UsageError(
                f"the query must be one SELECT that only reads ({said}); nothing was changed"
            ) from error
        raise UsageError(f"the query fails: {said}") from error
