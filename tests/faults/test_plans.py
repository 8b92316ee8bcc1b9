"""What the planner does with every statement of a run, in catalogues large and larger.

With statistics from before the first image was seeded, as a first night has them, and with fresh
ones: nothing reads a large table from end to end, nor much more than what it is about.
"""

import time
from collections.abc import Callable
from functools import partial
from uuid import uuid4

import pytest
from sqlalchemy import Connection, text

from tests.faults.big import seed_many, vacuum
from tests.plans import Plan, explain
from visual_search import claim, hosts, record, status
from visual_search.claim import Suspicion
from visual_search.compaction import table
from visual_search.database.connection import Database
from visual_search.errors import FailureReason
from visual_search.hosts import Traffic
from visual_search.images import (
    ClaimedImage,
    FailedImage,
    ImageId,
    LeaseToken,
    ModelKey,
    PostponedImage,
    RunId,
    ShardId,
    WrittenShard,
)

RUN = RunId(uuid4())
LARGE = ("extractions", "images")
SHARD_ROWS = 10_000
SMALL_ROWS = 500
CLAIM_ROWS = 256


class Catalogue:
    """One worker has claimed a shard's worth; of the others some are pending, the rest is settled.

    Args:
        left: The share that is pending; half of it is not due yet.
    """

    def __init__(self, database: Database, images: int, left: float) -> None:
        self.images = images
        self.pending = int((images - SHARD_ROWS) * left)
        self.model_key = seed_many(database, images)
        self.token = LeaseToken(uuid4())
        self.shard_id = ShardId(uuid4())
        with database.transaction() as connection:
            claim.open_lease(
                connection, token=self.token, model_key=self.model_key, run_id=RUN, lease_s=600
            )
            record.begin_shard(
                connection,
                shard_id=self.shard_id,
                model_key=self.model_key,
                uri="file:///nowhere",
                run_id=RUN,
            )
            self.claimed = claim.claim_images(
                connection,
                token=self.token,
                model_key=self.model_key,
                rows=SHARD_ROWS,
                suspicion=Suspicion.NONE,
            )
            settled_to = images - self.pending
            connection.execute(
                text("""
                    UPDATE extractions SET
                        status = CASE image_id % 10 WHEN 0 THEN 'failed' ELSE 'done' END,
                        shard_id = CASE WHEN image_id % 10 > 0 THEN gen_random_uuid() END,
                        failure_reason = CASE image_id % 10 WHEN 0 THEN 'not_found' END
                    WHERE image_id > :claimed_to AND image_id <= :settled_to
                """),
                {"claimed_to": SHARD_ROWS, "settled_to": settled_to},
            )
            connection.execute(
                text("""
                    UPDATE extractions SET next_attempt_at = now() + interval '1 h', attempts = 1
                    WHERE image_id > :settled_to + :pending / 2
                """),
                {"settled_to": settled_to, "pending": self.pending},
            )


@pytest.mark.parametrize(
    ("images", "left", "fresh"),
    [
        pytest.param(50_000, 1.0, False, id="first night"),
        pytest.param(50_000, 0.05, True, id="nearly done"),
        *(
            pytest.param(1_000_000, left, fresh, marks=pytest.mark.long)
            for left in (1.0, 0.05)
            for fresh in (False, True)
        ),
    ],
)
def test_every_statement_of_a_run_reads_little_of_a_large_table(
    database: Database, database_url: str, images: int, left: float, fresh: bool
) -> None:
    catalogue = Catalogue(database, images, left)
    if fresh:
        vacuum(database_url)
    wasteful = {}
    for name, (about, step) in _steps(catalogue).items():
        with database.transaction() as connection:
            plans = explain(connection, partial(step, connection))
        assert plans, name
        for plan in plans:
            read = max(plan.rows_read(table) for table in LARGE)
            if "Seq Scan" in _scans(plan) or read > 2 * about:
                wasteful[name] = f"{_scans(plan)} read {read} rows for {about}"
    assert not wasteful, wasteful


@pytest.mark.parametrize("runs", [100, pytest.param(1_000, marks=pytest.mark.long)])
def test_a_claim_never_takes_more_than_it_is_told(database: Database, runs: int) -> None:
    model_key = seed_many(database, 5_000)
    with database.transaction() as connection:
        for rows in range(1, runs + 1):
            with connection.begin_nested() as undone:
                token = LeaseToken(uuid4())
                claim.open_lease(
                    connection, token=token, model_key=model_key, run_id=RUN, lease_s=60
                )
                taken = _take(connection, model_key, token, rows % 7 + 1)
                assert len(taken) == rows % 7 + 1
                undone.rollback()


