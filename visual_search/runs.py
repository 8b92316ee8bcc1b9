"""One row for each run of one model: that it lives, what it did, how fast, and where time went."""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Row, text

from visual_search.database.schema import RunOutcome
from visual_search.images import ModelKey, RunId

STAGES = ("download", "decode", "embed", "write", "database")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFigures:
    """What a run has done so far; rates and times as `RunRecord` defines them.

    Attributes:
        unchanged: Images whose vector was checked and stays. This and what follows is not kept in
            the table.
        failed_by_reason: `failed` by reason.
        in_flight: Images claimed of which no outcome is known yet.
        shards: Shards recorded.
        downloaded_bytes: Of images, whatever became of them. What several models wanted counts for
            each in equal parts.
    """

    claimed: int = 0
    done: int = 0
    failed: int = 0
    images_per_second: float | None = None
    core_seconds_per_stage: Mapping[str, float] = field(default_factory=dict)
    unchanged: int = 0
    failed_by_reason: Mapping[str, int] = field(default_factory=dict)
    in_flight: int = 0
    shards: int = 0
    downloaded_bytes: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """A run as the table has it.

    Attributes:
        outcome: `None` while the run lives, and for ever if it died without a word.
        claimed: Images taken.
        done: Images with a recorded vector.
        failed: Images with a recorded failure, final or waiting.
        images_per_second: Steady rate: without start-up, model loading and the final flush.
        core_seconds_per_stage: Processor time of download, decode, embed, write and database.
    """

    run_id: UUID
    model: str
    model_id: str
    host: str
    pid: int
    started_at: datetime
    heartbeat_at: datetime
    finished_at: datetime | None
    outcome: str | None
    message: str | None
    claimed: int
    done: int
    failed: int
    images_per_second: float | None
    core_seconds_per_stage: dict[str, float]


def start_run(connection: Connection, *, run_id: RunId, model_key: ModelKey) -> None:
    """Announce a run of this process."""
    connection.execute(
        text("""
            INSERT INTO runs (run_id, model_key, host, pid)
            VALUES (:run_id, :model_key, :host, :pid)
        """),
        {
            "run_id": run_id,
            "model_key": model_key,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        },
    )


def beat_run(connection: Connection, run_id: RunId, figures: RunFigures) -> None:
    """Say that the run lives, and what it has done."""
    connection.execute(
        text("""
            UPDATE runs SET
                heartbeat_at = clock_timestamp(), claimed = :claimed, done = :done,
                failed = :failed, images_per_second = :images_per_second,
                core_seconds_per_stage = CAST(:core_seconds AS jsonb)
            WHERE run_id = :run_id
        """),
        {"run_id": run_id, **_columns(figures)},
    )


def finish_run(
    connection: Connection,
    run_id: RunId,
    figures: RunFigures,
    *,
    outcome: RunOutcome,
    message: str | None,
) -> None:
    """Say how the run ended."""
    beat_run(connection, run_id, figures)
    connection.execute(
        text("""
            UPDATE runs
            SET finished_at = clock_timestamp(), outcome = :outcome, message = :message
            WHERE run_id = :run_id
        """),
        {"run_id": run_id, "outcome": outcome.value, "message": message},
    )


def finish_dead_run(
    connection: Connection, run_id: RunId, figures: RunFigures, *, message: str
) -> RunFigures | None:
    """Say that the run's process has ended without a word.

    Args:
        connection: Inside a transaction.
        run_id: Whose.
        figures: What it said last; more may have been recorded since.
        message: How the process ended.

    Returns:
        The figures, with the images and shards that are recorded; `None` if it never began.
    """
    recorded = connection.execute(
        text("""
            SELECT coalesce(sum(s.rows), 0) AS rows, count(s.rows) AS shards
            FROM runs r LEFT JOIN shards s
                ON s.run_id = r.run_id AND s.state IN ('committed', 'superseded')
            WHERE r.run_id = :run_id
            GROUP BY r.run_id
        """),
        {"run_id": run_id},
    ).first()
    if recorded is None:
        return None
    figures = replace(
        figures,
        claimed=max(figures.claimed, int(recorded.rows) + figures.failed),
        done=int(recorded.rows),
        shards=recorded.shards,
    )
    finish_run(connection, run_id, figures, outcome=RunOutcome.FAILED, message=message)
    return figures


def list_runs(
    connection: Connection, *, models: Sequence[str] | None = None, limit: int = 100
) -> list[RunRecord]:
    """The latest runs, newest first, of all models or of those with these names or ids."""
    rows = connection.execute(
        text("""
            SELECT r.*, m.name, m.model_id
            FROM models m CROSS JOIN LATERAL (
                SELECT * FROM runs WHERE model_key = m.model_key
                ORDER BY started_at DESC LIMIT :limit
            ) AS r
            WHERE CAST(:models AS text[]) IS NULL
               OR m.name = ANY (CAST(:models AS text[]))
               OR m.model_id = ANY (CAST(:models AS text[]))
            ORDER BY r.started_at DESC LIMIT :limit
        """),
        {"models": None if models is None else list(models), "limit": limit},
    )
    return [run_record(row) for row in rows]


def find_runs(connection: Connection, prefix: str) -> list[RunRecord]:
    """The runs whose id begins with `prefix`."""
    rows = connection.execute(
        text("""
            SELECT r.*, m.name, m.model_id FROM runs r JOIN models m USING (model_key)
            WHERE starts_with(CAST(r.run_id AS text), :prefix)
            ORDER BY r.started_at DESC LIMIT 10
        """),
        {"prefix": prefix.lower()},
    )
    return [run_record(row) for row in rows]


def run_record(row: Row[Any]) -> RunRecord:
    """A row of `runs` joined with `models`."""
    return RunRecord(
        run_id=row.run_id,
        model=row.name,
        model_id=row.model_id,
        host=row.host,
        pid=row.pid,
        started_at=row.started_at,
        heartbeat_at=row.heartbeat_at,
        finished_at=row.finished_at,
        outcome=row.outcome,
        message=row.message,
        claimed=row.claimed,
        done=row.done,
        failed=row.failed,
        images_per_second=row.images_per_second,
        core_seconds_per_stage=row.core_seconds_per_stage,
    )


def as_document(run: RunRecord) -> dict[str, Any]:
    """The run as `--json` shows it."""
    document = asdict(run)
    document["counts"] = {name: document.pop(name) for name in ("claimed", "done", "failed")}
    return document


def _columns(figures: RunFigures) -> dict[str, Any]:
    return {
        "claimed": figures.claimed,
        "done": figures.done,
        "failed": figures.failed,
        "images_per_second": figures.images_per_second,
        "core_seconds": json.dumps(figures.core_seconds_per_stage),
    }
