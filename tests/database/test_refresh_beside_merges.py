"""Vectors are replaced while their shards are merged: each counts once, in either order."""

from pathlib import Path

import pytest
from sqlalchemy import text

from tests.crafted import Crafted
from tests.database.test_compaction import meanwhile
from tests.database.test_refresh import Replacing, assert_counted, shards
from visual_search.compaction import GroupOutcome, GroupResult
from visual_search.database.connection import Database


@pytest.fixture
def crafted(database: Database, tmp_path: Path) -> Crafted:
    made = Crafted(database, tmp_path / "vectors")
    made.add(4, 6)
    return made


def replacing(crafted: Crafted) -> Replacing:
    """Has claimed all images of the first shard and two of the second."""
    refresh = Replacing(crafted.database, crafted.model.model_key, rows=6, claims=6)
    assert len(refresh.images) == 6
    return refresh


def outcomes(results: list[GroupResult]) -> list[GroupOutcome]:
    return [result.outcome for result in results]


def shards_of(crafted: Crafted, refresh: Replacing) -> set[str]:
    """Where the vectors of the images stand that were checked."""
    with crafted.database.transaction() as connection:
        rows = connection.execute(
            text("SELECT shard_id FROM extractions WHERE image_id = ANY(:image_ids)"),
            {"image_ids": [image.image_id for image in refresh.images]},
        )
        return {str(row.shard_id) for row in rows}


def test_what_was_merged_since_it_was_claimed_is_replaced_where_it_is_now(
    crafted: Crafted,
) -> None:
    refresh = replacing(crafted)
    assert outcomes(crafted.compact()) == [GroupOutcome.MERGED]
    assert shards(crafted.database) == [(10, 0)]
    refresh.commit()
    assert sorted(shards(crafted.database)) == [(6, 0), (10, 6)]
    assert shards_of(crafted, refresh) == {str(refresh.shard_id)}
    assert_counted(crafted.database)


def test_what_is_replaced_while_it_is_merged_does_not_come_back(
    crafted: Crafted, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh = replacing(crafted)
    meanwhile(monkeypatch, refresh.commit)
    assert outcomes(crafted.compact()) == [GroupOutcome.MERGED]
    assert sorted(shards(crafted.database)) == [(6, 0), (10, 6)]
    assert shards_of(crafted, refresh) == {str(refresh.shard_id)}
    assert_counted(crafted.database)


def test_what_was_replaced_is_left_behind_by_a_merge(crafted: Crafted) -> None:
    refresh = replacing(crafted)
    refresh.commit()
    # Of the first shard nothing counts any more, of the second four rows.
    assert sorted(shards(crafted.database)) == [(4, 4), (6, 0), (6, 2)]
    crafted.add(5)
    # The new vectors' shard, of which there is no file here, is too large to be merged.
    (result,) = crafted.compact(below=6)
    assert result.shard is not None
    assert (result.outcome, result.shard.rows) == (GroupOutcome.MERGED, 4 + 5)
    assert_counted(crafted.database)
