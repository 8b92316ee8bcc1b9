"""Read from the database what an overview says; no row of images or history is walked through."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Connection, text

from visual_search import hosts
from visual_search.database.connection import Database
from visual_search.errors import ModelError
from visual_search.images import ModelKey
from visual_search.models import registry
from visual_search.report.failure_groups import failure_groups
from visual_search.report.overview.content import ModelFacts, Overview
from visual_search.report.overview.failing_hosts import read_failing_hosts
from visual_search.report.overview.growth import read_progress
from visual_search.report.overview.shard_sizes import read_shard_sizes
from visual_search.report.plots.figure import SERIES
from visual_search.runs import list_runs
from visual_search.status import ModelStatus, count_images, model_statuses

_RUNS: Final = 24
_SLOWEST_HOSTS: Final = 15


def gather(database: Database, models: Sequence[str] = ()) -> Overview:
    """What there is to say about active models.

    Args:
        database: Open, with a current schema.
        models: Only these, by name or id; none means all.

    Raises:
        ModelError: One of them is not active in this catalogue.
    """
    statuses = model_statuses(database)
    images = count_images(database)
    with database.transaction() as connection:
        chosen = _chosen(connection, statuses, models)
        latest = sorted(chosen, key=lambda key: _last_started(chosen[key]), reverse=True)
        rows, sizes = read_shard_sizes(connection, list(chosen))
        return Overview(
            made_at=datetime.now(UTC),
            place=database.place,
            images=images,
            models=_facts(connection, chosen),
            progress=read_progress(
                connection, {key: chosen[key].model for key in latest[: len(SERIES)]}
            ),
            runs=list_runs(
                connection, models=[status.model_id for status in chosen.values()], limit=_RUNS
            ),
            failures=failure_groups(connection, list(chosen.values())),
            failing_hosts=read_failing_hosts(connection, chosen),
            slowest_hosts=hosts.slowest_hosts(connection, _SLOWEST_HOSTS),
            shard_rows=rows,
            shard_bytes=sizes,
        )


def _chosen(
    connection: Connection, statuses: Sequence[ModelStatus], names: Sequence[str]
) -> dict[ModelKey, ModelStatus]:
    for name in names:
        registry.check_known(connection, name)
        if not any(name in (status.model, status.model_id) for status in statuses):
            raise ModelError(
                f"model {name!r} is not active, and a report is about active ones; "
                f"`vsearch models activate {name}`"
            )
    by_id = {status.model_id: status for status in statuses}
    keys = connection.execute(
        text("""
            SELECT model_key, model_id FROM models
            WHERE model_id = ANY (CAST(:model_ids AS text[])) ORDER BY name
        """),
        {"model_ids": list(by_id)},
    )
    return {
        ModelKey(row.model_key): status
        for row in keys
        if (status := by_id[row.model_id])
        and (not names or status.model in names or status.model_id in names)
    }


def _last_started(status: ModelStatus) -> datetime:
    return status.last_run.started_at if status.last_run else datetime.min.replace(tzinfo=UTC)


def _facts(connection: Connection, chosen: dict[ModelKey, ModelStatus]) -> list[ModelFacts]:
    rows = connection.execute(
        text("""
            SELECT m.model_key, m.dim, coalesce(m.spec->>'precision', '') AS precision,
                   count(s.shard_id) AS shards, coalesce(sum(s.bytes), 0) AS bytes
            FROM models m
            LEFT JOIN shards s ON s.model_key = m.model_key AND s.state = 'committed'
            WHERE m.model_key = ANY (CAST(:model_keys AS integer[]))
            GROUP BY m.model_key ORDER BY m.name
        """),
        {"model_keys": list(chosen)},
    )
    return [
        ModelFacts(
            status=chosen[ModelKey(row.model_key)],
            dim=row.dim,
            precision=row.precision,
            shards=row.shards,
            bytes=int(row.bytes),
        )
        for row in rows
    ]
