"""Which small shards go together."""

from collections.abc import Sequence
from dataclasses import dataclass

from visual_search.images import ShardRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class SmallShard:
    """A committed shard with few rows that count.

    Attributes:
        rows: Those of its file whose images were not removed since.
    """

    shard: ShardRecord
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Shards of one model that become one, oldest first."""

    shards: tuple[SmallShard, ...]

    @property
    def rows(self) -> int:
        """What the new shard will have, unless images are removed meanwhile."""
        return sum(each.rows for each in self.shards)

    @property
    def bytes(self) -> int:
        """What their files have."""
        return sum(each.shard.bytes for each in self.shards)

    @property
    def model_id(self) -> str:
        """Whose shards they are."""
        return self.shards[0].shard.model_id


def group_shards(small: Sequence[SmallShard], *, max_rows: int) -> list[Group]:
    """Each shard goes to the first group that has room for it (first fit).

    So no two groups would fit into one: what was merged once is not merged again, whatever the
    order. Groups of a single shard, which would gain nothing, and those of which nothing counts
    any more are left out.
    """
    groups: list[list[SmallShard]] = []
    rows: list[int] = []
    for each in small:
        fits = next((n for n, taken in enumerate(rows) if taken + each.rows <= max_rows), None)
        if fits is None:
            groups.append([each])
            rows.append(each.rows)
        else:
            groups[fits].append(each)
            rows[fits] += each.rows
    return [
        Group(shards=tuple(group))
        for group, taken in zip(groups, rows, strict=True)
        if len(group) > 1 and taken > 0
    ]
