"""Passes through all vectors of a model: where one begins, and when it is complete."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, text

from visual_search.claim import DEATHS_TO_FAIL
from visual_search.images import ModelKey


@dataclass(frozen=True, kw_only=True, slots=True)
class Refresh:
    """One pass through a model's vectors; several workers may share it.

    Attributes:
        before: What was made or checked since then is not checked.
        since: When the pass began: a check that has failed since is not tried again in it.
        kept: The table keeps it until it is complete, and the next run goes on with it.
    """

    before: datetime
    since: datetime
    kept: bool


def begin_refresh(
    connection: Connection, model_key: ModelKey, *, older_than_s: float | None
) -> Refresh | None:
    """Join the pass through all vectors that is not complete yet, or begin one.

    Args:
        connection: Inside a transaction.
        model_key: Whose vectors.
        older_than_s: Only those that were made or checked longer ago than this. What was checked
            tells by itself then where to go on, and no pass is kept.

    Returns:
        `None` if there is nothing to check.
    """
    if older_than_s is None:
        begun = _kept(connection, model_key)
        if begun is None or not _is_left(connection, model_key, begun):
            # Of those that begin at the same time one succeeds, and the others join it.
            connection.execute(
                text("""
                    UPDATE models SET refresh_since = clock_timestamp()
                    WHERE model_key = :model_key
                      AND refresh_since IS NOT DISTINCT FROM CAST(:since AS timestamptz)
                """),
                {"model_key": model_key, "since": begun and begun.since},
            )
            begun = _kept(connection, model_key)
    else:
        begun = look_ahead(connection, model_key, older_than_s=older_than_s)
    return begun if begun is not None and _is_left(connection, model_key, begun) else None


def look_ahead(
    connection: Connection, model_key: ModelKey, *, older_than_s: float | None
) -> Refresh:
    """The pass that `begin_refresh` would join; one that is not kept, if it would begin one."""
    if older_than_s is None:
        kept = _kept(connection, model_key)
        if kept is not None and _is_left(connection, model_key, kept):
            return kept
    row = connection.execute(
        text("""
            SELECT clock_timestamp() - make_interval(secs => :older_than_s) AS before,
                   clock_timestamp() AS since
        """),
        {"older_than_s": older_than_s or 0},
    ).one()
    return Refresh(before=row.before, since=row.since, kept=False)


def finish_refresh(connection: Connection, model_key: ModelKey, refresh: Refresh) -> bool:
    """Whether everything was checked, by whomever; then the next refresh is a new pass."""
    if _is_left(connection, model_key, refresh):
        return False
    connection.execute(
        text("""
            UPDATE models SET refresh_since = NULL
            WHERE model_key = :model_key AND refresh_since = :since AND :kept
        """),
        {"model_key": model_key, "since": refresh.since, "kept": refresh.kept},
    )
    return True


def count_outdated(connection: Connection, model_key: ModelKey, refresh: Refresh) -> int:
    """How many vectors a pass still has to check, those included that are being checked.

    Reads all of them: seconds for ten million.
    """
    outdated: int = connection.execute(
        text("""
            SELECT count(*) FROM extractions
            WHERE model_key = :model_key AND status = 'done'
              AND greatest(finished_at, checked_at) < :before
              AND (next_attempt_at <= :since OR failure_reason IS NULL)
              AND crashes < :deaths
        """),
        {
            "model_key": model_key,
            "deaths": DEATHS_TO_FAIL,
            "before": refresh.before,
            "since": refresh.since,
        },
    ).scalar_one()
    return outdated


def next_lease_end(connection: Connection, model_key: ModelKey) -> float | None:
    """Seconds until the first lease of a worker that checks vectors ends, unless it is renewed."""
    seconds = connection.execute(
        text("""
            SELECT EXTRACT(epoch FROM min(expires_at) - clock_timestamp())
            FROM leases WHERE model_key = :model_key AND checking
        """),
        {"model_key": model_key},
    ).scalar_one()
    return None if seconds is None else float(seconds)


def _kept(connection: Connection, model_key: ModelKey) -> Refresh | None:
    since = connection.execute(
        text("SELECT refresh_since FROM models WHERE model_key = :model_key"),
        {"model_key": model_key},
    ).scalar_one()
    return None if since is None else Refresh(before=since, since=since, kept=True)


def _is_left(connection: Connection, model_key: ModelKey, refresh: Refresh) -> bool:
    """Whether anything is to be checked, or being checked by somebody."""
    left: bool = connection.execute(
        text("""
            SELECT EXISTS (
                SELECT FROM extractions
                WHERE model_key = :model_key AND status = 'done'
                  AND greatest(finished_at, checked_at) < :before
                  AND (next_attempt_at <= :since
                       OR failure_reason IS NULL AND next_attempt_at <= clock_timestamp())
                  AND crashes < :deaths
            )
        """),
        {
            "model_key": model_key,
            "before": refresh.before,
            "since": refresh.since,
            "deaths": DEATHS_TO_FAIL,
        },
    ).scalar_one()
    return left
