"""The only part that knows the order: claim, download, decode, embed, shard, record.

`extract` runs it for each model in turn; `run.py` holds the threads of one run, `feeder.py` its
beginning, `recorder.py` its end.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal
from uuid import uuid4

import structlog
from sqlalchemy import Connection

from visual_search import claim, models, record, runs, status
from visual_search.database.connection import Database
from visual_search.database.schema import RunOutcome
from visual_search.errors import ExitCode, InternalError, RunError, StoppedError
from visual_search.images import RunId
from visual_search.models import registry, weights
from visual_search.models.registry import RegisteredModel
from visual_search.models.spec import ModelSpec
from visual_search.pipeline.signals import StopSignals
from visual_search.progress import Progress
from visual_search.runs import RunFigures
from visual_search.settings import Settings
from visual_search.shard import output_folder, prepare_output

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Several models end with the gravest of their exit codes, in this order.
_GRAVEST: Final = (
    ExitCode.INTERRUPTED,
    ExitCode.TERMINATED,
    ExitCode.USAGE,
    ExitCode.FAILED,
    ExitCode.TEMPORARY,
    ExitCode.FAILURE_RATE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelResult:
    """How the work for one model ended.

    Attributes:
        run_id: `None` where there was nothing to do, or no run could start.
        waiting: Images that are pending but not due yet.
        due_in_s: Seconds until the first of them is due.
        any_failed: Whether images, of this run or an earlier one, are failed now.
        error: The one sentence of what stopped it.
    """

    model: str
    model_id: str | None = None
    run_id: RunId | None = None
    figures: RunFigures = field(default_factory=RunFigures)
    shards: int = 0
    waiting: int = 0
    due_in_s: float | None = None
    any_failed: bool = False
    exit_code: ExitCode = ExitCode.OK
    error: str | None = None


def extract(
    database: Database,
    settings: Settings,
    names: Sequence[str],
    *,
    stop: StopSignals,
    limit: int | None = None,
    retry_failed: bool = False,
    on_result: Callable[[ModelResult], None] | None = None,
) -> list[ModelResult]:
    """Embed all images that lack a vector, for each model in turn.

    A model that fails does not keep the next one from its work; a signal does.

    Args:
        database: Open, with a current schema.
        settings: Limits, places, device and precision.
        names: Models by name.
        stop: Tells when to drain.
        limit: Claim at most so many images for each model.
        retry_failed: Make each model's failed images pending first.
        on_result: Told of each model's result as soon as it is there.

    Returns:
        One result for each model that was begun; `gravest` makes an exit code of them.
    """
    results = []
    for name in names:
        with structlog.contextvars.bound_contextvars(model=name):
            result = _extract_model(
                database, settings, name, stop=stop, limit=limit, retry_failed=retry_failed
            )
        if on_result is not None:
            on_result(result)
        results.append(result)
        if stop.exit_code is not None:
            break
    return results


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What `extract` would do for a model: how many images it could claim now."""

    model: str
    model_id: str
    claimable: int


def plan(database: Database, settings: Settings, name: str) -> Plan:
    """What `extract` would do for a model; nothing is changed, nothing loaded."""
    spec = resolve_model(database, settings, name)
    asked = settings.embed.precision != "auto"

    def step(connection: Connection) -> int | None:
        known = registry.admit(connection, spec, asked=asked)
        return None if known is None else status.count_claimable(connection, known.model_key)

    claimable = database.run(step)
    return Plan(
        model=name,
        model_id=spec.model_id,
        claimable=status.count_images(database) if claimable is None else claimable,
    )


def gravest(results: Sequence[ModelResult]) -> ExitCode:
    """The exit code of several models."""
    codes = {result.exit_code for result in results}
    return next((code for code in _GRAVEST if code in codes), ExitCode.OK)


def resolve_model(database: Database, settings: Settings, name: str) -> ModelSpec:
    """The spec a name stands for, here and now.

    Precision: as asked for; else that of the active model; else what this device does fast. Torch
    is imported only in the last case.
    """
    return models.resolve(
        name,
        settings.models,
        precision=_precision(database, settings, name),
        home=settings.home,
    )


