"""How the vectors of models became more, from the record of their shards."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, text

from visual_search.images import ModelKey
from visual_search.report.overview.content import Growth, Progress

# The points of a line; a telephone has three pixels for each.
STEPS: Final = 96


def read_progress(connection: Connection, models: Mapping[ModelKey, str]) -> Progress | None:
    """How far each of some models was, at up to `STEPS` moments.

    Args:
        connection: In a transaction.
        models: Their names by their keys, in the order in which they are wanted.

    Returns:
        `None` if none of them ever ran.
    """
    keys = list(models)
    span = connection.execute(
        text("""
            SELECT min(began) AS begins_at, max(ended) AS ends_at FROM (
                SELECT min(started_at) AS began, max(heartbeat_at) AS ended FROM runs
                WHERE model_key = ANY (CAST(:model_keys AS integer[]))
                UNION ALL
                SELECT min(created_at), max(created_at) FROM shards
                WHERE model_key = ANY (CAST(:model_keys AS integer[]))
                  AND state IN ('committed', 'superseded')
            ) AS work
        """),
        {"model_keys": keys},
    ).one()
    if span.begins_at is None:
        return None
    begins_at: datetime = span.begins_at
    # A run of no length still has a width on the page.
    ends_at = max(span.ends_at, begins_at + timedelta(seconds=1))
    step = (ends_at - begins_at) / STEPS
    # A merged shard brought nothing but what was new in it; the rest was there before.
    rows = connection.execute(
        text("""
            WITH known AS (
                SELECT model_key, shard_id, merged_into, created_at, rows - removed_rows AS vectors,
                       state = 'superseded' AS is_superseded
                FROM shards
                WHERE model_key = ANY (CAST(:model_keys AS integer[]))
                  AND state IN ('committed', 'superseded')
            ),
            merged AS (
                SELECT merged_into AS shard_id, sum(vectors) AS vectors
                FROM known WHERE is_superseded GROUP BY merged_into
            )
            SELECT model_key, step,
                   sum(sum(vectors)) OVER (PARTITION BY model_key ORDER BY step) AS vectors
            FROM (
                SELECT k.model_key, k.vectors - coalesce(m.vectors, 0) AS vectors,
                       least(:steps, 1 + floor(EXTRACT(epoch FROM k.created_at - :begins_at)
                                               / :step_s)) AS step
                FROM known k LEFT JOIN merged m USING (shard_id)
            ) AS written
            GROUP BY model_key, step ORDER BY model_key, step
        """),
        {
            "model_keys": keys,
            "begins_at": begins_at,
            "step_s": step.total_seconds(),
            "steps": STEPS,
        },
    )
    points: dict[ModelKey, list[tuple[datetime, int]]] = {key: [] for key in keys}
    for row in rows:
        points[ModelKey(row.model_key)].append((begins_at + step * int(row.step), int(row.vectors)))
    return Progress(
        begins_at=begins_at,
        ends_at=ends_at,
        models=[Growth(model=name, points=points[key]) for key, name in models.items()],
    )


def at_times(points: Sequence[tuple[datetime, int]], times: Sequence[datetime]) -> list[int]:
    """How many vectors there were at each of `times`, which are in order."""
    found, reached, remaining = [], 0, list(points)
    for time in times:
        while remaining and remaining[0][0] <= time:
            reached = remaining.pop(0)[1]
        found.append(reached)
    return found
