"""Disks that are full or fail: runs end with a sentence, and what is not durable never counts."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.stage import Stage
from tests.faults.workers import Worker, wait_until
from tests.shards import local_path
from tests.unit.test_shard import embedded_image, writer

TEMPORARY = 75
PAGE_BYTES = 4096

# Operation, and for the how-manieth time it is asked for. The first shard makes two folders and
# syncs both; then each shard syncs its file and its folder.
SHORT = [("write", 1), ("write", 3), ("fsync", 1), ("fsync", 3), ("fsync", 4), ("rename", 2)]
OPERATIONS = [
    *SHORT,
    ("write", 2), ("write", 4), ("write", 6), ("write", 9), ("fsync", 2), ("fsync", 5),
    ("fsync", 6), ("rename", 1), ("rename", 3), ("open", 1), ("open", 2), ("mkdir", 1),
    ("read", 1), ("read", 2),
]  # fmt: skip
FAILURES = [
    pytest.param(
        operation,
        nth,
        error,
        id=f"{operation}-{nth}-{errno.errorcode[error]}",
        marks=()
        if (operation, nth) in SHORT and (error == errno.EIO) == (nth != 3)
        else pytest.mark.long,
    )
    for operation, nth in OPERATIONS
    for error in (errno.EIO, errno.ENOSPC)
]


@pytest.mark.parametrize(("operation", "nth", "error"), FAILURES)
def test_what_the_disk_refuses_does_not_count_and_is_written_anew(
    stage: Stage, operation: str, nth: int, error: int
) -> None:
    stage.publish_slowly(60, delay_s=0)
    refuses = {
        "function": "tests.faults.broken_disk:refuse",
        "with": {"operation": operation, "nth": nth, "error": error},
    }
    end = stage.work(patches=[refuses]).ends(TEMPORARY)
    assert end.err.splitlines()[-1].startswith("vsearch: tiny: cannot ")
    assert end.err.splitlines()[-1].endswith(f": {os.strerror(error)}")
    assert "Traceback" not in end.err
    assert stage.claims() == 0
    refused = stage.rows("SELECT shard_id FROM shards WHERE state = 'abandoned'")
    assert len(refused) >= 1
    stage.work().ends(0)
    assert stage.rows("SELECT shard_id FROM shards WHERE state = 'abandoned'") == refused
    assert stage.rows("SELECT max(attempts), max(crashes) FROM extractions") == [(0, 0)]
    stage.assert_whole()


def test_a_shard_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test can cut the power; the order of the calls is what outlasts it."""
    calls = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        synced = Path(f"/proc/self/fd/{descriptor}").resolve()
        calls.append(("sync", synced.relative_to(tmp_path), os.fstat(descriptor).st_size))
        fsync(descriptor)

    def note_replace(old: Path, new: Path) -> Path:
        calls.append(("rename", old.relative_to(tmp_path), old.stat().st_size))
        return replace(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    shard = writer(tmp_path)
    for n in range(3):
        shard.write(embedded_image(n))
    written = shard.finish()
    path = local_path(shard.uri).relative_to(tmp_path)
    partial = path.with_name(f".{path.name}.partial")
    day, model = path.parent, path.parent.parent
    folders = [call[1] for call in calls if call[1] in (Path(), model, day)]
    assert folders == [model, Path(), day], "the new folders' names, then the shard's"
    assert [call for call in calls if call[1] in (partial, day)] == [
        ("sync", partial, written.bytes),
        ("rename", partial, written.bytes),
        ("sync", day, calls[-1][2]),
    ]


def test_a_file_that_may_not_grow_ends_the_run(stage: Stage) -> None:
    """RLIMIT_FSIZE: what containers and shells set."""
    stage.publish_slowly(60, delay_s=0)
    limit = {"function": "tests.faults.broken_disk:limit_files", "with": {"most_bytes": 3000}}
    end = stage.work(patches=[limit]).ends(TEMPORARY)
    assert "File too large" in end.err.splitlines()[-1]
    assert stage.done() == 0
    stage.work().ends(0)
    stage.assert_whole()


@pytest.fixture
def small_disk(stage: Stage) -> Iterator["SmallDisk"]:
    stage.folder.mkdir()
    disk = SmallDisk(stage)
    yield disk
    disk.keeper.kill()


class SmallDisk:
    """A file system of 8 MB in the place of the folder of vectors, in a namespace of its own."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        up = stage.home / "up"
        self.keeper = stage.call(
            "tests.faults.small_disk:keep", folder=str(stage.folder), up=str(up)
        )
        wait_until(lambda: up.exists() or self.keeper.has_ended, "the disk is there")
        if self.keeper.has_ended:
            pytest.skip(f"no mount namespace here: {self.keeper.wait().err.splitlines()[-1]}")
        # The same folder, as those see it who are inside.
        self.inside = Path(f"/proc/{self.keeper.pid}/root{stage.folder}")
        self._ballast = self.inside / "ballast"

    def work(self) -> Worker:
        enter = {
            "function": "tests.faults.small_disk:enter",
            "with": {"pid": self.keeper.pid},
        }
        return self._stage.work(patches=[enter])

    def leave_pages(self, pages: int) -> None:
        """Fill the disk but for so many pages."""
        with self._ballast.open("wb") as ballast:
            free = os.statvfs(self.inside).f_bavail - pages
            ballast.write(bytes(free * PAGE_BYTES))

    def clear(self) -> None:
        self._ballast.unlink()


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.long)])
def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(
    stage: Stage, small_disk: SmallDisk, rounds: int
) -> None:
    for fill in range(rounds):
        stage.publish_slowly(60, delay_s=0, start=60 * fill)
        small_disk.leave_pages(fill % 5)  # full from the start, or by the first or second shard
        end = small_disk.work().ends(TEMPORARY)
        assert "No space left on device" in end.err.splitlines()[-1]
        assert stage.claims() == 0
        _assert_listed_shards_are_complete(stage, small_disk)
        small_disk.clear()
        small_disk.work().ends(0)
    shutil.copytree(small_disk.inside, stage.folder, dirs_exist_ok=True)
    stage.assert_whole()


def _assert_listed_shards_are_complete(stage: Stage, disk: SmallDisk) -> None:
    listed = stage.rows("SELECT uri, bytes FROM shards WHERE state = 'committed'")
    for uri, size in listed:
        relative = local_path(uri).relative_to(stage.folder)
        assert (disk.inside / relative).stat().st_size == size
