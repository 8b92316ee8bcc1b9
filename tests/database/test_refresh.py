"""Checks of vectors: each claimed by one worker, counted all the while, replaced in one step."""

from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from sqlalchemy import Connection, text

from tests.catalogue import add_images, make_model, statuses
from tests.database.test_catalog_import import blocked
from tests.database.test_catalog_removal import remove, the_status, urls_of
from tests.database.test_claim import RUN, second_worker
from tests.database.test_record import Worker
from visual_search import claim, record, refresh
from visual_search.claim import DEATHS_TO_FAIL, Suspicion
from visual_search.database.connection import Database
from visual_search.errors import FailureReason, FencedError, InternalError
from visual_search.failures import list_failures
from visual_search.images import (
    ClaimedImage,
    FailedImage,
    LeaseToken,
    ModelKey,
    PostponedImage,
    RunId,
    ShardId,
    UnchangedImage,
    Validators,
    Version,
    WrittenShard,
)
from visual_search.pipeline.checking import Checking
from visual_search.pipeline.ledger import WithoutVector
from visual_search.refresh import Refresh, Sweep

SEEN = Validators(
    url_hash=b"8 bytes.", etag='"v1"', last_modified=datetime(2024, 2, 29, 12, 30, 1, tzinfo=UTC)
)


def embedded(database: Database, images: int) -> Worker:
    """A model with a vector for each image, in one shard."""
    worker = Worker(database, images)
    worker.commit(images)
    with database.transaction() as connection:
        claim.close_lease(connection, worker.token)
    return worker


def begin(database: Database, model_key: ModelKey, older_than_s: float | None = None) -> Refresh:
    with database.transaction() as connection:
        begun = refresh.begin_refresh(connection, model_key, older_than_s=older_than_s)
    assert begun is not None
    return begun


def finish(database: Database, model_key: ModelKey, begun: Refresh) -> bool:
    with database.transaction() as connection:
        return refresh.finish_refresh(connection, model_key, begun)


def open_lease(connection: Connection, model_key: ModelKey, lease_s: float = 60) -> LeaseToken:
    token = LeaseToken(uuid4())
    claim.open_lease(
        connection, token=token, model_key=model_key, run_id=RUN, lease_s=lease_s, checking=True
    )
    return token


def take(
    connection: Connection,
    model_key: ModelKey,
    token: LeaseToken,
    begun: Refresh,
    *,
    rows: int = 100,
    suspicion: Suspicion = Suspicion.NONE,
    sweep: Sweep | None = None,
) -> list[ClaimedImage]:
    return refresh.claim_outdated(
        connection,
        token=token,
        model_key=model_key,
        rows=rows,
        suspicion=suspicion,
        refresh=begun,
        sweep=sweep or Sweep(),
    )


def claim_all(
    checking: Checking,
    connection: Connection,
    token: LeaseToken,
    suspicion: Suspicion = Suspicion.NONE,
) -> list[ClaimedImage]:
    """As a feeder does: until there are none, and no more are to be expected."""
    images: list[ClaimedImage] = []
    while True:
        found, more = checking.claim(connection, token=token, rows=100, suspicion=suspicion)
        if not found and not more:
            return images
        images += found


def note_unchanged(
    connection: Connection,
    model_key: ModelKey,
    token: LeaseToken,
    images: Sequence[ClaimedImage],
    validators: Validators | None = SEEN,
) -> None:
    refresh.record_unchanged(
        connection,
        token=token,
        model_key=model_key,
        unchanged=[
            UnchangedImage(
                image=image, version=Version(content_sha256=bytes(32), validators=validators)
            )
            for image in images
        ],
    )


class Replacing:
    """A refresh that has claimed some images and written a shard for the first of them."""

    def __init__(self, database: Database, model_key: ModelKey, *, rows: int, claims: int) -> None:
        self.database = database
        self.model_key = model_key
        self.shard_id = ShardId(uuid4())
        self.begun = begin(database, model_key)
        with database.transaction() as connection:
            self.token = open_lease(connection, model_key)
            self.images = take(connection, model_key, self.token, self.begun, rows=claims)
            record.begin_shard(
                connection,
                shard_id=self.shard_id,
                model_key=model_key,
                uri="file:///new.parquet",
                run_id=RUN,
            )
        self.rows = [
            record.RecordedRow(
                image_id=image.image_id,
                row_in_shard=n,
                content_sha256=b"n" * 32,
                validators=SEEN,
            )
            for n, image in enumerate(self.images[:rows])
        ]

    def lock(self, connection: Connection) -> None:
        """The first half of a commit, in the order of the recorder."""
        record.shard_state(connection, self.shard_id)
        refresh.lock_replaced(
            connection, token=self.token, model_key=self.model_key, rows=self.rows
        )
        claim.lock_lease(connection, self.token)

    def replace(self, connection: Connection) -> None:
        refresh.replace_vectors(
            connection,
            token=self.token,
            model_key=self.model_key,
            shard=WrittenShard(
                shard_id=self.shard_id,
                uri="file:///new.parquet",
                rows=len(self.rows),
                bytes=1,
                sha256="01",
            ),
            rows=self.rows,
        )
        claim.close_lease(connection, self.token)

    def commit(self) -> None:
        with self.database.transaction() as connection:
            self.lock(connection)
            self.replace(connection)


