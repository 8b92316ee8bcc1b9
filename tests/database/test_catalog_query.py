"""Imports from the user's own tables: read in batches, never written to, errors in one sentence."""

from itertools import islice

import pytest
from sqlalchemy import make_url, text

from tests.catalogue import use_small_chunks
from tests.database.test_catalog_import import another, select
from visual_search.catalog import Columns, Imported, import_images, open_query
from visual_search.catalog.rows import BadRow, Record
from visual_search.database.connection import Database, quoted
from visual_search.errors import DatabaseGoneError, ExitCode, UsageError


@pytest.fixture
def shop(database: Database) -> Database:
    """The user's tables, in a schema that is on their search path, and one that is not."""
    with database.transaction() as connection:
        connection.execute(
            text("""
                CREATE TABLE public.products (
                    sku integer, photo text, title text, price numeric(9, 2), sizes text[],
                    details jsonb, since date
                );
                INSERT INTO public.products VALUES
                    (7, 'http://h.test/7%20\\a.jpg', 'Coat', 12.50, '{S,M}', '{"in": "PT"}',
                     '2026-01-02'),
                    (8, 'http://h.test/8.jpg', NULL, NULL, NULL, NULL, NULL),
                    (9, NULL, 'no photo', 1, NULL, NULL, NULL)
            """)
        )
    return database


def import_query(database: Database, sql: str, columns: Columns | None = None) -> Imported:
    with open_query(database, sql, columns=columns) as source:
        return import_images(database, source)


def complaint(database: Database, sql: str) -> str:
    with pytest.raises(UsageError) as error:
        import_query(database, sql)
    assert error.value.exit_code is ExitCode.USAGE
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_query_sees_the_users_tables_not_ours_and_keeps_types(shop: Database) -> None:
    columns = Columns(url="photo", image_key="sku", product_id="sku")
    found = import_query(shop, "SELECT * FROM products WHERE title LIKE '%o%' OR sku = 8;", columns)
    assert (found.rows, found.new, found.bad) == (2, 2, 1)
    assert found.bad_rows == (BadRow(line=3, reason="the URL is empty"),)
    assert select(
        shop,
        "SELECT image_key, url, product_id, attributes FROM images "
        "JOIN product_images USING (image_id) JOIN vsearch.products USING (product_id) ORDER BY 1",
    ) == [
        (
            "7",
            r"http://h.test/7%20\a.jpg",
            "7",
            {
                "title": "Coat",
                "price": 12.5,
                "sizes": ["S", "M"],
                "details": {"in": "PT"},
                "since": "2026-01-02",
            },
        ),
        ("8", "http://h.test/8.jpg", "8", {}),
    ]


def test_more_rows_than_a_batch_are_numbered_and_stored(shop: Database) -> None:
    sql = "SELECT 'http://h.test/' || n AS image_url FROM generate_series(1, 4500) n"
    with open_query(shop, sql) as source:
        rows = list(source.rows)
    assert [row.line for row in rows] == list(range(1, 4_501))
    assert import_query(shop, sql).new == 4_500


def test_a_result_without_end_is_read_as_it_comes(shop: Database) -> None:
    sql = "SELECT 'http://h.test/' || generate_series(1, 1000000000000) AS image_url"
    with open_query(shop, sql) as source:
        first = list(islice(source.rows, 3_000))
    assert isinstance(first[-1], Record)
    assert first[-1].url == "http://h.test/3000"


