"""Imports: what they leave in the tables, again, at once, and against seeding."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from tests.catalogue import make_model, statuses, use_small_chunks
from visual_search import claim
from visual_search.catalog import Columns, Imported, Source, import_images, store
from visual_search.catalog.chunk import Chunk, collect
from visual_search.catalog.readers import table_blocks
from visual_search.catalog.rows import MAX_LISTED_BAD_ROWS
from visual_search.catalog.tables import lock_catalogue
from visual_search.database.connection import Database
from visual_search.errors import UsageError

T = TypeVar("T")

HOSTILE = st.text(
    st.one_of(st.sampled_from("'\"%\\\t\n\r\0\u202e\ud800,;:{}N.$é😀"), st.characters()),
    max_size=12,
)


@pytest.fixture(autouse=True)
def count_of_images(database: Database) -> Iterator[None]:
    """Whatever a test does, the number that `status` tells stays right."""
    yield
    counted = "SELECT images, (SELECT count(*) FROM images) FROM catalogue"
    ((told, there),) = select(database, counted)
    assert told == there


def stored(connection: Connection, chunk: Chunk) -> store._Tally:
    """A chunk as an import stores it, in a transaction that the test keeps open."""
    lock_catalogue(connection)
    hopes = store._Hopes()
    products = store._store_products(connection, chunk, hopes)
    return products + store._store_images(connection, chunk, hopes)


def source(
    names: Sequence[str], rows: Sequence[Sequence[Any]], columns: Columns | None = None
) -> Source:
    return Source(name="rows", blocks=table_blocks(names, rows, columns or Columns(), "rows"))


def urls(start: int, stop: int) -> list[tuple[str]]:
    return [(f"http://h.test/{n}.jpg",) for n in range(start, stop)]


def import_rows(
    database: Database,
    names: Sequence[str],
    rows: Sequence[Sequence[Any]],
    columns: Columns | None = None,
) -> Imported:
    return import_images(database, source(names, rows, columns))


def chunk_of(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> Chunk:
    (collected,) = collect(source(names, rows).blocks, lambda _bad: None)
    return collected.chunk()


def select(database: Database, sql: str) -> list[tuple[Any, ...]]:
    with database.transaction() as connection:
        return [tuple(row) for row in connection.execute(text(sql))]


@contextmanager
def another(database_url: str) -> Iterator[Database]:
    database = Database(database_url, schema="vsearch", outage_s=0)
    yield database
    database.close()


def blocked(database_url: str, work: Callable[[], T]) -> "Future[T]":
    """`work` in a thread, where it waits for a lock by now."""
    executor = ThreadPoolExecutor(1)
    future = executor.submit(work)
    executor.shutdown(wait=False)
    with another(database_url) as onlooker:
        while not select(
            onlooker,
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() "
            "AND wait_event_type = 'Lock'",
        ):
            assert not future.done(), "it did not wait"
            time.sleep(0.01)
    return future


def test_images_products_and_links_are_stored(database: Database) -> None:
    columns = Columns(product_id="sku", image_key="photo")
    rows = [
        ("coat", "front", "http://H.test:8080/1.jpg", "Coat", 12.5),
        ("coat", "back", "http://h.test/2.jpg", "Coat", 12.5),
        ("set", "front", "http://H.test:8080/1.jpg", None, None),
    ]
    names = ("sku", "photo", "image_url", "title", "price")
    found = import_rows(database, names, rows, columns)
    assert found == Imported(rows=3, new=2, products_new=2)
    assert found.unchanged == 1
    assert select(
        database,
        "SELECT image_key, url, host, key_hash = substring(sha256(convert_to(image_key, 'UTF8')) "
        "FOR 16) FROM images ORDER BY image_key",
    ) == [
        ("back", "http://h.test/2.jpg", "h.test", True),
        ("front", "http://H.test:8080/1.jpg", "h.test:8080", True),
    ]
    assert select(database, "SELECT product_id, attributes FROM products ORDER BY 1") == [
        ("coat", {"title": "Coat", "price": 12.5}),
        ("set", {}),
    ]
    assert select(
        database,
        "SELECT product_id, image_key FROM product_images JOIN images USING (image_id) "
        "ORDER BY 1, 2",
    ) == [("coat", "back"), ("coat", "front"), ("set", "front")]


def test_without_columns_of_ids_the_url_names_image_and_product(database: Database) -> None:
    long = "http://h.test/" + "x" * 3_000
    assert import_rows(database, ("image_url",), [*urls(1, 2), (long,)]).new == 2
    keys = select(database, "SELECT image_key, product_id FROM images JOIN product_images "
                            "USING (image_id) ORDER BY 1")  # fmt: skip
    assert keys[0] == ("http://h.test/1.jpg", "http://h.test/1.jpg")
    assert keys[1][0] == long
    assert keys[1][1].startswith("sha256:")


def test_a_second_import_changes_nothing(database: Database) -> None:
    rows = [(url, n, "12.50") for n, (url,) in enumerate(urls(0, 100))]
    names = ("image_url", "n", "price")
    assert import_rows(database, names, rows).new == 100
    tables = [
        f"SELECT t.*, xmin::text, ctid::text FROM {table} t ORDER BY 1"
        for table in ("images", "products", "product_images")
    ]
    before = [select(database, sql) for sql in tables]
    again = import_rows(database, names, rows[::-1])
    assert again == Imported(rows=100)
    assert again.unchanged == 100
    assert [select(database, sql) for sql in tables] == before
    (last,) = select(database, "SELECT last_value FROM images_image_id_seq")
    assert last == (100,)


def test_another_url_for_a_known_key_is_kept_and_embeds_nothing_again(database: Database) -> None:
    columns = Columns(image_key="photo")
    names = ("photo", "image_url")
    import_rows(
        database, names, [("a", "http://h.test/1?sig=1"), ("b", "http://h.test/2")], columns
    )
    model_key = make_model(database)
    with database.transaction() as connection:
        claim.seed_images(connection, model_key)
        connection.execute(
            text("UPDATE extractions SET status = 'failed', failure_reason = 'not_found'")
        )
    changed = [
        ("a", "https://new.test/1?sig=2"),
        ("b", "http://h.test/2"),
        ("c", "http://h.test/3"),
    ]
    found = import_rows(database, names, changed, columns)
    assert (found.new, found.updated, found.unchanged) == (1, 1, 1)
    assert select(database, "SELECT image_id, url, host FROM images WHERE image_key = 'a'")[0][
        1:
    ] == ("https://new.test/1?sig=2", "new.test")
    with database.transaction() as connection:
        assert claim.seed_images(connection, model_key) == 1
    assert statuses(database, model_key) == {"failed": 2, "pending": 1}


def test_attributes_are_those_of_the_last_row_that_has_any(database: Database) -> None:
    columns = Columns(product_id="sku")
    names = ("sku", "image_url", "title", "price")
    import_rows(database, names, [("p", "http://h.test/1", "Coat", None)], columns)
    (first,) = select(database, "SELECT updated_at FROM products")
    found = import_rows(
        database,
        names,
        [
            ("p", "http://h.test/1", "Old", 1),
            ("p", "http://h.test/2", "New", 2),
            ("p", "http://h.test/3", None, None),
        ],
        columns,
    )
    assert (found.products_new, found.products_updated) == (0, 1)
    ((attributes, updated_at),) = select(database, "SELECT attributes, updated_at FROM products")
    assert attributes == {"title": "New", "price": 2}
    assert updated_at > first[0]


def test_a_row_without_attributes_takes_none_away(database: Database) -> None:
    import_rows(database, ("image_url", "title"), [("http://h.test/1", "Coat")])
    assert import_rows(database, ("image_url",), [("http://h.test/1",)]) == Imported(rows=1)
    assert select(database, "SELECT attributes FROM products") == [({"title": "Coat"},)]


def test_the_last_row_of_an_image_wins_within_a_chunk(database: Database) -> None:
    rows = [("a", "http://h.test/1"), ("b", "http://h.test/b"), ("a", "http://h.test/2")]
    found = import_rows(database, ("photo", "image_url"), rows, Columns(image_key="photo"))
    assert (found.rows, found.new, found.unchanged) == (3, 2, 1)
    assert select(database, "SELECT url FROM images WHERE image_key = 'a'") == [
        ("http://h.test/2",)
    ]


def test_bad_rows_are_counted_listed_and_left_out(database: Database) -> None:
    rows = [*urls(0, 3), *[("ftp://h.test",)] * 1_500, *urls(3, 5)]
    found = import_rows(database, ("image_url",), rows)
    assert (found.rows, found.new, found.bad) == (5, 5, 1_500)
    assert len(found.bad_rows) == MAX_LISTED_BAD_ROWS
    assert found.bad_rows[0].line == 4


def test_progress_is_told_after_each_chunk(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_chunks(monkeypatch, 2)
    told: list[tuple[int, int]] = []
    import_images(
        database,
        source(("image_url",), [*urls(0, 2), ("",), *urls(2, 5)]),
        on_progress=lambda rows, bad: told.append((rows, bad)),
    )
    assert [rows for rows, _ in told] == [2, 5]
    assert told[-1] == (5, 1)


def test_chunks_of_new_rows_known_ones_and_both_follow_each_other(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_chunks(monkeypatch, 5)
    names, columns = ("sku", "image_url", "n"), Columns(product_id="sku")

    def rows(*numbers: int) -> list[tuple[Any, ...]]:
        return [(f"p{n}", f"http://h.test/{n}.jpg", n) for n in numbers]

    import_rows(database, names, rows(*range(30, 35), 52, 58), columns)
    # All new three times, all known, all new twice, one known among new ones, all new.
    numbers = [*range(15), *range(30, 35), *range(40, 60)]
    given = [(sku, url, n + 1000) for sku, url, n in rows(*numbers)]
    found = import_rows(database, names, given, columns)
    assert (found.rows, found.new, found.unchanged) == (40, 33, 7)
    assert (found.products_new, found.products_updated) == (33, 7)
    assert select(
        database,
        "SELECT product_id, url, (attributes->>'n')::int FROM images "
        "JOIN product_images USING (image_id) JOIN products USING (product_id) ORDER BY 3",
    ) == sorted(given, key=lambda row: row[2])
    for table in ("images", "products", "product_images"):
        assert select(database, f"SELECT count(*) FROM {table}") == [(40,)]


def test_a_source_that_breaks_off_leaves_what_was_stored(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_chunks(monkeypatch, 2)

    def breaking() -> Iterator[Any]:
        yield from source(("image_url",), urls(0, 5)).blocks
        raise UsageError("the disk is gone")

    with pytest.raises(UsageError, match="the disk is gone"):
        import_images(database, Source(name="rows", blocks=breaking()))
    assert select(database, "SELECT count(*) FROM images") == [(4,)]


def test_text_is_utf_8_whatever_the_environment_says(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    with another(database_url) as elsewhere:
        rows = [("ключ é", "http://h.test/é")]
        import_rows(elsewhere, ("photo", "image_url"), rows, Columns(image_key="photo"))
    monkeypatch.delenv("PGCLIENTENCODING")
    assert select(database, "SELECT image_key, url FROM images") == rows


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "photo": HOSTILE,
                "image_url": HOSTILE.map(lambda text: f"http://h.test/{text}"),
                "sku": HOSTILE,
                "attributes": st.dictionaries(HOSTILE.filter(bool), HOSTILE, max_size=2),
            }
        ),
        min_size=1,
        max_size=20,
        unique_by=(lambda row: str(row["photo"]), lambda row: str(row["sku"] or row["photo"])),
    )
)
@example(
    rows=[
        {
            "photo": text,
            "image_url": f"http://h.test/{text}",
            "sku": f"{text}{n}",
            "attributes": {text: text, "null": "\\N"},
        }
        for n, text in enumerate(["\\N", "\\.", "a\tb", "'); --", "%(x)s", "\u202etxt", "a\0"])
    ]
)
def test_hostile_strings_are_stored_to_the_byte_or_refused(
    database: Database, rows: list[dict[str, Any]]
) -> None:
    with database.transaction() as connection:
        connection.execute(
            text("TRUNCATE images, products, product_images; UPDATE catalogue SET images = 0")
        )
    names = ("photo", "image_url", "sku", "attributes")
    found = import_rows(
        database,
        names,
        [[row[name] for name in names] for row in rows],
        Columns(image_key="photo", product_id="sku"),
    )
    bad = {row.line for row in found.bad_rows}
    stored = {
        (row["photo"], row["image_url"], row["sku"] or row["photo"], in_order(row["attributes"]))
        for line, row in enumerate(rows, 1)
        if line not in bad
    }
    assert stored == {
        (key, url, product, in_order(attributes["attributes"]))
        for key, url, product, attributes in select(
            database,
            "SELECT image_key, url, product_id, attributes FROM images "
            "JOIN product_images USING (image_id) JOIN products USING (product_id)",
        )
    }
    for line in bad:
        assert unstorable(rows[line - 1])


def in_order(attributes: dict[str, str]) -> str:
    return json.dumps(attributes, sort_keys=True)


def unstorable(row: dict[str, Any]) -> bool:
    texts = [row["photo"], row["sku"], *row["attributes"], *row["attributes"].values()]
    return (
        not row["photo"]
        or any("\0" in value or not is_unicode(value) for value in texts)
        or not is_unicode(row["image_url"])
        or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in row["image_url"])
    )


def is_unicode(value: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in value)


@pytest.mark.parametrize("backwards", [False, True])
def test_imports_of_the_same_rows_at_once_take_turns(
    database: Database, database_url: str, backwards: bool
) -> None:
    mine, theirs = urls(0, 200), urls(100, 300)[:: -1 if backwards else 1]
    with another(database_url) as other:
        with database.transaction() as first:
            assert stored(first, chunk_of(("image_url",), mine)).new == 200
            second = blocked(database_url, lambda: import_rows(other, ("image_url",), theirs))
        found = second.result(30)
    assert (found.new, found.unchanged, found.products_new) == (100, 100, 100)
    for table in ("images", "products", "product_images"):
        assert select(database, f"SELECT count(*) FROM {table}") == [(300,)]


def test_many_chunks_of_two_imports_mix_without_harm(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_chunks(monkeypatch, 7)
    rows = urls(0, 200)
    with another(database_url) as other, ThreadPoolExecutor(2) as executor:
        ways = ((database, rows), (other, rows[::-1]))
        found = list(executor.map(lambda way: import_rows(way[0], ("image_url",), way[1]), ways))
    assert sum(each.new for each in found) == 200
    assert select(database, "SELECT count(*), count(DISTINCT url) FROM images") == [(200, 200)]


def test_an_image_of_an_open_import_is_not_missed_by_seeding(
    database: Database, database_url: str
) -> None:
    model_key = make_model(database)
    import_rows(database, ("image_url",), urls(0, 1))
    with another(database_url) as other:

        def seed() -> int:
            with other.transaction() as connection:
                return claim.seed_images(connection, model_key)

        with database.transaction() as importer:
            stored(importer, chunk_of(("image_url",), urls(1, 4)))
            seeding = blocked(database_url, seed)
        assert seeding.result(30) == 4


def test_an_import_waits_for_seeding_under_way(database: Database, database_url: str) -> None:
    model_key = make_model(database)
    import_rows(database, ("image_url",), urls(0, 2))
    with another(database_url) as other:
        with database.transaction() as seeder:
            assert claim.seed_images(seeder, model_key) == 2
            second = blocked(database_url, lambda: import_rows(other, ("image_url",), urls(2, 5)))
        assert second.result(30).new == 3
    with database.transaction() as connection:
        assert claim.seed_images(connection, model_key) == 3


def test_an_import_goes_on_after_its_connection_was_cut(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_chunks(monkeypatch, 10)
    cut: list[tuple[Any, ...]] = []

    def cut_once(_rows: int, _bad: int) -> None:
        if not cut:
            with another(database_url) as other:
                cut.extend(
                    select(
                        other,
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
                    )
                )

    found = import_images(database, source(("image_url",), urls(0, 100)), on_progress=cut_once)
    assert cut
    assert found.new + found.unchanged == 100
    assert select(database, "SELECT count(*) FROM images") == [(100,)]


class Scans:
    """Rows that a transaction reads, from now on, by going through tables from end to end.

    The server's counters also hold what the connection did in the second before.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._before = self._counted()

    def rows(self, table: str) -> int:
        """Of the tables whose names begin so."""
        counted = (self._counted() - self._before).items()
        return sum(rows for name, rows in counted if name.startswith(table))

    def _counted(self) -> Counter[str]:
        counted = self._connection.execute(
            text("""
                SELECT relname, coalesce(seq_tup_read, 0) AS rows FROM pg_stat_xact_user_tables
                WHERE schemaname = 'vsearch'
            """)
        )
        return Counter({row.relname: row.rows for row in counted})


def test_a_small_import_does_not_read_a_large_catalogue(database: Database) -> None:
    """With the planner's statistics from before there was anything in it."""
    import_rows(database, ("image_url",), urls(0, 50_000))
    with database.transaction() as connection:
        scans = Scans(connection)
        stored(connection, chunk_of(("image_url",), urls(40_000, 51_000)))
        for table in ("images", "products", "product_images"):
            assert scans.rows(table) == 0, table
