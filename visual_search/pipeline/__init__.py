"""The only part that knows the order: claim, download, decode, embed, shard, record.

`extract` runs the models that have something to do together. `preparing.py` finds out which those
are, and has their weights ready; `run.py` holds the threads, `feeder.py`, `decoding.py`,
`embedding.py` and `recorder.py` say what they do, `model_run.py` what each model has to itself.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog
from sqlalchemy import Connection

from visual_search import refresh, runs, status
from visual_search.database.connection import Database
from visual_search.database.schema import RunOutcome
from visual_search.errors import ExitCode, InternalError, RunError, StoppedError
from visual_search.images import RunId
from visual_search.metrics.exporter import Exporter
from visual_search.models.registry import RegisteredModel
from visual_search.pipeline.checks import Checks, finish_checks
from visual_search.pipeline.preparing import Plan, Ready, plan, prepare_model
from visual_search.pipeline.results import ModelResult, gravest
from visual_search.pipeline.signals import StopSignals
from visual_search.progress import Progress
from visual_search.runs import RunFigures
from visual_search.settings import Settings
from visual_search.storage import open_storage

if TYPE_CHECKING:
    from visual_search.pipeline.model_run import ModelRun, ModelWork

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

__all__ = ["ModelResult", "Overseer", "Plan", "extract", "gravest", "plan", "prepare"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Overseer:
    """Is told how it goes where this process is one of several workers; there is no bar then.

    Attributes:
        run_ids: What the runs of the models are to be called.
        begin: Told of each model's run before it claims anything, with what says how far it is.
        show: Told again and again how many images are done and failed, as `Progress` is.
    """

    run_ids: Mapping[str, RunId]
    begin: Callable[[str, Callable[[], RunFigures]], None]
    show: Callable[[int, int], None]


def extract(
    database: Database,
    settings: Settings,
    names: Sequence[str],
    *,
    stop: StopSignals,
    limit: int | None = None,
    retry_failed: bool = False,
    checks: Checks | None = None,
    on_result: Callable[[ModelResult], None] | None = None,
    overseer: Overseer | None = None,
) -> list[ModelResult]:
    """Embed all images that lack a vector, each fetched once for all models that lack it.

    With `checks`, ask instead for the pictures of the vectors that are there, and embed those again
    that have changed.

    A model that fails does not keep another one from its work; a signal does.

    Args:
        database: Open, with a current schema.
        settings: Limits, places, device and precision.
        names: Models by name.
        stop: Tells when to drain.
        limit: Claim at most so many images for each model.
        retry_failed: Make each model's failed images pending first.
        checks: Check vectors instead.
        on_result: Told of each model's result as soon as it is there.
        overseer: Of several workers, of which this is one.

    Returns:
        One result for each model that was begun; `gravest` makes an exit code of them.
    """
    results: list[ModelResult] = []

    def note(result: ModelResult) -> None:
        results.append(result)
        metrics.end(result.model, result.exit_code)
        if on_result is not None:
            on_result(result)

    run_ids = overseer.run_ids if overseer else {name: RunId(uuid4()) for name in names}
    with (
        _bound(run_ids),
        Exporter(settings.metrics, settings.home, tells_success=overseer is None) as metrics,
    ):
        ready: dict[RunId, Ready] = {}
        for name in names:
            if stop.exit_code is not None:
                break
            with _bound({name: run_ids[name]}):
                prepared = prepare_model(
                    database, settings, name, retry_failed=retry_failed, checks=checks
                )
            if isinstance(prepared, ModelResult):
                note(prepared)
            else:
                ready[run_ids[name]] = prepared
        if ready and stop.exit_code is None:
            with stop.deferred(), _bound({each.model.name: i for i, each in ready.items()}):
                _run(
                    database,
                    settings,
                    ready,
                    stop=stop,
                    limit=limit,
                    note=note,
                    metrics=metrics,
                    overseer=overseer,
                )
    return sorted(results, key=lambda result: names.index(result.model))


def prepare(
    database: Database, settings: Settings, name: str, *, retry_failed: bool = False
) -> RegisteredModel | ModelResult:
    """What `extract` does for a model before its run: register it, and have its weights here.

    Returns:
        The model; its result if there is nothing to do, or if it cannot be done.
    """
    prepared = prepare_model(database, settings, name, retry_failed=retry_failed, checks=None)
    return prepared if isinstance(prepared, ModelResult) else prepared.model


def _bound(run_ids: Mapping[str, RunId]) -> AbstractContextManager[None]:
    """Log lines from within are about the runs of these models."""
    return structlog.contextvars.bound_contextvars(
        model=", ".join(run_ids), run_id=", ".join(map(str, run_ids.values()))
    )


def _run(
    database: Database,
    settings: Settings,
    ready: Mapping[RunId, Ready],
    *,
    stop: StopSignals,
    limit: int | None,
    note: Callable[[ModelResult], None],
    metrics: Exporter,
    overseer: Overseer | None,
) -> None:
    """Run the models together; their results are told to `note`.

    Raises:
        BaseException: What stopped a model, if it was not to be expected; after all results.
    """
    # What a run imports takes half a second, and often there is nothing to do.
    from visual_search.pipeline.model_run import ModelWork  # noqa: PLC0415
    from visual_search.pipeline.run import Run  # noqa: PLC0415

    work = [
        ModelWork(
            model=each.model,
            run_id=run_id,
            weights=each.weights,
            limit=limit,
            refresh=each.refresh,
        )
        for run_id, each in ready.items()
    ]
    images = 0
    for each in work:
        claimable = database.run(lambda c, each=each: _count_work(c, each))  # type: ignore[misc]
        database.run(
            lambda c, each=each: runs.start_run(  # type: ignore[misc]
                c, run_id=each.run_id, model_key=each.model.model_key
            )
        )
        images += claimable if limit is None else min(limit, claimable)
        log.info(
            "run_started",
            model=each.model.name,
            run_id=str(each.run_id),
            images=claimable,
            at=datetime.now(UTC).isoformat(),
        )
    with ExitStack() as shown:
        names = ", ".join(each.model.name for each in work)
        bar = overseer or shown.enter_context(Progress(names, images))
        run = Run(
            database,
            settings,
            work,
            storage=open_storage(settings.output_uri, settings.storage),
            stop=stop,
            show=bar.show,
        )
        for part in run.models:
            metrics.begin(part.model.spec, part.figures)
            if overseer is not None:
                overseer.begin(part.model.name, part.figures)
        run.execute()
    for part in run.models:
        with part.bound():
            if part.error is None or isinstance(part.error, RunError):
                note(_finished(database, part, part.error, stop))
            else:
                bug = InternalError(f"unexpected {type(part.error).__name__}")
                _finish(database, part.run_id, part.figures(), bug)
                metrics.end(part.model.name, bug.exit_code)
    for part in run.models:
        if part.error is not None and not isinstance(part.error, RunError):
            raise part.error


def _count_work(connection: Connection, work: "ModelWork") -> int:
    if work.refresh is None:
        return status.count_claimable(connection, work.model.model_key)
    return refresh.count_outdated(connection, work.model.model_key, work.refresh)


def _finished(
    database: Database, run: "ModelRun", error: RunError | None, stop: StopSignals
) -> ModelResult:
    """The end of a model's run, as the table and the caller get it."""
    if stop.exit_code is not None:
        trouble = f"; then: {error}" if error else ""
        error = StoppedError(
            f"stopped by a signal; finished work is recorded{trouble}", stop.exit_code
        )
    elif error is None and run.refresh is not None:
        finish_checks(database, run.model, run.refresh)
    _finish(database, run.run_id, run.figures(), error)
    return ModelResult(
        model=run.model.name,
        checked=run.refresh is not None,
        model_id=run.model.model_id,
        run_id=run.run_id,
        figures=run.figures(),
        shards=run.recorder.shards,
        waiting=run.waiting,
        due_in_s=run.outlook.due_in_s if run.outlook else None,
        any_failed=run.recorder.failed > 0,
        exit_code=error.exit_code if error else ExitCode.OK,
        error=str(error) if error else None,
    )


def _finish(database: Database, run_id: RunId, figures: RunFigures, error: RunError | None) -> None:
    outcome = RunOutcome.COMPLETED
    if isinstance(error, StoppedError):
        outcome = RunOutcome.STOPPED
    elif error is not None:
        outcome = RunOutcome.FAILED
    try:
        with database.transaction() as connection:
            runs.finish_run(
                connection,
                run_id,
                figures,
                outcome=outcome,
                message=str(error) if error else None,
            )
    except RunError as gone:
        log.warning("run_not_finished_in_database", error=str(gone))
