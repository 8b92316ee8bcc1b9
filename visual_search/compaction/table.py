"""What the table of shards goes through while some are merged into one.

Every function is one step inside the caller's transaction. A shard that is being merged stays
`committed`, and names the shard that is to take its place: who finds another name there, or another
state, has lost it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import Connection, text

from visual_search.compaction.groups import SmallShard
from visual_search.database.schema import ShardState
from visual_search.errors import FencedError, InternalError
from visual_search.images import ImageId, ModelKey, RunId, ShardId, WrittenShard
from visual_search.record import begin_shard, shard_record


@dataclass(kw_only=True, slots=True)
class MovedRows:
    """Rows of one shard that are in the new one, too: whose they are, and where they are now."""

    image_ids: list[ImageId] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


def small_shards(connection: Connection, model_key: ModelKey, *, below: int) -> list[SmallShard]:
    """A model's committed shards with fewer rows that count, oldest first.

    Those that another merge holds are not among them.
    """
    rows = connection.execute(
        text("""
            SELECT s.shard_id, m.name, m.model_id, s.uri, s.rows, s.removed_rows, s.bytes, s.sha256,
                   s.created_at,
                   s.rows - s.removed_rows AS counting
            FROM shards s
            JOIN models m USING (model_key)
            LEFT JOIN shards AS target
                ON target.shard_id = s.merged_into AND target.state = 'writing'
                   AND target.held_until > clock_timestamp()
            WHERE s.model_key = :model_key AND s.state = 'committed'
              AND s.rows - s.removed_rows < :below AND target.shard_id IS NULL
            ORDER BY s.created_at, s.shard_id
        """),
        {"model_key": model_key, "below": below},
    )
    return [SmallShard(shard=shard_record(row), rows=row.counting) for row in rows]


def begin_merge(
    connection: Connection,
    *,
    shard_id: ShardId,
    model_key: ModelKey,
    uri: str,
    run_id: RunId,
    sources: Sequence[ShardId],
    hold_s: float,
) -> None:
    """Name the new shard before its file exists, and take the old ones for it; twice is the same.

    Raises:
        FencedError: An old one is not committed any more, or another merge has it.
    """
    begin_shard(connection, shard_id=shard_id, model_key=model_key, uri=uri, run_id=run_id)
    hold_shard(connection, shard_id, hold_s=hold_s)
    _lock(connection, sources)
    taken = connection.execute(
        text("""
            UPDATE shards s SET merged_into = :shard_id
            WHERE s.shard_id = ANY(CAST(:sources AS uuid[])) AND s.state = 'committed'
              AND NOT EXISTS (
                  SELECT FROM shards AS other
                  WHERE other.shard_id = s.merged_into AND other.shard_id <> :shard_id
                    AND other.state = 'writing' AND other.held_until > clock_timestamp()
              )
        """),
        {"shard_id": shard_id, "sources": _plain(sources)},
    ).rowcount
    if taken != len(sources):
        raise FencedError(
            f"{len(sources) - taken} of {len(sources)} shards are not to be had any more"
        )


def hold_shard(connection: Connection, shard_id: ShardId, *, hold_s: float) -> None:
    """Say that who writes this shard lives, for another `hold_s`."""
    connection.execute(
        text("""
            UPDATE shards SET held_until = clock_timestamp() + make_interval(secs => :hold_s)
            WHERE shard_id = :shard_id AND state = 'writing'
        """),
        {"shard_id": shard_id, "hold_s": hold_s},
    )


def rows_that_count(
    connection: Connection, *, model_key: ModelKey, shard_id: ShardId, image_ids: Sequence[int]
) -> dict[int, ImageId]:
    """Of these images those whose vector is in this shard, by their rows in it."""
    _look_up_by_index(connection)
    rows = connection.execute(
        text("""
            SELECT row_in_shard, image_id FROM extractions
            WHERE model_key = :model_key AND image_id = ANY(CAST(:image_ids AS bigint[]))
              AND shard_id = :shard_id AND status = 'done'
        """),
        {"model_key": model_key, "shard_id": shard_id, "image_ids": list(image_ids)},
    )
    return {row.row_in_shard: ImageId(row.image_id) for row in rows}


def commit_merge(
    connection: Connection,
    *,
    model_key: ModelKey,
    shard: WrittenShard,
    moved: Mapping[ShardId, MovedRows],
) -> None:
    """Let a written shard take the place of those it was made of; twice is the same.

    Rows whose images were removed since they were read stay in the file and are counted in
    `removed_rows`, as when a run commits.

    Raises:
        FencedError: The new shard was given up by gc, or an old one is not committed any more,
            or taken by another merge.
        InternalError: The rows are not those of the old shards.
    """
    found = _lock(connection, [shard.shard_id, *moved])
    state = found.get(shard.shard_id, _GONE).state
    if state is ShardState.COMMITTED:
        return
    if state is not ShardState.WRITING:
        raise FencedError(f"shard {shard.shard_id} is {state or 'gone'}")
    for source in moved:
        held = found.get(source, _GONE)
        if held.state is not ShardState.COMMITTED or held.merged_into != shard.shard_id:
            raise FencedError(f"shard {source} is {held.state or 'gone'}, or another merge has it")
    _look_up_by_index(connection)
    there = sum(_point_to(connection, model_key, shard.shard_id, *each) for each in moved.items())
    counting = sum(found[source].counting for source in moved)
    committed = connection.execute(
        text("""
            UPDATE shards
            SET state = 'committed', rows = :rows, removed_rows = :removed, bytes = :bytes,
                sha256 = :sha256, held_until = NULL
            WHERE shard_id = :shard_id AND state = 'writing'
        """),
        {
            "shard_id": shard.shard_id,
            "rows": shard.rows,
            "removed": shard.rows - there,
            "bytes": shard.bytes,
            "sha256": shard.sha256,
        },
    ).rowcount
    superseded = connection.execute(
        text("""
            UPDATE shards SET state = 'superseded', superseded_at = clock_timestamp()
            WHERE shard_id = ANY(CAST(:sources AS uuid[])) AND state = 'committed'
              AND merged_into = :shard_id
        """),
        {"sources": _plain(moved), "shard_id": shard.shard_id},
    ).rowcount
    if there != counting or (committed, superseded) != (1, len(moved)):
        raise InternalError(
            f"{counting} rows of {len(moved)} shards count, but {there} of them are in shard "
            f"{shard.shard_id}; nothing was merged"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Locked:
    state: ShardState | None = None
    merged_into: UUID | None = None
    counting: int = 0


_GONE = _Locked()


def _lock(connection: Connection, shard_ids: Sequence[ShardId]) -> dict[ShardId, _Locked]:
    """Hold shards until the transaction ends, in the order in which removals lock them, too."""
    rows = connection.execute(
        text("""
            SELECT shard_id, state, merged_into, coalesce(rows - removed_rows, 0) AS counting
            FROM shards WHERE shard_id = ANY(CAST(:shard_ids AS uuid[]))
            ORDER BY shard_id FOR UPDATE
        """),
        {"shard_ids": _plain(shard_ids)},
    )
    return {
        ShardId(row.shard_id): _Locked(
            state=ShardState(row.state), merged_into=row.merged_into, counting=row.counting
        )
        for row in rows
    }


def _point_to(
    connection: Connection, model_key: ModelKey, shard_id: ShardId, source: ShardId, rows: MovedRows
) -> int:
    """Let the history of `source` point to its new place; says how many rows of it."""
    return connection.execute(
        text("""
            UPDATE extractions e SET shard_id = :shard_id, row_in_shard = r.position
            FROM unnest(CAST(:image_ids AS bigint[]), CAST(:positions AS integer[]))
                 AS r (image_id, position)
            WHERE e.model_key = :model_key AND e.image_id = r.image_id
              AND e.image_id = ANY(CAST(:image_ids AS bigint[]))
              AND e.shard_id = :source AND e.status = 'done'
        """),
        {
            "model_key": model_key,
            "shard_id": shard_id,
            "source": source,
            "image_ids": rows.image_ids,
            "positions": rows.positions,
        },
    ).rowcount


def _look_up_by_index(connection: Connection) -> None:
    """For this transaction.

    By the primary key, image by image, then joined once: a table of millions is not read for some
    thousand rows, whatever the planner believes of it.
    """
    for statement in ("SET LOCAL enable_seqscan = off", "SET LOCAL enable_nestloop = off"):
        connection.execute(text(statement))


def _plain(shard_ids: Sequence[ShardId] | Mapping[ShardId, MovedRows]) -> list[str]:
    return [str(shard_id) for shard_id in shard_ids]
