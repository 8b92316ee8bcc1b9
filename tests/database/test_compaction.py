"""Compaction: the same vectors to the bit in fewer files, whatever happens meanwhile."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sqlalchemy import text

from tests.crafted import RUN, Crafted, random_bits, random_half_bits, rows_of
from tests.database.test_catalog_removal import remove as remove_urls
from tests.faults.watching import Watch
from tests.faults.workers import wait_until
from tests.shards import local_path, paths_in
from visual_search import record, status, upkeep
from visual_search.catalog import removal, tables
from visual_search.compaction import GroupOutcome, table
from visual_search.compaction import merge as merging
from visual_search.database.connection import Database
from visual_search.database.schema import ShardState
from visual_search.errors import FencedError, InternalError
from visual_search.images import ShardId
from visual_search.settings import StorageSettings
from visual_search.shard import find_damage, reading, writer


@pytest.fixture
def crafted(database: Database, tmp_path: Path) -> Crafted:
    return Crafted(database, tmp_path / "vectors")


def outcomes(crafted: Crafted, *, below: int = 50, max_rows: int = 100) -> list[GroupOutcome]:
    return [result.outcome for result in crafted.compact(below=below, max_rows=max_rows)]


def states(crafted: Crafted) -> list[str]:
    with crafted.database.transaction() as connection:
        rows = connection.execute(text("SELECT state FROM shards ORDER BY state"))
        return [row.state for row in rows]


def remove(database: Database, *image_ids: int) -> None:
    urls = [f"http://h.test/{image_id - 1}.jpg" for image_id in image_ids]
    assert remove_urls(database, *urls).images == len(image_ids)


def meanwhile(patch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Do something once, when the first new file is written and not yet recorded."""
    original, acted = table.commit_merge, threading.Event()

    def commit(*given: Any, **named: Any) -> None:
        if not acted.is_set():
            acted.set()
            act()
        original(*given, **named)

    patch.setattr(table, "commit_merge", commit)


def collected(crafted: Crafted, *, superseded_grace_s: float = 0) -> dict[Path, str]:
    found = upkeep.collect_garbage(
        crafted.database,
        crafted.storage,
        grace_s=0,
        delete=True,
        superseded_grace_s=superseded_grace_s,
    )
    return {Path(file.path): file.why for file in found}


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_small_shards_become_one_with_every_bit(
    database: Database, tmp_path: Path, stored: str
) -> None:
    crafted = Crafted(database, tmp_path, stored=stored)
    vector = random_bits if stored == "float32" else random_half_bits
    crafted.add(4, 30, 1, 7, 50, vector=vector)
    *before, large = crafted.listed()
    history, rows = crafted.history(), rows_of(before)
    kept = status.model_statuses(database)
    (result,) = crafted.compact()
    assert result.outcome is GroupOutcome.MERGED
    large_still, made = crafted.listed()
    assert large_still == large
    assert rows_of([made]) == rows
    assert made.rows == 42
    assert find_damage(made, StorageSettings()) is None
    # The history says of each image the same as before, but for where its vector is.
    stands = {(image, content) for image, _, _, content in history}
    assert {(image, content) for image, _, _, content in crafted.history()} == stands
    order = [row[0] for row in rows]
    for image, shard, position, _ in crafted.history():
        assert shard == str(large.shard_id) or order[position] == image
    assert status.model_statuses(database) == kept


def test_the_new_file_is_as_a_run_would_write_it(crafted: Crafted) -> None:
    sources = crafted.add(1_500, 800)
    crafted.add(2, runtime="openvino")
    before = pq.read_schema(local_path(crafted.listed()[0].uri))
    crafted.compact(below=5_000, max_rows=10_000)
    (made,) = crafted.listed()
    file = pq.ParquetFile(local_path(made.uri))
    assert file.schema_arrow.remove_metadata() == before.remove_metadata()
    groups = [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)]
    assert groups == [1_000, 1_000, 302]
    said, said_before = file.metadata.metadata, before.metadata
    for name in (b"vsearch.model", b"vsearch.model_id", b"vsearch.spec", b"vsearch.version"):
        assert said[name] == said_before[name]
    assert said[b"vsearch.shard_id"] == str(made.shard_id).encode()
    assert said[b"vsearch.runtime"] == b"openvino; torch"
    assert said[b"vsearch.merged_from"].split()[:2] == [str(each).encode() for each in sources]
    assert said[b"vsearch.run_id"] not in (b"", str(RUN).encode())


def test_the_second_time_there_is_nothing_to_do(crafted: Crafted) -> None:
    crafted.add(40, 40, 40, 10, 10, 49)
    assert outcomes(crafted) == [GroupOutcome.MERGED] * 2
    listed = crafted.listed()
    assert outcomes(crafted) == []
    assert crafted.listed() == listed


