"""Hostile strings in every column that takes text: stored to the byte or refused, others unchanged.

`test_catalog_import.py` has some of them for imports; here are more, longer ones, and all other
statements. A table of the user's own stands beside ours; nothing may change that either.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import URL

from tests.conftest import TEMPLATE
from visual_search import claim, failures, hosts, models, record, runs
from visual_search.catalog import Columns, Source, import_images, remove_images
from visual_search.catalog.readers import table_blocks
from visual_search.claim import Suspicion
from visual_search.database import migrate
from visual_search.database.connection import Database, quoted
from visual_search.database.schema import RunOutcome
from visual_search.errors import FailureReason, ModelError, SettingsError
from visual_search.images import FailedImage, LeaseToken, ModelKey, RunId, ShardId
from visual_search.models import registry
from visual_search.models.spec import ModelSpec
from visual_search.runs import RunFigures
from visual_search.settings import ModelTable, load_settings

# What SQL, COPY, psycopg2, SQLAlchemy's text(), JSON, str.format, shells, logs and terminals read.
FRAGMENTS = (
    "'", "''", '"', '""', "\\", "\\\\", "\\'", "%", "%%", "%s", "%(url)s", ":", "::", ":url",
    " :url", "::text", "{}", "{0}", "{url}", "$1", "$$", "?", ";", "--", "/*", "*/", "\t", "\n",
    "\r", "\0", "\x1b[31m", "\x7f", "\x85", "\u2028", "\u202e", "\u200f", "\ufeff", "\ufffd",
    "\ud800", "\udfff", "\udc80", "\U0001f600", "é", "中", "\\N", "\\.", "\\x41", "\\u0000",
    "'; DROP TABLE images; --", "' OR '1'='1", '{"event": "forged"}', ",", "|", "NULL", " ", "a",
)  # fmt: skip
# Halves of one character side by side, which no file and no driver brings: JSON makes it whole.
HALVES = re.compile("[\ud800-\udbff][\udc00-\udfff]")
HOSTILE = (
    st.lists(st.sampled_from(FRAGMENTS) | st.characters(), max_size=8)
    .map("".join)
    .map(lambda string: HALVES.sub("", string))
)
LONG = (
    "x" * 1_000_000,
    "'" * 1_000_000,
    "\\" * 1_000_000,
    "%s" * 500_000,
    ":x " * 333_334,
    "\u202e" * 333_334,
    "\0" * 1_000_000,
)
AT_ONCE = 25
NUMBERS = [100, pytest.param(1_000, marks=pytest.mark.long)]
OWN: dict[str, Any] = {"builder": "tests.tiny_model:build", "revision": "1", "weights": "builder"}
NOWHERE = Path("/nonexistent")


def unstorable(string: str) -> bool:
    """What no text of Postgres' can hold."""
    return "\0" in string or any("\ud800" <= character <= "\udfff" for character in string)


