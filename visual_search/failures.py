"""The failure ledger: which images have no vector, or an unchecked one, why, and until when."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from visual_search.errors import FailureReason
from visual_search.images import ModelKey
from visual_search.redaction import redact_url


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureRecord:
    """One image without a vector, or with one that could not be checked.

    Attributes:
        url: Fit to be shown, as is `detail`.
        next_attempt_at: When it is tried again; `None` if it failed for good, or has a vector.
        finished_at: When it failed for good, or got its vector; `None` while it waits.
    """

    model: str
    image_id: int
    image_key: str
    url: str
    reason: str
    http_status: int | None
    detail: str | None
    attempts: int
    crashes: int
    next_attempt_at: datetime | None
    finished_at: datetime | None


def list_failures(
    connection: Connection,
    *,
    model: str | None = None,
    reason: str | None = None,
    limit: int | None = None,
    unchecked: bool = False,
) -> list[FailureRecord]:
    """Failures of the active models, the failed ones first, then the waiting ones.

    Those that are `unchecked` are vectors instead that the last refresh could not check; to find
    them the whole history is read.
    """
    rows = connection.execute(
        text("""
            SELECT m.name, e.image_id, i.image_key, i.url, e.status, e.failure_reason,
                   e.http_status, e.failure_detail, e.attempts, e.crashes, e.next_attempt_at,
                   e.finished_at
            FROM extractions e
            JOIN models m ON m.model_key = e.model_key
            JOIN images i ON i.image_id = e.image_id
            WHERE ((NOT :unchecked AND e.status = 'failed')
                   OR (NOT :unchecked AND e.status = 'pending'
                       AND e.next_attempt_at > clock_timestamp())
                   OR (:unchecked AND e.status = 'done'))
              AND e.failure_reason IS NOT NULL
              AND (m.active AND CAST(:model AS text) IS NULL OR :model IN (m.name, m.model_id))
              AND (CAST(:reason AS text) IS NULL OR e.failure_reason = :reason)
            ORDER BY m.name, e.status, e.failure_reason, e.image_id
            LIMIT :limit
        """),
        {"model": model, "reason": reason, "limit": limit, "unchecked": unchecked},
    )
    return [
        FailureRecord(
            model=row.name,
            image_id=row.image_id,
            image_key=redact_url(row.image_key) if row.image_key == row.url else row.image_key,
            url=redact_url(row.url),
            reason=row.failure_reason,
            http_status=row.http_status,
            detail=row.failure_detail,
            attempts=row.attempts,
            crashes=row.crashes,
            next_attempt_at=row.next_attempt_at if row.status == "pending" else None,
            finished_at=row.finished_at,
        )
        for row in rows
    ]


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
