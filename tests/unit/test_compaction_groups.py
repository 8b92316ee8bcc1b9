"""Which shards are merged: as few files as may be, and never the same ones twice."""

from datetime import UTC, datetime
from random import Random
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from visual_search.compaction.groups import SmallShard, group_shards
from visual_search.images import ShardId, ShardRecord


def small(rows: int) -> SmallShard:
    shard = ShardRecord(
        shard_id=ShardId(uuid4()),
        model="tiny",
        model_id="tiny-1",
        uri="file:///nowhere",
        rows=max(rows, 1),
        removed_rows=0,
        bytes=1,
        sha256="00",
        created_at=datetime.now(UTC),
    )
    return SmallShard(shard=shard, rows=rows)


def sizes(*rows: int) -> list[list[int]]:
    made = group_shards([small(each) for each in rows], max_rows=100)
    return [[each.rows for each in group.shards] for group in made]


def test_what_fits_goes_together_in_the_order_of_age() -> None:
    assert sizes(40, 30, 20, 10) == [[40, 30, 20, 10]]
    assert sizes(40, 40, 40, 40, 10) == [[40, 40, 10], [40, 40]]


def test_a_shard_alone_and_shards_without_rows_are_left() -> None:
    assert sizes(40) == []
    assert sizes(100, 40) == []
    assert sizes(0, 0) == []
    assert sizes(40, 0) == [[40, 0]]


@given(
    rows=st.lists(st.integers(0, 150), max_size=40),
    below=st.integers(1, 150),
    order=st.randoms(use_true_random=False),
)
def test_after_one_pass_there_is_nothing_more_to_do(
    rows: list[int], below: int, order: Random
) -> None:
    shards = [small(each) for each in rows if each < below]
    groups = group_shards(shards, max_rows=100)
    for group in groups:
        assert len(group.shards) > 1
        assert 0 < group.rows <= 100
    merged = [each for group in groups for each in group.shards]
    assert len({each.shard.shard_id for each in merged}) == len(merged)
    left = [each for each in shards if each not in merged]
    left += [small(group.rows) for group in groups if group.rows < below]
    order.shuffle(left)
    assert group_shards(left, max_rows=100) == []
