"""Many claimers, long queues, old snapshots: claims stay exclusive and quick."""

import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Connection, create_engine, text

from tests.faults.big import seed_many, vacuum
from tests.faults.stage import Stage
from tests.faults.workers import wait_until
from visual_search import claim, record
from visual_search.claim import Place, Suspicion
from visual_search.database.connection import Database
from visual_search.images import (
    ClaimedImage,
    LeaseToken,
    ModelKey,
    RunId,
    ShardId,
    WrittenShard,
)

RUN = RunId(uuid4())


@pytest.mark.parametrize(
    ("claimers", "images"), [(8, 10_000), pytest.param(32, 100_000, marks=pytest.mark.long)]
)
def test_many_claimers_share_all_images_and_no_image(
    stage: Stage, tmp_path: Path, claimers: int, images: int
) -> None:
    batch = 100
    model_key = seed_many(stage.database, images)
    start = tmp_path / "start"
    reports = [tmp_path / f"claimer-{n}" for n in range(claimers)]
    workers = [
        stage.call(
            "tests.faults.claimers:claim_all",
            url=stage.database_url,
            model_key=model_key,
            rows=batch,
            start=str(start),
            report=str(report),
        )
        for report in reports
    ]
    wait_until(lambda: all(report.exists() for report in reports), "all are ready")
    begun = time.monotonic()
    start.touch()
    for worker in workers:
        worker.ends(0, patience_s=300)
    claims = [json.loads(line) for report in reports for line in report.read_text().splitlines()]
    rate = images / (max(one["at"] for one in claims) - begun)
    print(f"{claimers} claimers: {rate:,.0f} rows/s")
    assert max(len(one["ids"]) for one in claims) <= batch
    claimed = [image_id for one in claims for image_id in one["ids"]]
    assert len(claimed) == len(set(claimed)) == images
    assert stage.rows("SELECT DISTINCT status FROM extractions") == [("claimed",)]


@pytest.mark.long
def test_a_claim_at_the_end_of_a_long_queue_is_quick(database: Database, database_url: str) -> None:
    images = 1_000_000
    model_key = seed_many(database, images)
    with database.transaction() as connection:
        connection.execute(
            text("""
                UPDATE extractions SET status = 'done', shard_id = gen_random_uuid()
                WHERE image_id <= :done
            """),
            {"done": images * 99 // 100},
        )
    vacuum(database_url)
    took = [_claim(database, model_key, 1_000)[2] for _ in range(images // 100 // 1_000)]
    print(f"{len(took)} claims of 1,000 behind 990,000 done: {_told(took)}")
    assert statistics.median(took) <= 0.3, "ten times what an idle machine takes"


@pytest.mark.parametrize("images", [30_000, pytest.param(300_000, marks=pytest.mark.long)])
def test_an_old_snapshot_does_not_slow_claims_down(
    database: Database, database_url: str, images: int
) -> None:
    model_key = seed_many(database, images)
    place = Place()
    took = []
    with _snapshot(database_url):
        for _ in range(images // 1_000):
            token, claimed, seconds = _claim(database, model_key, 1_000, place)
            took.append(seconds)
            _finish(database, model_key, token, claimed)
    share = max(10, len(took) // 10)
    print(f"first: {_told(took[:share])}; last: {_told(took[-share:])}")
    assert statistics.median(took[-share:]) <= 2 * statistics.median(took[:share]) + 0.05


def test_under_an_old_snapshot_a_claim_steps_over_nothing_that_is_settled(
    database: Database, database_url: str
) -> None:
    model_key = seed_many(database, 5_000)
    place = Place()
    with _snapshot(database_url):
        for _ in range(10):
            token, claimed, _ = _claim(database, model_key, 400, place)
            _finish(database, model_key, token, claimed)
        with database.transaction() as connection:
            before = _entries_read(connection, model_key)
            token = LeaseToken(uuid4())
            claim.open_lease(connection, token=token, model_key=model_key, run_id=RUN, lease_s=60)
            claim.claim_images(
                connection,
                token=token,
                model_key=model_key,
                rows=100,
                suspicion=Suspicion.NONE,
                place=place,
            )
            read = _entries_read(connection, model_key) - before
    assert 100 <= read <= 200


def _entries_read(connection: Connection, model_key: ModelKey) -> int:
    """How much of the index of pending rows this connection has gone through lately."""
    entries: int = connection.execute(
        text("""
            SELECT pg_stat_get_xact_tuples_returned(indexrelid) FROM pg_index
            WHERE indrelid = CAST('extractions_' || :model_key AS regclass)
              AND pg_get_indexdef(indexrelid) LIKE '%next_attempt_at%'
        """),
        {"model_key": model_key},
    ).scalar_one()
    return entries


@contextmanager
def _snapshot(url: str) -> Iterator[None]:
    """A reader that keeps the database from forgetting anything."""
    engine = create_engine(url, isolation_level="REPEATABLE READ")
    with engine.connect() as connection:
        connection.execute(text("SELECT count(*) FROM vsearch.leases"))
        yield
    engine.dispose()


def _claim(
    database: Database, model_key: ModelKey, rows: int, place: Place | None = None
) -> tuple[LeaseToken, list[ClaimedImage], float]:
    token = LeaseToken(uuid4())
    with database.transaction() as connection:
        claim.open_lease(connection, token=token, model_key=model_key, run_id=RUN, lease_s=600)
        begun = time.monotonic()
        claimed = claim.claim_images(
            connection,
            token=token,
            model_key=model_key,
            rows=rows,
            suspicion=Suspicion.NONE,
            place=place,
        )
        took = time.monotonic() - begun
    assert len(claimed) == rows
    return token, claimed, took


def _finish(
    database: Database, model_key: ModelKey, token: LeaseToken, images: list[ClaimedImage]
) -> None:
    """Record a shard without a file."""
    shard_id = ShardId(uuid4())
    written = WrittenShard(
        shard_id=shard_id, uri=f"file:///{shard_id}", rows=len(images), bytes=1, sha256="00"
    )
    rows = [
        record.RecordedRow(image_id=image.image_id, row_in_shard=n, content_sha256=bytes(32))
        for n, image in enumerate(images)
    ]
    with database.transaction() as connection:
        record.begin_shard(
            connection, shard_id=shard_id, model_key=model_key, uri=written.uri, run_id=RUN
        )
        claim.lock_lease(connection, token)
        record.commit_shard(connection, token=token, model_key=model_key, shard=written, rows=rows)
        claim.close_lease(connection, token)


def _p95(took: list[float]) -> float:
    return statistics.quantiles(took, n=20, method="inclusive")[-1]


def _told(took: list[float]) -> str:
    return f"median {1000 * statistics.median(took):.1f} ms, p95 {1000 * _p95(took):.1f} ms"
