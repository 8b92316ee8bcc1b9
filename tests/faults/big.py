"""Catalogues as large as real ones, made by the database itself."""

from sqlalchemy import create_engine, text

from tests.catalogue import make_model
from visual_search.catalog.tables import add_to_count
from visual_search.database.connection import Database
from visual_search.images import ModelKey

_AT_ONCE = 100_000


def add_many_images(database: Database, count: int) -> None:
    """Add `count` images that nobody will ask for."""
    for start in range(0, count, _AT_ONCE):
        with database.transaction() as connection:
            connection.execute(
                text("""
                    INSERT INTO images (image_key, key_hash, url, host)
                    SELECT url, substring(sha256(convert_to(url, 'UTF8')) FOR 16), url, 'h.test'
                    FROM (SELECT 'http://h.test/' || n || '.jpg' AS url
                          FROM generate_series(CAST(:first AS bigint), :last) AS n) AS u
                """),
                {"first": start + 1, "last": min(start + _AT_ONCE, count)},
            )
    with database.transaction() as connection:
        add_to_count(connection, count)


def seed_many(database: Database, count: int) -> ModelKey:
    """A model to which `count` images are pending."""
    model_key = make_model(database)
    add_many_images(database, count)
    with database.transaction() as connection:
        connection.execute(
            text("""
                INSERT INTO extractions (model_key, image_id)
                SELECT :model_key, image_id FROM images ORDER BY image_id
            """),
            {"model_key": model_key},
        )
        connection.execute(text("UPDATE models SET seeded_to = (SELECT max(image_id) FROM images)"))
    return model_key


def vacuum(database_url: str) -> None:
    """What the server does by itself after so many changes; the planner knows what is there now.

    It knows it of each model's part of `extractions`, never of the whole: autovacuum leaves
    partitioned tables alone.
    """
    engine = create_engine(database_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("SET search_path = vsearch"))
        parts = connection.execute(
            text("""
                SELECT string_agg(CAST(inhrelid AS regclass) || '', ', ') FROM pg_inherits
                WHERE inhparent = CAST('extractions' AS regclass)
            """)
        ).scalar_one()
        connection.execute(text(f"VACUUM (ANALYZE) images, leases, shards, {parts}"))
    engine.dispose()
