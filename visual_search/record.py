"""The outcome of the work, in the table: shards with their rows, and failures with their reasons.

Every function is one step inside the caller's transaction, which holds the lease: a worker whose
lease was taken over records nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Row, text

from visual_search.database.schema import ShardState
from visual_search.errors import InternalError
from visual_search.images import (
    FailedImage,
    ImageId,
    LeaseToken,
    ModelKey,
    PostponedImage,
    RunId,
    ShardId,
    ShardRecord,
    Validators,
    WrittenShard,
)

_MAX_BACKOFF_S: Final = 24 * 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedRow:
    """A row of a shard, as the history keeps it."""

    image_id: ImageId
    row_in_shard: int
    content_sha256: bytes
    validators: Validators | None = None


def begin_shard(
    connection: Connection, *, shard_id: ShardId, model_key: ModelKey, uri: str, run_id: RunId
) -> None:
    """Name a shard before its file exists, so that an orphan is always known.

    Naming it twice is the same.
    """
    connection.execute(
        text("""
            INSERT INTO shards (shard_id, model_key, uri, run_id, state)
            VALUES (:shard_id, :model_key, :uri, :run_id, 'writing')
            ON CONFLICT (shard_id) DO NOTHING
        """),
        {"shard_id": shard_id, "model_key": model_key, "uri": uri, "run_id": run_id},
    )


def shard_state(connection: Connection, shard_id: ShardId) -> ShardState | None:
    """The state of a shard, held until the transaction ends.

    It waits for an older transaction on the same shard, so it also tells what became of a COMMIT
    whose answer was lost.
    """
    state = connection.execute(
        text("SELECT state FROM shards WHERE shard_id = :shard_id FOR UPDATE"),
        {"shard_id": shard_id},
    ).scalar()
    return None if state is None else ShardState(state)


def is_being_written(connection: Connection, shard_id: ShardId) -> bool:
    """Whether who writes a shard lives: a run by its lease, a merge by what the shard says."""
    return bool(
        connection.execute(
            text("""
                SELECT EXISTS (
                    SELECT FROM shards LEFT JOIN leases USING (run_id)
                    WHERE shard_id = :shard_id
                      AND greatest(expires_at, held_until) > clock_timestamp()
                )
            """),
            {"shard_id": shard_id},
        ).scalar()
    )


def abandon_shard(connection: Connection, shard_id: ShardId) -> None:
    """Give a shard up that was not committed; its file is gc's to delete."""
    connection.execute(
        text("""
            UPDATE shards SET state = 'abandoned'
            WHERE shard_id = :shard_id AND state = 'writing'
        """),
        {"shard_id": shard_id},
    )


def commit_shard(
    connection: Connection,
    *,
    token: LeaseToken,
    model_key: ModelKey,
    shard: WrittenShard,
    rows: Sequence[RecordedRow],
) -> None:
    """Make a written shard and its rows part of the history.

    Images that were removed from the catalogue meanwhile stay in the file and are counted in
    `removed_rows`.

    Raises:
        InternalError: The shard holds rows that were not claimed under this lease.
    """
    _join_by_hash(connection)
    done = connection.execute(
        text("""
            UPDATE extractions e SET
                status = 'done', lease_token = NULL, shard_id = :shard_id,
                row_in_shard = r.row_in_shard, content_sha256 = r.content_sha256,
                etag = r.etag, last_modified = to_timestamp(r.modified_s),
                validators_url = r.validators_url,
                failure_reason = NULL, failure_detail = NULL, http_status = NULL,
                finished_at = now()
            FROM unnest(CAST(:image_ids AS bigint[]), CAST(:positions AS integer[]),
                        CAST(:digests AS bytea[]), CAST(:etags AS text[]),
                        CAST(:modified_s AS bigint[]), CAST(:validators_urls AS bytea[]))
                 AS r (image_id, row_in_shard, content_sha256, etag, modified_s, validators_url)
            WHERE e.model_key = :model_key AND e.image_id = r.image_id
              AND e.lease_token = :token AND e.status = 'claimed'
        """),
        {
            "shard_id": shard.shard_id,
            "model_key": model_key,
            "token": token,
            "image_ids": [row.image_id for row in rows],
            "positions": [row.row_in_shard for row in rows],
            "digests": [row.content_sha256 for row in rows],
            **validator_columns([row.validators for row in rows]),
        },
    ).rowcount
    removed = 0
    if done != shard.rows:
        removed = _count_removed(connection, [row.image_id for row in rows])
    if done + removed != shard.rows:
        raise InternalError(
            f"shard {shard.shard_id} has {shard.rows} rows, but {done} claims and "
            f"{removed} removals; nothing was recorded"
        )
    mark_committed(connection, shard, removed=removed)


