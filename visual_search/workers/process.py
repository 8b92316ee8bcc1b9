"""A worker that is a child process: the supervisor's side of its pipes."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

from visual_search.errors import ExitCode
from visual_search.settings import Settings
from visual_search.workers.keeper import End, Worker
from visual_search.workers.placement import places
from visual_search.workers.report import Report
from visual_search.workers.task import Task, pack_settings


def hire_processes(
    settings: Settings,
    environment: Mapping[str, str],
    models: tuple[str, ...],
    *,
    limit: int | None,
    debug: bool,
) -> list[tuple[Worker, Task]]:
    """The workers of this machine for some models, each with its part of the limits.

    Args:
        settings: Of the command.
        environment: Of this process.
        models: Names.
        limit: As of `extract`.
        debug: Let workers show debug logs and tracebacks.

    Raises:
        SettingsError, TemporaryError: As of `places`.
    """
    return [
        (
            WorkerProcess(place.environment, debug=debug),
            Task(
                worker=number,
                models=models,
                limit=place.limit,
                packed_settings=pack_settings(place.settings),
            ),
        )
        for number, place in enumerate(places(settings, environment, limit=limit), start=1)
    ]


class WorkerProcess:
    """Runs `visual_search.cli.worker` in a process of its own, a new one for each task.

    The child's standard input has its task, then signals to obey; it ends when we do, however that
    happens, and then the child drains. Its logs go where ours go.
    """

    is_waiting = False

    def __init__(self, environment: Mapping[str, str], *, debug: bool = False) -> None:
        """Nothing is started yet.

        Args:
            environment: Of the child.
            debug: Let it show debug logs and tracebacks.
        """
        self._environment = dict(environment) | {
            # What this process can import, the child can too, installed or in a checkout.
            "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path),
        }
        self._flags = ["--debug"] if debug else []
        self._writing = threading.Lock()
        self._requests: IO[bytes] | None = None

    def run(self, task: Task, on_report: Callable[[Report], None]) -> End:
        """Start a child on a task, and wait for its end."""
        try:
            child = subprocess.Popen(
                # -P: whatever folder is the current one, it provides no modules.
                [sys.executable, "-P", "-m", "visual_search.cli.worker", *self._flags],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=self._environment,
                # Ctrl-C at a terminal is for us, who pass it on.
                process_group=0,
            )
        except OSError as error:
            how = f"no process can be started for it ({error.strerror})"
            return End(code=ExitCode.TEMPORARY, how=how)
        requests, reports = cast("IO[bytes]", child.stdin), cast("IO[bytes]", child.stdout)
        try:
            with self._writing:
                self._requests = requests
                self._write(task.as_line())
            for line in reports:
                # One that was killed may leave half a line.
                if line.endswith(b"\n"):
                    on_report(Report.from_line(line))
        finally:
            code = child.wait()
            with self._writing:
                self._requests = None
                with suppress(BrokenPipeError):
                    requests.close()
            reports.close()
        return _end(code)

    def drain(self, number: signal.Signals) -> None:
        """Pass a signal on, if there is a child."""
        with self._writing:
            self._write(bytes([number]))

    def close(self) -> None:
        """Nothing is left of a child that has ended."""

    def _write(self, request: bytes) -> None:
        if self._requests is not None:
            # It may have ended.
            with suppress(BrokenPipeError):
                self._requests.write(request)
                self._requests.flush()


def _end(code: int) -> End:
    how = f"its process ended with exit code {code}"
    if code < 0:
        how = f"its process died of {signal.Signals(-code).name}"
    if code == -signal.SIGKILL:
        how += ", as when memory runs out"
    return End.of(code, how)
