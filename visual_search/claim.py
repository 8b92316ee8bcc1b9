"""Which images this worker may work on: seed, take, renew, rescue and give back leases.

All claims of one open shard carry one lease's token. Only the database's clock decides whether a
lease lives. Every function is one step inside the caller's short transaction.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Final

from sqlalchemy import Connection, text

from visual_search.database.schema import SEEDING_LOCK
from visual_search.errors import FailureReason, FencedError
from visual_search.images import ClaimedImage, ImageId, LeaseToken, ModelKey, RunId

SEED_ROWS: Final = 100_000
# Of a new model, whose first download waits for it.
_FIRST_SEED_ROWS: Final = 10_000
DEATHS_TO_FAIL: Final = 4
_SOON_S: Final = 5.0


class Suspicion(Enum):
    """How many images may share a worker with one that may have killed a worker.

    The value holds the range of `crashes` and the largest claim. The first death suspects
    everything that was claimed; the second happens among at most 32; from then on each image is
    alone, and after `DEATHS_TO_FAIL` deaths, two of them alone, it is failed.
    """

    NONE = (0, 0, 1_000_000)
    SOME = (1, 1, 32)
    GRAVE = (2, DEATHS_TO_FAIL, 1)

    @property
    def rows(self) -> int:
        """The largest claim."""
        return self.value[2]


@dataclass(slots=True)
class Place:
    """Where in a model's queue a worker is: behind the last image that it claimed.

    Claims that begin there step over nothing that is settled already. While a reader holds an old
    snapshot, the index keeps all that was claimed since, and each claim from the queue's beginning
    takes longer than the one before. It is only a hint: who reaches the end begins anew.
    """

    due_at: datetime | None = None
    image_id: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What is left for later when nothing can be claimed now.

    Attributes:
        due_in_s: Seconds until the first pending image is due.
        lease_ends_in_s: Seconds until the first lease of any worker ends unless it is renewed.
    """

    due_in_s: float | None
    lease_ends_in_s: float | None

    @property
    def next_in_s(self) -> float | None:
        """Seconds until there may be something to claim, `None` if nothing is left."""
        known = [s for s in (self.due_in_s, self.lease_ends_in_s) if s is not None]
        return max(0.0, min(known)) if known else None


def is_behind(connection: Connection, model_key: ModelKey) -> bool:
    """Whether the catalogue has images that the model does not know yet."""
    behind = connection.execute(
        text("""
            SELECT (SELECT max(image_id) FROM images) > seeded_to
            FROM models WHERE model_key = :model_key
        """),
        {"model_key": model_key},
    ).scalar()
    return bool(behind)


def seed_images(connection: Connection, model_key: ModelKey) -> int:
    """Make the next images of the catalogue pending for a model.

    Returns:
        How many, at most `SEED_ROWS`, the first time fewer; 0 when the model knows the whole
        catalogue.
    """
    if not is_behind(connection, model_key):
        return 0
    # Importers hold this lock shared: while it is held exclusively, no transaction is open that
    # could still make an id below the new watermark visible.
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SEEDING_LOCK})
    seeded_to = connection.execute(
        text("SELECT seeded_to FROM models WHERE model_key = :model_key"), {"model_key": model_key}
    ).scalar_one()
    seeded = connection.execute(
        text("""
            WITH next AS MATERIALIZED (
                SELECT image_id FROM images WHERE image_id > :seeded_to
                ORDER BY image_id
                LIMIT :rows
            ), seeded AS (
                INSERT INTO extractions (model_key, image_id)
                SELECT :model_key, image_id FROM next
            )
            UPDATE models SET seeded_to = last.image_id
            FROM (SELECT max(image_id) AS image_id, count(*) AS rows FROM next) AS last
            WHERE model_key = :model_key AND last.rows > 0
            RETURNING last.rows
        """),
        {
            "model_key": model_key,
            "seeded_to": seeded_to,
            "rows": SEED_ROWS if seeded_to else _FIRST_SEED_ROWS,
        },
    ).scalar()
    return int(seeded or 0)


def open_lease(
    connection: Connection,
    *,
    token: LeaseToken,
    model_key: ModelKey,
    run_id: RunId,
    lease_s: float,
) -> None:
    """Start a lease without claims; starting it twice is the same."""
    connection.execute(
        text("""
            INSERT INTO leases (lease_token, model_key, run_id, expires_at)
            VALUES (:token, :model_key, :run_id,
                    clock_timestamp() + make_interval(secs => :lease_s))
            ON CONFLICT (lease_token) DO NOTHING
        """),
        {"token": token, "model_key": model_key, "run_id": run_id, "lease_s": lease_s},
    )


