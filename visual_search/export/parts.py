"""The rows of a shard that count, with what the catalogue knows of their products."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import text

from visual_search.database.connection import Database
from visual_search.errors import StorageError
from visual_search.images import ModelKey, ShardRecord
from visual_search.settings import StorageSettings
from visual_search.storage import locate, shown, words_of

_COLUMNS = ["image_id", "image_key", "url", "embedding", "width", "height"]


def read_part(
    database: Database, model_key: ModelKey, shard: ShardRecord, storage: StorageSettings
) -> pa.Table:
    """A shard without the rows that were taken out of the history since it was written.

    Returns:
        `image_id`, `image_key`, `url`, `embedding`, `width` and `height` as the shard has them;
        `product_ids`, a list, sorted; `attributes`, for each of these products a JSON object.

    Raises:
        StorageError: The shard is missing or damaged, or its storage cannot be reached.
    """
    place, name = locate(shard.uri, storage)
    try:
        with place.open(name) as file:
            table = pq.read_table(file, columns=_COLUMNS)
    except (OSError, pa.ArrowException) as error:
        raise StorageError(
            f"cannot read the shard {shown(shard.uri)}: {words_of(error)}; "
            "see `vsearch shards verify`"
        ) from error
    ids = table.column("image_id").to_pylist()
    position = {image_id: n for n, image_id in enumerate(ids)}
    with database.transaction() as connection:
        rows = connection.execute(
            # Also where the shard was merged into another since it was listed: the vector that
            # counts is the same, so where it stood here decides, not where it stands now.
            text("""
                WITH RECURSIVE here AS (
                    SELECT CAST(:shard_id AS uuid) AS shard_id
                    UNION
                    SELECT s.merged_into FROM here JOIN shards s USING (shard_id)
                    WHERE s.state = 'superseded'
                )
                SELECT e.image_id, p.ids, p.attributes
                FROM extractions e
                CROSS JOIN LATERAL (
                    SELECT array_agg(product_id ORDER BY product_id) AS ids,
                           array_agg(attributes ORDER BY product_id) AS attributes
                    FROM product_images JOIN products USING (product_id)
                    WHERE product_images.image_id = e.image_id
                ) AS p
                WHERE e.model_key = :model_key AND e.shard_id IN (SELECT shard_id FROM here)
                  AND e.status = 'done' AND e.image_id = ANY(CAST(:image_ids AS bigint[]))
            """),
            {"model_key": model_key, "shard_id": shard.shard_id, "image_ids": ids},
        ).all()
    found = sorted(rows, key=lambda row: position[row.image_id])
    kept = table.take(pa.array([position[row.image_id] for row in found], pa.int64()))
    of_products = {
        "product_ids": [row.ids or [] for row in found],
        "attributes": [
            [json.dumps(each, ensure_ascii=False) for each in row.attributes or []] for row in found
        ],
    }
    for column, values in of_products.items():
        kept = kept.append_column(column, pa.array(values, pa.list_(pa.string())))
    return kept.replace_schema_metadata(table.schema.metadata)