def _precision(database: Database, settings: Settings, name: str) -> Literal["fp32", "bf16"]:
    asked = settings.embed.precision
    if asked != "auto":
        return asked
    active = database.run(lambda connection: registry.active(connection, name))
    if active is not None:
        return active.spec.precision
    from visual_search import embed  # noqa: PLC0415 - imports torch

    device = embed.choose_device(settings.embed.device)
    return "bf16" if embed.does_bf16_fast(device) else "fp32"


def _extract_model(
    database: Database,
    settings: Settings,
    name: str,
    *,
    stop: StopSignals,
    limit: int | None,
    retry_failed: bool,
) -> ModelResult:
    try:
        asked = settings.embed.precision != "auto"
        spec = resolve_model(database, settings, name)
        folder = output_folder(settings.output_uri)
        if database.run(lambda c: registry.admit(c, spec, asked=asked)) is None:
            # A model whose weights cannot be had is not registered.
            weights.obtain(spec, settings.weights, home=settings.home)
            # Another machine may have registered the name meanwhile, at its own fast precision.
            spec = resolve_model(database, settings, name)
        model = database.run(lambda c: registry.register(c, spec, asked=asked))
        if retry_failed:
            database.run(lambda c: claim.retry_failed(c, model_key=model.model_key))
        idle = _nothing_to_do(database, settings, model)
        if idle is not None:
            return idle
        weights_path = weights.obtain(spec, settings.weights, home=settings.home)
        prepare_output(folder, database.run(record.catalogue_id))
    except RunError as error:
        return ModelResult(model=name, exit_code=error.exit_code, error=str(error))
    with stop.deferred():
        return _run(
            database, settings, model, stop=stop, limit=limit, folder=folder, weights=weights_path
        )


def _nothing_to_do(
    database: Database, settings: Settings, model: RegisteredModel
) -> ModelResult | None:
    """The result of a run that need not start; no model is loaded to find out."""

    def step(connection: Connection) -> ModelResult | None:
        claim.rescue_images(connection, model.model_key, lease_s=settings.extract.lease_s)
        if status.count_claimable(connection, model.model_key):
            return None
        outlook = claim.outlook(connection, model.model_key)
        soon = outlook.next_in_s
        if soon is not None and soon <= settings.extract.wait_s:
            return None
        return ModelResult(
            model=model.name,
            model_id=model.model_id,
            waiting=claim.count_pending(connection, model.model_key),
            due_in_s=outlook.due_in_s,
            any_failed=status.has_failures(connection, model.model_key),
        )

    return database.run(step)


def _run(
    database: Database,
    settings: Settings,
    model: RegisteredModel,
    *,
    stop: StopSignals,
    limit: int | None,
    folder: Path,
    weights: Path | None,
) -> ModelResult:
    from visual_search.pipeline.run import ModelRun  # noqa: PLC0415 - imports torch

    # A full collection goes through all that torch is made of, a quarter of a second in which
    # neither downloads nor batches move on: now, to end the model before, and then never again.
    gc.collect()
    gc.freeze()
    run_id = RunId(uuid4())
    claimable = database.run(lambda c: status.count_claimable(c, model.model_key))
    database.run(lambda c: runs.start_run(c, run_id=run_id, model_key=model.model_key))
    error: RunError | None = None
    with (
        structlog.contextvars.bound_contextvars(run_id=str(run_id)),
        Progress(model.name, claimable if limit is None else min(limit, claimable)) as progress,
    ):
        run = ModelRun(
            database,
            settings,
            model,
            run_id=run_id,
            weights=weights,
            folder=folder,
            limit=limit,
            stop=stop,
            progress=progress,
        )
        log.info("run_started", images=claimable, at=datetime.now(UTC).isoformat())
        try:
            run.execute()
        except RunError as stopped:
            error = stopped
        except BaseException as bug:
            unexpected = InternalError(f"unexpected {type(bug).__name__}")
            _finish(database, run_id, run.figures(), unexpected)
            raise
        if stop.exit_code is not None:
            trouble = f"; then: {error}" if error else ""
            error = StoppedError(
                f"stopped by a signal; finished work is recorded{trouble}", stop.exit_code
            )
        _finish(database, run_id, run.figures(), error)
    outlook = run.outlook
    return ModelResult(
        model=model.name,
        model_id=model.model_id,
        run_id=run_id,
        figures=run.figures(),
        shards=run.shards,
        waiting=run.waiting,
        due_in_s=outlook.due_in_s if outlook else None,
        any_failed=run.figures().failed > 0,
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
