"""Pauses that workers share."""

from uuid import uuid4

import pytest
from sqlalchemy import text

from tests.catalogue import add_images, make_model, statuses
from visual_search import claim
from visual_search.claim import Suspicion
from visual_search.database.connection import Database
from visual_search.hosts import share_pauses
from visual_search.images import LeaseToken, RunId


def test_a_pause_that_one_worker_was_asked_for_is_known_to_all(database: Database) -> None:
    with database.transaction() as connection:
        share_pauses(connection, {"shop.test": 60, "cdn.test:8080": 10})
    with database.transaction() as connection:
        paused = share_pauses(connection, {})
    assert paused == {
        "shop.test": pytest.approx(60, abs=5),
        "cdn.test:8080": pytest.approx(10, abs=5),
    }


def test_a_shorter_pause_does_not_end_a_longer_one(database: Database) -> None:
    with database.transaction() as connection:
        share_pauses(connection, {"shop.test": 600})
        paused = share_pauses(connection, {"shop.test": 1})
    assert paused["shop.test"] > 500


def test_a_pause_ends_by_itself(database: Database) -> None:
    with database.transaction() as connection:
        assert share_pauses(connection, {"shop.test": 0}) == {}
        share_pauses(connection, {"shop.test": 30})
        assert set(share_pauses(connection, {})) == {"shop.test"}


def test_claims_leave_a_paused_host_alone_and_charge_nobody(database: Database) -> None:
    model_key = make_model(database)
    add_images(database, 5)
    with database.transaction() as connection:
        connection.execute(text("UPDATE images SET host = 'busy.test' WHERE image_id IN (1, 3)"))
        share_pauses(connection, {"busy.test": 60})
        claim.seed_images(connection, model_key)
    token = LeaseToken(uuid4())
    with database.transaction() as connection:
        claim.open_lease(
            connection, token=token, model_key=model_key, run_id=RunId(uuid4()), lease_s=60
        )
        due = claim.claim_images(
            connection, token=token, model_key=model_key, rows=10, suspicion=Suspicion.NONE
        )
        kept = claim.release_paused(connection, token=token, images=due)
    assert [image.image_id for image in kept] == [2, 4, 5]
    assert statuses(database, model_key) == {"claimed": 3, "pending": 2}
    with database.transaction() as connection:
        waiting = connection.execute(
            text("""
                SELECT DISTINCT attempts, crashes, failure_reason, lease_token,
                       next_attempt_at > clock_timestamp() + interval '50 s'
                FROM extractions WHERE status = 'pending'
            """)
        ).all()
        assert waiting == [(0, 0, None, None, True)]
        assert claim.count_pending(connection, model_key) == 2
        outlook = claim.look_out(connection, model_key)
    assert outlook.due_in_s == pytest.approx(60, abs=10)