def shards(database: Database) -> list[tuple[int, int]]:
    """Rows and removed rows of the committed ones, oldest first."""
    with database.transaction() as connection:
        return [(shard.rows, shard.removed_rows) for shard in record.list_shards(connection)]


def assert_counted(database: Database) -> None:
    """What each shard is said to hold is what the history has of it."""
    with database.transaction() as connection:
        wrong = connection.execute(
            text("""
                SELECT s.shard_id FROM shards s
                WHERE s.state = 'committed' AND s.rows - s.removed_rows <>
                    (SELECT count(*) FROM extractions e
                     WHERE e.shard_id = s.shard_id AND e.status = 'done')
            """)
        ).all()
    assert not wrong
    the_status(database)


# Claims


def test_a_checked_vector_counts_all_the_while(database: Database) -> None:
    worker = embedded(database, 3)
    begun = begin(database, worker.model_key)
    with database.transaction() as connection:
        token = open_lease(connection, worker.model_key)
        images = take(connection, worker.model_key, token, begun)
    assert [image.version for image in images] == [
        Version(content_sha256=bytes([n]) * 32, validators=None) for n in range(3)
    ]
    assert statuses(database, worker.model_key) == {"done": 3}
    status = the_status(database)
    assert (status.done, status.claimed, status.pending) == (3, 0, 0)


def test_what_a_server_said_comes_with_the_next_claim(database: Database) -> None:
    worker = embedded(database, 2)
    begun = begin(database, worker.model_key)
    with database.transaction() as connection:
        token = open_lease(connection, worker.model_key)
        images = take(connection, worker.model_key, token, begun)
        note_unchanged(connection, worker.model_key, token, images)
    begun = begin(database, worker.model_key)
    with database.transaction() as connection:
        images = take(connection, worker.model_key, token, begun)
        assert [image.version and image.version.validators for image in images] == [SEEN, SEEN]
        note_unchanged(connection, worker.model_key, token, images, None)
    begun = begin(database, worker.model_key)
    with database.transaction() as connection:
        images = take(connection, worker.model_key, token, begun)
    assert [image.version and image.version.validators for image in images] == [None, None]


def test_two_workers_at_once_get_different_vectors(database: Database, database_url: str) -> None:
    worker = embedded(database, 10)
    begun = begin(database, worker.model_key)
    with second_worker(database_url) as other, database.transaction() as connection:
        token = open_lease(connection, worker.model_key)
        mine = take(connection, worker.model_key, token, begun, rows=6)
        with other.transaction() as second:
            theirs = take(
                second, worker.model_key, open_lease(second, worker.model_key), begun, rows=6
            )
    assert len({image.image_id for image in mine + theirs}) == 10


def test_a_claim_needs_its_lease(database: Database) -> None:
    worker = embedded(database, 1)
    begun = begin(database, worker.model_key)
    with database.transaction() as connection, pytest.raises(FencedError):
        take(connection, worker.model_key, LeaseToken(uuid4()), begun)


def test_nobody_else_claims_what_is_being_checked(database: Database) -> None:
    worker = embedded(database, 4)
    begun = begin(database, worker.model_key)
    with database.transaction() as connection:
        token = open_lease(connection, worker.model_key)
        assert len(take(connection, worker.model_key, token, begun)) == 4
        assert take(connection, worker.model_key, token, begun) == []
        along = refresh.claim_outdated_along(
            connection,
            token=token,
            model_key=worker.model_key,
            images=worker.images,
            suspicion=Suspicion.NONE,
            refresh=begun,
        )
    assert along == []


def test_a_sweep_goes_on_part_by_part_until_one_finds_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visual_search.refresh.outdated._WINDOW_ROWS", 3)
    worker = embedded(database, 10)
    begun = begin(database, worker.model_key)
    sweep = Sweep()
    found = []
    with database.transaction() as connection:
        token = open_lease(connection, worker.model_key)
        while not sweep.ended:
            found.append(len(take(connection, worker.model_key, token, begun, rows=2, sweep=sweep)))
    assert sum(found) == 10
    assert max(found) == 2
    assert found[-4:] == [0, 0, 0, 0], "ten rows, three at a time"


