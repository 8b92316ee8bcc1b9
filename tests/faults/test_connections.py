"""What workers cost the server: few connections, short transactions, none that idles."""

from typing import NamedTuple

import psycopg2
import pytest

from tests.faults.stage import Stage
from tests.faults.watching import Watch

_SESSIONS = """
    SELECT state, extract(epoch FROM clock_timestamp() - xact_start),
           extract(epoch FROM clock_timestamp() - state_change)
    FROM pg_stat_activity
    WHERE application_name = 'vsearch' AND datname = current_database()
"""


class Session(NamedTuple):
    state: str
    transaction_s: float
    unchanged_s: float


@pytest.mark.parametrize(
    ("workers", "images"), [(3, 300), pytest.param(16, 2_000, marks=pytest.mark.long)]
)
def test_workers_take_two_connections_and_no_long_transaction(
    stage: Stage, workers: int, images: int
) -> None:
    stage.publish_slowly(images, delay_s=0.02)
    stage.database.close()  # or the test's own connections would count
    url = stage.database_url.replace("+psycopg2", "")
    watcher = psycopg2.connect(url, application_name="watch")
    watcher.autocommit = True

    def look() -> list[Session]:
        with watcher.cursor() as cursor:
            cursor.execute(_SESSIONS)
            return [Session(row[0], float(row[1] or 0), float(row[2])) for row in cursor]

    with Watch(look) as watch:
        ends = [stage.work(VSEARCH_EXTRACT__LEASE_S="30") for _ in range(workers)]
        for worker in ends:
            worker.ends(0, patience_s=300)
    watcher.close()
    seen = [session for sessions in watch.seen for session in sessions]
    most = max(len(sessions) for sessions in watch.seen)
    oldest = max(session.transaction_s for session in seen)
    idle = [s.unchanged_s for s in seen if s.state == "idle in transaction"]
    print(
        f"{workers} workers, {images} images, {len(watch.seen)} samples: {most} connections at "
        f"most, oldest transaction {oldest:.2f} s, idle in one {max(idle, default=0):.2f} s at most"
    )
    assert most <= 2 * workers
    # A second; on a machine that does other things, too, a few.
    assert oldest <= 5
    assert max(idle, default=0) <= 5
    stage.assert_whole()
