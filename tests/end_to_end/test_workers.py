"""One command in several worker processes: the work of one, however they end."""

import asyncio
import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from aiohttp import web

from tests.catalogue import add_urls
from tests.end_to_end.workplace import Workplace, jpeg
from tests.faults.workers import wait_until
from tests.shards import vectors_of
from visual_search import record

# Each worker loads torch, on machines that do other things, too.
PATIENCE_S = 150
pytestmark = pytest.mark.timeout(300)

IMAGES = 1_000
# Leases so long that whatever is rescued, is not rescued by their end. Whoever begins while another
# one brings the model's queue up to date, has to wait a moment.
PATIENT = {
    "VSEARCH_EMBED__BATCH_SIZE": "4",
    "VSEARCH_EXTRACT__LEASE_S": "600",
    "VSEARCH_EXTRACT__SHARD_ROWS": "4",
    "VSEARCH_EXTRACT__WAIT_S": "30",
}


class SlowServer:
    """Pictures that take their time, until the test is in a hurry."""

    def __init__(self, place: Workplace) -> None:
        self.in_a_hurry = False
        self._body = jpeg(0)
        for number in range(IMAGES):
            place.server.route(f"/{number}.jpg", self._answer)
        add_urls(place.database, [place.server.url(f"/{n}.jpg") for n in range(IMAGES)])

    async def _answer(self, _request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0 if self.in_a_hurry else 0.5)
        return web.Response(body=self._body, content_type="image/jpeg")


def vectors(place: Workplace, model: str) -> dict[int, npt.NDArray[np.float32]]:
    """By image, which is in one shard only."""
    with place.database.transaction() as connection:
        shards = record.list_shards(connection, model=model)
    rows = [row for shard in shards for row in zip(*vectors_of(shard.uri), strict=True)]
    found = {int(image_id): vector for image_id, vector in rows}
    assert len(found) == len(rows)
    return found


def both_recorded(place: Workplace) -> bool:
    """Whether two runs have recorded something."""
    shards = "SELECT count(DISTINCT run_id) FROM shards WHERE state = 'committed'"
    return place.rows(shards) == [(2,)]


def wait_for_both(place: Workplace, command: subprocess.Popen[str]) -> list[int]:
    """Until two workers are in the middle of it; the process ids of those who still are."""
    wait_until(
        lambda: both_recorded(place) or command.poll() is not None,
        "both workers record a shard",
        PATIENCE_S,
    )
    assert command.poll() is None, command.communicate()
    return [pid for (pid,) in place.rows("SELECT pid FROM runs WHERE finished_at IS NULL")]


def test_two_workers_do_together_what_one_does(place: Workplace) -> None:
    place.publish(40)
    gone = [place.server.url("/gone-1.jpg"), place.server.url("/gone-2.jpg")]
    add_urls(place.database, gone)
    place.models["alone"] = place.models["tiny"]
    (alone,) = place.extract("alone")
    assert (alone.figures.done, alone.figures.failed) == (40, 2)
    (failed,) = place.extract("tiny", limit=None, download={"max_bytes": 10})
    assert failed.figures.failed == 42
    place.server.forget()

    textfiles = place.home / "metrics"
    textfiles.mkdir()
    ended = place.vsearch(
        *("extract", "--model", "tiny", "--workers", "2", "--retry-failed", "--json"),
        VSEARCH_METRICS__TEXTFILE_FOLDER=str(textfiles),
        **PATIENT,
    )

    assert ended.code == 0, ended
    (result,) = json.loads(ended.out)["results"]
    assert result["counts"] == {"claimed": 42, "done": 40, "failed": 2}
    assert result["error"] is None
    assert result["images_per_second"] > 0
    # Failed ones were made due once, not once by each worker.
    assert place.server.hits == {f"/{n}.jpg": 1 for n in range(40)} | {
        "/gone-1.jpg": 1,
        "/gone-2.jpg": 1,
    }
    assert place.status().last_run is not None
    shares = place.rows(
        "SELECT done, outcome FROM runs WHERE pid <> :own AND done > 0", own=os.getpid()
    )
    assert len(shares) == 2
    assert sum(done for done, _ in shares) == 40
    assert {outcome for _, outcome in shares} == {"completed"}
    assert result["shards"] == place.rows("SELECT count(*) FROM shards WHERE model_key = 2")[0][0]

    by_one, by_two = vectors(place, "alone"), vectors(place, "tiny")
    assert len(by_one) == 40
    assert by_two.keys() == by_one.keys()
    for image_id, vector in by_two.items():
        np.testing.assert_allclose(vector, by_one[image_id], atol=1e-5)

    said = [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]
    recorded = [line for line in said if line["event"] == "shard_recorded"]
    assert {line["worker"] for line in recorded} == {1, 2}
    assert {"model", "run_id"} <= recorded[0].keys()
    assert {path.name for path in textfiles.glob("*.prom")} == {
        "vsearch_tiny_success.prom",
        *(f"vsearch_tiny_{number}.prom" for number in range(3)),
    }