def test_what_was_given_back_behind_a_sweep_is_found_by_the_next(database: Database) -> None:
    worker = embedded(database, 6)
    begun = begin(database, worker.model_key)
    sweep = Sweep()
    with database.transaction() as connection:
        other = open_lease(connection, worker.model_key)
        take(connection, worker.model_key, other, begun, rows=2)
        token = open_lease(connection, worker.model_key)
        assert len(take(connection, worker.model_key, token, begun, sweep=sweep)) == 4
        assert claim.close_lease(connection, other) == 2
        again: list[ClaimedImage] = []
        while not sweep.ended:
            again += take(connection, worker.model_key, token, begun, sweep=sweep)
    assert [image.image_id for image in again] == [1, 2]


def test_images_of_dead_workers_stay_done_and_are_checked_with_care(database: Database) -> None:
    worker = embedded(database, 50)
    held = []
    for deaths in range(DEATHS_TO_FAIL):
        begun = begin(database, worker.model_key)
        suspicion = next(s for s in Suspicion if s.value[0] <= deaths <= s.value[1])
        with database.transaction() as connection:
            token = open_lease(connection, worker.model_key, lease_s=0)
            images = take(connection, worker.model_key, token, begun, suspicion=suspicion)
        held.append(len(images))
        with database.transaction() as connection:
            assert claim.rescue_images(connection, worker.model_key) == len(images)
    assert held == [50, 32, 1, 1]
    assert statuses(database, worker.model_key) == {"done": 50}
    with database.transaction() as connection:
        left = refresh.count_outdated(connection, worker.model_key, begun)
        (listed,) = list_failures(connection, unchecked=True)
    assert left == 49, "the one that was there each time is not checked any more"
    assert (listed.image_id, listed.reason) == (1, "kills_worker")


def test_a_worker_looks_again_once_what_waits_for_its_host_is_due(database: Database) -> None:
    worker = embedded(database, 3)
    checking = Checking(worker.model_key, begin(database, worker.model_key))
    with database.transaction() as connection:
        token = open_lease(connection, worker.model_key)
        images = claim_all(checking, connection, token)
        assert len(images) == 3
        waiting = [PostponedImage(image=images[0], wait_s=0.2)]
        checking.record(connection, token=token, outcomes=WithoutVector(postponed=waiting))
        assert claim_all(checking, connection, token) == []
        outlook = checking.look_out(connection)
        assert outlook.due_in_s is not None
        assert 0 < outlook.due_in_s <= 0.2
        assert checking.count_waiting(connection) == 3, "two are held, by this very lease"
    due_in_s: float | None = 1.0
    while due_in_s is not None and due_in_s > 0:
        with database.transaction() as connection:
            due_in_s = checking.look_out(connection).due_in_s
    with database.transaction() as connection:
        again = claim_all(checking, connection, token)
    assert [image.image_id for image in again] == [images[0].image_id]


def test_a_worker_that_rescues_checks_what_it_has_been_past(database: Database) -> None:
    worker = embedded(database, 3)
    checking = Checking(worker.model_key, begin(database, worker.model_key))
    with database.transaction() as connection:
        dead = open_lease(connection, worker.model_key, lease_s=0)
        take(connection, worker.model_key, dead, begin(database, worker.model_key), rows=1)
    with database.transaction() as connection:
        token = open_lease(connection, worker.model_key)
        assert len(claim_all(checking, connection, token)) == 2
        assert claim_all(checking, connection, token, Suspicion.SOME) == []
        assert checking.rescue(connection, lease_s=0, own_run=RunId(uuid4())) == 1
        rescued = claim_all(checking, connection, token, Suspicion.SOME)
    assert [(image.image_id, image.crashes) for image in rescued] == [(1, 1)]


def test_a_sweep_notes_where_suspects_begin(database: Database) -> None:
    worker = embedded(database, 6)
    begun = begin(database, worker.model_key)
    with database.transaction() as connection:
        connection.execute(text("UPDATE extractions SET crashes = 1 WHERE image_id IN (4, 6)"))
        token = open_lease(connection, worker.model_key)
        sweep = Sweep()
        taken = take(connection, worker.model_key, token, begun, sweep=sweep)
        assert [image.image_id for image in taken] == [1, 2, 3, 5]
        assert sweep.suspect == 3


