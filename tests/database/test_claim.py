"""Claims: each image to one worker, whatever the others do meanwhile."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
from sqlalchemy import Connection, text

from tests.catalogue import add_images, make_model, statuses
from tests.plans import explain
from visual_search import claim, runs
from visual_search.claim import DEATHS_TO_FAIL, Place, Suspicion
from visual_search.database.connection import Database
from visual_search.database.schema import SEEDING_LOCK
from visual_search.errors import FencedError
from visual_search.images import ClaimedImage, LeaseToken, ModelKey, RunId
from visual_search.runs import RunFigures

RUN = RunId(uuid4())


def seeded(database: Database, images: int) -> ModelKey:
    model_key = make_model(database)
    add_images(database, images)
    with database.transaction() as connection:
        while claim.seed_images(connection, model_key):
            pass
    return model_key


def open_lease(connection: Connection, model_key: ModelKey, lease_s: float = 60) -> LeaseToken:
    token = LeaseToken(uuid4())
    claim.open_lease(connection, token=token, model_key=model_key, run_id=RUN, lease_s=lease_s)
    return token


def take(
    connection: Connection,
    model_key: ModelKey,
    token: LeaseToken,
    rows: int = 100,
    suspicion: Suspicion = Suspicion.NONE,
) -> list[ClaimedImage]:
    return claim.claim_images(
        connection, token=token, model_key=model_key, rows=rows, suspicion=suspicion
    )


@contextmanager
def second_worker(database_url: str) -> Iterator[Database]:
    database = Database(database_url, schema="vsearch", outage_s=0)
    yield database
    database.close()


def test_seeding_makes_each_image_pending_once(database: Database) -> None:
    model_key = seeded(database, 5)
    with database.transaction() as connection:
        assert claim.seed_images(connection, model_key) == 0
    add_images(database, 3, start=5)
    with database.transaction() as connection:
        assert claim.seed_images(connection, model_key) == 3
    assert statuses(database, model_key) == {"pending": 8}


def test_the_first_chunk_of_a_new_model_is_small(database: Database) -> None:
    model_key = make_model(database)
    add_images(database, 25_000)
    with database.transaction() as connection:
        assert claim.seed_images(connection, model_key) == 10_000
        assert claim.seed_images(connection, model_key) == 15_000


def test_seeding_waits_for_an_import_that_holds_lower_ids(
    database: Database, database_url: str
) -> None:
    model_key = make_model(database)
    seeded_rows: list[int] = []

    def seed() -> None:
        with second_worker(database_url) as other, other.transaction() as connection:
            seeded_rows.append(claim.seed_images(connection, model_key))

    add_images(database, 1)
    with database.transaction() as importer:
        importer.execute(text("SELECT pg_advisory_xact_lock_shared(:lock)"), {"lock": SEEDING_LOCK})
        importer.execute(
            text("""
                INSERT INTO images (image_key, key_hash, url, host)
                VALUES ('slow', substring(sha256('slow') FOR 16), 'http://h.test/slow', 'h.test')
            """)
        )
        add_images_elsewhere(database_url)
        seeder = threading.Thread(target=seed)
        seeder.start()
        seeder.join(0.3)
        assert seeder.is_alive(), "it must wait for the open import"
    seeder.join(10)
    assert seeded_rows == [3]


def add_images_elsewhere(database_url: str) -> None:
    with second_worker(database_url) as other:
        add_images(other, 1, start=50)


def test_two_open_claims_share_no_image(database: Database, database_url: str) -> None:
    model_key = seeded(database, 100)
    with second_worker(database_url) as other, database.transaction() as first:
        mine = take(first, model_key, open_lease(first, model_key), rows=60)
        with other.transaction() as second:
            theirs = take(second, model_key, open_lease(second, model_key), rows=60)
    assert len(mine) == 60
    assert len(theirs) == 40
    assert not {image.image_id for image in mine} & {image.image_id for image in theirs}


def test_a_worker_goes_on_behind_its_last_claim_and_at_the_end_begins_anew(
    database: Database,
) -> None:
    model_key = seeded(database, 6)
    place = Place()

    def take_behind(rows: int) -> tuple[LeaseToken, list[int]]:
        with database.transaction() as connection:
            token = open_lease(connection, model_key)
            images = claim.claim_images(
                connection,
                token=token,
                model_key=model_key,
                rows=rows,
                suspicion=Suspicion.NONE,
                place=place,
            )
        return token, [image.image_id for image in images]

    token, images = take_behind(2)
    assert images == [1, 2]
    with database.transaction() as connection:
        claim.close_lease(connection, token)
    assert take_behind(2)[1] == [3, 4]
    assert take_behind(4)[1] == [1, 2, 5, 6]
    assert take_behind(1)[1] == []


def test_an_image_is_not_claimed_before_it_is_due(database: Database) -> None:
    model_key = seeded(database, 2)
    with database.transaction() as connection:
        connection.execute(
            text("UPDATE extractions SET next_attempt_at = now() + interval '1 h' WHERE image_id=1")
        )
        claimed = take(connection, model_key, open_lease(connection, model_key))
        ahead = claim.look_out(connection, model_key)
        assert claim.count_pending(connection, model_key) == 1
    assert [image.image_id for image in claimed] == [2]
    assert ahead.due_in_s == pytest.approx(3600, abs=10)
    assert ahead.next_in_s == pytest.approx(60, abs=10)  # this worker's own lease


def test_a_live_lease_is_left_alone_and_an_expired_one_is_rescued(database: Database) -> None:
    model_key = seeded(database, 10)
    with database.transaction() as connection:
        dead = open_lease(connection, model_key, lease_s=0)
        alive = open_lease(connection, model_key)
        take(connection, model_key, dead, rows=4)
        take(connection, model_key, alive, rows=3)
    with database.transaction() as connection:
        assert claim.rescue_images(connection, model_key) == 4
    assert statuses(database, model_key) == {"pending": 7, "claimed": 3}
    with database.transaction() as connection:
        assert claim.rescue_images(connection, model_key) == 0
        with pytest.raises(FencedError):
            take(connection, model_key, dead)


def test_what_a_run_held_that_is_known_to_be_dead_is_rescued_before_its_leases_end(
    database: Database,
) -> None:
    model_key = seeded(database, 10)
    with database.transaction() as connection:
        for rows in (4, 3):
            take(connection, model_key, open_lease(connection, model_key), rows=rows)
    with database.transaction() as connection:
        assert claim.rescue_run(connection, RunId(uuid4())) == 0
        assert claim.rescue_run(connection, RUN) == 7
        assert claim.rescue_run(connection, RUN) == 0
    assert statuses(database, model_key) == {"pending": 10}
    with database.transaction() as connection:
        crashed = connection.execute(text("SELECT sum(crashes) FROM extractions")).scalar_one()
        assert crashed == 7, "one of them may have killed it"


def test_a_dead_run_is_finished_with_what_it_had_recorded(database: Database) -> None:
    model_key, run_id = seeded(database, 1), RunId(uuid4())
    said_last = RunFigures(claimed=5, done=0, failed=1)
    with database.transaction() as connection:
        assert runs.finish_dead_run(connection, run_id, said_last, message="killed") is None
        runs.start_run(connection, run_id=run_id, model_key=model_key)
        for state, rows in (("committed", 20), ("committed", 4), ("writing", None)):
            connection.execute(
                text("""
                    INSERT INTO shards
                        (shard_id, model_key, uri, rows, bytes, sha256, run_id, state)
                    VALUES
                        (gen_random_uuid(), :model_key, 'file:///x', :rows, 1, '', :run_id, :state)
                """),
                {"model_key": model_key, "rows": rows, "run_id": run_id, "state": state},
            )
        figures = runs.finish_dead_run(connection, run_id, said_last, message="killed")
        (run,) = runs.list_runs(connection)
    assert figures == RunFigures(claimed=25, done=24, failed=1, shards=2)
    assert (run.outcome, run.message, run.done, run.failed) == ("failed", "killed", 24, 1)
    assert run.finished_at is not None


def test_a_renewed_lease_is_not_rescued(database: Database) -> None:
    model_key = seeded(database, 1)
    with database.transaction() as connection:
        token = open_lease(connection, model_key, lease_s=0)
        take(connection, model_key, token)
    with database.transaction() as connection:
        renewed = claim.renew_leases(connection, run_id=RUN, tokens=[token], lease_s=60)
        assert renewed == {token}
    with database.transaction() as connection:
        assert claim.rescue_images(connection, model_key) == 0


def test_another_run_cannot_renew_a_lease(database: Database) -> None:
    model_key = seeded(database, 1)
    with database.transaction() as connection:
        token = open_lease(connection, model_key)
        stranger = RunId(uuid4())
        assert not claim.renew_leases(connection, run_id=stranger, tokens=[token], lease_s=60)


def test_rescue_does_not_wait_for_a_commit_that_holds_the_lease(
    database: Database, database_url: str
) -> None:
    model_key = seeded(database, 1)
    with database.transaction() as connection:
        token = open_lease(connection, model_key, lease_s=0)
        take(connection, model_key, token)
    with second_worker(database_url) as other, database.transaction() as committing:
        claim.lock_lease(committing, token)
        with other.transaction() as rescuing:
            assert claim.rescue_images(rescuing, model_key) == 0


def die_with(database: Database, model_key: ModelKey, suspicion: Suspicion) -> list[int]:
    """A worker claims and dies; its lease is over at once."""
    with database.transaction() as connection:
        token = open_lease(connection, model_key, lease_s=0)
        claimed = take(connection, model_key, token, suspicion=suspicion)
    with database.transaction() as connection:
        claim.rescue_images(connection, model_key)
    return [image.image_id for image in claimed]


def test_a_worker_killer_is_isolated_and_failed_after_four_deaths(database: Database) -> None:
    model_key = seeded(database, 40)
    assert len(die_with(database, model_key, Suspicion.NONE)) == 40
    assert die_with(database, model_key, Suspicion.NONE) == []
    assert len(die_with(database, model_key, Suspicion.SOME)) == 32
    alone = die_with(database, model_key, Suspicion.GRAVE)
    assert len(alone) == 1
    with database.transaction() as connection:
        connection.execute(
            text(
                "UPDATE extractions SET next_attempt_at = now() + interval '1 h' "
                "WHERE NOT image_id = ANY(:alone)"
            ),
            {"alone": alone},
        )
    assert die_with(database, model_key, Suspicion.GRAVE) == alone
    with database.transaction() as connection:
        failed = connection.execute(
            text(
                "SELECT image_id, crashes, failure_reason, attempts FROM extractions "
                "WHERE status = 'failed'"
            )
        ).all()
    assert failed == [(alone[0], DEATHS_TO_FAIL, "kills_worker", 0)]


def test_images_given_back_are_charged_nothing(database: Database) -> None:
    model_key = seeded(database, 5)
    with database.transaction() as connection:
        token = open_lease(connection, model_key)
        take(connection, model_key, token)
        assert claim.close_lease(connection, token) == 5
        rows = connection.execute(
            text("SELECT DISTINCT status, attempts, crashes FROM extractions")
        )
        assert rows.all() == [("pending", 0, 0)]
        assert connection.execute(text("SELECT count(*) FROM leases")).scalar() == 0


def test_a_claim_reads_few_rows_of_a_large_table(database: Database) -> None:
    model_key = seeded(database, 50_000)
    with database.transaction() as connection:
        connection.execute(
            text("""
                UPDATE extractions SET status = 'failed', failure_reason = 'gone'
                WHERE image_id <= 49000
            """)
        )
        token = open_lease(connection, model_key)
        plans = explain(connection, lambda: take(connection, model_key, token, rows=256))
    claiming = next(plan for plan in plans if plan.touches("extractions"))
    assert "Seq Scan" not in claiming.node_types
    assert claiming.rows_read("extractions") <= 2 * 256, "picked, then updated"
