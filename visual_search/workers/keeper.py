"""One worker, kept at work: started again when it dies, what it held given to others."""

import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Final, Protocol
from uuid import uuid4

import structlog
from sqlalchemy import Connection

from visual_search import claim, runs
from visual_search.database.connection import Database
from visual_search.errors import ExitCode, RunError
from visual_search.images import RunId
from visual_search.pipeline import ModelResult
from visual_search.runs import RunFigures
from visual_search.workers.report import Report
from visual_search.workers.task import Task

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

# Ends that a second try would not change. All others are deaths.
_FORESEEN: Final = (
    ExitCode.OK,
    ExitCode.USAGE,
    ExitCode.FAILURE_RATE,
    ExitCode.TEMPORARY,
    ExitCode.INTERRUPTED,
    ExitCode.TERMINATED,
)
# So many deaths in a row after which nothing was recorded, and it is given up. More than an image
# that kills its worker can cause (claim.DEATHS_TO_FAIL).
_FRUITLESS_DEATHS: Final = 6
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """How a worker ended.

    Attributes:
        code: `FAILED` for whatever was not foreseen.
        how: For people, as the end of a sentence.
    """

    code: ExitCode
    how: str

    @classmethod
    def of(cls, code: int, how: str) -> "End":
        """Of an exit code: one that is not foreseen is a death."""
        return cls(code=ExitCode(code) if code in _FORESEEN else ExitCode.FAILED, how=how)


class Worker(Protocol):
    """What does a task: a process, or an actor somewhere.

    Attributes:
        is_waiting: There is no room for it yet, and perhaps never will be.
    """

    is_waiting: bool

    def run(self, task: Task, on_report: Callable[[Report], None]) -> End:
        """Do the task to its end, however it comes, and tell how it goes meanwhile."""

    def drain(self, number: signal.Signals) -> None:
        """Let it finish what it has begun; from another thread, at any time."""

    def close(self) -> None:
        """Nothing more is wanted of it."""


class Keeper:
    """Keeps one worker at work, in a thread of its own.

    A worker that ends as one may end (done, or nothing it could do better a second time) is left
    alone. One that dies is started again, after a pause that grows for as long as it records
    nothing, and what it held is given to all workers at once, without waiting for its lease.

    Attributes:
        lives: What came of each life, by model.
        done_at: When it had done all there was, by this machine's clock; `None` if it did not.
        bug: What was not to be expected; the caller's to raise.
    """

    def __init__(self, worker: Worker, task: Task, database: Database) -> None:
        self._worker = worker
        self._task = task
        self._database = database
        self._report = Report()
        self._shown_before = (0, 0)
        self._draining = threading.Event()
        self._begun_at = 0.0
        self.done_at: float | None = None
        self.lives: list[list[ModelResult]] = []
        self.bug: BaseException | None = None
        context = copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._keep,), name=f"worker-{task.worker}", daemon=True
        )

    def start(self) -> None:
        """Let it begin."""
        self._thread.start()

    def drain(self, number: signal.Signals) -> None:
        """Let the worker finish what it has begun, and start it no more."""
        self._draining.set()
        self._worker.drain(number)

    @property
    def is_at_work(self) -> bool:
        """Whether it lives, or will live again."""
        return self._thread.is_alive()

    def is_done_by(self, others: Iterable["Keeper"]) -> bool:
        """Whether there is no room for the worker, and nothing left to do for it.

        Another one looked, and found nothing, since this one began to wait.
        """
        return self._worker.is_waiting and any(
            other.done_at is not None and other.done_at > self._begun_at for other in others
        )

    @property
    def shown(self) -> tuple[int, int]:
        """Images embedded and failed, in all its lives."""
        done, failed = self._shown_before
        return done + self._report.shown[0], failed + self._report.shown[1]

    def _keep(self) -> None:
        with structlog.contextvars.bound_contextvars(worker=self._task.worker):
            try:
                self._live_on()
            except BaseException as error:  # noqa: BLE001 - the caller raises it
                self.bug = error
            finally:
                self._worker.close()

    def _live_on(self) -> None:
        fruitless = 0
        task: Task | None = self._task
        while task is not None and not self._draining.is_set():
            self._shown_before = self.shown
            self._report = Report()
            task = replace(task, run_ids={name: RunId(uuid4()) for name in task.models})
            self._begun_at = time.monotonic()
            end = self._worker.run(task, self._hear)
            life = self._life(task, end)
            if end.code is not ExitCode.FAILED:
                if end.code is ExitCode.OK and task.limit is None:
                    self.done_at = time.monotonic()
                self.lives.append(life)
                return
            recorded = any(result.figures.done + result.figures.failed for result in life)
            fruitless = 0 if recorded else fruitless + 1
            if fruitless >= _FRUITLESS_DEATHS or self._draining.is_set():
                log.error("worker_given_up", why=end.how, deaths=fruitless)
                self.lives.append(life)
                return
            # What came of this life counts; how it ended is being mended.
            self.lives.append(
                [replace(result, exit_code=ExitCode.OK, error=None) for result in life]
            )
            pause_s = min(_FIRST_PAUSE_S * 2 ** max(0, fruitless - 1), _LONGEST_PAUSE_S)
            log.warning("worker_died", why=end.how, again_in_s=pause_s)
            task = _rest(task, life)
            self._draining.wait(pause_s)

    def _hear(self, report: Report) -> None:
        self._report = report

    def _life(self, task: Task, end: End) -> list[ModelResult]:
        """What came of a life, by model; what it held without a word is given to others."""
        known = {result.model: result for result in self._report.results}
        return [known.get(name) or self._lost(task, name, end) for name in task.models]

    def _lost(self, task: Task, name: str, end: End) -> ModelResult:
        """What is known of a model whose end was not heard of."""
        heard = self._report.figures.get(name, RunFigures())
        figures = self._take_back(task.run_ids[name], heard, end)
        return ModelResult(
            model=name,
            run_id=None if figures is None else task.run_ids[name],
            figures=figures or heard,
            shards=figures.shards if figures else 0,
            exit_code=end.code,
            error=f"worker {task.worker} ended too early: {end.how}",
        )

    def _take_back(self, run_id: RunId, heard: RunFigures, end: End) -> RunFigures | None:
        """Give what a run held to others; says what it had done, `None` if it never began."""

        def step(connection: Connection) -> tuple[int, RunFigures | None]:
            rescued = claim.rescue_run(connection, run_id)
            return rescued, runs.finish_dead_run(connection, run_id, heard, message=end.how)

        try:
            rescued, figures = self._database.run(step)
        except RunError as error:
            # Its leases end by themselves, and other workers take its images over then.
            log.warning("run_not_finished_in_database", run_id=str(run_id), error=str(error))
            return heard
        if figures is not None:
            log.info("run_rescued", run_id=str(run_id), images=rescued)
        return figures


def _rest(task: Task, life: list[ModelResult]) -> Task | None:
    """What is left of a task after a life; `None`: nothing."""
    if task.limit is None:
        return task
    used = {result.model: result.figures.done + result.figures.failed for result in life}
    left = {name: task.limit - used.get(name, 0) for name in task.models}
    models = tuple(name for name in task.models if left[name] > 0)
    # One number for all of them: rather a few images too few than one too many.
    return (
        replace(task, models=models, limit=min(left[name] for name in models)) if models else None
    )