def mark_committed(connection: Connection, shard: WrittenShard, *, removed: int) -> None:
    """Let readers see a shard, of which so many rows do not count.

    Raises:
        InternalError: It was not being written.
    """
    committed = connection.execute(
        text("""
            UPDATE shards
            SET state = 'committed', rows = :rows, removed_rows = :removed, bytes = :bytes,
                sha256 = :sha256
            WHERE shard_id = :shard_id AND state = 'writing'
        """),
        {
            "shard_id": shard.shard_id,
            "rows": shard.rows,
            "removed": removed,
            "bytes": shard.bytes,
            "sha256": shard.sha256,
        },
    ).rowcount
    if committed != 1:
        raise InternalError(f"shard {shard.shard_id} was not being written; nothing was recorded")


def validator_columns(validators: Sequence[Validators | None]) -> dict[str, list[Any]]:
    """Arrays for a statement: `etags`, `modified_s` and `validators_urls`."""
    return {
        "etags": [each and each.etag for each in validators],
        # As dates they take the driver four times as long.
        "modified_s": [
            each and each.last_modified and int(each.last_modified.timestamp())
            for each in validators
        ],
        "validators_urls": [each and each.url_hash for each in validators],
    }


def record_failures(
    connection: Connection,
    *,
    token: LeaseToken,
    model_key: ModelKey,
    failures: Sequence[FailedImage],
    max_attempts: int,
    backoff_s: float,
) -> int:
    """Store why images have no vector: failed for good, or waiting for the next attempt.

    Verdicts about the image are final. The others wait with full jitter up to `backoff_s`,
    doubled with every attempt up to a day, and never less than the server asked for; after
    `max_attempts` they are final too.

    Returns:
        How many failed for good.
    """
    _join_by_hash(connection)
    failed = connection.execute(
        text("""
            UPDATE extractions e SET
                status = CASE WHEN f.final OR e.attempts + 1 >= :max_attempts
                              THEN 'failed' ELSE 'pending' END,
                finished_at = CASE WHEN f.final OR e.attempts + 1 >= :max_attempts
                                   THEN now() END,
                lease_token = NULL,
                attempts = e.attempts + 1,
                next_attempt_at = clock_timestamp() + make_interval(secs => f.wait_s),
                failure_reason = f.reason, failure_detail = f.detail, http_status = f.http_status
            FROM unnest(CAST(:image_ids AS bigint[]), CAST(:final AS boolean[]),
                        CAST(:wait_s AS double precision[]), CAST(:reasons AS text[]),
                        CAST(:details AS text[]), CAST(:http_statuses AS smallint[]))
                 AS f (image_id, final, wait_s, reason, detail, http_status)
            WHERE e.model_key = :model_key AND e.image_id = f.image_id
              AND e.lease_token = :token AND e.status = 'claimed'
            RETURNING e.status
        """),
        {
            "model_key": model_key,
            "token": token,
            "max_attempts": max_attempts,
            "image_ids": [failure.image.image_id for failure in failures],
            "final": [not failure.reason.retryable for failure in failures],
            "wait_s": [_wait_s(failure, backoff_s) for failure in failures],
            "reasons": [failure.reason.value for failure in failures],
            "details": [failure.detail for failure in failures],
            "http_statuses": [failure.http_status for failure in failures],
        },
    )
    return sum(row.status == "failed" for row in failed)


def postpone_images(
    connection: Connection,
    *,
    token: LeaseToken,
    model_key: ModelKey,
    postponed: Sequence[PostponedImage],
) -> None:
    """Give back images that wait for their hosts; nobody is charged an attempt."""
    _join_by_hash(connection)
    connection.execute(
        text("""
            UPDATE extractions e SET
                status = 'pending', lease_token = NULL,
                next_attempt_at = clock_timestamp() + make_interval(secs => p.wait_s)
            FROM unnest(CAST(:image_ids AS bigint[]), CAST(:wait_s AS double precision[]))
                 AS p (image_id, wait_s)
            WHERE e.model_key = :model_key AND e.image_id = p.image_id
              AND e.lease_token = :token AND e.status = 'claimed'
        """),
        {
            "model_key": model_key,
            "token": token,
            "image_ids": [image.image.image_id for image in postponed],
            "wait_s": [image.wait_s for image in postponed],
        },
    )