@pytest.mark.parametrize(
    ("images", "fresh"),
    [
        pytest.param(50_000, False),
        *(pytest.param(1_000_000, fresh, marks=pytest.mark.long) for fresh in (False, True)),
    ],
)
def test_a_merge_of_shards_reads_only_their_rows(
    database: Database, database_url: str, images: int, fresh: bool
) -> None:
    model_key = seed_many(database, images)
    sources = _make_shards(database, model_key)
    if fresh:
        vacuum(database_url)
    shard = WrittenShard(
        shard_id=ShardId(uuid4()), uri="file:///nowhere", rows=SHARD_ROWS, bytes=1, sha256=""
    )
    moved = {
        source: table.MovedRows(
            image_ids=[ImageId(n + 1) for n in range(first, first + SMALL_ROWS)],
            positions=list(range(first, first + SMALL_ROWS)),
        )
        for source, first in zip(sources, range(0, SHARD_ROWS, SMALL_ROWS), strict=True)
    }
    with database.transaction() as connection:
        table.begin_merge(
            connection,
            shard_id=shard.shard_id,
            model_key=model_key,
            uri=shard.uri,
            run_id=RUN,
            sources=sources,
            hold_s=60,
        )

    def merge(connection: Connection) -> None:
        for source, rows in moved.items():
            found = table.rows_that_count(
                connection, model_key=model_key, shard_id=source, image_ids=rows.image_ids
            )
            assert len(found) == SMALL_ROWS
        table.commit_merge(connection, model_key=model_key, shard=shard, moved=moved)

    with database.transaction() as connection:
        plans = explain(connection, partial(merge, connection))
    # Each of them is about one of the small shards.
    for plan in plans:
        assert "Seq Scan" not in _scans(plan)
        assert plan.rows_read("extractions") <= 2 * SMALL_ROWS
    assert sum(plan.rows_read("extractions") for plan in plans) >= SHARD_ROWS
    begun = time.monotonic()
    with database.transaction() as connection:
        table.commit_merge(connection, model_key=model_key, shard=shard, moved=moved)
    took_s = time.monotonic() - begun
    print(f"{images} images: {SHARD_ROWS} rows of {len(sources)} shards moved in {took_s:.2f} s")
    assert took_s <= 0.5 or images < 1_000_000


def _make_shards(database: Database, model_key: ModelKey) -> list[ShardId]:
    """All images done, the first `SHARD_ROWS` of them in small shards."""
    with database.transaction() as connection:
        connection.execute(
            text("""
                UPDATE extractions
                SET status = 'done', shard_id = gen_random_uuid(),
                    row_in_shard = (image_id - 1) % :small
            """),
            {"small": SMALL_ROWS},
        )
        sources = connection.execute(
            text("""
                INSERT INTO shards (shard_id, model_key, uri, rows, bytes, sha256, run_id, state)
                SELECT gen_random_uuid(), :model_key, 'file:///nowhere', :small, 1, '', :run_id,
                       'committed'
                FROM generate_series(1, CAST(:count AS integer))
                RETURNING shard_id
            """),
            {
                "model_key": model_key,
                "small": SMALL_ROWS,
                "run_id": RUN,
                "count": SHARD_ROWS // SMALL_ROWS,
            },
        ).scalars()
        found = [ShardId(shard_id) for shard_id in sources]
        connection.execute(
            text("""
                UPDATE extractions e SET shard_id = s.shard_id
                FROM unnest(CAST(:shard_ids AS uuid[])) WITH ORDINALITY AS s (shard_id, number)
                WHERE e.image_id <= :rows AND (e.image_id - 1) / :small = s.number - 1
            """),
            {"shard_ids": [str(s) for s in found], "rows": SHARD_ROWS, "small": SMALL_ROWS},
        )
    return found


Step = Callable[[Connection], object]


