"""Connections to Postgres: short transactions, and one place where driver errors get names."""

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

import structlog
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool

from visual_search.database import migrate
from visual_search.database.arrays import send_lists_as_text
from visual_search.errors import DatabaseGoneError, NoCatalogueError, SchemaError, SettingsError
from visual_search.settings import Settings

T = TypeVar("T")
log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_MAX_CONNECTIONS: Final = 2
_CONNECT_TIMEOUT_S: Final = 10
# A worker that is stopped, or cut off, in the middle of a transaction holds locks that all others
# step around: its images would be nobody's. So long the server bears with it.
_MAX_IDLE_S: Final = 30
# SQLSTATEs of a server that is going away, starting, full, or that undid us for another's sake.
_GONE: Final = frozenset(
    {"57P01", "57P02", "57P03", "53300", "08000", "08003", "08006", "25006", "25P03"}
)
_REPEAT: Final = frozenset({"40001", "40P01"})
# What a password with an unescaped @ or / leaves in them; both are shown in messages.
_NOT_OF_A_HOST: Final = frozenset("@")
_NOT_OF_A_NAME: Final = frozenset("@:=")
# A refused connection carries no SQLSTATE in psycopg2, only the server's words.
_REFUSED: Final = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "authentication failed",
    'role "',
    'database "',
    "invalid connection option",
    "invalid port number",
    "invalid sslmode value",
)


_CONNECT_ARGS: Final = {
    "connect_timeout": _CONNECT_TIMEOUT_S,
    "application_name": "vsearch",
    # Not what the environment says: URLs and attributes are any text.
    "client_encoding": "utf8",
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    # Keepalives do not watch over what was sent and is not acknowledged.
    "tcp_user_timeout": 60_000,
}