def transaction_id(connection: Connection) -> str:
    """By what `took_place` knows this transaction later."""
    return str(connection.execute(text("SELECT pg_current_xact_id()")).scalar_one())


def took_place(connection: Connection, earlier: str) -> bool:
    """Whether an earlier transaction, which has ended by now, was committed.

    A server that took over from another may not know it; then it was not.
    """
    return bool(
        connection.execute(
            text("""
                SELECT CASE WHEN CAST(:earlier AS xid8) < pg_current_xact_id()
                            THEN pg_xact_status(CAST(:earlier AS xid8)) = 'committed' END
            """),
            {"earlier": earlier},
        ).scalar_one()
    )


def list_shards(connection: Connection, *, model: str | None = None) -> list[ShardRecord]:
    """Committed shards, oldest first; of the model named, or of all."""
    rows = connection.execute(
        text("""
            SELECT s.shard_id, m.name, m.model_id, s.uri, s.rows, s.removed_rows, s.bytes,
                   s.sha256, s.created_at
            FROM shards s JOIN models m USING (model_key)
            WHERE s.state = 'committed'
              AND (CAST(:model AS text) IS NULL OR :model IN (m.name, m.model_id))
            ORDER BY s.created_at, s.shard_id
        """),
        {"model": model},
    )
    return [shard_record(row) for row in rows]


def discard_shard(connection: Connection, shard_id: ShardId) -> int:
    """Take a damaged shard out of the history; its images are pending again.

    Returns:
        How many images will be embedded again; 0 if the shard was not committed any more.
    """
    model_key = connection.execute(
        text("""
            UPDATE shards SET state = 'discarded'
            WHERE shard_id = :shard_id AND state = 'committed'
            RETURNING model_key
        """),
        {"shard_id": shard_id},
    ).scalar()
    if model_key is None:
        return 0
    again = connection.execute(
        text("""
            UPDATE extractions
            SET status = 'pending', shard_id = NULL, row_in_shard = NULL, content_sha256 = NULL,
                finished_at = NULL, next_attempt_at = now(), lease_token = NULL
            WHERE model_key = :model_key AND shard_id = :shard_id AND status = 'done'
        """),
        {"model_key": model_key, "shard_id": shard_id},
    )
    return again.rowcount


def catalogue_id(connection: Connection) -> UUID:
    """Which catalogue this database holds."""
    return UUID(str(connection.execute(text("SELECT catalogue_id FROM catalogue")).scalar_one()))


def _join_by_hash(connection: Connection) -> None:
    """For this transaction.

    With statistics from before the first claim the planner would otherwise join row by row:
    seconds for 10,000 rows instead of 0.1.
    """
    connection.execute(text("SET LOCAL enable_nestloop = off"))


def _count_removed(connection: Connection, image_ids: list[ImageId]) -> int:
    # A later statement than the update it explains: it sees what a concurrent removal committed
    # while the update waited for it.
    removed: int = connection.execute(
        text("""
            SELECT count(*) FROM unnest(CAST(:image_ids AS bigint[])) AS r (image_id)
            WHERE NOT EXISTS (SELECT FROM images i WHERE i.image_id = r.image_id)
        """),
        {"image_ids": image_ids},
    ).scalar_one()
    return removed


def _wait_s(failure: FailedImage, backoff_s: float) -> float:
    ceiling: float = min(_MAX_BACKOFF_S, backoff_s * 2**failure.image.attempts)
    return max(failure.jitter * ceiling, failure.retry_after_s or 0)


def shard_record(row: Row[Any]) -> ShardRecord:
    """The record of a row with the columns of `list_shards`."""
    return ShardRecord(
        shard_id=ShardId(row.shard_id),
        model=row.name,
        model_id=row.model_id,
        uri=row.uri,
        rows=row.rows,
        removed_rows=row.removed_rows,
        bytes=row.bytes,
        sha256=row.sha256,
        created_at=row.created_at,
    )