def test_a_killed_worker_is_started_again_and_its_images_go_to_whoever_is_free(
    place: Workplace,
) -> None:
    server = SlowServer(place)
    with place.start(
        "extract", "--model", "tiny", "--workers", "2", "--limit", "201", **PATIENT
    ) as command:
        os.kill(wait_for_both(place, command)[0], signal.SIGKILL)
        server.in_a_hurry = True
        out, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 0, err
    assert "tiny: 201 done, 0 failed" in out
    assert '"event": "worker_died"' in err
    assert "died of SIGKILL" in err
    # Exactly the limit, although what the dead one held was claimed twice.
    status = place.status()
    assert (status.done, status.claimed, status.failed) == (201, 0, 0)
    assert len(vectors(place, "tiny")) == 201
    assert place.rows("SELECT count(*) FROM leases") == [(0,)]
    outcomes = place.rows("SELECT outcome, count(*) FROM runs GROUP BY 1 ORDER BY 1")
    assert outcomes == [("completed", 2), ("failed", 1)]
    assert place.rows("SELECT sum(done) FROM runs") == [(201,)]
    assert place.server.peak <= 8


@pytest.mark.long
def test_a_signal_drains_all_workers(place: Workplace) -> None:
    SlowServer(place)
    with place.start("extract", "--model", "tiny", "--workers", "2", **PATIENT) as command:
        wait_for_both(place, command)
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 130, err
    assert "stopped by a signal; finished work is recorded" in err
    assert place.rows("SELECT outcome FROM runs") == [("stopped",), ("stopped",)]
    assert place.rows("SELECT count(*) FROM leases") == [(0,)]
    status = place.status()
    assert 0 < status.done < IMAGES
    assert status.claimed == 0
    assert f"tiny: {status.done} done" in out
    assert place.server.peak == 8, "requests to a host at once, of all workers together"


@pytest.mark.long
def test_workers_drain_when_their_supervisor_is_killed(place: Workplace) -> None:
    SlowServer(place)
    with place.start("extract", "--model", "tiny", "--workers", "2", **PATIENT) as command:
        pids = wait_for_both(place, command)
        command.kill()
        wait_until(
            lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "workers end, too"
        )
        command.communicate(timeout=PATIENCE_S)
    assert place.rows("SELECT outcome FROM runs") == [("stopped",), ("stopped",)]
    assert place.rows("SELECT count(*) FROM leases") == [(0,)]


@pytest.mark.long
def test_a_worker_that_dies_again_and_again_is_given_up(place: Workplace) -> None:
    """Its network ends its process when it is built."""
    place.models["deadly"] = place.models["tiny"] | {
        "builder": "tests.end_to_end.test_workers:build_deadly"
    }
    SlowServer(place).in_a_hurry = True
    with place.start("extract", "--model", "deadly", "--workers=auto", "--device=cpu") as command:
        _, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 1
    assert err.count('"event": "worker_died"') == 5
    assert err.count('"event": "worker_given_up"') == 1
    assert "deadly: worker 1 ended too early: its process died of SIGKILL" in err
    status = place.status("deadly")
    assert (status.done, status.claimed, status.failed) == (0, 0, 0)


def build_deadly() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_nothing_to_do_starts_no_worker(place: Workplace) -> None:
    place.publish(3)
    place.extract()
    ended = place.vsearch("extract", "--model", "tiny", "--workers", "2")
    assert (ended.code, ended.out) == (0, "tiny: nothing to do\n")
    assert "workers_started" not in ended.err


@pytest.mark.parametrize("workers", ["0", "-1", "many", "1.5"])
def test_a_number_of_workers_is_refused_that_is_none(place: Workplace, workers: str) -> None:
    ended = place.vsearch("extract", "--model", "tiny", f"--workers={workers}")
    assert ended.code == 2
    assert "a number from 1 on, or auto" in ended.err


def test_more_workers_than_requests_to_a_host_are_refused(place: Workplace) -> None:
    place.publish(1)
    ended = place.vsearch("extract", "--model", "tiny", "--workers", "9")
    assert ended.code == 2
    assert "download.per_host = 8" in ended.err
