"""Upkeep: damage is found and repaired, garbage collected, and nothing else touched."""

import os
import time
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.database.test_record import RUN, Worker
from tests.shards import local_path
from tests.unit.test_shard import embedded_image, writer
from visual_search import claim, record, upkeep
from visual_search.database.connection import Database
from visual_search.errors import InternalError, UsageError
from visual_search.images import ShardId
from visual_search.settings import StorageSettings
from visual_search.shard import prepare_output
from visual_search.storage import Folder


@pytest.fixture
def folder(tmp_path: Path, database: Database) -> Path:
    prepare_output(Folder(tmp_path / "vectors"), database.run(record.catalogue_id))
    return tmp_path / "vectors"


def shard_on_disk(worker: Worker, folder: Path, rows: int) -> Path:
    """The worker's shard, written and named in the table, not committed."""
    shard = writer(folder, shard_id=worker.shard_id)
    for n in range(rows):
        shard.write(embedded_image(n))
    written = shard.finish()
    with worker.database.transaction() as connection:
        connection.execute(text("UPDATE shards SET uri = :uri"), {"uri": written.uri})
        record.commit_shard(
            connection,
            token=worker.token,
            model_key=worker.model_key,
            shard=written,
            rows=worker.rows(rows),
        )
    return local_path(written.uri)


def collected(database: Database, folder: Path, *, delete: bool = True) -> dict[Path, str]:
    found = upkeep.collect_garbage(database, Folder(folder), grace_s=0, delete=delete)
    return {Path(file.path): file.why for file in found}


def orphan(folder: Path, shard_id: ShardId | None = None) -> Path:
    shard = writer(folder, shard_id=shard_id or ShardId(uuid4()))
    shard.write(embedded_image(1))
    return local_path(shard.finish().uri)


def test_a_damaged_shard_is_found_and_its_images_are_pending_again(
    database: Database, folder: Path
) -> None:
    worker = Worker(database, 3)
    path = shard_on_disk(worker, folder, 3)
    with database.transaction() as connection:
        shards = record.list_shards(connection)
    assert upkeep.find_damaged(shards, StorageSettings()) == []
    path.write_bytes(path.read_bytes()[:-1])
    (bad,) = upkeep.find_damaged(shards, StorageSettings())
    assert bad.shard.shard_id == worker.shard_id
    assert upkeep.repair(database, [bad]) == 3
    with database.transaction() as connection:
        assert record.list_shards(connection) == []
    assert collected(database, folder) == {path: "discarded"}


def test_committed_shards_are_never_garbage(database: Database, folder: Path) -> None:
    path = shard_on_disk(Worker(database, 3), folder, 3)
    assert collected(database, folder) == {}
    assert path.exists()


def test_orphans_are_listed_and_only_deleted_when_asked(database: Database, folder: Path) -> None:
    path = orphan(folder)
    assert collected(database, folder, delete=False) == {path: "unknown"}
    assert path.exists()
    assert collected(database, folder) == {path: "unknown"}
    assert not path.exists()


def test_young_files_are_left_alone(database: Database, folder: Path) -> None:
    path = orphan(folder)
    assert list(upkeep.collect_garbage(database, Folder(folder), grace_s=60, delete=True)) == []
    os.utime(path, (time.time() - 61,) * 2)
    assert len(list(upkeep.collect_garbage(database, Folder(folder), grace_s=60, delete=True))) == 1


def test_a_living_writers_shard_is_left_alone_and_a_dead_ones_is_abandoned_first(
    database: Database, folder: Path
) -> None:
    worker = Worker(database, 1)
    path = orphan(folder, worker.shard_id)
    assert collected(database, folder) == {}
    with database.transaction() as connection:
        claim.renew_leases(connection, run_id=RUN, tokens=[worker.token], lease_s=0)
    assert collected(database, folder) == {path: "abandoned"}
    with pytest.raises(InternalError):
        worker.commit(1)  # the writer wakes up: too late
    with database.transaction() as connection:
        assert record.list_shards(connection) == []


def test_other_files_are_not_ours(database: Database, folder: Path) -> None:
    day = orphan(folder).parent
    mine = day / "notes.parquet"
    mine.write_text("not a shard")
    collected(database, folder)
    assert mine.exists()


def test_unfinished_files_are_collected(database: Database, folder: Path) -> None:
    day = orphan(folder).parent
    partial = day / f".{uuid4()}.parquet.partial"
    partial.write_bytes(b"half")
    assert collected(database, folder)[partial] == "unknown"
    assert not partial.exists()


def test_another_catalogues_folder_is_refused(database: Database, tmp_path: Path) -> None:
    prepare_output(Folder(tmp_path), uuid4())
    path = orphan(tmp_path)
    with pytest.raises(UsageError, match="another catalogue"):
        collected(database, tmp_path)
    with pytest.raises(UsageError, match="no folder of vectors"):
        collected(database, tmp_path / "elsewhere")
    assert path.exists()


def test_what_a_killed_writer_of_a_small_file_left_is_collected_once_it_is_old(
    database: Database, folder: Path
) -> None:
    (folder / "artefacts").mkdir()
    names = [f"._vsearch.json.{uuid4()}.partial", f"artefacts/.tiny-1.zip.{uuid4()}.partial"]
    for name in names:
        (folder / name).touch()
    assert collected(database, folder) == {}
    for name in names:
        os.utime(folder / name, (0, 0))
    assert collected(database, folder) == {folder / name: "unfinished" for name in names}
    assert collected(database, folder) == {}
    assert (folder / "_vsearch.json").exists()