def try_all(number: int, check: Callable[[list[Any]], None], one: st.SearchStrategy[Any]) -> None:
    """`check` on `number` examples of `one`, so many at once that it takes no hours."""

    @settings(max_examples=number // AT_ONCE, deadline=None, database=None)
    @given(st.lists(one, min_size=AT_ONCE, max_size=AT_ONCE))
    def run(examples: list[Any]) -> None:
        check(examples)

    run()


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A database with a little in every table.

    Attributes:
        model_key: A model that knows two images, one of which it has failed for.
        run_id: A run of it.
    """

    url: URL
    database: Database
    model_key: ModelKey
    run_id: RunId
    tables: tuple[str, ...]

    def state(self, connection: Connection, *without: str) -> dict[str, str]:
        """A digest of each table's rows, but for some tables."""
        return dict(
            connection.exec_driver_sql(
                " UNION ALL ".join(
                    f"SELECT '{table}', md5(string_agg(t::text, chr(10) ORDER BY t::text)) "
                    f"FROM {table} t"
                    for table in self.tables
                    if table.partition(".")[2] not in without
                )
            ).all()
        )


@contextmanager
def migrated(cluster: URL, name: str) -> Iterator[URL]:
    """A database of this name, for as long as a module's tests take."""
    administration = create_engine(cluster, isolation_level="AUTOCOMMIT")
    with administration.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {quoted(name)} TEMPLATE {quoted(TEMPLATE)}"))
    yield cluster.set(database=name)
    with administration.connect() as connection:
        connection.execute(text(f"DROP DATABASE {quoted(name)} WITH (FORCE)"))
    administration.dispose()


@pytest.fixture(scope="module")
def shop(cluster: URL) -> Iterator[Shop]:
    """One for all tests here: each of them proves that it left everything as it was."""
    with migrated(cluster, "hostile_strings") as url:
        database = Database(url, schema="vsearch", outage_s=0)
        yield furnished(url, database)
        database.close()


def furnished(url: URL, database: Database) -> Shop:
    run_id = RunId(uuid4())
    with database.transaction() as connection:
        connection.execute(text("CREATE TABLE public.orders AS SELECT 1 AS id, 'a coat' AS what"))
    import_rows(database, [("a", "http://h.test/a", "A", "Coat")])
    with database.transaction() as connection:
        model_key = registry.add(connection, spec()).model_key
        claim.seed_images(connection, model_key)
        runs.start_run(connection, run_id=run_id, model_key=model_key)
        hosts.share_pauses(connection, {"paused.test": 3600})
        record.begin_shard(
            connection,
            shard_id=ShardId(uuid4()),
            model_key=model_key,
            uri="file:///bystander.parquet",
            run_id=run_id,
        )
        claim.open_lease(
            connection,
            token=LeaseToken(uuid4()),
            model_key=model_key,
            run_id=run_id,
            lease_s=3600,
        )
        tables = connection.execute(
            text("""
                SELECT schemaname || '.' || tablename FROM pg_tables
                WHERE schemaname IN ('vsearch', 'public') ORDER BY 1
            """)
        ).scalars()
        return Shop(
            url=url,
            database=database,
            model_key=model_key,
            run_id=run_id,
            tables=tuple(tables.all()),
        )


def spec() -> ModelSpec:
    table = ModelTable.model_validate(OWN | {"dim": 8})
    return models.resolve("bystander", {"bystander": table}, precision="fp32", home=NOWHERE)


# The catalogue: key, URL, product, attribute


COLUMNS = Columns(url="url", image_key="key", product_id="product")
ROWS = st.tuples(
    HOSTILE,
    HOSTILE.map(lambda string: f"http://h.test/{string}"),
    HOSTILE,
    st.dictionaries(HOSTILE, HOSTILE | st.lists(HOSTILE, max_size=2), max_size=2),
)
Row = tuple[str, str, str, Any]


def import_rows(database: Database, rows: Sequence[Row]) -> set[int]:
    """Positions of those that were not taken."""
    cells = table_blocks(("key", "url", "product", "attribute"), rows, COLUMNS, "rows")
    found = import_images(database, Source(name="rows", blocks=cells))
    return {bad.line - 1 for bad in found.bad_rows}


def remove(database: Database, keys: Sequence[str]) -> None:
    cells = table_blocks(
        ("key",), [(key,) for key in keys], Columns(url=None, image_key="key"), "r"
    )
    remove_images(database, Source(name="rows", blocks=cells))


def check_import(shop: Shop, rows: Sequence[Row]) -> None:
    """Import, compare, remove by the same strings: everything is as it was."""
    # Keys and products that say where they come from: no two rows speak of the same image.
    rows = [(f"{n} {key}", url, f"{n} {p}", attribute) for n, (key, url, p, attribute)
            in enumerate(rows)]  # fmt: skip
    with shop.database.transaction() as connection:
        before = shop.state(connection)
    bad = import_rows(shop.database, rows)
    with shop.database.transaction() as connection:
        catalogue = ("catalogue", "images", "products", "product_images")
        assert shop.state(connection, *catalogue).items() <= before.items()
        stored = connection.execute(
            text("""
                SELECT image_key, url, product_id, attributes FROM images
                JOIN product_images USING (image_id) JOIN products USING (product_id)
                WHERE image_key <> 'a'
            """)
        )
        assert {row.image_key: tuple(row) for row in stored} == {
            row[0]: (*row[:3], {"attribute": row[3]}) for n, row in enumerate(rows) if n not in bad
        }
    for n, row in enumerate(rows):
        assert (n in bad) == refusable(row)
    remove(shop.database, [row[0] for row in rows])
    with shop.database.transaction() as connection:
        assert shop.state(connection) == before


def refusable(row: Row) -> bool:
    key, url, product, attribute = row
    texts = list(strings_of(attribute))
    return (
        any(map(unstorable, (key, url, product, *texts)))
        or any(character < " " or "\x7f" <= character <= "\x9f" for character in url)
        or len(key) > 8_192
        or len(url) > 8_192
        or len(product.encode()) > 2_000
        or sum(map(len, texts)) > 300_000
    )


def strings_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    else:
        for inner in value:
            yield from strings_of(inner)
            if isinstance(value, dict):
                yield from strings_of(value[inner])


@pytest.mark.parametrize("number", NUMBERS)
def test_a_catalogue_of_hostile_strings_is_kept_to_the_byte(shop: Shop, number: int) -> None:
    try_all(number, lambda rows: check_import(shop, rows), ROWS)


@pytest.mark.parametrize("field", [0, 1, 2, 3], ids=["key", "url", "product", "attribute"])
def test_a_row_with_a_million_characters_is_refused(shop: Shop, field: int) -> None:
    rows = []
    for string in LONG:
        row: list[Any] = ["key", "http://h.test/", "product", "attribute"]
        row[field] += string
        rows.append(tuple(row))
    check_import(shop, rows)


# All other statements: each stores one string


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A way for a string into the database.

    Attributes:
        store: Stores it.
        stored: Finds it again.
        tables: Where it goes.
    """

    store: Callable[[Shop, Connection, str], object]
    stored: Callable[[Shop, Connection, str], object]
    tables: tuple[str, ...]


def add_model(_shop: Shop, connection: Connection, string: str) -> None:
    added = registry.add(connection, replace(spec(), name=string))
    registry.retire(connection, added)
    registry.activate(connection, added)


def found_model(_shop: Shop, connection: Connection, string: str) -> object:
    known = registry.active(connection, string)
    by_id = registry.find(connection, replace(spec(), name=string).model_id)
    return known is not None and known == by_id and known.spec.name == known.name and known.name


def fail(shop: Shop, connection: Connection, string: str) -> None:
    """Claim the image again, and record this failure of it."""
    token = LeaseToken(uuid4())
    failures.retry_failed(connection, model_key=shop.model_key)
    claim.open_lease(
        connection, token=token, model_key=shop.model_key, run_id=shop.run_id, lease_s=60
    )
    (image,) = claim.claim_images(
        connection, token=token, model_key=shop.model_key, rows=1, suspicion=Suspicion.NONE
    )
    record.record_failures(
        connection,
        token=token,
        model_key=shop.model_key,
        failures=[FailedImage(image=image, reason=FailureReason.NOT_FOUND, detail=string)],
        max_attempts=8,
        backoff_s=1,
    )


def name_shard(shop: Shop, connection: Connection, string: str) -> None:
    shard_id = ShardId(uuid4())
    record.begin_shard(
        connection, shard_id=shard_id, model_key=shop.model_key, uri=string, run_id=shop.run_id
    )
    connection.execute(
        text("UPDATE shards SET state = 'discarded' WHERE shard_id = :id"), {"id": shard_id}
    )


def column(sql: str) -> Callable[[Shop, Connection, str], object]:
    """The string from a column that has it, by the driver's own parameters."""
    return lambda _shop, connection, string: connection.exec_driver_sql(sql, (string,)).scalar()


def end_run(shop: Shop, connection: Connection, string: str) -> None:
    runs.finish_run(
        connection, shop.run_id, RunFigures(), outcome=RunOutcome.FAILED, message=string
    )


STATEMENTS = {
    "model name": Statement(store=add_model, stored=found_model, tables=("models",)),
    "failure detail": Statement(
        store=fail,
        stored=lambda _shop, c, _string: next(f.detail for f in failures.list_failures(c)),
        tables=("extractions", "extractions_1", "leases"),
    ),
    "host": Statement(
        store=lambda _shop, c, string: hosts.share_pauses(c, {string: 60}),
        stored=lambda _shop, c, string: next(h for h in hosts.share_pauses(c, {}) if h == string),
        tables=("hosts",),
    ),
    "message of a run": Statement(
        store=end_run,
        stored=lambda _shop, c, _string: runs.list_runs(c)[0].message,
        tables=("runs",),
    ),
    "URI of a shard": Statement(
        store=name_shard,
        stored=column("SELECT uri FROM shards WHERE uri = %s LIMIT 1"),
        tables=("shards",),
    ),
}


@contextmanager
def undone(database: Database) -> Iterator[Connection]:
    """A transaction of which nothing stays."""
    with database.transaction() as connection:
        point = connection.begin_nested()
        yield connection
        point.rollback()


def check_statement(shop: Shop, statement: Statement, strings: Sequence[str]) -> None:
    with undone(shop.database) as connection:
        before = shop.state(connection)
        for string in strings:
            point = connection.begin_nested()
            try:
                statement.store(shop, connection, string)
            except ValueError:  # the driver's, before anything is sent
                assert unstorable(string)
                point.rollback()
            else:
                assert statement.stored(shop, connection, string) == string
                point.commit()
        assert shop.state(connection, *statement.tables).items() <= before.items()


@pytest.mark.parametrize("field", STATEMENTS)
@pytest.mark.parametrize("number", NUMBERS)
def test_a_hostile_string_is_stored_to_the_byte_or_refused(
    shop: Shop, field: str, number: int
) -> None:
    try_all(number, lambda strings: check_statement(shop, STATEMENTS[field], strings), HOSTILE)


@pytest.mark.parametrize("field", sorted(STATEMENTS.keys() - {"model name", "host"}))
def test_a_million_characters_are_stored_to_the_byte_or_refused(shop: Shop, field: str) -> None:
    """Names of models and hosts are indexed, and never so long: both are checked before."""
    check_statement(shop, STATEMENTS[field], LONG)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_hostile_name_finds_nothing_and_changes_nothing(shop: Shop, number: int) -> None:
    def look(strings: list[str]) -> None:
        with undone(shop.database) as connection:
            before = shop.state(connection)
            for string in strings:
                name = f"{string}~"
                if unstorable(name):
                    continue
                assert failures.list_failures(connection, model=name, reason=name) == []
                assert runs.list_runs(connection, models=[name]) == []
                assert runs.find_runs(connection, name) == []
                assert record.list_shards(connection, model=name) == []
                assert registry.active(connection, name) is None
            assert shop.state(connection) == before

    try_all(number, look, HOSTILE)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_model_has_a_plain_name_or_is_refused(number: int) -> None:
    table = ModelTable.model_validate(OWN | {"dim": 8})

    def resolve(names: list[str]) -> None:
        for name in names:
            with suppress(ModelError):
                made = models.resolve(name, {name: table}, precision="fp32", home=NOWHERE)
                assert set(made.model_id) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")

    try_all(number, resolve, HOSTILE | st.from_regex(r"[a-z0-9._-]{1,70}\n?", fullmatch=True))


# The schema: the one name that cannot be a parameter everywhere

SCHEMAS = (
    '"; DROP TABLE orders; --', "%s", "Größe x", "{}", "a'b", "x" * 63, "vsearch", 'a"b', "a.b",
    "100%", "%%", "%(schema)s", "$1", "--", "/*", "select", "1", "é" * 31,
)  # fmt: skip
NO_SCHEMAS = (
    "", "\0", "a\nb", "\x1b[31m", "\u202e", "\ud800", "a:b", " :b", "\\", "pg_catalog", "pg_temp",
    "information_schema", "$user", "x" * 64, "é" * 32, "x" * 1_000_000,
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        name if n < 6 else pytest.param(name, marks=pytest.mark.long)
        for n, name in enumerate(SCHEMAS)
    ],
)
def test_a_schema_may_have_any_ordinary_name(shop: Shop, name: str) -> None:
    check_schema(shop, name)


