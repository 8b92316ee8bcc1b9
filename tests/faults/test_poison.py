"""Images that kill: the decoder, which is replaced, or the whole worker, which is not."""

import asyncio
import signal
import time
from pathlib import Path

import pytest
from aiohttp import web

from tests.catalogue import add_urls
from tests.end_to_end.workplace import jpeg
from tests.faults.stage import Stage
from tests.faults.workers import wait_until
from tests.poison import ABORTS, HANGS, KILLS, poison_folder
from visual_search.claim import DEATHS_TO_FAIL, Suspicion

KILLS_WORKER = b"the end of its worker"


@pytest.mark.parametrize("good", [60, pytest.param(2_000, marks=pytest.mark.long)])
def test_what_kills_a_decoder_fails_alone(stage: Stage, tmp_path: Path, good: int) -> None:
    stage.publish_slowly(good, delay_s=0)
    reasons = {}
    for n in range(good // 10):
        marker, reason = _DECODER_POISONS[n % len(_DECODER_POISONS)]
        url = stage.serve(good + n, body=marker + jpeg(n))
        reasons[url] = reason
    add_urls(stage.database, list(reasons))
    folder = poison_folder(tmp_path)
    path = {"function": "tests.faults.points:add_path", "with": {"folder": str(folder)}}
    worker = stage.work(patches=[path], VSEARCH_DECODE__TIMEOUT_S="1")
    worker.ends(0, patience_s=300)
    assert stage.rows("SELECT count(*), max(outcome) FROM runs") == [(1, "completed")]
    assert stage.rows("SELECT max(attempts), max(crashes) FROM extractions") == [(1, 0)]
    assert set(stage.server.hits.values()) == {1}
    stage.assert_whole(failed=reasons)


_DECODER_POISONS = (
    (KILLS, "kills_decoder"),
    (ABORTS, "kills_decoder"),
    (HANGS, "decode_timeout"),
)


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.long)])
def test_what_kills_its_worker_is_isolated_and_all_its_neighbours_are_done(
    stage: Stage, rounds: int
) -> None:
    failed = {}
    for kill in range(rounds):
        stage.publish_slowly(10 + kill, delay_s=0, start=1000 * kill)
        poison = stage.serve(1000 * kill + 500, body=KILLS_WORKER)
        add_urls(stage.database, [poison])
        stage.publish_slowly(20 - kill, delay_s=0, start=1000 * kill + 600)
        failed[poison] = "kills_worker"
        held = _die_until_all_is_done(stage)
        assert len(held) <= DEATHS_TO_FAIL
        assert held[1] <= Suspicion.SOME.rows
        assert held[2:] == [1, 1], "alone, both last times"
        stage.assert_whole(failed=failed)
    crashes = "SELECT DISTINCT crashes FROM extractions WHERE status = 'failed'"
    assert stage.rows(crashes) == [(DEATHS_TO_FAIL,)]


def _die_until_all_is_done(stage: Stage) -> list[int]:
    """Start a worker whenever one has died; says how many images each of the dead held."""
    marker = {"marker": KILLS_WORKER.decode()}
    dies = {"function": "tests.faults.points:die_of", "with": marker}
    held: list[int] = []
    while True:
        end = stage.work(patches=[dies], VSEARCH_EXTRACT__SHARD_ROWS="1000").wait()
        if end.code == 0:
            return held
        assert end.code == -signal.SIGKILL, str(end)
        held.append(stage.claims())


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.long)])
def test_the_images_of_a_dead_worker_are_soon_anothers(stage: Stage, kills: int) -> None:
    lease_s = 3
    took = [_time_of_rescue(stage, kill, lease_s) for kill in range(kills)]
    print(f"{kills} rescues, {min(took):.2f} to {max(took):.2f} s, lease {lease_s} s")
    # 1.25 leases, and something for a machine that does other things, too.
    assert max(took) <= 1.25 * lease_s + 2
    stage.assert_whole()


def _time_of_rescue(stage: Stage, kill: int, lease_s: float) -> float:
    """Seconds from a worker's death until another one has claimed its images."""
    urls = [stage.server.url(f"/slow/{kill}/{n}.jpg") for n in range(20)]
    _hang_once(stage, urls)
    add_urls(stage.database, urls)
    stage.server.forget()
    victim = stage.work(VSEARCH_EXTRACT__LEASE_S=str(lease_s))
    wait_until(lambda: stage.server.hits.total() == 4, "it downloads")
    heir = stage.work(VSEARCH_EXTRACT__LEASE_S=str(lease_s))
    wait_until(lambda: heir.has_said("model_loaded"), "another one waits")
    victim.kill()
    killed = time.monotonic()
    again = "SELECT count(*) > 0 FROM extractions WHERE status = 'claimed' AND crashes = 1"
    wait_until(lambda: stage.rows(again) == [(True,)], "they are claimed again")
    took = time.monotonic() - killed
    heir.ends(0)
    return took


def _hang_once(stage: Stage, urls: list[str]) -> None:
    for n, url in enumerate(urls):
        path = url.removeprefix(stage.server.url(""))
        stage.bodies[url] = jpeg(n)

        async def answer(_request: web.BaseRequest, path: str = path, n: int = n) -> web.Response:
            if stage.server.hits[path] == 1 and n < 4:
                await asyncio.sleep(600)
            return web.Response(body=jpeg(n))

        stage.server.route(path, answer)
