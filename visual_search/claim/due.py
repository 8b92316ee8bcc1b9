"""Claims of images that are due, in the order in which they became so."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Final

from sqlalchemy import Connection, text

from visual_search.claim.leases import DEATHS_TO_FAIL, lock_lease
from visual_search.images import ClaimedImage, ImageId, LeaseToken, ModelKey

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
    look_up_by_key(connection)
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
    # index once for each. And all comes as one row of arrays: a row for each of a thousand images
    # takes the driver 1.7 ms, not 0.5, most of it for the times.
    ids, attempts, crashes, last_due_at, last_id = connection.execute(
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
            ), claimed AS (
                UPDATE extractions e SET status = 'claimed', lease_token = :token
                FROM due
                WHERE e.model_key = :model_key AND e.ctid = due.at
                RETURNING e.next_attempt_at, e.image_id, e.attempts, e.crashes
            )
            SELECT array_agg(image_id), array_agg(attempts), array_agg(crashes),
                   max(next_attempt_at),
                   max(image_id)
                       FILTER (WHERE next_attempt_at = (SELECT max(next_attempt_at) FROM claimed))
            FROM claimed
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
    ).one()
    if ids is None:
        return []
    place.due_at, place.image_id = last_due_at, last_id
    addresses = find_addresses(connection, ids)
    return [
        ClaimedImage(
            image_id=image_id,
            image_key=addresses[image_id][0],
            url=addresses[image_id][1],
            lease_token=token,
            attempts=attempts,
            crashes=crashes,
        )
        for image_id, attempts, crashes in zip(ids, attempts, crashes, strict=True)
        if image_id in addresses
    ]


def find_addresses(
    connection: Connection, image_ids: Sequence[int]
) -> dict[ImageId, tuple[str, str]]:
    """Key and URL of these images, but for those that were removed."""
    # As an array that the planner does not see the server goes through the index once, not once
    # for each image.
    ids, keys, urls = connection.execute(
        text("""
            SELECT array_agg(image_id), array_agg(image_key), array_agg(url) FROM images
            WHERE image_id = ANY(ARRAY(SELECT unnest(CAST(:image_ids AS bigint[]))))
        """),
        {"image_ids": image_ids},
    ).one()
    return dict(zip(ids, zip(keys, urls, strict=True), strict=True)) if ids else {}


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
    look_up_by_key(connection)
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


def look_up_by_key(connection: Connection) -> None:
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