class Database:
    """One process's access to the database: at most two connections, short transactions.

    A query of the user's own has a third, for as long as its rows are read.

    Every transaction sees the tables of `schema` first. Nothing is kept between transactions, so
    a pooler such as PgBouncer may stand in between.
    """

    def __init__(self, url: str | URL, *, schema: str, outage_s: float) -> None:
        self.schema = schema
        self.outage_s = outage_s
        self._patience_ends = math.inf
        self._url = _checked(url)
        self._engine = create_engine(
            self._url,
            pool_size=_MAX_CONNECTIONS,
            max_overflow=0,
            pool_pre_ping=True,
            hide_parameters=True,
            connect_args=_CONNECT_ARGS,
        )
        send_lists_as_text(self._engine)

    @property
    def place(self) -> str:
        """Host and database name, for messages; no credentials."""
        host = self._url.host or self._url.query.get("host") or "local socket"
        port = f":{self._url.port}" if self._url.port else ""
        return f"{host}{port}/{self._url.database or ''}"

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction, committed at the end of the block.

        Raises:
            DatabaseGoneError: The server does not answer, or answered no more; if that happened
                at the end of the block, whether the commit took place is not known. Or it undid
                the transaction for another's sake, such as in a deadlock.
            SettingsError: The server refuses these credentials.
            SchemaError: The tables are not there.
        """
        try:
            with self._engine.begin() as connection:
                connection.execute(
                    text("""
                        SELECT set_config('search_path', :path, true),
                               set_config('idle_in_transaction_session_timeout', :idle, true)
                    """),
                    {"path": f"{quoted(self.schema)}, public", "idle": f"{_MAX_IDLE_S}s"},
                )
                yield connection
        except (DBAPIError, PoolTimeoutError) as error:
            self._raise_named(error)
            raise

    @contextmanager
    def users_transaction(self) -> Iterator[Connection]:
        """One read-only transaction as the user's own SQL expects it: with their search path.

        It has a connection to itself, since it lasts as long as whatever is done with its rows.
        """
        engine = create_engine(
            self._url, poolclass=NullPool, hide_parameters=True, connect_args=_CONNECT_ARGS
        )
        try:
            with engine.begin() as connection:
                connection.execute(text("SET TRANSACTION READ ONLY"))
                yield connection
        except (DBAPIError, PoolTimeoutError) as error:
            self._raise_named(error)
            raise

    def run(self, work: Callable[[Connection], T]) -> T:
        """`work` in one transaction; again while the server is away, for up to `outage_s`.

        `work` must be repeatable: its transaction may have been committed before the server's
        answer was lost.
        """
        deadline = time.monotonic() + self.outage_s
        pause_s = 0.1
        while True:
            try:
                with self.transaction() as connection:
                    return work(connection)
            except DatabaseGoneError as error:
                if time.monotonic() + pause_s > min(deadline, self._patience_ends):
                    raise
                log.warning("database_away", error=str(error), again_in_s=round(pause_s, 1))
            time.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
            pause_s = min(pause_s * 2, 5)

    def limit_patience(self, seconds: float) -> None:
        """From now on `run` waits for an absent server so long at most, in all threads."""
        self._patience_ends = time.monotonic() + seconds

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _raise_named(self, error: DBAPIError | PoolTimeoutError) -> None:
        """Raise our name for `error`, if it has one."""
        if isinstance(error, PoolTimeoutError):
            raise DatabaseGoneError(f"no free connection to {self.place}") from None
        state = sqlstate(error)
        said = str(error.orig).strip().splitlines()
        words = said[0] if said else type(error).__name__
        if state in ("42P01", "3F000"):
            raise SchemaError(
                f"{self.place} has no complete vsearch schema {self.schema!r}; "
                "run `vsearch db upgrade`"
            ) from None
        if state in ("28P01", "28000", "3D000", "42501") or (
            state is None and any(refusal in str(error.orig) for refusal in _REFUSED)
        ):
            raise SettingsError(
                f"the database {self.place} refuses: {_plain(words)}; check VSEARCH_DATABASE_URL"
            ) from None
        if state in _REPEAT:
            raise DatabaseGoneError(
                f"the database {self.place} undid a transaction: {_plain(words)}"
            ) from None
        if (
            state in _GONE
            or (state is None and isinstance(error, OperationalError | InterfaceError))
            or error.connection_invalidated
        ):
            raise DatabaseGoneError(
                f"the database {self.place} does not answer: {_plain(words)}"
            ) from None


@contextmanager
def open_database(
    settings: Settings, *, create: bool = False, any_schema: bool = False
) -> Iterator[Database]:
    """The user's database, or the embedded one under `settings.home`, ready to work with.

    The embedded server runs while anyone uses it, and its schema is brought up to date.

    Args:
        settings: `database_url` decides: without it, the embedded server.
        create: Make the embedded database if there is none.
        any_schema: Do not look at the schema's version (for `db` commands and `doctor`).

    Raises:
        NoCatalogueError: There is no embedded database and `create` is not set.
        SchemaError: The user's database is behind or ahead of this version.
        DatabaseGoneError: The database does not answer now.
    """
    if settings.database_url is not None:
        with _opened(settings.database_url.get_secret_value(), settings) as database:
            if not any_schema:
                migrate.check(database)
            yield database
        return
    from visual_search.database import embedded  # noqa: PLC0415 - costs 100 ms, often not needed

    if not create and not embedded.exists(settings.home):
        raise NoCatalogueError(
            f"no catalogue at {settings.home.absolute()}; `vsearch catalog import FILE` makes "
            "one, --config, VSEARCH_HOME or VSEARCH_DATABASE_URL name another"
        )
    with (
        embedded.running(settings.home, create=create) as url,
        _opened(url, settings) as database,
    ):
        if not any_schema:
            migrate.upgrade(database)
        yield database


@contextmanager
def _opened(url: str | URL, settings: Settings) -> Iterator[Database]:
    database = Database(
        url, schema=settings.database.schema_name, outage_s=settings.database.outage_s
    )
    try:
        yield database
    finally:
        database.close()


def quoted(identifier: str) -> str:
    """`identifier` as SQL takes it literally."""
    return '"' + identifier.replace('"', '""') + '"'


def sqlstate(error: DBAPIError) -> str | None:
    """The five characters by which Postgres names an error, if the driver got them."""
    return getattr(error.orig, "pgcode", None)


def _checked(url: str | URL) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The URL is not shown: what cannot be parsed cannot be masked.
        raise SettingsError(
            "VSEARCH_DATABASE_URL is not a URL like postgresql://user:password@host:5432/name"
        ) from None
    if parsed.drivername not in ("postgres", "postgresql", "postgresql+psycopg2"):
        raise SettingsError(
            f"VSEARCH_DATABASE_URL speaks {parsed.drivername!r}, only postgresql:// is supported"
        )
    if _NOT_OF_A_HOST & set(parsed.host or "") or _NOT_OF_A_NAME & set(parsed.database or ""):
        raise SettingsError(
            "VSEARCH_DATABASE_URL cannot be taken apart; in its user and password write special "
            "characters as %40 (@), %2F (/) and %3A (:)"
        )
    return parsed.set(drivername="postgresql+psycopg2")


def _plain(words: str) -> str:
    return words.removeprefix("connection to server").strip().rstrip(".")
