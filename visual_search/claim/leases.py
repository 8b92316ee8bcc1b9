"""Leases: one for each open shard, under whose token all its images are claimed.

Only the database's clock decides whether a lease lives.
"""

from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection, text

from visual_search.errors import FailureReason, FencedError
from visual_search.images import LeaseToken, ModelKey, RunId

DEATHS_TO_FAIL: Final = 4


def open_lease(
    connection: Connection,
    *,
    token: LeaseToken,
    model_key: ModelKey,
    run_id: RunId,
    lease_s: float,
    checking: bool = False,
) -> None:
    """Start a lease without claims; starting it twice is the same.

    Args:
        connection: Inside a transaction.
        token: A new one.
        model_key: Whose images.
        run_id: Of who holds it.
        lease_s: How long it lives, unless it is renewed.
        checking: Vectors are claimed under it that are there, not images without one.
    """
    connection.execute(
        text("""
            INSERT INTO leases (lease_token, model_key, run_id, expires_at, checking)
            VALUES (:token, :model_key, :run_id,
                    clock_timestamp() + make_interval(secs => :lease_s), :checking)
            ON CONFLICT (lease_token) DO NOTHING
        """),
        {
            "token": token,
            "model_key": model_key,
            "run_id": run_id,
            "lease_s": lease_s,
            "checking": checking,
        },
    )


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

    Those that only were checked stay done; after too many deaths they are not checked any more.

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
    return _take_back(connection, model_key, [str(row.lease_token) for row in expired])


def rescue_run(connection: Connection, run_id: RunId) -> int:
    """Take back at once what a run held of which is known that its process has ended.

    Returns:
        How many images were rescued.
    """
    # A commit that the process had sent may still be under way, and holds its lease until then.
    held = connection.execute(
        text("SELECT lease_token, model_key FROM leases WHERE run_id = :run_id FOR UPDATE"),
        {"run_id": run_id},
    ).all()
    return sum(
        _take_back(connection, ModelKey(row.model_key), [str(row.lease_token)]) for row in held
    )


def _take_back(connection: Connection, model_key: ModelKey, tokens: list[str]) -> int:
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
    unchecked = connection.execute(
        text("""
            UPDATE extractions SET
                failure_reason = CASE WHEN crashes + 1 >= :deaths THEN :reason
                                      ELSE failure_reason END,
                crashes = crashes + 1,
                lease_token = NULL
            WHERE model_key = :model_key AND status = 'done'
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
    return rescued.rowcount + unchecked.rowcount


def close_lease(connection: Connection, token: LeaseToken) -> int:
    """End a lease; what is still claimed under it becomes pending again, or stays done.

    Returns:
        How many images were given back.
    """
    # The lease first, as a rescue does: otherwise each could wait for the other.
    connection.execute(text("DELETE FROM leases WHERE lease_token = :token"), {"token": token})
    pending = connection.execute(
        text("""
            UPDATE extractions SET status = 'pending', lease_token = NULL
            WHERE lease_token = :token AND status = 'claimed'
        """),
        {"token": token},
    ).rowcount
    unchecked = connection.execute(
        text("""
            UPDATE extractions SET lease_token = NULL
            WHERE lease_token = :token AND status = 'done'
        """),
        {"token": token},
    ).rowcount
    return pending + unchecked
