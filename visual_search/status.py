"""Progress of every active model, from one SQL statement, so that its numbers always add up."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, text

from visual_search.database.connection import Database
from visual_search.images import ModelKey
from visual_search.runs import RunRecord, as_document, list_runs

# A run that says nothing for this long is taken for dead; runs beat three times a lease.
_ALIVE_S: Final = 90


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStatus:
    """Where one model stands; total = done + pending + claimed + failed.

    Attributes:
        waiting: How many of `pending` were tried before and are not due yet.
        images_per_second: Sum of the steady rates of the workers alive; `None` without any.
        eta_seconds: Until all that is due is done, at that rate.
        workers: Runs that are alive.
        last_success_at: When a run last completed that had something to do.
    """

    model: str
    model_id: str
    total: int
    done: int
    pending: int
    waiting: int
    claimed: int
    failed: int
    failed_by_reason: dict[str, int]
    waiting_by_reason: dict[str, int]
    images_per_second: float | None
    eta_seconds: float | None
    workers: int
    last_success_at: datetime | None
    last_run: RunRecord | None

    @property
    def left(self) -> int:
        """Images that have no outcome yet, and whose turn it is."""
        return self.pending + self.claimed - self.waiting


def model_statuses(database: Database) -> list[ModelStatus]:
    """The active models by name; done is what committed shards hold.

    Images that the model was not told of yet count as pending.
    """
    with database.transaction() as connection:
        read_by_index(connection)
        # Claims by their leases alone: told the model's key, too, a planner without statistics
        # reads the index of the whole table for it.
        rows = connection.execute(
            text("""
                SELECT m.model_key, m.name, m.model_id, catalogue.images AS total,
                    (SELECT coalesce(sum(s.rows - s.removed_rows), 0) FROM shards s
                     WHERE s.model_key = m.model_key AND s.state = 'committed') AS done,
                    (SELECT count(*) FROM leases l JOIN extractions e USING (lease_token)
                     WHERE l.model_key = m.model_key AND e.status = 'claimed') AS claimed,
                    (SELECT coalesce(jsonb_object_agg(f.failure_reason, f.images), '{}')
                     FROM (SELECT e.failure_reason, count(*) AS images FROM extractions e
                           WHERE e.model_key = m.model_key AND e.status = 'failed'
                           GROUP BY e.failure_reason) AS f) AS failed_by_reason,
                    (SELECT coalesce(jsonb_object_agg(w.reason, w.images), '{}')
                     FROM (SELECT coalesce(e.failure_reason, 'postponed') AS reason,
                                  count(*) AS images
                           FROM extractions e
                           WHERE e.model_key = m.model_key AND e.status = 'pending'
                             AND e.next_attempt_at > statement_timestamp()
                           GROUP BY 1) AS w) AS waiting_by_reason,
                    (SELECT count(*) FROM runs r
                     WHERE r.model_key = m.model_key AND r.finished_at IS NULL
                       AND r.heartbeat_at > clock_timestamp() - make_interval(secs => :alive_s)
                    ) AS workers,
                    (SELECT sum(r.images_per_second) FROM runs r
                     WHERE r.model_key = m.model_key AND r.finished_at IS NULL
                       AND r.heartbeat_at > clock_timestamp() - make_interval(secs => :alive_s)
                    ) AS images_per_second,
                    (SELECT max(r.finished_at) FROM runs r
                     WHERE r.model_key = m.model_key AND r.outcome = 'completed'
                    ) AS last_success_at
                FROM models m, catalogue
                WHERE m.active
                ORDER BY m.name
            """),
            {"alive_s": _ALIVE_S},
        ).all()
        return [_model_status(connection, row) for row in rows]


def count_claimable(connection: Connection, model_key: ModelKey) -> int:
    """How many images could be claimed now, those included that the model was not told of yet.

    All but the others: they are fewer, or counted in shards.
    """
    read_by_index(connection)
    claimable: int = connection.execute(
        text("""
            SELECT (SELECT images FROM catalogue)
                 - (SELECT coalesce(sum(rows - removed_rows), 0) FROM shards
                    WHERE model_key = :model_key AND state = 'committed')
                 - (SELECT count(*) FROM leases l JOIN extractions e USING (lease_token)
                    WHERE l.model_key = :model_key AND e.status = 'claimed')
                 - (SELECT count(*) FROM extractions
                    WHERE model_key = :model_key AND status = 'failed')
                 - (SELECT count(*) FROM extractions
                    WHERE model_key = :model_key AND status = 'pending'
                      AND next_attempt_at > statement_timestamp())
        """),
        {"model_key": model_key},
    ).scalar_one()
    return claimable


def has_failures(connection: Connection, model_key: ModelKey) -> bool:
    """Whether an image is failed, and will not be tried again by itself."""
    found: bool = connection.execute(
        text("""
            SELECT EXISTS (SELECT FROM extractions
                           WHERE model_key = :model_key AND status = 'failed')
        """),
        {"model_key": model_key},
    ).scalar_one()
    return found


def count_images(database: Database) -> int:
    """How many images the catalogue has."""
    with database.transaction() as connection:
        images: int = connection.execute(text("SELECT images FROM catalogue")).scalar_one()
    return images


def as_documents(statuses: Sequence[ModelStatus]) -> list[dict[str, Any]]:
    """The statuses as `--json` shows them."""
    return [
        asdict(status) | {"last_run": as_document(status.last_run) if status.last_run else None}
        for status in statuses
    ]


def as_table(statuses: Sequence[ModelStatus], now: datetime) -> str:
    """The statuses for people: a row a model, then the failures of each by reason."""
    head = ("model", "total", "done", "pending", "claimed", "failed", "images/s", "ETA", "workers")
    rows = [head]
    for status in statuses:
        rate = status.images_per_second
        rows.append(
            (
                status.model,
                f"{status.total:,}",
                f"{status.done:,}",
                f"{status.pending:,}",
                f"{status.claimed:,}",
                f"{status.failed:,}",
                "–" if rate is None else f"{rate:.1f}",
                "–" if status.eta_seconds is None else duration(status.eta_seconds),
                str(status.workers),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    for status in statuses:
        lines += _remarks(status, now)
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """`seconds` in the two largest units that matter: `3 h 20 min`, `45 s`."""
    whole = round(seconds)
    for unit, size, smaller, small in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small} {smaller}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def _remarks(status: ModelStatus, now: datetime) -> list[str]:
    lines = [""]
    if status.failed:
        lines.append(f"{status.model}: failed for good: {_counts(status.failed_by_reason)}")
    if status.waiting:
        lines.append(
            f"{status.model}: pending, waiting for the next attempt: "
            f"{_counts(status.waiting_by_reason)}"
        )
    run = status.last_run
    if run is not None:
        ended = run.outcome or ("running" if status.workers else "died")
        age = duration(max(0.0, (now - (run.finished_at or run.heartbeat_at)).total_seconds()))
        rate = f", {run.images_per_second:.1f} images/s" if run.images_per_second else ""
        lines.append(
            f"{status.model}: last run {ended} {age} ago: {run.done:,} done, "
            f"{run.failed:,} failed{rate}"
        )
    return lines


def _counts(by_reason: dict[str, int]) -> str:
    ordered = sorted(by_reason.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {reason}" for reason, count in ordered)


def read_by_index(connection: Connection) -> None:
    """For this transaction.

    What is looked at is a small part of the table, but of a model that began this very hour the
    planner does not know that yet.
    """
    connection.execute(text("SET LOCAL enable_seqscan = off"))


def _model_status(connection: Connection, row: Any) -> ModelStatus:
    failed = sum(row.failed_by_reason.values())
    waiting = sum(row.waiting_by_reason.values())
    pending = row.total - int(row.done) - row.claimed - failed
    last = list_runs(connection, models=[row.model_id], limit=1)
    rate = row.images_per_second
    due = pending - waiting + row.claimed
    return ModelStatus(
        model=row.name,
        model_id=row.model_id,
        total=row.total,
        done=int(row.done),
        pending=pending,
        waiting=waiting,
        claimed=row.claimed,
        failed=failed,
        failed_by_reason=row.failed_by_reason,
        waiting_by_reason=row.waiting_by_reason,
        images_per_second=rate,
        eta_seconds=due / rate if rate else None,
        workers=row.workers,
        last_success_at=row.last_success_at,
        last_run=last[0] if last else None,
    )
