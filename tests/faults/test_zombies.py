"""Workers that were taken for dead, and clocks that go wrong: only the database decides."""

import random

import pytest

from tests.faults.stage import Stage
from tests.faults.workers import Worker, wait_until

IDLE_LIMIT = {"function": "tests.faults.points:set_idle_limit", "with": {"seconds": 1}}
LIVE_LEASES = "SELECT count(*) FROM leases WHERE expires_at > clock_timestamp()"
# So long after the server's start no lease of ten seconds is taken over.
UP = "SELECT clock_timestamp() > pg_postmaster_start_time() + interval '10 s'"

ACTIVE = """
    SELECT count(*) FROM pg_stat_activity
    WHERE application_name = 'vsearch' AND datname = current_database() AND state = 'active'
      AND pid <> pg_backend_pid()
"""


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.long)])
def test_who_wakes_after_its_lease_was_taken_over_records_nothing(
    stage: Stage, rounds: int
) -> None:
    images = 40
    for sleeps in range(rounds):
        stage.publish_slowly(images, delay_s=0.05, start=images * sleeps)
        sleeper = stage.work(patches=[IDLE_LIMIT])
        _freeze_with_claims(stage, sleeper)
        stage.work().ends(0)
        assert stage.done() == images * (sleeps + 1)
        listed = stage.rows("SELECT shard_id FROM shards WHERE state = 'committed'")
        sleeper.thaw()
        woken = sleeper.ends(0)
        assert "shard_given_up" in woken.err
        assert stage.rows("SELECT shard_id FROM shards WHERE state = 'committed'") == listed
        stage.assert_whole()


def test_who_slept_alone_goes_on_and_charges_no_image(stage: Stage) -> None:
    """Nobody took the lease over: not gc, which others run, and not the worker itself."""
    stage.publish_slowly(40, delay_s=0.05)
    sleeper = stage.work(patches=[IDLE_LIMIT])
    _freeze_with_claims(stage, sleeper)
    wait_until(lambda: stage.rows(LIVE_LEASES) == [(0,)], "the lease ends")
    sleeper.thaw()
    sleeper.ends(0)
    assert stage.rows("SELECT max(crashes) FROM extractions") == [(0,)]
    stage.assert_whole()


def test_whose_heartbeats_are_lost_takes_nothing_from_itself(stage: Stage) -> None:
    """It claims on while earlier leases of its own have ended."""
    stage.publish_slowly(60, delay_s=0.4)
    loses = {"function": "tests.faults.points:lose_heartbeats", "with": {}}
    end = stage.work(patches=[loses], VSEARCH_EXTRACT__LEASE_S="0.2").ends(0)
    assert "shard_given_up" not in end.err
    assert stage.rows("SELECT max(crashes) FROM extractions") == [(0,)]
    assert set(stage.server.hits.values()) == {1}
    stage.assert_whole()


@pytest.mark.parametrize("rounds", [1, pytest.param(5, marks=pytest.mark.long)])
@pytest.mark.parametrize("hours", [-1, 1], ids=["behind", "ahead"])
def test_a_worker_with_a_wrong_clock_neither_steals_nor_is_robbed(
    stage: Stage, hours: int, rounds: int
) -> None:
    images = 60
    wait_until(lambda: stage.rows(UP) == [(True,)], "the server does take workers for dead")
    skew = {"function": "tests.faults.points:set_clock", "with": {"ahead_s": 3600 * hours}}
    for shift in range(rounds):
        stage.publish_slowly(images, delay_s=0.05, start=images * shift)
        stage.server.forget()
        workers = [
            stage.work(patches=patches, VSEARCH_EXTRACT__LEASE_S="10")
            for patches in ([skew], [], [skew])
        ]
        for worker in workers:
            assert "shard_given_up" not in worker.ends(0).err
        assert set(stage.server.hits.values()) == {1}, "nobody took what another one had"
        assert stage.rows("SELECT max(crashes) FROM extractions") == [(0,)]
    stage.assert_whole()


def _freeze_with_claims(stage: Stage, worker: Worker) -> None:
    """Stop a worker at some moment while it holds images."""
    while True:
        stage.wait_for_downloads(random.randint(1, 5))
        assert worker.freeze()
        # What it sent before may still take place.
        wait_until(lambda: stage.rows(ACTIVE) == [(0,)], "its last statement ends")
        if stage.claims():
            return
        worker.thaw()
