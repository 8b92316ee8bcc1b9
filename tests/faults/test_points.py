"""Each step of the way from claim to record, and four ways to be hurt there.

Whatever happens, the next run ends with every image embedded exactly once.
"""

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults import points
from tests.faults.points import Kind
from tests.faults.proxy import Fate, Proxy
from tests.faults.stage import Stage
from tests.faults.workers import Ended, Worker, wait_until

IMAGES = 45
POINTS = [f"P{n}" for n in range(1, 14)]
# One of each kind and nearly one of each point; the long tier has all.
SHORT = {
    ("P1", Kind.KILLED),
    ("P2", Kind.FROZEN),
    ("P4", Kind.CUT_OFF),
    ("P5", Kind.KILLED),
    ("P6", Kind.EIO),
    ("P7", Kind.FROZEN),
    ("P8", Kind.KILLED),
    ("P9", Kind.KILLED),
    ("P10", Kind.KILLED),
    ("P11", Kind.FROZEN),
    ("P12", Kind.CUT_OFF),
    ("P13", Kind.FROZEN),
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
def test_whatever_happens_there_the_next_run_ends_with_every_image_once(
    stage: Stage, tmp_path: Path, point: str, kind: Kind
) -> None:
    stage.publish_slowly(IMAGES, delay_s=0.04)
    with ExitStack() as stack:
        story = _Story(stage, kind, tmp_path / "struck")
        if point == "P9":
            story.lose_a_reply(stack)
        elif point == "P13":
            story.collect_garbage()
        else:
            story.extract(point)
        story.run_its_course()
        story.assert_end(point)
    (last,) = [stage.work().wait()]
    assert last.code == 0, last
    stage.assert_whole()


@pytest.mark.parametrize(("point", "nth"), [("P3", 30), ("P4", 3)])
def test_what_was_embedded_before_an_error_is_kept(
    stage: Stage, tmp_path: Path, point: str, nth: int
) -> None:
    """A decoder's thread, or the third batch, fails in a shard that has room for many more."""
    stage.publish_slowly(IMAGES, delay_s=0)
    fails = _arm(point, Kind.EIO, nth, tmp_path / "struck")
    stage.work(patches=[fails], VSEARCH_EXTRACT__SHARD_ROWS="1000").ends(1)
    assert 0 < stage.done() < IMAGES
    assert stage.claims() == 0
    stage.work().ends(0)
    assert stage.rows("SELECT max(attempts), max(crashes) FROM extractions") == [(0, 0)]
    stage.assert_whole()


class _Story:
    """One worker, hurt at one point."""

    def __init__(self, stage: Stage, kind: Kind, note: Path) -> None:
        self._stage = stage
        self._kind = kind
        self._note = note
        self._worker: Worker
        self._ended: Ended

    def extract(self, point: str) -> None:
        # Not the first shard, so that there is something to lose.
        nth = 1 if point in ("P11", "P12") else 2
        self._worker = self._stage.work(patches=self._patches(point, nth=nth))

    def lose_a_reply(self, stack: ExitStack) -> None:
        """P9: all statements go through a proxy, which knows the commit of a shard."""
        commits = iter(range(1000))

        def decide(statements: list[str]) -> Fate:
            of_a_shard = any("SET state = 'committed'" in sent for sent in statements)
            return Fate.REPLY_LOST if of_a_shard and next(commits) == 1 else Fate.PASSES

        def strike() -> None:
            self._note.touch()
            match self._kind:
                case Kind.KILLED:
                    self._worker.kill()
                case Kind.FROZEN:
                    self._worker.freeze()
                case Kind.CUT_OFF:
                    points.terminate_backends(self._stage.database_url)

        proxy = stack.enter_context(Proxy(self._stage.database_url, decide, strike))
        self._worker = self._stage.work(patches=[_IDLE_LIMIT], VSEARCH_DATABASE_URL=proxy.url)

    def collect_garbage(self) -> None:
        """P13: orphans first, then a gc that is hurt while it deletes them."""
        killed = self._stage.work(
            patches=[_arm("P7", Kind.KILLED, 2, self._note.with_suffix(".first"))]
        )
        assert killed.wait().code == -signal.SIGKILL
        leases = "SELECT count(*) FROM leases WHERE expires_at > clock_timestamp()"
        wait_until(lambda: self._stage.rows(leases) == [(0,)], "the lease ends")
        self._worker = self._stage.work(
            "shards", "gc", "--delete", "--grace", "0", patches=self._patches("P13", nth=1)
        )

    def run_its_course(self) -> None:
        if self._kind is not Kind.FROZEN:
            self._ended = self._worker.wait()
            return
        self._worker.wait_frozen()
        # Others do all the work while it sleeps, and wait for its lease to end.
        other = self._stage.work().wait()
        assert other.code == 0, other
        assert self._stage.done() == IMAGES
        self._worker.thaw()
        self._ended = self._worker.wait()

    def assert_end(self, point: str) -> None:
        assert self._note.exists(), f"{point} was not reached: {self._ended}"
        code, drained = self._ended.code, 143 if point == "P12" else 0
        match self._kind:
            case Kind.KILLED:
                assert code == -signal.SIGKILL
            case Kind.CUT_OFF | Kind.FROZEN:
                assert code == drained, self._ended
            case Kind.EIO if point in ("P6", "P7", "P13"):
                assert code == 75, self._ended
            case Kind.EIO if point in ("P9", "P12"):
                # A broken connection; an error after all that the signal asks for is done.
                assert code == drained, self._ended
            case Kind.EIO:
                # Nothing there reads or writes, so nobody expects it.
                assert code in (1, 75), self._ended

    def _patches(self, point: str, *, nth: int) -> list[dict[str, object]]:
        return [_IDLE_LIMIT, _arm(point, self._kind, nth, self._note)]


_IDLE_LIMIT: dict[str, object] = {
    "function": "tests.faults.points:set_idle_limit",
    "with": {"seconds": 1},
}


def _arm(point: str, kind: Kind, nth: int, note: Path) -> dict[str, object]:
    given = {"point": point, "kind": kind, "nth": nth, "note": str(note)}
    return {"function": points.FUNCTION, "with": given}
