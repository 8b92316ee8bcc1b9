"""What the shards of a model hold at one moment, and which parts of an export hold the same."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from sqlalchemy import Connection, text

from visual_search.export.destination import Part
from visual_search.images import ShardId, ShardRecord
from visual_search.models.registry import RegisteredModel
from visual_search.record import shard_record


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """The shards of a model.

    Attributes:
        shards: Those that count, oldest first, with how many of their rows do.
        sources: Of a shard that others were merged into, those others, with how many rows each
            gave it.
    """

    shards: Sequence[tuple[ShardRecord, int]]
    sources: Mapping[ShardId, Sequence[tuple[ShardId, int]]]

    def parts_that_hold(self, shard_id: ShardId, rows: int, there: Set[Part]) -> set[Part]:
        """The parts that hold what counts of a shard: its own, or those of its sources.

        Rows only ever leave a shard: a part with as many as count now holds just those.

        Returns:
            None of them, if something is missing, or too much.
        """
        own = Part(shard_id=shard_id, rows=rows)
        if own in there:
            return {own}
        sources = [source for source in self.sources.get(shard_id, ()) if source[1] > 0]
        found = [self.parts_that_hold(*source, there) for source in sources]
        if sum(given for _, given in sources) != rows or not all(found):
            return set()
        return set().union(*found)


def find_held(connection: Connection, model: RegisteredModel) -> Held:
    """What a model's shards hold now."""
    # In one statement, which sees one moment: between two of them shards may be merged, and those
    # that the one has counted would be unknown to the other.
    rows = connection.execute(
        text("""
            SELECT s.shard_id, m.name, m.model_id, s.uri, s.rows, s.removed_rows, s.bytes,
                   s.sha256, s.created_at, s.state, s.merged_into,
                   coalesce(e.rows, 0) AS counting
            FROM shards s
            JOIN models m USING (model_key)
            LEFT JOIN (
                SELECT shard_id, count(*) AS rows FROM extractions
                WHERE model_key = :model_key AND status = 'done' GROUP BY shard_id
            ) AS e USING (shard_id)
            WHERE s.model_key = :model_key AND s.state IN ('committed', 'superseded')
            ORDER BY s.created_at, s.shard_id
        """),
        {"model_key": model.model_key},
    )
    shards: list[tuple[ShardRecord, int]] = []
    sources: dict[ShardId, list[tuple[ShardId, int]]] = {}
    for row in rows:
        if row.state == "superseded":
            given = row.rows - row.removed_rows
            sources.setdefault(ShardId(row.merged_into), []).append((ShardId(row.shard_id), given))
            continue
        shards.append((shard_record(row), row.counting))
    return Held(shards=shards, sources=sources)
