"""Records: a shard and its rows in one fenced step, and failures with their reasons."""

from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.catalogue import add_images, make_model, statuses
from tests.plans import explain
from visual_search import claim, record
from visual_search.claim import Suspicion
from visual_search.database.connection import Database
from visual_search.database.schema import ShardState
from visual_search.errors import FailureReason, InternalError
from visual_search.images import (
    ClaimedImage,
    FailedImage,
    LeaseToken,
    ModelKey,
    RunId,
    ShardId,
    WrittenShard,
)

RUN = RunId(uuid4())


class Worker:
    """A worker with claims and an open shard."""

    def __init__(self, database: Database, images: int) -> None:
        self.database = database
        self.model_key: ModelKey = make_model(database)
        self.token = LeaseToken(uuid4())
        self.shard_id = ShardId(uuid4())
        add_images(database, images)
        with database.transaction() as connection:
            while claim.seed_images(connection, self.model_key):
                pass
            claim.open_lease(
                connection, token=self.token, model_key=self.model_key, run_id=RUN, lease_s=60
            )
            self.images: list[ClaimedImage] = claim.claim_images(
                connection,
                token=self.token,
                model_key=self.model_key,
                rows=images,
                suspicion=Suspicion.NONE,
            )
            record.begin_shard(
                connection,
                shard_id=self.shard_id,
                model_key=self.model_key,
                uri="file:///nowhere.parquet",
                run_id=RUN,
            )

    def commit(self, rows: int) -> None:
        with self.database.transaction() as connection:
            record.commit_shard(
                connection,
                token=self.token,
                model_key=self.model_key,
                shard=self.written(rows),
                rows=self.rows(rows),
            )

    def written(self, rows: int) -> WrittenShard:
        return WrittenShard(
            shard_id=self.shard_id,
            uri="file:///nowhere.parquet",
            rows=rows,
            bytes=1,
            sha256="00",
        )

    def rows(self, rows: int) -> list[record.RecordedRow]:
        return [
            record.RecordedRow(
                image_id=image.image_id, row_in_shard=n, content_sha256=bytes([n % 256]) * 32
            )
            for n, image in enumerate(self.images[:rows])
        ]

    def fail(self, reason: FailureReason, *, retry_after_s: float | None = None) -> int:
        failure = FailedImage(
            image=self.images[0],
            reason=reason,
            detail="said the server",
            http_status=503,
            retry_after_s=retry_after_s,
        )
        with self.database.transaction() as connection:
            return record.record_failures(
                connection,
                token=self.token,
                model_key=self.model_key,
                failures=[failure],
                max_attempts=8,
                backoff_s=60,
            )

    def state(self) -> ShardState | None:
        with self.database.transaction() as connection:
            return record.shard_state(connection, self.shard_id)


def test_a_committed_shard_is_listed_with_its_rows(database: Database) -> None:
    worker = Worker(database, 3)
    assert worker.state() is ShardState.WRITING
    worker.commit(3)
    assert worker.state() is ShardState.COMMITTED
    assert statuses(database, worker.model_key) == {"done": 3}
    with database.transaction() as connection:
        (shard,) = record.list_shards(connection, model="tiny")
        assert (shard.shard_id, shard.rows) == (worker.shard_id, 3)
        assert record.list_shards(connection, model="other") == []
        rows = connection.execute(
            text("SELECT row_in_shard, content_sha256 FROM extractions ORDER BY image_id")
        ).all()
    assert [(row[0], bytes(row[1])) for row in rows] == [(n, bytes([n]) * 32) for n in range(3)]


def test_rows_that_are_not_this_leases_stop_the_commit(database: Database) -> None:
    worker = Worker(database, 3)
    with database.transaction() as connection:
        connection.execute(
            text(
                "UPDATE extractions SET status = 'pending', lease_token = NULL "
                "WHERE image_id = :image_id"
            ),
            {"image_id": worker.images[1].image_id},
        )
    with pytest.raises(InternalError, match="3 rows, but 2 claims and 0 removals"):
        worker.commit(3)
    assert worker.state() is ShardState.WRITING
    assert statuses(database, worker.model_key) == {"claimed": 2, "pending": 1}


