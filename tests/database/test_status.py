"""Status: numbers that always add up, from one statement."""

from contextlib import nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast
from uuid import uuid4

from sqlalchemy import text

from tests.catalogue import add_images, make_model
from tests.plans import explain
from visual_search import claim, failures, runs, status
from visual_search.claim import Suspicion
from visual_search.database.connection import Database
from visual_search.database.schema import RunOutcome
from visual_search.failures import list_failures
from visual_search.images import LeaseToken, ModelKey, RunId
from visual_search.runs import RunFigures


def prepared(database: Database) -> ModelKey:
    """12 images: 3 not told yet, 2 failed, 1 claimed, 2 waiting, 1 due, 3 done."""
    model_key = make_model(database)
    add_images(database, 9)
    with database.transaction() as connection:
        claim.seed_images(connection, model_key)
        shard_id = uuid4()
        connection.execute(
            text("""
                UPDATE extractions SET status = 'failed', failure_reason = 'not_found',
                    finished_at = now() WHERE image_id IN (1, 2);
                INSERT INTO leases (lease_token, model_key, run_id, expires_at)
                VALUES (gen_random_uuid(), :model_key, gen_random_uuid(), now());
                UPDATE extractions SET status = 'claimed',
                    lease_token = (SELECT lease_token FROM leases)
                    WHERE image_id = 3;
                UPDATE extractions SET next_attempt_at = now() + interval '1 h',
                    failure_reason = 'timeout', attempts = 1 WHERE image_id IN (4, 5);
                UPDATE extractions SET status = 'done', shard_id = :shard_id
                    WHERE image_id IN (7, 8, 9);
                INSERT INTO shards (shard_id, model_key, uri, rows, removed_rows, bytes, sha256,
                                    run_id, state)
                VALUES (:shard_id, :model_key, 'file:///x', 4, 1, 1, '', gen_random_uuid(),
                        'committed'),
                       (gen_random_uuid(), :model_key, 'file:///y', 9, 0, 1, '',
                        gen_random_uuid(), 'discarded');
            """),
            {"shard_id": shard_id, "model_key": model_key},
        )
    add_images(database, 3, start=9)
    return model_key


def test_the_numbers_add_up(database: Database) -> None:
    prepared(database)
    (found,) = status.model_statuses(database)
    assert (found.total, found.done, found.claimed, found.failed) == (12, 3, 1, 2)
    assert (found.pending, found.waiting) == (6, 2)
    assert found.total == found.done + found.pending + found.claimed + found.failed
    assert found.failed_by_reason == {"not_found": 2}
    assert found.waiting_by_reason == {"timeout": 2}
    assert (found.workers, found.images_per_second, found.eta_seconds) == (0, None, None)


def test_no_image_is_looked_at(database: Database) -> None:
    model_key = prepared(database)
    with database.transaction() as connection:
        connection.execute(text("ALTER TABLE images RENAME TO elsewhere"))
    (found,) = status.model_statuses(database)
    assert (found.total, found.pending) == (12, 6)
    with database.transaction() as connection:
        assert status.count_claimable(connection, model_key) == 6 - 2


def test_a_living_run_gives_rate_and_eta(database: Database) -> None:
    model_key = prepared(database)
    run_id = RunId(uuid4())
    with database.transaction() as connection:
        runs.start_run(connection, run_id=run_id, model_key=model_key)
        runs.beat_run(connection, run_id, RunFigures(claimed=5, done=4, images_per_second=2.0))
    (found,) = status.model_statuses(database)
    assert (found.workers, found.images_per_second) == (1, 2.0)
    assert found.eta_seconds == (6 - 2 + 1) / 2.0
    with database.transaction() as connection:
        connection.execute(text("UPDATE runs SET heartbeat_at = now() - interval '1 day'"))
    (found,) = status.model_statuses(database)
    assert found.workers == 0
    with database.transaction() as connection:
        runs.finish_run(
            connection, run_id, RunFigures(), outcome=RunOutcome.FAILED, message="disk full"
        )
        (run,) = runs.find_runs(connection, str(run_id)[:6].upper())
    assert (run.outcome, run.message) == ("failed", "disk full")


