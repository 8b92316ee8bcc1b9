"""How large shards are, counted by the database."""

import math
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, text

from visual_search.images import ModelKey
from visual_search.report.overview.content import ShardSizes, SizeBin
from visual_search.report.plots.scale import nice_step

_MOST_BINS: Final = 16


def read_shard_sizes(
    connection: Connection, model_keys: Sequence[ModelKey]
) -> tuple[ShardSizes | None, ShardSizes | None]:
    """Shards of some models by rows and by bytes; `None` if there are none."""
    keys = list(model_keys)
    known = connection.execute(
        text("""
            SELECT max(rows) AS most_rows, max(bytes) AS most_bytes,
                   percentile_disc(0.5) WITHIN GROUP (ORDER BY rows) AS median_rows,
                   percentile_disc(0.5) WITHIN GROUP (ORDER BY bytes) AS median_bytes
            FROM shards
            WHERE model_key = ANY (CAST(:model_keys AS integer[])) AND state = 'committed'
        """),
        {"model_keys": keys},
    ).one()
    if known.most_rows is None:
        return None, None
    row_step = math.ceil(_step(known.most_rows))
    byte_step = _step(known.most_bytes)
    counted = connection.execute(
        text("""
            SELECT by_bytes, bin, count(*) AS shards
            FROM shards CROSS JOIN LATERAL (
                VALUES (false, floor(rows / CAST(:row_step AS double precision))),
                       (true, floor(bytes / CAST(:byte_step AS double precision)))
            ) AS b (by_bytes, bin)
            WHERE model_key = ANY (CAST(:model_keys AS integer[])) AND state = 'committed'
            GROUP BY by_bytes, bin
        """),
        {"model_keys": keys, "row_step": row_step, "byte_step": byte_step},
    )
    found = {(row.by_bytes, int(row.bin)): row.shards for row in counted}
    return (
        ShardSizes(
            bins=_bins(
                {n: shards for (of_bytes, n), shards in found.items() if not of_bytes}, row_step
            ),
            median=known.median_rows,
            largest=known.most_rows,
        ),
        ShardSizes(
            bins=_bins(
                {n: shards for (of_bytes, n), shards in found.items() if of_bytes}, byte_step
            ),
            median=known.median_bytes,
            largest=known.most_bytes,
        ),
    )


def _step(largest: float) -> float:
    # One bin more than cuts it evenly: the largest is the beginning of its own.
    return nice_step(max(1.0, largest), _MOST_BINS - 1)


def _bins(shards: dict[int, int], step: float) -> list[SizeBin]:
    return [
        SizeBin(begins=step * n, ends=step * (n + 1), shards=shards.get(n, 0))
        for n in range(max(shards) + 1)
    ]
