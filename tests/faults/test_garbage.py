"""gc among writers: it may be as hasty as it likes, nothing that counts or will count is lost."""

from pathlib import Path

import pytest

from tests.faults import points
from tests.faults.points import Kind
from tests.faults.stage import Stage
from tests.faults.workers import Worker, wait_until
from tests.shards import paths_in
from visual_search import record
from visual_search.shard import prepare_output
from visual_search.storage import Folder

IDLE_LIMIT = {"function": "tests.faults.points:set_idle_limit", "with": {"seconds": 1}}
LIVE_LEASES = "SELECT count(*) FROM leases WHERE expires_at > clock_timestamp()"


@pytest.mark.parametrize(
    ("passes", "kills"), [(50, 3), pytest.param(500, 20, marks=pytest.mark.long)]
)
def test_gc_without_a_pause_takes_nothing_from_four_writers(
    stage: Stage, tmp_path: Path, passes: int, kills: int
) -> None:
    prepare_output(Folder(stage.folder), stage.database.run(record.catalogue_id))
    stop, report = tmp_path / "stop", tmp_path / "passes"
    collector = stage.call(
        "tests.faults.collectors:collect_until",
        url=stage.database_url,
        folder=str(stage.folder),
        stop=str(stop),
        report=str(report),
    )
    wait_until(report.exists, "gc runs")
    workers: list[Worker] = []
    images = killed = 0
    while report.stat().st_size < passes or killed < kills:
        images += len(stage.publish_slowly(60, delay_s=0.02, start=images))
        workers += [_write(stage) for _ in range(4 - len(workers))]
        if killed < kills:
            victim = stage.freeze_one(workers, within=40)
            victim.kill()
            workers.remove(victim)
            killed += 1
        if killed == kills or any(worker.has_ended for worker in workers):
            _assert_undisturbed(workers)
            workers.clear()
    _assert_undisturbed(workers)
    _write(stage).ends(0)
    stop.touch()
    collector.ends(0)
    print(f"{report.stat().st_size} passes, {images} images, {killed} kills")
    stage.assert_whole()


@pytest.mark.parametrize(
    "point",
    [pytest.param("P5", marks=pytest.mark.long), "P6", pytest.param("P7", marks=pytest.mark.long),
     "P8"],
)  # fmt: skip
def test_a_writer_that_sleeps_through_gc_gives_its_shard_up_and_goes_on(
    stage: Stage, tmp_path: Path, point: str
) -> None:
    stage.publish_slowly(60, delay_s=0.02)
    writer = stage.work(patches=[IDLE_LIMIT, _freeze_at(point, tmp_path / "frozen", nth=2)])
    writer.wait_frozen()
    wait_until(lambda: stage.rows(LIVE_LEASES) == [(0,)], "its leases end")
    assert stage.collect_garbage(delete=True)
    writer.thaw()
    assert "shard_given_up" in writer.ends(0).err
    assert stage.rows("SELECT max(crashes) FROM extractions") == [(0,)]
    stage.assert_whole()


@pytest.mark.parametrize("point", ["G1", "G2", "G3"])
def test_gc_that_sleeps_between_two_steps_deletes_nothing_that_was_committed_meanwhile(
    stage: Stage, tmp_path: Path, point: str
) -> None:
    """A writer is about to commit when gc looks; both sleep, and the writer wakes first."""
    stage.publish_slowly(60, delay_s=0.02)
    writer = stage.work(patches=[IDLE_LIMIT, _freeze_at("P8", tmp_path / "writer", nth=2)])
    writer.wait_frozen()
    if point != "G1":  # it takes no shard whose writer's lease lives
        wait_until(lambda: stage.rows(LIVE_LEASES) == [(0,)], "its leases end")
    collector = stage.work(
        "shards", "gc", "--delete", "--grace", "0",
        patches=[_freeze_at(point, tmp_path / "gc", nth=1)],
    )  # fmt: skip
    collector.wait_frozen()
    there = paths_in(stage.folder)
    writer.thaw()
    if point == "G2":
        # In its transaction gc holds the shard: the writer waits for its verdict.
        collector.thaw()
    said = writer.ends(0).err
    assert ("shard_given_up" in said) == (point != "G1")
    collector.thaw()
    collector.ends(0)
    gone = there - paths_in(stage.folder)
    assert bool(gone) == (point != "G1")
    stage.assert_whole()


def _write(stage: Stage) -> Worker:
    return stage.work(VSEARCH_EXTRACT__SHARD_ROWS="5", VSEARCH_EXTRACT__LEASE_S="5")


def _assert_undisturbed(workers: list[Worker]) -> None:
    for worker in workers:
        assert "shard_given_up" not in worker.ends(0).err


def _freeze_at(point: str, note: Path, *, nth: int) -> dict[str, object]:
    given = {"point": point, "kind": Kind.FROZEN, "nth": nth, "note": str(note)}
    return {"function": points.FUNCTION, "with": given}
