"""What a model is to work on: each image of the catalogue becomes pending once."""

from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection, text

from visual_search.database.schema import SEEDING_LOCK
from visual_search.images import ModelKey

_SEED_ROWS: Final = 100_000
# Of a new model, whose first download waits for it.
_FIRST_SEED_ROWS: Final = 10_000


def is_behind(connection: Connection, model_key: ModelKey) -> bool:
    """Whether the catalogue has images that the model does not know yet."""
    behind = connection.execute(
        text("""
            SELECT (SELECT max(image_id) FROM images) > seeded_to
            FROM models WHERE model_key = :model_key
        """),
        {"model_key": model_key},
    ).scalar()
    return bool(behind)


def seed_images(connection: Connection, model_key: ModelKey) -> int:
    """Make the next images of the catalogue pending for a model.

    Returns:
        How many, at most `_SEED_ROWS`, the first time fewer; 0 when the model knows the whole
        catalogue.
    """
    if not is_behind(connection, model_key):
        return 0
    # Importers hold this lock shared: while it is held exclusively, no transaction is open that
    # could still make an id below the new watermark visible.
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SEEDING_LOCK})
    seeded_to = connection.execute(
        text("SELECT seeded_to FROM models WHERE model_key = :model_key"), {"model_key": model_key}
    ).scalar_one()
    seeded = connection.execute(
        text("""
            WITH next AS MATERIALIZED (
                SELECT image_id FROM images WHERE image_id > :seeded_to
                ORDER BY image_id
                LIMIT :rows
            ), seeded AS (
                INSERT INTO extractions (model_key, image_id)
                SELECT :model_key, image_id FROM next
            )
            UPDATE models SET seeded_to = last.image_id
            FROM (SELECT max(image_id) AS image_id, count(*) AS rows FROM next) AS last
            WHERE model_key = :model_key AND last.rows > 0
            RETURNING last.rows
        """),
        {
            "model_key": model_key,
            "seeded_to": seeded_to,
            "rows": _SEED_ROWS if seeded_to else _FIRST_SEED_ROWS,
        },
    ).scalar()
    return int(seeded or 0)


def by_progress(connection: Connection, model_keys: Collection[ModelKey]) -> list[ModelKey]:
    """These models, the one that knows the least of the catalogue first."""
    return [
        ModelKey(row.model_key)
        for row in connection.execute(
            text("""
                SELECT model_key FROM models
                WHERE model_key = ANY(CAST(:model_keys AS integer[]))
                ORDER BY seeded_to, model_key
            """),
            {"model_keys": list(model_keys)},
        )
    ]