def _steps(catalogue: Catalogue) -> dict[str, tuple[int, Step]]:
    """The statements of a run by what they do, and how many rows each is about."""
    model_key, token, claimed = catalogue.model_key, catalogue.token, catalogue.claimed
    # What is said of failures and pauses is about the lease they happen under.
    steps: dict[str, tuple[int, Step]] = {
        "seed": (1, lambda c: claim.seed_images(c, model_key)),
        "claim": (CLAIM_ROWS, lambda c: _take(c, model_key, token, CLAIM_ROWS)),
        "claim along": (CLAIM_ROWS, lambda c: _take_along(c, model_key, token)),
        "release paused": (SHARD_ROWS, lambda c: _release(c, token, claimed[:CLAIM_ROWS])),
        "renew": (0, lambda c: claim.renew_leases(c, run_id=RUN, tokens=[token], lease_s=60)),
        "rescue": (SHARD_ROWS, lambda c: _rescue(c, model_key, token)),
        "close": (SHARD_ROWS, lambda c: claim.close_lease(c, token)),
        "look at a shard": (0, lambda c: record.shard_state(c, catalogue.shard_id)),
        "commit": (SHARD_ROWS, lambda c: _commit(c, catalogue)),
        "fail": (SHARD_ROWS, lambda c: _fail(c, catalogue)),
        "postpone": (SHARD_ROWS, lambda c: _postpone(c, catalogue)),
        "outlook": (1, lambda c: claim.look_out(c, model_key)),
        "share pauses": (0, lambda c: hosts.share_pauses(c, {"h.test": 60})),
        "add traffic": (0, lambda c: hosts.add_traffic(c, {"h.test": Traffic(requests=1)})),
    }
    if catalogue.pending > catalogue.images // 10:
        return steps
    # Asked when there is nothing else to do: then little is pending.
    pending = catalogue.pending
    steps |= {
        "suspects": (pending, lambda c: _take(c, model_key, token, CLAIM_ROWS, Suspicion.SOME)),
        # All that is not done and not due.
        "claimable": (
            catalogue.images // 10 + SHARD_ROWS + pending // 2,
            lambda c: status.count_claimable(c, model_key),
        ),
    }
    if catalogue.images > 100_000:  # reading a small table from end to end is quick, too
        steps["count pending"] = (pending, lambda c: claim.count_pending(c, model_key))
    return steps


def _take(
    connection: Connection,
    model_key: ModelKey,
    token: LeaseToken,
    rows: int,
    suspicion: Suspicion = Suspicion.NONE,
) -> list[ClaimedImage]:
    return claim.claim_images(
        connection, token=token, model_key=model_key, rows=rows, suspicion=suspicion
    )


def _take_along(connection: Connection, model_key: ModelKey, token: LeaseToken) -> None:
    """What another claim has taken and given back."""
    other = LeaseToken(uuid4())
    claim.open_lease(connection, token=other, model_key=model_key, run_id=RUN, lease_s=60)
    images = _take(connection, model_key, other, CLAIM_ROWS)
    claim.close_lease(connection, other)
    along = claim.claim_along(
        connection, token=token, model_key=model_key, images=images, suspicion=Suspicion.NONE
    )
    assert len(along) == CLAIM_ROWS


def _release(connection: Connection, token: LeaseToken, images: list[ClaimedImage]) -> None:
    hosts.share_pauses(connection, {"h.test": 60})
    assert not claim.release_paused(connection, token=token, images=images)


def _rescue(connection: Connection, model_key: ModelKey, token: LeaseToken) -> None:
    claim.renew_leases(connection, run_id=RUN, tokens=[token], lease_s=0)
    claim.rescue_images(connection, model_key)


def _commit(connection: Connection, catalogue: Catalogue) -> None:
    record.commit_shard(
        connection,
        token=catalogue.token,
        model_key=catalogue.model_key,
        shard=WrittenShard(
            shard_id=catalogue.shard_id, uri="file:///nowhere", rows=SHARD_ROWS, bytes=1, sha256=""
        ),
        rows=[
            record.RecordedRow(image_id=image.image_id, row_in_shard=n, content_sha256=bytes(32))
            for n, image in enumerate(catalogue.claimed)
        ],
    )


def _fail(connection: Connection, catalogue: Catalogue) -> None:
    record.record_failures(
        connection,
        token=catalogue.token,
        model_key=catalogue.model_key,
        failures=[
            FailedImage(image=image, reason=FailureReason.TIMEOUT, detail="")
            for image in catalogue.claimed[:500]
        ],
        max_attempts=8,
        backoff_s=300,
    )


def _postpone(connection: Connection, catalogue: Catalogue) -> None:
    record.postpone_images(
        connection,
        token=catalogue.token,
        model_key=catalogue.model_key,
        postponed=[PostponedImage(image=image, wait_s=60) for image in catalogue.claimed[:500]],
    )


def _scans(plan: Plan) -> set[str]:
    """How large tables are read."""
    return {
        node["Node Type"]
        for node in plan.nodes()
        if "Scan" in node["Node Type"]
        and node["Actual Loops"]
        and node.get("Relation Name", "").startswith(LARGE)
    }