def test_merged_shards_are_merged_again_once_there_are_more(crafted: Crafted) -> None:
    crafted.add(10, 10)
    crafted.compact()
    crafted.add(10, runtime="openvino")
    rows = sorted(rows_of(crafted.listed()))
    crafted.compact()
    (made,) = crafted.listed()
    assert sorted(rows_of([made])) == rows
    said = pq.read_metadata(local_path(made.uri)).metadata
    assert said[b"vsearch.runtime"] == b"openvino; torch"


def test_what_would_be_done_is_not_done(crafted: Crafted) -> None:
    crafted.add(10, 20)
    listed = crafted.listed()
    (result,) = crafted.compact(dry_run=True)
    assert (result.outcome, result.group.rows) == (GroupOutcome.PLANNED, 30)
    assert crafted.listed() == listed
    assert states(crafted) == ["committed"] * 2


def test_shards_of_another_output_are_left_alone(crafted: Crafted, tmp_path: Path) -> None:
    crafted.add(10)
    other = Crafted(crafted.database, tmp_path / "vectors-2")
    other.add(10)
    assert outcomes(crafted) == []
    assert outcomes(other) == []


# Images that are removed.


def test_rows_of_removed_images_are_left_behind(crafted: Crafted) -> None:
    crafted.add(5, 5, 1)
    gone = {1, 2, 11}
    remove(crafted.database, *gone)
    crafted.compact()
    (made,) = crafted.listed()
    assert [row[0] for row in rows_of([made])] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert made.rows == 8
    (now,) = status.model_statuses(crafted.database)
    assert (now.total, now.done, now.pending) == (8, 8, 0)


def test_shards_of_which_nothing_counts_are_left(crafted: Crafted) -> None:
    crafted.add(1, 1)
    remove(crafted.database, 1, 2)
    assert outcomes(crafted) == []


def test_an_image_that_is_removed_while_its_shard_is_copied_does_not_come_back(
    crafted: Crafted, monkeypatch: pytest.MonkeyPatch
) -> None:
    crafted.add(5, 5)
    meanwhile(monkeypatch, lambda: remove(crafted.database, 2, 7))
    assert outcomes(crafted) == [GroupOutcome.MERGED]
    assert {image for image, *_ in crafted.history()} == {1, 3, 4, 5, 6, 8, 9, 10}
    (now,) = status.model_statuses(crafted.database)
    assert (now.total, now.done, now.pending) == (8, 8, 0)
    with crafted.database.transaction() as connection:
        row = connection.execute(
            text("SELECT rows, removed_rows FROM shards WHERE state = 'committed'")
        ).one()
    assert tuple(row) == (10, 2)
    # The next one leaves them behind.
    crafted.add(5)
    crafted.compact()
    assert [shard.rows for shard in crafted.listed()] == [13]


def test_a_group_whose_images_are_all_removed_meanwhile_is_given_up(
    crafted: Crafted, monkeypatch: pytest.MonkeyPatch
) -> None:
    crafted.add(2, 1)
    original = reading.read_verified

    def read(*given: Any) -> Any:
        if status.count_images(crafted.database) > 0:
            remove(crafted.database, 1, 2, 3)
        return original(*given)

    monkeypatch.setattr(merging, "read_verified", read)
    assert outcomes(crafted) == [GroupOutcome.GIVEN_UP]
    assert states(crafted) == ["abandoned", "committed", "committed"]
    assert outcomes(crafted) == []


