"""Rows that database tests start from."""

from collections.abc import Sequence

import pytest
from sqlalchemy import text

from visual_search.catalog.tables import add_to_count
from visual_search.database.connection import Database
from visual_search.images import ModelKey


def add_images(database: Database, count: int, *, start: int = 0) -> None:
    """Add images `http://h.test/N.jpg`, `start` ≤ N < `start + count`."""
    add_urls(database, [f"http://h.test/{n}.jpg" for n in range(start, start + count)])


def add_urls(database: Database, urls: Sequence[str]) -> None:
    """Add images by URL; all on one host as far as the table says."""
    with database.transaction() as connection:
        connection.execute(
            text("""
                INSERT INTO images (image_key, key_hash, url, host)
                SELECT url, substring(sha256(convert_to(url, 'UTF8')) FOR 16), url, 'h.test'
                FROM unnest(CAST(:urls AS text[])) WITH ORDINALITY AS u (url, n) ORDER BY n
            """),
            {"urls": list(urls)},
        )
        add_to_count(connection, len(urls))


def use_small_chunks(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Import so many rows a transaction."""
    monkeypatch.setattr("visual_search.catalog.rows.BLOCK_ROWS", rows)
    monkeypatch.setattr("visual_search.catalog.chunk.MAX_ROWS", rows)


def make_model(database: Database, name: str = "tiny") -> ModelKey:
    """Register a model that is never run."""
    with database.transaction() as connection:
        model_key = connection.execute(
            text("""
                INSERT INTO models (name, model_id, active, dim, spec)
                VALUES (:name, :name || '-00000000', true, 2, '{}') RETURNING model_key
            """),
            {"name": name},
        ).scalar_one()
        connection.execute(
            text(f"""
                CREATE TABLE extractions_{int(model_key)} PARTITION OF extractions
                FOR VALUES IN ({int(model_key)})
            """)
        )
    return ModelKey(model_key)


def statuses(database: Database, model_key: ModelKey) -> dict[str, int]:
    """How many extractions of a model are in which status."""
    with database.transaction() as connection:
        rows = connection.execute(
            text("""
                SELECT status, count(*) AS images FROM extractions WHERE model_key = :model_key
                GROUP BY status
            """),
            {"model_key": model_key},
        )
        return {row.status: row.images for row in rows}