def test_the_servers_patience_with_idle_transactions_is_not_the_imports(
    shop: Database, database_url: str
) -> None:
    """A query is idle while its rows are stored."""
    name = quoted(make_url(database_url).database or "")
    with shop.transaction() as connection:
        connection.execute(
            text(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '1s'")
        )
    with another(database_url) as later:
        sql = "SELECT 'http://h/' || current_setting('idle_in_transaction_session_timeout') AS url"
        with open_query(later, sql, columns=Columns(url="url")) as source:
            assert next(row for row in source.rows if isinstance(row, Record)).url == "http://h/0"


def test_a_query_of_what_is_imported_meanwhile_ends(shop: Database) -> None:
    import_query(shop, "SELECT photo AS image_url FROM products WHERE photo IS NOT NULL")
    found = import_query(shop, "SELECT url || '?again' AS image_url FROM vsearch.images")
    assert found.new == 2


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM products",
        "DELETE FROM products RETURNING photo AS image_url",
        "WITH gone AS (DELETE FROM products RETURNING photo) SELECT photo AS image_url FROM gone",
        "SELECT photo AS image_url FROM products FOR UPDATE",
        "SELECT 'http://h.test/1' AS image_url; COMMIT; DELETE FROM products",
        "SELECT photo AS image_url INTO copied FROM products",
        "SELECT 'http://h.test/' || nextval('vsearch.images_image_id_seq') AS image_url",
        "COPY products TO PROGRAM 'true'",
        "COMMIT",
        "",
    ],
)
def test_a_query_that_writes_is_refused(shop: Database, sql: str) -> None:
    assert "must be one SELECT that only reads" in complaint(shop, sql)
    assert select(shop, "SELECT count(*) FROM public.products") == [(3,)]
    assert select(shop, "SELECT count(*) FROM images") == [(0,)]


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEC 1", 'the query fails: syntax error at or near "SELEC"'),
        ("SELECT * FROM nowhere", 'the query fails: relation "nowhere" does not exist'),
        ("SELECT * FROM nowhere.x", 'the query fails: relation "nowhere.x" does not exist'),
        ("SELECT 1 / 0 AS image_url", "the query fails: division by zero"),
        ("SELECT photo FROM products", "the query has no column 'image_url', only photo; name one"),
        ("SELECT", "the query has no column 'image_url', none at all; name one"),
        ("SELECT 1 AS image_url, 2 AS n, 3 AS n", "the query has the column 'n' twice"),
        (
            "SELECT DATE '0044-03-15 BC' AS since, 'http://h.test/1' AS image_url",
            "cast that column to text",
        ),
        ("SELECT pg_terminate_backend(1, -1)::text AS image_url", "the query fails: "),
    ],
)
def test_a_querys_own_error_is_one_sentence(shop: Database, sql: str, said: str) -> None:
    assert said in complaint(shop, sql)


def test_an_error_on_the_way_leaves_what_was_stored(
    shop: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_small_chunks(monkeypatch, 1_000)
    sql = "SELECT 'http://h.test/' || n / (n - 2500) AS image_url FROM generate_series(1, 9999) n"
    assert "division by zero" in complaint(shop, sql)
    ((images,),) = select(shop, "SELECT count(*) FROM images")
    assert images > 0


def test_permission_to_read_is_the_querys_matter(shop: Database, database_url: str) -> None:
    with shop.transaction() as connection:
        connection.execute(text("CREATE ROLE stranger LOGIN"))
    stranger = Database(
        make_url(database_url).set(username="stranger"), schema="vsearch", outage_s=0
    )
    try:
        said = complaint(stranger, "SELECT photo AS image_url FROM products")
        assert said == "the query fails: permission denied for table products"
    finally:
        stranger.close()
        with shop.transaction() as connection:
            connection.execute(text("DROP ROLE stranger"))


@pytest.mark.parametrize("state", ["57P01", "08006"])
def test_a_server_that_goes_away_is_no_fault_of_the_query(shop: Database, state: str) -> None:
    with shop.transaction() as connection:
        connection.execute(
            text(f"""
                CREATE FUNCTION public.leave() RETURNS text LANGUAGE plpgsql AS
                $$ BEGIN RAISE 'so long' USING ERRCODE = '{state}'; END $$
            """)
        )
    with pytest.raises(DatabaseGoneError):
        import_query(shop, "SELECT leave() AS image_url")


def test_a_connection_cut_by_a_query_is_no_fault_of_the_query(shop: Database) -> None:
    with pytest.raises(DatabaseGoneError):
        import_query(shop, "SELECT pg_terminate_backend(pg_backend_pid())::text AS image_url")
