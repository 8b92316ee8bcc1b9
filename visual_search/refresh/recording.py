"""What became of vectors that were checked: they stay, are replaced, or could not be checked.

A row that is not under the lease any more was removed from the catalogue, or its shard discarded,
in the meantime: there is nothing to be said about it.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, text

from visual_search.errors import InternalError
from visual_search.images import (
    FailedImage,
    LeaseToken,
    ModelKey,
    PostponedImage,
    UnchangedImage,
    WrittenShard,
)
from visual_search.record import RecordedRow, mark_committed, validator_columns


def record_unchanged(
    connection: Connection,
    *,
    token: LeaseToken,
    model_key: ModelKey,
    unchanged: Sequence[UnchangedImage],
) -> None:
    """Note that these vectors are up to date."""
    _join_by_hash(connection)
    connection.execute(
        text("""
            UPDATE extractions e SET
                lease_token = NULL, checked_at = clock_timestamp(), crashes = 0,
                etag = u.etag, last_modified = to_timestamp(u.modified_s),
                validators_url = u.validators_url,
                failure_reason = NULL, failure_detail = NULL, http_status = NULL
            FROM unnest(CAST(:image_ids AS bigint[]), CAST(:etags AS text[]),
                        CAST(:modified_s AS bigint[]), CAST(:validators_urls AS bytea[]))
                 AS u (image_id, etag, modified_s, validators_url)
            WHERE e.model_key = :model_key AND e.image_id = u.image_id
              AND e.lease_token = :token AND e.status = 'done'
        """),
        {
            "model_key": model_key,
            "token": token,
            "image_ids": [each.image.image_id for each in unchanged],
            **validator_columns([each.version.validators for each in unchanged]),
        },
    )


def record_unchecked(
    connection: Connection,
    *,
    token: LeaseToken,
    model_key: ModelKey,
    failures: Sequence[FailedImage],
) -> None:
    """Note why vectors could not be checked. They stay, and the next refresh tries again.

    That holds for verdicts about the image, too: what it showed may still be sold, and the picture
    come back; whoever thinks otherwise takes it out of the catalogue.
    """
    _join_by_hash(connection)
    connection.execute(
        text("""
            UPDATE extractions e SET
                lease_token = NULL,
                next_attempt_at = clock_timestamp() + make_interval(secs => f.wait_s),
                failure_reason = f.reason, failure_detail = f.detail, http_status = f.http_status
            FROM unnest(CAST(:image_ids AS bigint[]), CAST(:wait_s AS double precision[]),
                        CAST(:reasons AS text[]), CAST(:details AS text[]),
                        CAST(:http_statuses AS smallint[]))
                 AS f (image_id, wait_s, reason, detail, http_status)
            WHERE e.model_key = :model_key AND e.image_id = f.image_id
              AND e.lease_token = :token AND e.status = 'done'
        """),
        {
            "model_key": model_key,
            "token": token,
            "image_ids": [failure.image.image_id for failure in failures],
            "wait_s": [failure.retry_after_s or 0 for failure in failures],
            "reasons": [failure.reason.value for failure in failures],
            "details": [failure.detail for failure in failures],
            "http_statuses": [failure.http_status for failure in failures],
        },
    )


def postpone_checks(
    connection: Connection,
    *,
    token: LeaseToken,
    model_key: ModelKey,
    postponed: Sequence[PostponedImage],
) -> None:
    """Give back images that wait for their hosts; this pass may still check them."""
    _join_by_hash(connection)
    connection.execute(
        text("""
            UPDATE extractions e SET
                lease_token = NULL, failure_reason = NULL, failure_detail = NULL,
                http_status = NULL,
                next_attempt_at = clock_timestamp() + make_interval(secs => p.wait_s)
            FROM unnest(CAST(:image_ids AS bigint[]), CAST(:wait_s AS double precision[]))
                 AS p (image_id, wait_s)
            WHERE e.model_key = :model_key AND e.image_id = p.image_id
              AND e.lease_token = :token AND e.status = 'done'
        """),
        {
            "model_key": model_key,
            "token": token,
            "image_ids": [image.image.image_id for image in postponed],
            "wait_s": [image.wait_s for image in postponed],
        },
    )


def lock_replaced(
    connection: Connection, *, token: LeaseToken, model_key: ModelKey, rows: Sequence[RecordedRow]
) -> None:
    """Hold the shards from which vectors are about to be replaced, until the transaction ends.

    Before the lease is locked and in one order, as removals from the catalogue do it: no two of
    these wait for each other. From then on nobody takes anything out of these shards.
    """
    _join_by_hash(connection)
    held: set[str] = set()
    while True:
        found = connection.execute(
            text("""
                SELECT DISTINCT e.shard_id
                FROM unnest(CAST(:image_ids AS bigint[])) AS r (image_id)
                JOIN extractions e USING (image_id)
                WHERE e.model_key = :model_key AND e.lease_token = :token AND e.status = 'done'
            """),
            {
                "model_key": model_key,
                "token": token,
                "image_ids": [row.image_id for row in rows],
            },
        )
        shard_ids = {str(row.shard_id) for row in found}
        if shard_ids <= held:
            return
        # Before they are held, vectors may be moved from these shards to others.
        connection.execute(
            text("""
                SELECT FROM shards WHERE shard_id = ANY(CAST(:shard_ids AS uuid[]))
                ORDER BY shard_id FOR UPDATE
            """),
            {"shard_ids": list(shard_ids)},
        )
        held |= shard_ids


def replace_vectors(
    connection: Connection,
    *,
    token: LeaseToken,
    model_key: ModelKey,
    shard: WrittenShard,
    rows: Sequence[RecordedRow],
) -> None:
    """Make a shard and its rows part of the history, in place of the same images' older rows.

    Those stay in their files and are counted in their shards' `removed_rows`. Rows of images that
    were taken out of the history meanwhile are counted in the new shard's.

    Raises:
        InternalError: The history does not add up; the transaction must not be committed.
    """
    _join_by_hash(connection)
    parameters = {
        "shard_id": shard.shard_id,
        "model_key": model_key,
        "token": token,
        "image_ids": [row.image_id for row in rows],
    }
    replaced = connection.execute(
        text("""
            UPDATE shards s SET removed_rows = s.removed_rows + old.rows
            FROM (
                SELECT e.shard_id, count(*) AS rows
                FROM unnest(CAST(:image_ids AS bigint[])) AS r (image_id)
                JOIN extractions e USING (image_id)
                WHERE e.model_key = :model_key AND e.lease_token = :token AND e.status = 'done'
                GROUP BY e.shard_id
            ) AS old
            WHERE s.shard_id = old.shard_id AND s.state = 'committed'
            RETURNING old.rows
        """),
        parameters,
    ).all()
    done = connection.execute(
        text("""
            UPDATE extractions e SET
                lease_token = NULL, shard_id = :shard_id, row_in_shard = r.row_in_shard,
                content_sha256 = r.content_sha256, etag = r.etag,
                last_modified = to_timestamp(r.modified_s), validators_url = r.validators_url,
                failure_reason = NULL, failure_detail = NULL, http_status = NULL,
                crashes = 0, finished_at = now()
            FROM unnest(CAST(:image_ids AS bigint[]), CAST(:positions AS integer[]),
                        CAST(:digests AS bytea[]), CAST(:etags AS text[]),
                        CAST(:modified_s AS bigint[]), CAST(:validators_urls AS bytea[]))
                 AS r (image_id, row_in_shard, content_sha256, etag, modified_s, validators_url)
            WHERE e.model_key = :model_key AND e.image_id = r.image_id
              AND e.lease_token = :token AND e.status = 'done'
        """),
        parameters
        | {
            "positions": [row.row_in_shard for row in rows],
            "digests": [row.content_sha256 for row in rows],
            **validator_columns([row.validators for row in rows]),
        },
    ).rowcount
    if sum(row.rows for row in replaced) != done:
        raise InternalError(
            f"shard {shard.shard_id} replaces {done} vectors, but the shards that hold them count "
            f"{sum(row.rows for row in replaced)}; nothing was recorded"
        )
    mark_committed(connection, shard, removed=shard.rows - done)


def _join_by_hash(connection: Connection) -> None:
    """For this transaction, as for all that is recorded: row by row it takes seconds."""
    connection.execute(text("SET LOCAL enable_nestloop = off"))
