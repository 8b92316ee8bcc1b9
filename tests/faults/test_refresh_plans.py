"""What the planner does with the statements of a refresh: as for all of a run, it reads little."""

from dataclasses import replace
from functools import partial
from uuid import uuid4

import pytest
from sqlalchemy import Connection, text

from tests.faults.big import seed_many, vacuum
from tests.faults.test_plans import LARGE, RUN, Step, _scans
from tests.plans import explain
from visual_search import claim, record, refresh
from visual_search.claim import Suspicion
from visual_search.database.connection import Database
from visual_search.errors import FailureReason
from visual_search.images import (
    ClaimedImage,
    FailedImage,
    ImageId,
    LeaseToken,
    PostponedImage,
    ShardId,
    UnchangedImage,
    Version,
    WrittenShard,
)
from visual_search.refresh import Refresh, Sweep

CLAIM_ROWS, WINDOW_ROWS, SHARD_ROWS, AT_ONCE = 256, 10_000, 10_000, 500


class Checked:
    """A catalogue that is done; one worker has claimed a shard's worth to check it."""

    def __init__(self, database: Database, images: int) -> None:
        self.model_key = seed_many(database, images)
        self.token, self.shard_id = LeaseToken(uuid4()), ShardId(uuid4())
        with database.transaction() as connection:
            connection.execute(
                text("""
                    INSERT INTO shards
                        (shard_id, model_key, uri, run_id, state, rows, bytes, sha256)
                    SELECT gen_random_uuid(), :model_key, '', gen_random_uuid(), 'committed',
                           :rows, 1, ''
                    FROM generate_series(1, CAST(:images AS integer) / :rows);
                    UPDATE extractions e SET
                        status = 'done', shard_id = s.shard_id, row_in_shard = image_id % :rows,
                        content_sha256 = sha256(''), finished_at = now()
                    FROM (SELECT shard_id, row_number() OVER () - 1 AS number FROM shards) AS s
                    WHERE s.number = (e.image_id - 1) / :rows
                """),
                {"model_key": self.model_key, "rows": SHARD_ROWS, "images": images},
            )
        with database.transaction() as connection:
            begun = refresh.begin_refresh(connection, self.model_key, older_than_s=None)
            assert begun is not None
            self.begun: Refresh = begun
            claim.open_lease(
                connection,
                token=self.token,
                model_key=self.model_key,
                run_id=RUN,
                lease_s=600,
                checking=True,
            )
            self.claimed = self.take(connection, Sweep(), SHARD_ROWS)
            assert len(self.claimed) == SHARD_ROWS
            record.begin_shard(
                connection,
                shard_id=self.shard_id,
                model_key=self.model_key,
                uri="file:///nowhere",
                run_id=RUN,
            )

    def take(
        self,
        connection: Connection,
        sweep: Sweep,
        rows: int = CLAIM_ROWS,
        suspicion: Suspicion = Suspicion.NONE,
    ) -> list[ClaimedImage]:
        return refresh.claim_outdated(
            connection,
            token=self.token,
            model_key=self.model_key,
            rows=rows,
            suspicion=suspicion,
            refresh=self.begun,
            sweep=sweep,
        )

    def steps(self) -> dict[str, tuple[int, Step]]:
        """The statements by what they do, and how many rows each is about."""
        return {
            "claim": (WINDOW_ROWS, lambda c: self.take(c, Sweep(image_id=2 * SHARD_ROWS))),
            # Where another worker is, and where nobody is suspected.
            "claim in vain": (WINDOW_ROWS, lambda c: self.take(c, Sweep())),
            "suspects": (
                WINDOW_ROWS,
                lambda c: self.take(c, Sweep(image_id=2 * SHARD_ROWS), suspicion=Suspicion.SOME),
            ),
            "claim along": (CLAIM_ROWS, self.take_along),
            # These go through the claims of the lease, as all that is recorded does.
            "unchanged": (SHARD_ROWS, self.note_unchanged),
            "unchecked": (SHARD_ROWS, self.note_unchecked),
            "postpone": (SHARD_ROWS, self.postpone),
            "replace": (SHARD_ROWS, self.replace_all),
            "close": (SHARD_ROWS, lambda c: claim.close_lease(c, self.token)),
            "rescue": (SHARD_ROWS, self.rescue),
        }

    def take_along(self, connection: Connection) -> None:
        along = refresh.claim_outdated_along(
            connection,
            token=self.token,
            model_key=self.model_key,
            images=[
                replace(image, image_id=ImageId(image.image_id + SHARD_ROWS))
                for image in self.claimed[:CLAIM_ROWS]
            ],
            suspicion=Suspicion.NONE,
            refresh=self.begun,
        )
        assert len(along) == CLAIM_ROWS

    def note_unchanged(self, connection: Connection) -> None:
        refresh.record_unchanged(
            connection,
            token=self.token,
            model_key=self.model_key,
            unchanged=[
                UnchangedImage(
                    image=image, version=Version(content_sha256=bytes(32), validators=None)
                )
                for image in self.claimed[:AT_ONCE]
            ],
        )

    def note_unchecked(self, connection: Connection) -> None:
        refresh.record_unchecked(
            connection,
            token=self.token,
            model_key=self.model_key,
            failures=[
                FailedImage(image=image, reason=FailureReason.TIMEOUT, detail="")
                for image in self.claimed[:AT_ONCE]
            ],
        )

    def postpone(self, connection: Connection) -> None:
        refresh.postpone_checks(
            connection,
            token=self.token,
            model_key=self.model_key,
            postponed=[PostponedImage(image=image, wait_s=9) for image in self.claimed[:AT_ONCE]],
        )

    def replace_all(self, connection: Connection) -> None:
        rows = [
            record.RecordedRow(image_id=image.image_id, row_in_shard=n, content_sha256=bytes(32))
            for n, image in enumerate(self.claimed)
        ]
        refresh.lock_replaced(connection, token=self.token, model_key=self.model_key, rows=rows)
        refresh.replace_vectors(
            connection,
            token=self.token,
            model_key=self.model_key,
            shard=WrittenShard(
                shard_id=self.shard_id, uri="file:///nowhere", rows=SHARD_ROWS, bytes=1, sha256=""
            ),
            rows=rows,
        )

    def rescue(self, connection: Connection) -> None:
        claim.renew_leases(connection, run_id=RUN, tokens=[self.token], lease_s=0)
        assert claim.rescue_images(connection, self.model_key) == SHARD_ROWS


@pytest.mark.parametrize(
    ("images", "fresh"),
    [
        (50_000, False),
        (50_000, True),
        pytest.param(1_000_000, False, marks=pytest.mark.long),
        pytest.param(1_000_000, True, marks=pytest.mark.long),
    ],
)
def test_every_statement_of_a_refresh_reads_little_of_a_large_table(
    database: Database, database_url: str, images: int, fresh: bool
) -> None:
    checked = Checked(database, images)
    if fresh:
        vacuum(database_url)
    wasteful = {}
    for name, (about, step) in checked.steps().items():
        with database.transaction() as connection:
            plans = explain(connection, partial(step, connection))
        assert plans, name
        for plan in plans:
            read = max(plan.rows_read(table) for table in LARGE)
            if "Seq Scan" in _scans(plan) or read > 2 * about:
                wasteful[name] = f"{_scans(plan)} read {read} rows for {about}"
    assert not wasteful, wasteful
