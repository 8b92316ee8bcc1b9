"""Claims of vectors that are to be checked, in the order of the catalogue."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, Row, text

from visual_search.claim import (
    DEATHS_TO_FAIL,
    Suspicion,
    find_addresses,
    lock_lease,
    look_up_by_key,
)
from visual_search.images import (
    ClaimedImage,
    ImageId,
    LeaseToken,
    ModelKey,
    Validators,
    Version,
)
from visual_search.refresh.passes import Refresh

# So many rows are looked at in one transaction, whatever is found.
_WINDOW_ROWS: Final = 10_000


@dataclass(slots=True)
class Sweep:
    """How far a worker has gone through a model's history, in search of one kind of suspicion.

    It needs no index of what was checked when, which every shard's commit would have to keep. A
    sweep that found anything is followed by another one: others may have given something back.

    Attributes:
        start: Behind which image it begins.
        image_id: Behind which image it goes on.
        fruitful: It has claimed something.
        ended: It has reached the end and found nothing.
        suspect: Just before the first image it came by that may have killed a worker.
    """

    start: int = 0
    image_id: int = 0
    fruitful: bool = False
    ended: bool = False
    suspect: int | None = None


def claim_outdated(
    connection: Connection,
    *,
    token: LeaseToken,
    model_key: ModelKey,
    rows: int,
    suspicion: Suspicion,
    refresh: Refresh,
    sweep: Sweep,
) -> list[ClaimedImage]:
    """Claim up to `rows` images whose vectors are to be checked, of the next part of the sweep.

    Args:
        connection: Inside a transaction.
        token: Of the lease under which they are claimed.
        model_key: Whose vectors.
        rows: At most so many, or fewer where the suspicion allows no more.
        suspicion: Which images.
        refresh: What is to be checked.
        sweep: It moves on. Where it has not ended, an empty part is not the last.

    Raises:
        FencedError: The lease is gone; everything claimed under it has been given to others.
    """
    lock_lease(connection, token)
    look_up_by_key(connection)
    part = connection.execute(
        text("""
            SELECT max(image_id) AS last, min(image_id) FILTER (WHERE crashes > 0) AS suspect
            FROM (
                SELECT image_id, crashes FROM extractions
                WHERE model_key = :model_key AND image_id > :behind
                ORDER BY image_id LIMIT :window
            ) AS part
        """),
        {"model_key": model_key, "behind": sweep.image_id, "window": _WINDOW_ROWS},
    ).one()
    if part.last is None:
        sweep.image_id, sweep.fruitful, sweep.ended = sweep.start, False, not sweep.fruitful
        return []
    if sweep.suspect is None and part.suspect is not None:
        sweep.suspect = part.suspect - 1
    rows = min(rows, suspicion.rows)
    least, most, _ = suspicion.value
    claimed = connection.execute(
        text("""
            WITH outdated AS MATERIALIZED (
                SELECT ctid AS at FROM extractions
                WHERE model_key = :model_key AND image_id > :behind AND image_id <= :last
                  AND status = 'done' AND lease_token IS NULL
                  AND greatest(finished_at, checked_at) < :before
                  AND (next_attempt_at <= :since
                       OR failure_reason IS NULL AND next_attempt_at <= statement_timestamp())
                  AND crashes BETWEEN :least AND :most AND crashes < :deaths
                ORDER BY image_id
                LIMIT :rows
                FOR UPDATE SKIP LOCKED
            )
            UPDATE extractions e SET lease_token = :token
            FROM outdated
            WHERE e.model_key = :model_key AND e.ctid = outdated.at
            RETURNING e.image_id, e.attempts, e.crashes, e.content_sha256,
                      e.etag, e.last_modified, e.validators_url
        """),
        {
            "model_key": model_key,
            "token": token,
            "behind": sweep.image_id,
            "last": part.last,
            "before": refresh.before,
            "since": refresh.since,
            "least": least,
            "most": most,
            "deaths": DEATHS_TO_FAIL,
            "rows": rows,
        },
    ).all()
    sweep.fruitful = sweep.fruitful or bool(claimed)
    sweep.image_id = part.last if len(claimed) < rows else max(row.image_id for row in claimed)
    addresses = find_addresses(connection, [row.image_id for row in claimed])
    images = [
        ClaimedImage(
            image_id=ImageId(row.image_id),
            image_key=addresses[row.image_id][0],
            url=addresses[row.image_id][1],
            lease_token=token,
            attempts=row.attempts,
            crashes=row.crashes,
            version=_version(row),
        )
        for row in claimed
        if row.image_id in addresses
    ]
    return sorted(images, key=lambda image: image.image_id)


def claim_outdated_along(
    connection: Connection,
    *,
    token: LeaseToken,
    model_key: ModelKey,
    images: Sequence[ClaimedImage],
    suspicion: Suspicion,
    refresh: Refresh,
) -> list[ClaimedImage]:
    """Claim, for another model, those of the images just claimed whose vectors it is to check, too.

    Raises:
        FencedError: As of `claim_outdated`.
    """
    lock_lease(connection, token)
    look_up_by_key(connection)
    least, most, _ = suspicion.value
    claimed = connection.execute(
        text("""
            WITH outdated AS MATERIALIZED (
                SELECT image_id FROM extractions
                WHERE model_key = :model_key AND image_id = ANY(CAST(:image_ids AS bigint[]))
                  AND status = 'done' AND lease_token IS NULL
                  AND greatest(finished_at, checked_at) < :before
                  AND (next_attempt_at <= :since
                       OR failure_reason IS NULL AND next_attempt_at <= statement_timestamp())
                  AND crashes BETWEEN :least AND :most AND crashes < :deaths
                FOR UPDATE SKIP LOCKED
            )
            UPDATE extractions e SET lease_token = :token
            FROM outdated
            WHERE e.model_key = :model_key AND e.image_id = outdated.image_id
            RETURNING e.image_id, e.attempts, e.crashes, e.content_sha256,
                      e.etag, e.last_modified, e.validators_url
        """),
        {
            "model_key": model_key,
            "token": token,
            "image_ids": [image.image_id for image in images],
            "before": refresh.before,
            "since": refresh.since,
            "least": least,
            "most": most,
            "deaths": DEATHS_TO_FAIL,
        },
    )
    found = {row.image_id: row for row in claimed}
    return [
        replace(
            image,
            lease_token=token,
            attempts=found[image.image_id].attempts,
            crashes=found[image.image_id].crashes,
            version=_version(found[image.image_id]),
        )
        for image in images
        if image.image_id in found
    ]


def _version(row: Row[Any]) -> Version:
    validators = None
    if row.validators_url is not None:
        validators = Validators(
            url_hash=bytes(row.validators_url), etag=row.etag, last_modified=row.last_modified
        )
    return Version(content_sha256=bytes(row.content_sha256), validators=validators)
