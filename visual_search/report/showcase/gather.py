"""Read from database and shards what a showcase says."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import Connection, text

from visual_search.database.connection import Database
from visual_search.errors import ModelError
from visual_search.images import ShardRecord
from visual_search.record import list_shards
from visual_search.redaction import printable
from visual_search.report.failure_groups import failure_groups
from visual_search.report.showcase.contact_sheet import Sample, draw_contact_sheet, read_sample
from visual_search.report.showcase.content import Facet, Showcase
from visual_search.settings import StorageSettings
from visual_search.status import ModelStatus, model_statuses

# Enough for neighbours worth looking at, and little enough to compare at once.
_MAX_COMPARED: Final = 10_000
_MAX_FACET_PRODUCTS: Final = 50_000
_MAX_FACET_VALUES: Final = 16


def gather(
    database: Database,
    model: str,
    *,
    title: str,
    pictures: Callable[[str], bytes | None],
    storage: StorageSettings,
    device: str | None = None,
) -> Showcase:
    """What there is to say about an active model.

    Args:
        database: Open, with a current schema.
        model: Its name.
        title: What the catalogue is called.
        pictures: Gives the encoded image of a URL, `None` where it cannot be had.
        storage: How the vectors are reached.
        device: Where the model ran, if known.

    Raises:
        ModelError: The model never ran on this catalogue.
    """
    status = next((s for s in model_statuses(database) if s.model == model), None)
    if status is None:
        raise ModelError(
            f"model {model!r} has not run on this catalogue; `vsearch extract --model {model}`"
        )
    with database.transaction() as connection:
        made = _model(connection, status)
        shards = list_shards(connection, model=status.model_id)
        failures = failure_groups(connection, [status])
        facets = _facets(connection)
    sample = _sample(database, shards, storage)
    return Showcase(
        title=title,
        made_at=datetime.now(UTC),
        status=status,
        dim=made.dim,
        precision=made.precision,
        device=device,
        shards=len(shards),
        bytes=sum(shard.bytes for shard in shards),
        failures=failures,
        queries=draw_contact_sheet(sample, pictures),
        compared=len(sample.details),
        facets=facets,
    )


def _model(connection: Connection, status: ModelStatus) -> Any:
    return connection.execute(
        text("""
            SELECT dim, coalesce(spec->>'precision', '') AS precision
            FROM models WHERE model_id = :model_id
        """),
        {"model_id": status.model_id},
    ).one()


def _facets(connection: Connection) -> tuple[Facet, ...]:
    """Attributes with few values: what a shop would offer as filters."""
    rows = connection.execute(
        text("""
            SELECT key, value, products FROM (
                SELECT a.key, a.value, count(*) AS products,
                       count(*) OVER (PARTITION BY a.key) AS kinds
                FROM (SELECT attributes FROM products LIMIT :max_products) AS p,
                     jsonb_each_text(p.attributes) AS a
                WHERE jsonb_typeof(p.attributes->a.key) IN ('string', 'boolean')
                GROUP BY a.key, a.value
            ) AS counted
            WHERE kinds BETWEEN 2 AND :max_values
            ORDER BY kinds DESC, key, products DESC, value
        """),
        {"max_products": _MAX_FACET_PRODUCTS, "max_values": _MAX_FACET_VALUES},
    )
    facets: dict[str, list[tuple[str, int]]] = {}
    for row in rows:
        facets.setdefault(printable(row.key), []).append((printable(row.value), row.products))
    return tuple(Facet(attribute=name, products=tuple(found)) for name, found in facets.items())


def _sample(database: Database, shards: list[ShardRecord], storage: StorageSettings) -> Sample:
    """The newest vectors whose images are still in the catalogue, with what is known of them."""
    newest_first = [shard.uri for shard in reversed(shards)]
    ids, vectors = read_sample(newest_first, _MAX_COMPARED, storage)
    with database.transaction() as connection:
        rows = connection.execute(
            text("""
                SELECT i.image_id, i.url, p.attributes
                FROM images i LEFT JOIN LATERAL (
                    SELECT products.attributes
                    FROM product_images JOIN products USING (product_id)
                    WHERE product_images.image_id = i.image_id
                    ORDER BY product_id LIMIT 1
                ) AS p ON true
                WHERE i.image_id = ANY (CAST(:image_ids AS bigint[]))
            """),
            {"image_ids": ids.tolist()},
        )
        known = {row.image_id: (row.url, row.attributes or {}) for row in rows}
    kept = [position for position, image_id in enumerate(ids.tolist()) if image_id in known]
    return Sample(
        vectors=vectors[kept], details=[known[image_id] for image_id in ids[kept].tolist()]
    )