def claim_images(
    connection: Connection,
    *,
    token: LeaseToken,
    model_key: ModelKey,
    rows: int,
    suspicion: Suspicion,
    place: Place | None = None,
) -> list[ClaimedImage]:
    """Claim up to `rows` images that are due, longest due first.

    Args:
        connection: Inside a transaction.
        token: Of the lease under which they are claimed.
        model_key: Whose images.
        rows: At most so many, or fewer where the suspicion allows no more.
        suspicion: Which images.
        place: Of this worker, in the queue of images without suspicion; it moves on. Only if too
            few are due behind it, those before it are looked at again.

    Raises:
        FencedError: The lease is gone; everything claimed under it has been given to others.
    """
    lock_lease(connection, token)
    _look_up_by_key(connection)
    rows = min(rows, suspicion.rows)
    begin = place or Place()
    images = _claim_behind(connection, begin, token, model_key, rows, suspicion)
    if len(images) < rows and begin.due_at is not None:
        begin.due_at, begin.image_id = None, 0
        images += _claim_behind(connection, begin, token, model_key, rows - len(images), suspicion)
    return sorted(images, key=lambda image: image.image_id)


def _claim_behind(
    connection: Connection,
    place: Place,
    token: LeaseToken,
    model_key: ModelKey,
    rows: int,
    suspicion: Suspicion,
) -> list[ClaimedImage]:
    least, most, _ = suspicion.value
    # The update goes straight to the rows that are locked: by their keys it would go through the
    # index once for each, which is half of what a claim reads.
    claimed = connection.execute(
        text("""
            WITH due AS MATERIALIZED (
                SELECT ctid AS at FROM extractions
                WHERE model_key = :model_key AND status = 'pending'
                  AND next_attempt_at <= statement_timestamp()
                  AND (next_attempt_at, image_id)
                      > (coalesce(CAST(:due_at AS timestamptz), '-infinity'), :image_id)
                  AND crashes BETWEEN :least AND :most
                ORDER BY next_attempt_at, image_id
                LIMIT :rows
                FOR UPDATE SKIP LOCKED
            )
            UPDATE extractions e SET status = 'claimed', lease_token = :token
            FROM due
            WHERE e.model_key = :model_key AND e.ctid = due.at
            RETURNING e.next_attempt_at, e.image_id, e.attempts, e.crashes
        """),
        {
            "model_key": model_key,
            "token": token,
            "due_at": place.due_at,
            "image_id": place.image_id,
            "rows": rows,
            "least": least,
            "most": most,
        },
    ).all()
    if not claimed:
        return []
    place.due_at, place.image_id = max((row[0], row[1]) for row in claimed)
    # As an array that the planner does not see the server goes through the index once, not once
    # for each image.
    found = connection.execute(
        text("""
            SELECT image_id, image_key, url FROM images
            WHERE image_id = ANY(ARRAY(SELECT unnest(CAST(:image_ids AS bigint[]))))
        """),
        {"image_ids": [row[1] for row in claimed]},
    )
    # By position: by name it takes the loop twice as long.
    images = {image_id: (image_key, url) for image_id, image_key, url in found.all()}
    return [
        ClaimedImage(
            image_id=ImageId(image_id),
            image_key=images[image_id][0],
            url=images[image_id][1],
            lease_token=token,
            attempts=attempts,
            crashes=crashes,
        )
        for _, image_id, attempts, crashes in claimed
        if image_id in images
    ]


def _look_up_by_key(connection: Connection) -> None:
    """For this transaction: read what is due in the index's order, all else row by row.

    With statistics from before the images were seeded the planner expects a handful of pending
    rows, reads them all and sorts them. And of a partitioned table as a whole autovacuum never
    gathers any: the planner then expects half of all images to be claimed, and hashes them all.
    """
    connection.execute(
        text("""
            SELECT set_config('enable_sort', 'off', true),
                   set_config('enable_seqscan', 'off', true),
                   set_config('enable_hashjoin', 'off', true),
                   set_config('enable_mergejoin', 'off', true)
        """)
    )


