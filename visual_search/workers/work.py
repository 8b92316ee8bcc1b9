"""What a worker does, wherever it runs: the pipeline, as every other `vsearch extract`."""

from collections.abc import Callable

import structlog

from visual_search import pipeline
from visual_search.database.connection import open_database
from visual_search.errors import ExitCode, RunError
from visual_search.pipeline import ModelResult, Overseer
from visual_search.pipeline.signals import StopSignals
from visual_search.workers.report import Report, Reporter
from visual_search.workers.task import Task


def work(task: Task, stop: StopSignals, send: Callable[[Report], None]) -> ExitCode:
    """Do a task in this process, and tell how it goes.

    Returns:
        The exit code of the models together; what was wrong stands in their results.
    """
    results: list[ModelResult] = []
    reporter = Reporter(send)

    def note(result: ModelResult) -> None:
        results.append(result)
        reporter.end(result)

    settings = task.settings()
    with structlog.contextvars.bound_contextvars(worker=task.worker):
        try:
            with open_database(settings) as database:
                pipeline.extract(
                    database,
                    settings,
                    task.models,
                    stop=stop,
                    limit=task.limit,
                    on_result=note,
                    overseer=Overseer(
                        run_ids=task.run_ids, begin=reporter.begin, show=reporter.show
                    ),
                )
        except RunError as error:
            ended = {result.model for result in results}
            for name in task.models:
                if name not in ended:
                    note(ModelResult(model=name, exit_code=error.exit_code, error=str(error)))
    return stop.exit_code or pipeline.gravest(results)