@pytest.mark.parametrize("first", ["merge", "removal"])
def test_a_removal_and_a_commit_at_once_take_turns(
    crafted: Crafted, database_url: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one's transaction is still open when the second one comes."""
    crafted.add(5, 5)
    other = Database(database_url, schema="vsearch", outage_s=0)
    removing = threading.Thread(target=remove, args=(other, 2))
    deleted, may_end = threading.Event(), threading.Event()
    add_to_count, commit_merge = tables.add_to_count, table.commit_merge

    def count(*given: Any) -> None:
        deleted.set()
        assert may_end.wait(60)
        add_to_count(*given)

    def let_end() -> None:
        wait_for_lock(database_url)
        may_end.set()

    waiting = threading.Thread(target=let_end)

    def commit(connection: Any, **named: Any) -> None:
        if first == "merge":
            may_end.set()
            commit_merge(connection, **named)
            removing.start()
            wait_for_lock(database_url)
        else:
            removing.start()
            assert deleted.wait(60)
            waiting.start()
            commit_merge(connection, **named)

    monkeypatch.setattr(removal, "add_to_count", count)
    monkeypatch.setattr(table, "commit_merge", commit)
    assert outcomes(crafted) == [GroupOutcome.MERGED]
    removing.join()
    other.close()
    assert {image for image, *_ in crafted.history()} == {1, 3, 4, 5, 6, 7, 8, 9, 10}
    (now,) = status.model_statuses(crafted.database)
    assert (now.total, now.done, now.pending) == (9, 9, 0)


def wait_for_lock(url: str) -> None:
    """Until somebody on this database waits for another's lock."""
    watcher = Database(url, schema="vsearch", outage_s=0)

    def waits() -> bool:
        with watcher.transaction() as connection:
            return bool(
                connection.execute(
                    text("""
                        SELECT EXISTS (SELECT FROM pg_stat_activity
                                       WHERE datname = current_database()
                                         AND wait_event_type = 'Lock')
                    """)
                ).scalar_one()
            )

    wait_until(waits, "somebody waits for a lock")
    watcher.close()


# Shards that are discarded, damaged, or wanted by another merge.


def test_a_shard_that_is_discarded_meanwhile_keeps_its_group_as_it_is(
    crafted: Crafted, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, *_) = crafted.add(5, 5, 60, 60)

    def discard() -> None:
        with crafted.database.transaction() as connection:
            assert record.discard_shard(connection, first) == 5

    meanwhile(monkeypatch, discard)
    assert outcomes(crafted, below=61, max_rows=120) == [GroupOutcome.GIVEN_UP]
    assert states(crafted) == ["abandoned", "committed", "committed", "committed", "discarded"]
    (now,) = status.model_statuses(crafted.database)
    assert (now.done, now.pending) == (125, 5)
    assert outcomes(crafted, below=61, max_rows=120) == [GroupOutcome.MERGED]


def test_a_shard_cannot_be_discarded_once_another_took_its_place(crafted: Crafted) -> None:
    (first, _) = crafted.add(5, 5)
    crafted.compact()
    with crafted.database.transaction() as connection:
        assert record.discard_shard(connection, first) == 0
    assert len(crafted.history()) == 10


@pytest.mark.parametrize("damage", ["vector", "byte", "end", "missing", "directory"])
def test_a_damaged_shard_is_named_and_never_copied(crafted: Crafted, damage: str) -> None:
    crafted.add(40, 40, 40, 40)
    victim = local_path(crafted.listed()[3].uri)
    content = bytearray(victim.read_bytes())
    match damage:
        case "vector":  # a file that all readers take, with one other number in it
            (*_, vector) = rows_of([crafted.listed()[3]])[0]
            content[content.index(vector)] ^= 1
            victim.write_bytes(content)
            assert rows_of([crafted.listed()[3]])[0][-1] != vector
        case "byte":
            content[len(content) // 2] ^= 1
            victim.write_bytes(content)
        case "end":
            os.truncate(victim, len(content) - 1)
        case "missing":
            victim.unlink()
        case "directory":
            victim.unlink()
            victim.mkdir()
    good, bad = crafted.compact()
    assert (good.outcome, bad.outcome) == (GroupOutcome.MERGED, GroupOutcome.DAMAGED)
    assert bad.why is not None
    assert bad.why.startswith(f"{victim}: ")
    assert states(crafted) == ["abandoned", *["committed"] * 3, *["superseded"] * 2]
    damaged = upkeep.find_damaged(crafted.listed(), StorageSettings())
    assert [local_path(each.shard.uri) for each in damaged] == [victim]
    # Nothing of the second group under another name.
    listed = {local_path(shard.uri) for shard in crafted.listed()}
    assert len(listed & paths_in(folder_of(crafted)) - {victim}) == 2
    assert set(collected(crafted).values()) == {"superseded"}


def folder_of(crafted: Crafted) -> Path:
    assert crafted.storage.folder is not None
    return crafted.storage.folder


def begin(crafted: Crafted, sources: list[ShardId], *, hold_s: float) -> ShardId:
    shard_id = ShardId(uuid4())
    with crafted.database.transaction() as connection:
        table.begin_merge(
            connection,
            shard_id=shard_id,
            model_key=crafted.model.model_key,
            uri=crafted.storage.uri(f"model_id=tiny/date=2026-01-01/{shard_id}.parquet"),
            run_id=RUN,
            sources=sources,
            hold_s=hold_s,
        )
    return shard_id


def expire(crafted: Crafted) -> None:
    """As if no merge had given a sign of life for too long."""
    with crafted.database.transaction() as connection:
        connection.execute(text("UPDATE shards SET held_until = now() - interval '1 s'"))


def test_two_merges_do_not_take_the_same_shards(crafted: Crafted) -> None:
    sources = crafted.add(5, 5)
    begin(crafted, sources, hold_s=60)
    assert outcomes(crafted) == []
    with pytest.raises(FencedError, match="2 of 2 shards"):
        begin(crafted, sources, hold_s=60)


def test_a_dead_merge_keeps_no_shard_from_the_next_and_is_refused_when_it_wakes(
    crafted: Crafted, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = crafted.add(5, 5)

    def sleep_too_long() -> None:
        expire(crafted)
        begin(crafted, sources, hold_s=60)

    meanwhile(monkeypatch, sleep_too_long)
    assert outcomes(crafted) == [GroupOutcome.GIVEN_UP]
    assert states(crafted) == ["abandoned", "committed", "committed", "writing"]
    assert len(crafted.history()) == 10


def test_gc_takes_a_dead_merges_file_and_no_living_ones(crafted: Crafted) -> None:
    sources = crafted.add(5, 5)
    shard_id = begin(crafted, sources, hold_s=60)
    file = folder_of(crafted) / "model_id=tiny/date=2026-01-01" / f"{shard_id}.parquet"
    file.parent.mkdir(parents=True)
    file.touch()
    assert collected(crafted) == {}
    with crafted.database.transaction() as connection:
        table.hold_shard(connection, shard_id, hold_s=0)
    assert collected(crafted) == {file: "abandoned"}
    with crafted.database.transaction() as connection:
        assert record.shard_state(connection, shard_id) is ShardState.ABANDONED


def test_a_merge_that_gc_took_for_dead_is_refused(
    crafted: Crafted, monkeypatch: pytest.MonkeyPatch
) -> None:
    crafted.add(5, 5)

    def sleep_too_long() -> None:
        expire(crafted)
        assert list(collected(crafted).values()) == ["abandoned"]

    meanwhile(monkeypatch, sleep_too_long)
    assert outcomes(crafted) == [GroupOutcome.GIVEN_UP]
    assert len(crafted.history()) == 10
    assert outcomes(crafted) == [GroupOutcome.MERGED]


def test_superseded_files_stay_for_a_while(crafted: Crafted) -> None:
    crafted.add(5, 5)
    old = {local_path(shard.uri) for shard in crafted.listed()}
    for path in old:
        os.utime(path, (0, 0))
    crafted.compact()
    assert collected(crafted, superseded_grace_s=3_600) == {}
    with crafted.database.transaction() as connection:
        connection.execute(text("UPDATE shards SET superseded_at = superseded_at - interval '1 h'"))
    assert collected(crafted, superseded_grace_s=3_600) == dict.fromkeys(old, "superseded")
    assert paths_in(folder_of(crafted)) == {local_path(shard.uri) for shard in crafted.listed()}


def test_a_reader_finds_every_vector_once_at_any_moment(
    crafted: Crafted, database_url: str
) -> None:
    crafted.add(*[3] * 40)
    expected = sorted(range(1, 121))
    reader = Database(database_url, schema="vsearch", outage_s=0)

    def read() -> list[int]:
        with reader.transaction() as connection:
            shards = record.list_shards(connection)
        return sorted(
            image_id
            for shard in shards
            for image_id in pq.read_table(local_path(shard.uri), columns=["image_id"])
            .column("image_id")
            .to_pylist()
        )

    with Watch(read, every_s=0.001) as watch:
        while outcomes(crafted, below=crafted.listed()[0].rows + 1, max_rows=120):
            pass
    reader.close()
    assert len(crafted.listed()) == 1
    assert len(watch.seen) >= 3
    assert all(seen == expected for seen in watch.seen)


def test_memory_holds_a_few_row_groups_not_the_group(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_ROW_GROUP_ROWS", 50)
    monkeypatch.setattr(reading, "_ROWS_AT_ONCE", 50)
    dim, shards = 2_048, 20
    wide = Crafted(database, tmp_path, dim=dim)
    wide.add(*[50] * shards)
    before = pa.total_allocated_bytes()
    held = []
    original = table.rows_that_count

    def watched(*given: Any, **named: Any) -> Any:
        held.append(pa.total_allocated_bytes() - before)
        return original(*given, **named)

    monkeypatch.setattr(table, "rows_that_count", watched)
    assert outcomes(wide, below=100, max_rows=2_000) == [GroupOutcome.MERGED]
    assert len(held) == shards
    assert max(held) < shards / 2 * 50 * dim * 4


def test_rows_that_are_not_the_old_shards_stop_the_commit(
    crafted: Crafted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours, or somebody's own SQL."""
    crafted.add(5, 5)

    def lose() -> None:
        with crafted.database.transaction() as connection:
            connection.execute(text("DELETE FROM extractions WHERE image_id = 3"))

    meanwhile(monkeypatch, lose)
    with pytest.raises(InternalError, match="10 rows of 2 shards count, but 9"):
        crafted.compact()
    assert states(crafted) == ["abandoned", "committed", "committed"]