def test_only_active_models_are_shown(database: Database) -> None:
    prepared(database)
    with database.transaction() as connection:
        connection.execute(text("UPDATE models SET active = false"))
    assert status.model_statuses(database) == []


def test_claimable_counts_what_is_due_and_what_is_not_told_yet(database: Database) -> None:
    model_key = prepared(database)
    with database.transaction() as connection:
        assert status.count_claimable(connection, model_key) == 1 + 3


def test_the_table_tells_failed_from_waiting(database: Database) -> None:
    prepared(database)
    shown = status.as_table(status.model_statuses(database), datetime.now(UTC))
    assert "failed for good: 2 not_found" in shown
    assert "waiting for the next attempt: 2 timeout" in shown


def test_durations_read_well() -> None:
    assert [status.duration(s) for s in (0.4, 59, 61, 3720, 100_000)] == [
        "0 s", "59 s", "1 min 1 s", "1 h 2 min", "1 d 3 h",
    ]  # fmt: skip


def test_the_ledger_shows_final_and_waiting_failures_redacted(database: Database) -> None:
    prepared(database)
    with database.transaction() as connection:
        connection.execute(
            text("""
                UPDATE images SET url = 'https://u:secret@h.test/a.jpg?token=secret',
                    image_key = 'https://u:secret@h.test/a.jpg?token=secret' WHERE image_id = 1
            """)
        )
    with database.transaction() as connection:
        failures = list_failures(connection)
        assert [failure.image_id for failure in failures] == [1, 2, 4, 5]
        assert list_failures(connection, reason="timeout")[0].next_attempt_at is not None
        assert list_failures(connection, model="other") == []
        assert len(list_failures(connection, limit=1)) == 1
    assert failures[0].next_attempt_at is None
    assert failures[0].finished_at is not None
    assert "secret" not in str(failures)


def test_it_reads_only_what_it_counts(database: Database) -> None:
    """Also in a model's first hours, when the planner knows nothing and claims have come and gone.

    Their entries stay in the index until it is swept; with those of the whole table beside them a
    planner without statistics once intersected the two.
    """
    model_key, run_id, token = make_model(database), RunId(uuid4()), LeaseToken(uuid4())
    add_images(database, 50_000)
    for key in (model_key, make_model(database, "other")):
        with database.transaction() as connection:
            while claim.seed_images(connection, key):
                pass
    for rows in (20_000, 100):
        with database.transaction() as connection:
            claim.open_lease(
                connection, token=token, model_key=model_key, run_id=run_id, lease_s=60
            )
            claim.claim_images(
                connection, token=token, model_key=model_key, rows=rows, suspicion=Suspicion.NONE
            )
        if rows > 100:
            with database.transaction() as connection:
                claim.close_lease(connection, token)
    with database.transaction() as connection:
        place = SimpleNamespace(transaction=lambda: nullcontext(connection))
        for count in (
            lambda: status.model_statuses(cast("Database", place)),
            lambda: status.count_claimable(connection, model_key),
        ):
            plans = explain(connection, count)
            read = sum(plan.rows_read("extr") + plan.entries_read("extr") for plan in plans)
            assert 100 <= read <= 2 * 100


def test_failures_are_retried_by_reason(database: Database) -> None:
    model_key = prepared(database)
    from visual_search.errors import FailureReason

    with database.transaction() as connection:
        retry = failures.retry_failed
        assert retry(connection, model_key=model_key, reasons=[FailureReason.GONE]) == 0
        assert retry(connection, model_key=model_key, reasons=[FailureReason.NOT_FOUND]) == 2
        assert retry(connection, model_key=model_key) == 2
    (found,) = status.model_statuses(database)
    assert (found.failed, found.waiting, found.pending) == (0, 0, 8)