def release_paused(
    connection: Connection, *, token: LeaseToken, images: Sequence[ClaimedImage]
) -> list[ClaimedImage]:
    """Give back those of the lease's images whose host asked to be left alone, until then.

    Returns:
        The others.
    """
    any_paused = connection.execute(
        text("SELECT EXISTS (SELECT FROM hosts WHERE retry_at > clock_timestamp())")
    ).scalar_one()
    if not any_paused:
        return list(images)
    # A claim in the same transaction has switched it off; row by row it would be each image with
    # each claim of the lease.
    connection.execute(text("SET LOCAL enable_hashjoin = on"))
    released = connection.execute(
        text("""
            WITH paused AS MATERIALIZED (
                SELECT image_id, retry_at FROM hosts JOIN images USING (host)
                WHERE retry_at > clock_timestamp() AND image_id = ANY(CAST(:image_ids AS bigint[]))
            )
            UPDATE extractions e SET
                status = 'pending', lease_token = NULL, next_attempt_at = paused.retry_at
            FROM paused
            WHERE e.image_id = paused.image_id AND e.lease_token = :token AND e.status = 'claimed'
            RETURNING e.image_id
        """),
        {"token": token, "image_ids": [image.image_id for image in images]},
    )
    gone = {row.image_id for row in released}
    return [image for image in images if image.image_id not in gone]


def lock_lease(connection: Connection, token: LeaseToken) -> None:
    """Hold the lease until the transaction ends. One that has expired but that nobody took counts.

    Raises:
        FencedError: There is no such lease any more.
    """
    held = connection.execute(
        text("SELECT FROM leases WHERE lease_token = :token FOR UPDATE"), {"token": token}
    ).first()
    if held is None:
        raise FencedError(f"lease {token} was taken over by another worker")


def renew_leases(
    connection: Connection, *, run_id: RunId, tokens: Collection[LeaseToken], lease_s: float
) -> set[LeaseToken]:
    """Let the leases of one run live another `lease_s`.

    Returns:
        Those that still exist; the others were taken over.
    """
    renewed = connection.execute(
        text("""
            UPDATE leases
            SET expires_at = clock_timestamp() + make_interval(secs => :lease_s)
            WHERE run_id = :run_id AND lease_token = ANY(CAST(:tokens AS uuid[]))
            RETURNING lease_token
        """),
        {"run_id": run_id, "tokens": [str(token) for token in tokens], "lease_s": lease_s},
    )
    return {LeaseToken(row.lease_token) for row in renewed}


def rescue_images(
    connection: Connection,
    model_key: ModelKey,
    *,
    lease_s: float = 0,
    own_run: RunId | None = None,
) -> int:
    """Take the images of dead workers back: pending again, or failed after too many deaths.

    Args:
        connection: Inside a transaction.
        model_key: Whose images.
        lease_s: So long after the server's start nobody is taken for dead: while it was away, no
            lease could be renewed.
        own_run: Its leases are spared. It lives, and will renew those that it still needs.

    Returns:
        How many images were rescued.
    """
    expired = connection.execute(
        text("""
            SELECT lease_token FROM leases
            WHERE model_key = :model_key AND expires_at < clock_timestamp()
              AND clock_timestamp() > pg_postmaster_start_time() + make_interval(secs => :lease_s)
              AND run_id IS DISTINCT FROM CAST(:own_run AS uuid)
            FOR UPDATE SKIP LOCKED
        """),
        {"model_key": model_key, "lease_s": lease_s, "own_run": own_run},
    )
    tokens = [str(row.lease_token) for row in expired]
    if not tokens:
        return 0
    rescued = connection.execute(
        text("""
            UPDATE extractions SET
                status = CASE WHEN crashes + 1 >= :deaths THEN 'failed' ELSE 'pending' END,
                failure_reason = CASE WHEN crashes + 1 >= :deaths THEN :reason
                                      ELSE failure_reason END,
                failure_detail = CASE WHEN crashes + 1 >= :deaths
                                      THEN 'its worker died ' || crashes + 1 || ' times'
                                      ELSE failure_detail END,
                finished_at = CASE WHEN crashes + 1 >= :deaths THEN now() END,
                crashes = crashes + 1,
                lease_token = NULL,
                next_attempt_at = now()
            WHERE model_key = :model_key AND status = 'claimed'
              AND lease_token = ANY(CAST(:tokens AS uuid[]))
        """),
        {
            "model_key": model_key,
            "tokens": tokens,
            "deaths": DEATHS_TO_FAIL,
            "reason": FailureReason.KILLS_WORKER.value,
        },
    )
    connection.execute(
        text("DELETE FROM leases WHERE lease_token = ANY(CAST(:tokens AS uuid[]))"),
        {"tokens": tokens},
    )
    return rescued.rowcount


def close_lease(connection: Connection, token: LeaseToken) -> int:
    """End a lease; what is still claimed under it becomes pending again.

    Returns:
        How many images were given back.
    """
    # The lease first, as a rescue does: otherwise each could wait for the other.
    connection.execute(text("DELETE FROM leases WHERE lease_token = :token"), {"token": token})
    return connection.execute(
        text("""
            UPDATE extractions SET status = 'pending', lease_token = NULL
            WHERE lease_token = :token AND status = 'claimed'
        """),
        {"token": token},
    ).rowcount


