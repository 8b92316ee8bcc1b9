"""Postgres dies, restarts, or cuts everybody off: workers wait, go on, and blame no image."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import Connection, text

from tests.faults import points
from tests.faults.stage import Stage
from tests.faults.watching import assert_numbers_add_up, watch_status
from tests.faults.workers import Nursery, Worker, wait_until
from tests.server import ImageServer
from visual_search.database import cluster as clusters
from visual_search.database import embedded, migrate, server
from visual_search.database.cluster import Cluster
from visual_search.database.connection import Database
from visual_search.errors import DatabaseGoneError

LAST_CLAIMED = "SELECT max(image_id) FROM extractions WHERE status <> 'pending'"


class Doomed:
    """A server of the test's own, to be killed."""

    def __init__(self, home: Path, url: str) -> None:
        self.url = url
        self._cluster: Cluster = clusters.find(home)

    def crash(self) -> None:
        """As in a power cut, but that what was written to files stays."""
        stopped = self._cluster.run(
            "pg_ctl", "stop", "-D", str(self._cluster.folder), "-m", "immediate", "-w", "-s"
        )
        assert stopped.returncode == 0, stopped.stderr

    def start(self) -> None:
        server.bring_up(self._cluster)


@pytest.fixture(scope="module")
def doomed() -> Iterator[Doomed]:
    with (
        TemporaryDirectory(prefix="vsearch-test-") as home,
        embedded.running(Path(home), create=True) as url,
    ):
        yield Doomed(Path(home), url.render_as_string(hide_password=False))


@pytest.fixture
def stage(
    tmp_path: Path, doomed: Doomed, image_server: ImageServer, nursery: Nursery
) -> Iterator[Stage]:
    database = Database(doomed.url, schema=tmp_path.name[-60:], outage_s=30)
    with database.transaction() as connection:
        connection.exec_driver_sql(f'CREATE SCHEMA "{database.schema}"')
    migrate.upgrade(database)
    stage = Stage(tmp_path, database, doomed.url, image_server, nursery)
    stage.variables["VSEARCH_DATABASE__SCHEMA"] = database.schema
    yield stage
    nursery.kill_all()
    database.close()


@pytest.mark.parametrize("crashes", [2, pytest.param(10, marks=pytest.mark.long)])
def test_workers_outlive_a_crash_of_the_server(stage: Stage, doomed: Doomed, crashes: int) -> None:
    stage.publish_slowly(150 * crashes, delay_s=0.05)
    stage.hold_back()
    workers = [stage.work(VSEARCH_EXTRACT__LEASE_S="10") for _ in range(2)]
    took = []
    for _ in range(crashes):
        _wait_for_progress(stage, workers)
        doomed.crash()
        doomed.start()
        begun = time.monotonic()
        _wait_for_progress(stage, workers)
        took.append(time.monotonic() - begun)
    stage.let_through()
    for worker in workers:
        assert "shard_given_up" not in worker.ends(0).err
    print(f"{crashes} crashes: on after {max(took):.1f} s at most")
    assert stage.rows("SELECT max(attempts), max(crashes) FROM extractions") == [(0, 0)]
    stage.assert_whole()


def test_an_outage_longer_than_the_leases_costs_nobody_anything(
    stage: Stage, doomed: Doomed
) -> None:
    """Who comes back first takes nobody for dead who was as unable to renew a lease as itself."""
    stage.publish_slowly(400, delay_s=0.05)
    stage.hold_back()
    first, late = (stage.work(VSEARCH_EXTRACT__LEASE_S="30") for _ in range(2))
    _wait_for_progress(stage, [first, late])
    wait_until(lambda: _leases(stage, late) > 0, "it has claimed something")
    assert late.freeze()
    assert _leases(stage, late) > 0
    doomed.crash()
    doomed.start()
    stage.rows("UPDATE leases SET expires_at = clock_timestamp() - interval '1 s' RETURNING 1")
    last = stage.rows(LAST_CLAIMED)
    stage.let_through()
    wait_until(lambda: stage.rows(LAST_CLAIMED) > last, "the other one claims more")
    late.thaw()
    for worker in (first, late):
        assert "shard_given_up" not in worker.ends(0).err
    assert stage.rows("SELECT max(attempts), max(crashes) FROM extractions") == [(0, 0)]
    assert set(stage.server.hits.values()) == {1}
    stage.assert_whole()


def _leases(stage: Stage, worker: Worker) -> int:
    ((leases,),) = stage.rows(
        "SELECT count(*) FROM leases JOIN runs USING (run_id) WHERE pid = :pid", pid=worker.pid
    )
    return int(leases)


@pytest.mark.parametrize("rounds", [5, pytest.param(30, marks=pytest.mark.long)])
def test_workers_outlive_being_cut_off(stage: Stage, doomed: Doomed, rounds: int) -> None:
    images = 60 * rounds
    stage.publish_slowly(images, delay_s=0.05)
    stage.hold_back()
    workers = [stage.work(VSEARCH_EXTRACT__LEASE_S="10") for _ in range(2)]
    cut = 0
    with watch_status(doomed.url, schema=stage.database.schema) as watch:
        for _ in range(rounds):
            _wait_for_progress(stage, workers)
            cut += points.terminate_backends(doomed.url)
        stage.let_through()
        for worker in workers:
            assert "shard_given_up" not in worker.ends(0).err
    assert cut >= rounds
    assert_numbers_add_up(watch, images=images)
    assert stage.rows("SELECT max(attempts), max(crashes) FROM extractions") == [(0, 0)]
    stage.assert_whole()


def test_what_a_deadlock_undid_is_repeated(database: Database) -> None:
    """Otherwise a heartbeat or a commit that lost would end its run."""
    both_hold_one = threading.Barrier(2)
    tries: list[int] = []

    def take(first: int, second: int) -> None:
        def step(connection: Connection) -> None:
            for lock in (first, second):
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": lock})
                if lock == first and len(tries) < 2:
                    tries.append(first)
                    both_hold_one.wait(10)

        database.run(step)
        tries.append(first)

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(take, 1, 2), threads.submit(take, 2, 1)]:
            done.result()
    assert sorted(tries) == [1, 1, 2, 2]


def _wait_for_progress(stage: Stage, workers: list[Worker]) -> None:
    """Until a shard more is recorded; each worker may have one of 20 rows that lacks some."""
    stage.let_through(45)
    before: list[int] = []

    def is_on() -> bool:
        with suppress(DatabaseGoneError):
            before.append(stage.recorded())
        return len(before) > 1 and before[-1] > before[0]

    wait_until(is_on, "another shard")
    assert not any(worker.has_ended for worker in workers)
