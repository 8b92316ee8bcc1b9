"""Several workers as one command: prepared once, watched, told of as one."""

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import structlog

from visual_search import pipeline, status
from visual_search.database.connection import Database
from visual_search.errors import ExitCode
from visual_search.metrics.exporter import Exporter
from visual_search.models.registry import RegisteredModel
from visual_search.pipeline import ModelResult
from visual_search.pipeline.signals import StopSignals
from visual_search.progress import Progress
from visual_search.settings import Settings
from visual_search.workers.keeper import Keeper, Worker
from visual_search.workers.results import merge_results
from visual_search.workers.task import Task

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_POLL_S: Final = 0.1
_SIGNALS: Final = {
    ExitCode.INTERRUPTED: signal.SIGINT,
    ExitCode.TERMINATED: signal.SIGTERM,
}

Hire = Callable[[tuple[str, ...]], list[tuple[Worker, Task]]]
"""Where workers for these models come from, and what each has to do; none is started yet."""


def extract(
    database: Database,
    settings: Settings,
    names: Sequence[str],
    *,
    hire: Hire,
    stop: StopSignals,
    limit: int | None = None,
    retry_failed: bool = False,
    on_result: Callable[[ModelResult], None] | None = None,
) -> list[ModelResult]:
    """As `pipeline.extract`, in workers.

    Models are registered, their weights fetched and failed images made due once, here; and where
    there is nothing to do, no worker is started.
    """
    results: list[ModelResult] = []

    def note(result: ModelResult) -> None:
        results.append(result)
        metrics.end(result.model, result.exit_code)
        if on_result is not None:
            on_result(result)

    with Exporter(settings.metrics, settings.home) as metrics:
        ready: list[RegisteredModel] = []
        for name in names:
            prepared = pipeline.prepare(database, settings, name, retry_failed=retry_failed)
            if isinstance(prepared, ModelResult):
                note(prepared)
            else:
                ready.append(prepared)
        if ready:
            images = _count_images(database, ready, limit)
            begun = tuple(model.name for model in ready)
            with stop.deferred(), Progress(", ".join(begun), images) as progress:
                keepers = [Keeper(worker, task, database) for worker, task in hire(begun)]
                _watch(keepers, database, settings, stop=stop, show=progress.show)
            for result in _merged(begun, keepers, stop):
                note(result)
            for keeper in keepers:
                if keeper.bug is not None:
                    raise keeper.bug
    return sorted(results, key=lambda result: names.index(result.model))


def _count_images(database: Database, models: Sequence[RegisteredModel], limit: int | None) -> int:
    """How many images there are to do, counted for each model."""
    images = 0
    for model in models:
        key = model.model_key
        claimable = database.run(lambda c, key=key: status.count_claimable(c, key))  # type: ignore[misc]
        images += claimable if limit is None else min(limit, claimable)
    return images


def _watch(
    keepers: Sequence[Keeper],
    database: Database,
    settings: Settings,
    *,
    stop: StopSignals,
    show: Callable[[int, int], None],
) -> None:
    """Have the workers work to their ends; show progress and pass signals on meanwhile."""
    log.info("workers_started", workers=len(keepers))
    for keeper in keepers:
        keeper.start()
    draining = False
    while any(keeper.is_at_work for keeper in keepers):
        time.sleep(_POLL_S)
        show(sum(keeper.shown[0] for keeper in keepers), sum(keeper.shown[1] for keeper in keepers))
        at_work = [keeper for keeper in keepers if keeper.is_at_work]
        if all(keeper.is_done_by(keepers) for keeper in at_work):
            for keeper in at_work:
                keeper.drain(signal.SIGTERM)
        if stop.exit_code is not None and not draining:
            draining = True
            log.info("draining", seconds=settings.extract.drain_s)
            database.limit_patience(settings.extract.drain_s)
            for keeper in keepers:
                keeper.drain(_SIGNALS[stop.exit_code])


def _merged(
    names: Sequence[str], keepers: Sequence[Keeper], stop: StopSignals
) -> list[ModelResult]:
    results = [
        merge_results(
            name,
            [[r for life in keeper.lives for r in life if r.model == name] for keeper in keepers],
        )
        for name in names
    ]
    if stop.exit_code is None:
        return results
    stopped = "stopped by a signal; finished work is recorded"
    return [replace(result, exit_code=stop.exit_code, error=stopped) for result in results]