def test_a_shard_is_committed_once(database: Database) -> None:
    worker = Worker(database, 1)
    worker.commit(1)
    with pytest.raises(InternalError):
        worker.commit(1)


def test_images_removed_meanwhile_are_counted(database: Database) -> None:
    worker = Worker(database, 3)
    with database.transaction() as connection:
        for table in ("extractions", "images"):
            connection.execute(
                text(f"DELETE FROM {table} WHERE image_id = :image_id"),
                {"image_id": worker.images[2].image_id},
            )
    worker.commit(3)
    with database.transaction() as connection:
        counted = connection.execute(text("SELECT rows, removed_rows FROM shards")).one()
    assert tuple(counted) == (3, 1)


def test_an_abandoned_shard_cannot_be_committed(database: Database) -> None:
    worker = Worker(database, 1)
    with database.transaction() as connection:
        record.abandon_shard(connection, worker.shard_id)
    with pytest.raises(InternalError):
        worker.commit(1)
    with database.transaction() as connection:
        assert record.list_shards(connection) == []


def test_a_discarded_shard_gives_its_images_back(database: Database) -> None:
    worker = Worker(database, 4)
    worker.commit(4)
    with database.transaction() as connection:
        assert record.discard_shard(connection, worker.shard_id) == 4
    with database.transaction() as connection:
        assert record.discard_shard(connection, worker.shard_id) == 0
    assert statuses(database, worker.model_key) == {"pending": 4}


def test_a_verdict_is_final(database: Database) -> None:
    worker = Worker(database, 1)
    assert worker.fail(FailureReason.NOT_FOUND) == 1
    with database.transaction() as connection:
        row = connection.execute(
            text("""
                SELECT status, attempts, failure_reason, failure_detail, http_status, lease_token
                FROM extractions
            """)
        ).one()
    assert tuple(row) == ("failed", 1, "not_found", "said the server", 503, None)


def test_a_server_error_waits_with_jitter_then_fails_for_good(database: Database) -> None:
    worker = Worker(database, 1)
    waits = []
    for attempt in range(8):
        assert worker.fail(FailureReason.SERVER_ERROR) == (attempt == 7)
        with database.transaction() as connection:
            row = connection.execute(
                text("""
                    SELECT status, attempts,
                           EXTRACT(epoch FROM next_attempt_at - clock_timestamp()) AS wait_s
                    FROM extractions
                """)
            ).one()
            assert row.attempts == attempt + 1
            waits.append(float(row.wait_s))
            connection.execute(
                text("UPDATE extractions SET status = 'claimed', lease_token = :token"),
                {"token": worker.token},
            )
    assert all(wait <= 60 for wait in waits), "the claim's own count of attempts sets the ceiling"
    assert len({round(wait, 2) for wait in waits}) > 1


def test_the_servers_wish_is_the_least_wait(database: Database) -> None:
    worker = Worker(database, 1)
    worker.fail(FailureReason.RATE_LIMITED, retry_after_s=3000)
    with database.transaction() as connection:
        assert claim.look_out(connection, worker.model_key).due_in_s == pytest.approx(3000, abs=5)


def test_failures_under_a_lost_claim_are_not_recorded(database: Database) -> None:
    worker = Worker(database, 1)
    with database.transaction() as connection:
        connection.execute(text("UPDATE extractions SET lease_token = :other"), {"other": uuid4()})
    assert worker.fail(FailureReason.NOT_FOUND) == 0
    assert statuses(database, worker.model_key) == {"claimed": 1}


def test_a_commit_reads_each_row_once_with_statistics_from_before_the_claims(
    database: Database,
) -> None:
    worker = Worker(database, 20_000)
    with database.transaction() as connection:
        plans = explain(
            connection,
            lambda: record.commit_shard(
                connection,
                token=worker.token,
                model_key=worker.model_key,
                shard=worker.written(10_000),
                rows=worker.rows(10_000),
            ),
        )
    update = next(plan for plan in plans if plan.touches("extractions"))
    assert "Nested Loop" not in update.node_types
    assert update.rows_read("extractions") <= 2 * 20_000
