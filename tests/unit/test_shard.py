"""Shards: readable by others, complete or invisible, damage found."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.shards import local_path, vectors_of
from visual_search.errors import StorageError, UsageError
from visual_search.images import (
    ClaimedImage,
    EmbeddedImage,
    ImageId,
    LeaseToken,
    RunId,
    ShardId,
    ShardRecord,
    WrittenShard,
)
from visual_search.settings import StorageSettings
from visual_search.shard import MARKER, ShardWriter, find_damage, prepare_output
from visual_search.storage import Folder

DIM = 8


def embedded_image(number: int) -> EmbeddedImage:
    return EmbeddedImage(
        image=ClaimedImage(
            image_id=ImageId(number),
            image_key=f"key {number}",
            url=f"http://h.test/{number}.jpg",
            lease_token=LeaseToken(uuid4()),
        ),
        vector=np.full(DIM, number, np.float32),
        content_sha256=bytes([number % 256]) * 32,
        width=40,
        height=30,
    )


def writer(folder: Path, **changed: Any) -> ShardWriter:
    values: dict[str, Any] = {
        "shard_id": ShardId(uuid4()),
        "run_id": RunId(uuid4()),
        "model": "tiny",
        "model_id": "tiny-1",
        "dim": DIM,
        "stored": "float32",
        "spec": {"layer": "fc"},
        "runtime": "torch 2 cpu fp32",
    }
    return ShardWriter(Folder(folder), **(values | changed))


def write(folder: Path, rows: int, **changed: Any) -> WrittenShard:
    shard = writer(folder, **changed)
    positions = [shard.write(embedded_image(n)) for n in range(rows)]
    assert positions == list(range(rows))
    return shard.finish()


def recorded(written: WrittenShard) -> ShardRecord:
    from datetime import UTC, datetime

    return ShardRecord(
        shard_id=written.shard_id,
        model="tiny",
        model_id="tiny-1",
        uri=written.uri,
        rows=written.rows,
        removed_rows=0,
        bytes=written.bytes,
        sha256=written.sha256,
        created_at=datetime.now(UTC),
    )


def test_rows_come_back_in_order_over_several_row_groups(tmp_path: Path) -> None:
    written = write(tmp_path, 2_500)
    ids, vectors = vectors_of(written.uri)
    assert ids.tolist() == list(range(2_500))
    assert vectors.shape == (2_500, DIM)
    assert vectors.dtype == np.float32
    assert (vectors == np.arange(2_500, dtype=np.float32)[:, None]).all()
    assert pq.ParquetFile(local_path(written.uri)).metadata.num_row_groups == 3


def test_the_file_says_what_made_it(tmp_path: Path) -> None:
    written = write(tmp_path, 1)
    metadata = pq.read_metadata(local_path(written.uri)).metadata
    assert metadata[b"vsearch.model_id"] == b"tiny-1"
    assert metadata[b"vsearch.shard_id"] == str(written.shard_id).encode()
    assert metadata[b"vsearch.runtime"] == b"torch 2 cpu fp32"
    assert json.loads(metadata[b"vsearch.spec"]) == {"layer": "fc"}


def test_other_readers_see_one_dataset_with_the_model_as_a_column(tmp_path: Path) -> None:
    write(tmp_path, 3)
    write(tmp_path, 2, model_id="other-1")
    found = duckdb.execute(f"""
        SELECT model_id, count(*), max(len(embedding)), min(octet_length(content_sha256))
        FROM read_parquet('{tmp_path}/**/*.parquet', hive_partitioning = true)
        GROUP BY model_id ORDER BY model_id
    """).fetchall()
    assert found == [("other-1", 2, DIM, 32), ("tiny-1", 3, DIM, 32)]


def test_half_precision_storage_reads_back_as_float32(tmp_path: Path) -> None:
    written = write(tmp_path, 3, stored="float16")
    schema = pq.read_schema(local_path(written.uri))
    assert str(schema.field("embedding").type.value_type) == "halffloat"
    _, vectors = vectors_of(written.uri)
    assert vectors.dtype == np.float32
    assert vectors[2].tolist() == [2.0] * DIM


def test_nothing_is_visible_before_finish_nor_after_discard(tmp_path: Path) -> None:
    shard = writer(tmp_path)
    for n in range(1_500):
        shard.write(embedded_image(n))
    assert not list(tmp_path.glob("**/*.parquet"))
    shard.discard()
    assert not [path for path in tmp_path.glob("**/*") if path.is_file()]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "model_id=tiny-1"
    blocked.write_text("a file where the folder should be")
    shard = writer(tmp_path)
    shard.write(embedded_image(0))
    with pytest.raises(StorageError, match="cannot write"):
        shard.finish()


def test_a_failing_rename_leaves_no_visible_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_source: Path, _target: Path) -> None:
        raise OSError(5, "Input/output error")

    shard = writer(tmp_path)
    shard.write(embedded_image(0))
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        shard.finish()
    assert not list(tmp_path.glob("**/*parquet*"))


def test_the_file_is_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(handle: int) -> None:
        kind = "folder" if Path(f"/proc/self/fd/{handle}").is_dir() else "file"
        steps.append(f"sync {kind}")
        real_fsync(handle)

    def replace(source: Path, target: Path) -> Path:
        steps.append("rename")
        return real_replace(source, target)

    shard = writer(tmp_path)
    for n in range(1_000):  # a full row group opens the file
        shard.write(embedded_image(n))
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    shard.finish()
    assert steps == ["sync file", "rename", "sync folder"]


def test_a_good_shard_has_no_damage(tmp_path: Path) -> None:
    assert find_damage(recorded(write(tmp_path, 10)), StorageSettings()) is None


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "replace"])
def test_damage_is_found(tmp_path: Path, harm: str) -> None:
    shard = recorded(write(tmp_path, 10))
    path = local_path(shard.uri)
    body = bytearray(path.read_bytes())
    match harm:
        case "flip":
            body[len(body) // 2] ^= 1
            path.write_bytes(body)
        case "truncate":
            path.write_bytes(body[:-1])
        case "remove":
            path.unlink()
        case "replace":
            path.write_bytes(bytes(len(body)))
    assert find_damage(shard, StorageSettings()) is not None


def test_a_folder_belongs_to_one_catalogue(tmp_path: Path) -> None:
    mine, other = uuid4(), UUID(int=0)
    prepare_output(Folder(tmp_path / "vectors"), mine)
    prepare_output(Folder(tmp_path / "vectors"), mine)
    assert {path.name for path in (tmp_path / "vectors").iterdir()} == {MARKER}
    with pytest.raises(UsageError, match="another catalogue"):
        prepare_output(Folder(tmp_path / "vectors"), other)


def test_a_worker_killed_while_it_tries_the_folder_leaves_nothing(tmp_path: Path) -> None:
    prepare_output(Folder(tmp_path), UUID(int=0))
    code = """
import os, pathlib, tempfile, uuid
from visual_search.shard import prepare_output
from visual_search.storage import Folder
original = tempfile.TemporaryFile
def fatal(**named):
    file = original(**named)
    file.write(b"x")
    file.flush()
    os._exit(9)
tempfile.TemporaryFile = fatal
prepare_output(Folder(pathlib.Path.cwd()), uuid.UUID(int=0))
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert killed.returncode == 9
    assert {path.name for path in tmp_path.iterdir()} == {MARKER}


def test_an_output_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "vectors").write_text("")
    with pytest.raises(StorageError, match="cannot write vectors to"):
        prepare_output(Folder(tmp_path / "vectors"), uuid4())
