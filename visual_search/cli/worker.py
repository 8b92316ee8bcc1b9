"""What runs in a worker process: a task in on standard input, reports out on standard output.

Started by `workers/process.py`, as `python -m visual_search.cli.worker`; not for people.
"""

import os
import signal
import sys
import threading
from contextlib import suppress


def main() -> None:
    """Do the task that stands in the first line; then each byte is a signal to obey."""
    from visual_search.cli import logs
    from visual_search.pipeline.signals import StopSignals
    from visual_search.workers.report import Report
    from visual_search.workers.task import Task
    from visual_search.workers.work import work

    logs.configure(debug="--debug" in sys.argv)
    answers = os.dup(sys.stdout.fileno())
    # Whatever a user's own network prints, goes where logs go.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as requests:
        task = Task.from_line(requests.readline())

    def send(report: Report) -> None:
        # Without a supervisor there is nobody to tell; what is begun is finished all the same.
        with suppress(BrokenPipeError):
            unsent = memoryview(report.as_line())
            while unsent:
                unsent = unsent[os.write(answers, unsent) :]

    with StopSignals() as stop:
        threading.Thread(target=_obey, name="supervisor", daemon=True).start()
        code = work(task, stop, send)
    raise SystemExit(int(code))


def prepare(*, debug: bool) -> None:
    """Set up a process of another program's, an actor's, as ours are."""
    from visual_search.cli import logs
    from visual_search.cli.memory import keep_freed_memory
    from visual_search.cli.threads import let_idle_threads_sleep

    keep_freed_memory()
    let_idle_threads_sleep()
    logs.configure(debug=debug)


def _obey() -> None:
    """Signals as the supervisor passes them on. When the pipe ends, so has the supervisor."""
    while number := os.read(sys.stdin.fileno(), 1):
        os.kill(os.getpid(), number[0])
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    from visual_search.cli import run

    run(main)