@pytest.mark.parametrize("name", NO_SCHEMAS, ids=lambda name: ascii(name[:20]))
def test_a_schema_with_another_name_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"'database\.schema'") as refused:
        load_settings(database={"schema": name})
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 300


@pytest.mark.long
def test_a_thousand_hostile_schemas_are_made_by_their_own_name_or_refused(shop: Shop) -> None:
    def check(names: list[str]) -> None:
        for name in names:
            check_schema(shop, name)

    try_all(1_000, check, HOSTILE)


def check_schema(shop: Shop, name: str) -> None:
    try:
        schema = load_settings(database={"schema": name}).database.schema_name
    except SettingsError:
        return
    assert schema == name
    with shop.database.transaction() as connection:
        before = shop.state(connection)
    if name != shop.database.schema:
        own = Database(shop.url, schema=schema, outage_s=0)
        assert migrate.upgrade(own) is None
        assert migrate.current(own) == migrate.head()
        own.close()
    with shop.database.transaction() as connection:
        tables = connection.execute(
            text("SELECT count(*) FROM pg_tables WHERE schemaname = :name"), {"name": name}
        ).scalar_one()
        assert tables >= 10
        if name != shop.database.schema:
            connection.execute(text(f"DROP SCHEMA {quoted(name)} CASCADE"))
        assert shop.state(connection) == before