def outlook(connection: Connection, model_key: ModelKey) -> Outlook:
    """What may become claimable later, and when."""
    row = connection.execute(
        text("""
            SELECT
                (SELECT EXTRACT(epoch FROM min(next_attempt_at) - clock_timestamp())
                 FROM extractions
                 WHERE model_key = :model_key AND status = 'pending') AS due_in_s,
                (SELECT EXTRACT(epoch FROM min(expires_at) - clock_timestamp())
                 FROM leases WHERE model_key = :model_key) AS lease_ends_in_s
        """),
        {"model_key": model_key},
    ).one()
    return Outlook(
        due_in_s=None if row.due_in_s is None else float(row.due_in_s),
        lease_ends_in_s=None if row.lease_ends_in_s is None else float(row.lease_ends_in_s),
    )


def count_pending(connection: Connection, model_key: ModelKey) -> int:
    """How many images of the model nobody has claimed, due or not."""
    pending: int = connection.execute(
        text("""
            SELECT count(*) FROM extractions
            WHERE model_key = :model_key AND status = 'pending'
        """),
        {"model_key": model_key},
    ).scalar_one()
    return pending


def retry_failed(
    connection: Connection, *, model_key: ModelKey, reasons: Collection[FailureReason] | None = None
) -> int:
    """Make failed images pending again, with a clean slate; waiting ones become due now.

    Args:
        connection: Inside a transaction.
        model_key: Whose failures.
        reasons: Only these; `None` means all.

    Returns:
        How many images will be tried again.
    """
    named = None if reasons is None else [reason.value for reason in reasons]
    again = connection.execute(
        text("""
            UPDATE extractions SET
                status = 'pending', attempts = 0, crashes = 0, next_attempt_at = now(),
                failure_reason = NULL, failure_detail = NULL, http_status = NULL,
                finished_at = NULL
            WHERE model_key = :model_key
              AND (status = 'failed'
                   OR (status = 'pending' AND next_attempt_at > clock_timestamp()))
              AND (:all_reasons OR failure_reason = ANY(CAST(:reasons AS text[])))
        """),
        {"model_key": model_key, "all_reasons": named is None, "reasons": named or []},
    )
    return again.rowcount


def claim_along(
    connection: Connection,
    *,
    token: LeaseToken,
    model_key: ModelKey,
    images: Sequence[ClaimedImage],
    suspicion: Suspicion,
) -> list[ClaimedImage]:
    """Claim, for another model, those of the images just claimed that it lacks and may have now.

    What is due within `_SOON_S` may be had: images whose download failed for several models were
    recorded one model after the other.

    Raises:
        FencedError: As of `claim_images`.
    """
    lock_lease(connection, token)
    least, most, _ = suspicion.value
    _look_up_by_key(connection)
    claimed = connection.execute(
        text("""
            WITH due AS MATERIALIZED (
                SELECT image_id FROM extractions
                WHERE model_key = :model_key AND image_id = ANY(CAST(:image_ids AS bigint[]))
                  AND status = 'pending'
                  AND next_attempt_at <= clock_timestamp() + make_interval(secs => :soon_s)
                  AND crashes BETWEEN :least AND :most
                FOR UPDATE SKIP LOCKED
            )
            UPDATE extractions e SET status = 'claimed', lease_token = :token
            FROM due
            WHERE e.model_key = :model_key AND e.image_id = due.image_id
            RETURNING e.image_id, e.attempts, e.crashes
        """),
        {
            "model_key": model_key,
            "token": token,
            "image_ids": [image.image_id for image in images],
            "soon_s": _SOON_S,
            "least": least,
            "most": most,
        },
    )
    found = {
        image_id: {"attempts": attempts, "crashes": crashes}
        for image_id, attempts, crashes in claimed.all()
    }
    return [
        replace(image, lease_token=token, **found[image.image_id])
        for image in images
        if image.image_id in found
    ]


def by_progress(connection: Connection, model_keys: Collection[ModelKey]) -> list[ModelKey]:
    """These models, the one that knows the least of the catalogue first."""
    return [
        ModelKey(row.model_key)
        for row in connection.execute(
            text("""
                SELECT model_key FROM models
                WHERE model_key = ANY(CAST(:model_keys AS integer[]))
                ORDER BY seeded_to, model_key
            """),
            {"model_keys": list(model_keys)},
        )
    ]
