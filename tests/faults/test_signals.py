"""SIGTERM at any moment: drained in time, nothing left claimed; a second one ends at once."""

import random
import signal
import statistics
import time

import pytest

from tests.catalogue import add_urls
from tests.faults.stage import Stage
from tests.faults.workers import Worker, wait_until

# What Kubernetes grants, less a margin. No test asks for less: a busy machine is no fault.
LONGEST_S = 25


@pytest.mark.parametrize("rounds", [3, pytest.param(50, marks=pytest.mark.long)])
def test_a_signal_at_any_moment_drains_in_time(stage: Stage, rounds: int) -> None:
    stage.publish_slowly(50 * rounds, delay_s=0.05)
    took = []
    for _ in range(rounds):
        worker = _at_a_random_moment(stage)
        begun = time.monotonic()
        worker.send(signal.SIGTERM)
        worker.ends(143)
        took.append(time.monotonic() - begun)
        assert stage.claims() == 0
        assert stage.rows("SELECT count(*) FROM leases") == [(0,)]
    print(f"{rounds} signals: longest {max(took):.1f} s", *_percentile(took))
    assert max(took) <= LONGEST_S
    assert stage.rows("SELECT max(attempts), max(crashes) FROM extractions") == [(0, 0)]
    stage.work().ends(0)
    stage.assert_whole()


@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.long)])
def test_what_does_not_finish_in_time_is_given_back(stage: Stage, rounds: int) -> None:
    """Hosts that do not answer, a drain of two seconds."""
    stage.publish_slowly(20 * rounds, delay_s=0)
    slow = range(10_000, 10_004)
    add_urls(stage.database, [stage.serve(n, delay_s=600) for n in slow])
    for _ in range(rounds):
        worker = stage.work(VSEARCH_EXTRACT__DRAIN_S="2", VSEARCH_DOWNLOAD__DEADLINE_S="300")
        wait_until(lambda: stage.server.hits["/10003.jpg"] > 0, "the slow ones are asked for")
        begun = time.monotonic()
        worker.send(signal.SIGTERM)
        worker.ends(143)
        assert time.monotonic() - begun <= LONGEST_S
        assert stage.claims() == 0
        stage.server.forget()
    for n in slow:
        stage.serve(n)
    stage.work().ends(0)
    stage.assert_whole()


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.long)])
def test_a_second_signal_ends_at_once_and_the_lease_brings_the_images_back(
    stage: Stage, rounds: int
) -> None:
    stage.publish_slowly(10, delay_s=600)
    for _ in range(rounds):
        _lose_patience(stage)
        assert stage.claims() == 10
        stage.server.forget()
        stage.rows("UPDATE extractions SET crashes = 0 RETURNING 1")
    for n in range(10):
        stage.serve(n)
    stage.work().ends(0)
    stage.assert_whole()


def _lose_patience(stage: Stage) -> None:
    worker = stage.work(VSEARCH_DOWNLOAD__DEADLINE_S="300")
    wait_until(lambda: stage.server.hits.total() >= 4, "downloads hang")
    worker.send(signal.SIGTERM)
    wait_until(lambda: worker.has_said("draining"), "it drains")
    begun = time.monotonic()
    worker.send(signal.SIGTERM)
    worker.ends(143)
    assert time.monotonic() - begun <= 10, "two seconds, and something for a busy machine"


def _at_a_random_moment(stage: Stage) -> Worker:
    """A worker somewhere between its first claim and its last shard."""
    moment = stage.server.hits.total() + random.randint(1, 35)
    worker = stage.work()
    wait_until(lambda: stage.server.hits.total() >= moment, "more downloads")
    assert not worker.has_ended, str(worker.wait())
    return worker


def _percentile(took: list[float]) -> list[str]:
    if len(took) < 20:
        return []
    return [f"p95 {statistics.quantiles(took, n=20)[-1]:.1f} s"]
