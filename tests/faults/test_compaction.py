"""Each step of a merge, and four ways to be hurt there; and merges among runs and gc.

Whatever happens, the next call ends with every vector in one listed shard, once.
"""

import signal
from pathlib import Path

import pytest

from tests.faults import points
from tests.faults.points import Kind
from tests.faults.stage import Stage
from tests.faults.workers import Worker, wait_until
from visual_search.record import list_shards

IMAGES = 20
COMPACT = ("shards", "compact")
ROOMY = {"VSEARCH_EXTRACT__SHARD_ROWS": "100"}
POINTS = ["C1", "C2", "P6", "P7", "C3", "C4", "C5"]
HELD = "SELECT count(*) FROM shards WHERE state = 'writing' AND held_until > clock_timestamp()"
# Each kind, and the steps that matter most; the long tier has all.
SHORT = {
    ("C1", Kind.KILLED),
    ("P6", Kind.EIO),
    ("C3", Kind.FROZEN),
    ("C4", Kind.CUT_OFF),
    ("C5", Kind.KILLED),
}
CASES = [
    pytest.param(
        point,
        kind,
        id=f"{point}-{kind}",
        marks=() if (point, kind) in SHORT else pytest.mark.long,
    )
    for point in POINTS
    for kind in Kind
]


@pytest.mark.parametrize(("point", "kind"), CASES)
def test_whatever_happens_there_the_next_call_ends_with_every_vector_once(
    stage: Stage, tmp_path: Path, point: str, kind: Kind
) -> None:
    write_small_shards(stage)
    note = tmp_path / "struck"
    merger = compact(stage, patches=[arm(point, kind, note)])
    if kind is Kind.FROZEN:
        merger.wait_frozen()
        wait_until(lambda: stage.rows(HELD) == [(0,)], "it is taken for dead")
        compact(stage).ends(0)
        assert shards_of(stage) == 1
        merger.thaw()
    ended = merger.wait()
    assert note.exists(), f"{point} was not reached: {ended}"
    assert ended.code in expected(point, kind), ended
    wait_until(lambda: stage.rows(HELD) == [(0,)], "it is taken for dead")
    compact(stage).ends(0)
    assert shards_of(stage) == 1
    stage.assert_whole()


def expected(point: str, kind: Kind) -> set[int]:
    match kind:
        case Kind.KILLED:
            return {-signal.SIGKILL}
        case Kind.EIO:
            # Elsewhere nothing reads or writes, so nobody expects it.
            return {75} if point in ("P6", "P7") else {1}
        case Kind.CUT_OFF:
            return {0}
        case Kind.FROZEN:
            return {0} if point == "C5" else {75}


@pytest.mark.parametrize(
    "point", ["C2", *(pytest.param(p, marks=pytest.mark.long) for p in ("C1", "P7", "C3", "C4"))]
)
def test_a_signal_ends_it_soon_and_nothing_is_left_held(
    stage: Stage, tmp_path: Path, point: str
) -> None:
    write_small_shards(stage)
    merger = compact(
        stage, patches=[arm(point, Kind.FROZEN, tmp_path / "struck")], VSEARCH_EXTRACT__LEASE_S="60"
    )
    merger.wait_frozen()
    merger.send(signal.SIGTERM)
    merger.thaw()
    merger.ends(143, patience_s=25)
    assert stage.rows(HELD) == [(0,)]
    compact(stage).ends(0)
    assert shards_of(stage) == 1
    stage.assert_whole()


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.long)])
def test_merges_among_writers_and_gc_lose_nothing(stage: Stage, rounds: int) -> None:
    """Two mergers and gc without grace, again and again, while workers are at work."""
    images = merged = 0
    for _ in range(rounds):
        images += len(stage.publish_slowly(30, delay_s=0.02, start=images))
        workers = [stage.work(VSEARCH_EXTRACT__SHARD_ROWS="3") for _ in range(2)]
        while not all(worker.has_ended for worker in workers):
            mergers = [compact(stage), compact(stage)]
            for ended in [merger.wait() for merger in mergers]:
                assert ended.code in (0, 75), ended
                merged += ended.out.count("became one")
            stage.collect_garbage(delete=True)
        for worker in workers:
            worker.ends(0)
    assert merged >= rounds
    print(f"{images} images, {merged} merges")
    compact(stage).ends(0)
    assert shards_of(stage) <= images // 50 + 1
    stage.assert_whole()


def write_small_shards(stage: Stage) -> None:
    stage.publish_slowly(IMAGES, delay_s=0)
    stage.work(VSEARCH_EXTRACT__SHARD_ROWS="5").ends(0)
    assert shards_of(stage) >= 4


def compact(
    stage: Stage, patches: list[dict[str, object]] | None = None, **variables: str
) -> Worker:
    return stage.work(*COMPACT, patches=[IDLE_LIMIT, *(patches or [])], **(ROOMY | variables))


IDLE_LIMIT: dict[str, object] = {
    "function": "tests.faults.points:set_idle_limit",
    "with": {"seconds": 1},
}


def arm(point: str, kind: Kind, note: Path) -> dict[str, object]:
    given = {"point": point, "kind": kind, "nth": 1, "note": str(note)}
    return {"function": points.FUNCTION, "with": given}


def shards_of(stage: Stage) -> int:
    with stage.database.transaction() as connection:
        return len(list_shards(connection))
