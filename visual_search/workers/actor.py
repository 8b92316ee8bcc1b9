"""A worker that is an actor: what runs in a process that Ray has started somewhere."""

from collections.abc import Callable

from visual_search import __version__, record
from visual_search.database.connection import open_database
from visual_search.errors import ExitCode, RunError, UsageError
from visual_search.pipeline import ModelResult
from visual_search.pipeline.signals import StopSignals
from visual_search.shard import check_owner
from visual_search.storage import open_storage
from visual_search.workers.report import Report
from visual_search.workers.task import Task
from visual_search.workers.work import work


class WorkerActor:
    """Does one task, and is asked meanwhile how it goes.

    Ray calls the methods from several threads.
    """

    def __init__(self, version: str, prepare: Callable[[], None]) -> None:
        """Nothing is done yet.

        Args:
            version: Of the package where the command was given.
            prepare: Sets up memory, threads and logs of the process.
        """
        prepare()
        self._version = version
        self._stop = StopSignals()
        self._report = Report()

    def work(self, task: Task) -> tuple[ExitCode, Report]:
        """Do a task to its end; the last report, too."""
        try:
            self._check(task)
        except RunError as error:
            self._report = Report(
                results=tuple(
                    ModelResult(model=name, exit_code=error.exit_code, error=str(error))
                    for name in task.models
                )
            )
            return error.exit_code, self._report
        return work(task, self._stop, self._note), self._report

    def report(self) -> Report:
        """The latest."""
        return self._report

    def drain(self, code: ExitCode) -> None:
        """Finish what is begun; the task then ends with this code."""
        self._stop.exit_code = code

    def _note(self, report: Report) -> None:
        self._report = report

    def _check(self, task: Task) -> None:
        """See that this machine has the same package, the same database and the same output."""
        if __version__ != self._version:
            raise UsageError(
                f"a node of the Ray cluster has vsearch {__version__}, this machine "
                f"{self._version}; install the same version on all"
            )
        settings = task.settings()
        storage = open_storage(settings.output_uri, settings.storage)
        with open_database(settings) as database:
            catalogue_id = database.run(record.catalogue_id)
        # Written where the command was given. A folder of the same name is not the same folder.
        check_owner(storage, catalogue_id)