def test_who_embeds_does_not_wait_for_who_checks(database: Database) -> None:
    worker = embedded(database, 1)
    with database.transaction() as connection:
        open_lease(connection, worker.model_key)
        assert claim.look_out(connection, worker.model_key).next_in_s is None
        assert refresh.next_lease_end(connection, worker.model_key) == pytest.approx(60, abs=5)


# Passes


def test_a_pass_is_kept_until_it_is_complete(database: Database) -> None:
    worker = embedded(database, 3)
    begun = begin(database, worker.model_key)
    assert begin(database, worker.model_key) == begun
    with database.transaction() as connection:
        token = open_lease(connection, worker.model_key)
        images = take(connection, worker.model_key, token, begun)
        note_unchanged(connection, worker.model_key, token, images[:2])
    assert begin(database, worker.model_key) == begun
    assert not finish(database, worker.model_key, begun)
    with database.transaction() as connection:
        note_unchanged(connection, worker.model_key, token, images[2:])
    assert finish(database, worker.model_key, begun)
    later = begin(database, worker.model_key)
    assert later.since > begun.since
    assert finish(database, worker.model_key, begun), "again, which ends no other pass"
    assert begin(database, worker.model_key) == later


def test_a_pass_of_which_nothing_is_left_is_followed_by_a_new_one(database: Database) -> None:
    """Its worker was killed between the last check and the end."""
    worker = embedded(database, 1)
    begun = begin(database, worker.model_key)
    with database.transaction() as connection:
        token = open_lease(connection, worker.model_key)
        images = take(connection, worker.model_key, token, begun)
        note_unchanged(connection, worker.model_key, token, images)
    assert begin(database, worker.model_key).since > begun.since


def test_workers_that_begin_at_once_share_a_pass(database: Database, database_url: str) -> None:
    worker = embedded(database, 1)
    with second_worker(database_url) as other:
        with database.transaction() as connection:
            mine = refresh.begin_refresh(connection, worker.model_key, older_than_s=None)
            theirs = blocked(database_url, lambda: begin(other, worker.model_key))
        assert theirs.result() == mine


def test_without_vectors_there_is_nothing_to_check(database: Database) -> None:
    model_key = make_model(database)
    add_images(database, 2)
    with database.transaction() as connection:
        claim.seed_images(connection, model_key)
        for older_than_s in (None, 0.0):
            assert refresh.begin_refresh(connection, model_key, older_than_s=older_than_s) is None


def test_only_what_is_old_enough_is_claimed_and_counted(database: Database) -> None:
    worker = embedded(database, 5)
    with database.transaction() as connection:
        connection.execute(
            text("UPDATE extractions SET finished_at = now() - interval '2 d' WHERE image_id < 4")
        )
        connection.execute(text("UPDATE extractions SET checked_at = now() WHERE image_id = 1"))
    begun = begin(database, worker.model_key, 86_400)
    with database.transaction() as connection:
        assert refresh.count_outdated(connection, worker.model_key, begun) == 2
        token = open_lease(connection, worker.model_key)
        images = take(connection, worker.model_key, token, begun)
    assert [image.image_id for image in images] == [2, 3]


# Outcomes


def test_a_failed_check_is_tried_again_by_the_next_pass(database: Database) -> None:
    worker = embedded(database, 2)
    begun = begin(database, worker.model_key)
    with database.transaction() as connection:
        token = open_lease(connection, worker.model_key)
        first, second = take(connection, worker.model_key, token, begun)
        refresh.record_unchecked(
            connection,
            token=token,
            model_key=worker.model_key,
            failures=[
                FailedImage(
                    image=first, reason=FailureReason.GONE, detail="it said", http_status=410
                )
            ],
        )
        note_unchanged(connection, worker.model_key, token, [second])
        assert take(connection, worker.model_key, token, begun) == []
    assert statuses(database, worker.model_key) == {"done": 2}
    assert finish(database, worker.model_key, begun)
    begun = begin(database, worker.model_key)
    with database.transaction() as connection:
        assert len(take(connection, worker.model_key, token, begun)) == 2


def test_a_servers_wish_to_be_left_alone_outlasts_the_pass(database: Database) -> None:
    worker = embedded(database, 1)
    begun = begin(database, worker.model_key)
    with database.transaction() as connection:
        token = open_lease(connection, worker.model_key)
        (image,) = take(connection, worker.model_key, token, begun)
        failure = FailedImage(
            image=image, reason=FailureReason.RATE_LIMITED, detail="", retry_after_s=3000
        )
        refresh.record_unchecked(
            connection, token=token, model_key=worker.model_key, failures=[failure]
        )
    with database.transaction() as connection:
        assert refresh.begin_refresh(connection, worker.model_key, older_than_s=None) is None


def test_what_waits_for_its_host_may_still_be_checked_by_the_same_pass(database: Database) -> None:
    worker = embedded(database, 2)
    begun = begin(database, worker.model_key)
    with database.transaction() as connection:
        token = open_lease(connection, worker.model_key)
        images = take(connection, worker.model_key, token, begun)
        refresh.postpone_checks(
            connection,
            token=token,
            model_key=worker.model_key,
            postponed=[
                PostponedImage(image=image, wait_s=wait_s)
                for image, wait_s in zip(images, (0, 3000), strict=True)
            ],
        )
    with database.transaction() as connection:
        assert refresh.count_outdated(connection, worker.model_key, begun) == 2
        again = take(connection, worker.model_key, token, begun)
    assert [image.image_id for image in again] == [1]


def test_new_vectors_take_the_place_of_old_ones_in_one_step(database: Database) -> None:
    worker = embedded(database, 5)
    replacing = Replacing(database, worker.model_key, rows=2, claims=5)
    replacing.commit()
    assert shards(database) == [(5, 2), (2, 0)]
    assert_counted(database)
    with database.transaction() as connection:
        rows = connection.execute(
            text("""
                SELECT shard_id, row_in_shard, content_sha256, etag FROM extractions
                ORDER BY image_id
            """)
        ).all()
        assert [(row[0], row[1], bytes(row[2]), row[3]) for row in rows[:2]] == [
            (replacing.shard_id, n, b"n" * 32, '"v1"') for n in range(2)
        ]
        assert {row[0] for row in rows[2:]} == {worker.shard_id}
    assert not finish(database, worker.model_key, replacing.begun), "three were only given back"


def test_a_refresh_whose_lease_was_taken_replaces_nothing(database: Database) -> None:
    worker = embedded(database, 3)
    replacing = Replacing(database, worker.model_key, rows=3, claims=3)
    with database.transaction() as connection:
        claim.close_lease(connection, replacing.token)
    with pytest.raises(FencedError):
        replacing.commit()
    assert shards(database) == [(3, 0)]


def test_a_shard_that_gc_took_replaces_nothing(database: Database) -> None:
    worker = embedded(database, 3)
    replacing = Replacing(database, worker.model_key, rows=3, claims=3)
    with database.transaction() as connection:
        record.abandon_shard(connection, replacing.shard_id)
    with pytest.raises(InternalError, match="not being written"):
        replacing.commit()
    assert shards(database) == [(3, 0)]
    assert_counted(database)


def test_images_removed_meanwhile_are_counted_in_the_new_shard(database: Database) -> None:
    worker = embedded(database, 4)
    replacing = Replacing(database, worker.model_key, rows=3, claims=4)
    assert remove(database, *urls_of(0, 1)).vectors == 1
    replacing.commit()
    assert shards(database) == [(4, 3), (3, 1)]
    assert_counted(database)


def test_images_of_a_shard_discarded_meanwhile_are_embedded_by_the_next_run(
    database: Database,
) -> None:
    worker = embedded(database, 4)
    replacing = Replacing(database, worker.model_key, rows=2, claims=4)
    with database.transaction() as connection:
        assert record.discard_shard(connection, worker.shard_id) == 4
    replacing.commit()
    assert statuses(database, worker.model_key) == {"pending": 4}
    assert shards(database) == [(2, 2)]
    assert_counted(database)


def test_a_removal_and_a_commit_under_way_do_not_wait_for_each_other(
    database: Database, database_url: str
) -> None:
    worker = embedded(database, 6)
    replacing = Replacing(database, worker.model_key, rows=4, claims=6)
    with second_worker(database_url) as other:
        with database.transaction() as connection:
            replacing.lock(connection)
            removed = blocked(database_url, lambda: remove(other, *urls_of(3, 6)))
            replacing.replace(connection)
        assert removed.result().vectors == 3
    # One of the removed images was replaced, two were not.
    assert shards(database) == [(6, 6), (4, 1)]
    assert_counted(database)


def test_a_removal_waits_for_checks_under_way(database: Database, database_url: str) -> None:
    worker = embedded(database, 3)
    begun = begin(database, worker.model_key)
    with database.transaction() as connection:
        token = open_lease(connection, worker.model_key)
        images = take(connection, worker.model_key, token, begun)
    with second_worker(database_url) as other:
        with database.transaction() as connection:
            claim.lock_lease(connection, token)
            removed = blocked(database_url, lambda: remove(other, *urls_of(0, 3)))
            note_unchanged(connection, worker.model_key, token, images)
        assert removed.result().images == 3
    assert statuses(database, worker.model_key) == {}
    assert_counted(database)
