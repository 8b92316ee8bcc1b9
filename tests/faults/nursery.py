"""Where workers are born quickly: `python -m tests.faults.nursery`.

Importing torch takes seconds. This process does it once, starts no thread, and forks a child for
each request it reads; the child becomes a `vsearch` of its own, a process like any other, only that
its imports are there already. So a test can start hundreds, and kill each by its pid.

A request is one line of JSON on standard input, an answer one line on standard output:
`{"number", "pid"}` when the child was born, `{"number", "status"}` (of `waitpid`) when it ended. At
the end of the input all children that are left are killed.
"""

import atexit
import gc
import importlib
import json
import os
import random
import select
import signal
import sys
import threading
import traceback
from typing import Any, NoReturn

# What a worker imports on its way, besides what these import.
_MODULES = (
    "pandas",  # which pyarrow imports where it is installed
    "psycopg2",
    "sqlalchemy.dialects.postgresql.psycopg2",
    "torch",
    "torchvision",
    "visual_search.cli",
    "visual_search.cli.logs",
    "visual_search.compaction",
    "visual_search.database.migrate",
    "visual_search.pipeline.decoding",
    "visual_search.pipeline.embedding",
    "visual_search.pipeline.run",
    "visual_search.status",
    "visual_search.upkeep",
    "tests.tiny_model",
    "tests.faults.points",
)


def main() -> None:
    for module in _MODULES:
        importlib.import_module(module)
    gc.freeze()  # the children's collections leave alone, and so share, what is there now
    nursery = _Nursery()
    nursery.tell({"ready": os.getpid()})
    nursery.serve()


class _Nursery:
    """The parent: it only forks, waits and tells."""

    def __init__(self) -> None:
        self._children: dict[int, int] = {}
        self._unread = b""
        self._ended, self._end = os.pipe()
        for end in (self._ended, self._end):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._end)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        # Ctrl-C in a terminal reaches the whole group; the tests decide who ends when.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def tell(self, answer: dict[str, int]) -> None:
        os.write(1, json.dumps(answer).encode() + b"\n")

    def serve(self) -> None:
        while True:
            readable, _, _ = select.select([0, self._ended], [], [])
            if self._ended in readable:
                os.read(self._ended, 4096)
                self._bury()
            if 0 in readable and not self._read():
                break
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)

    def _read(self) -> bool:
        part = os.read(0, 65536)
        *lines, self._unread = (self._unread + part).split(b"\n")
        for line in lines:
            self._bear(json.loads(line))
        return bool(part)

    def _bear(self, request: dict[str, Any]) -> None:
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            os.close(self._ended)
            os.close(self._end)
            _live(request)
        self._children[pid] = request["number"]
        self.tell({"number": request["number"], "pid": pid})

    def _bury(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self.tell({"number": self._children.pop(pid), "status": status})


def _live(request: dict[str, Any]) -> NoReturn:
    """The child: do what the request says as if started for it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _redirect(0, os.devnull, os.O_RDONLY)
    _redirect(1, request["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    _redirect(2, request["err"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.environ.clear()
    os.environ.update(request["environment"])
    random.seed()  # or all children would draw the same jitter
    for patch in request["patches"]:
        _call(patch)
    sys.argv = ["vsearch", *request["arguments"]]
    code = 0
    try:
        _call(request["call"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does at the top
        traceback.print_exc()
        code = 1
    _end(code)


def _end(code: int) -> NoReturn:
    """What the interpreter does at its end, but for taking all modules apart.

    That would first copy all memory that is shared with the nursery, which takes seconds.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the end does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _redirect(descriptor: int, path: str, flags: int) -> None:
    opened = os.open(path, flags, 0o600)
    os.dup2(opened, descriptor)
    os.close(opened)


def _call(what: dict[str, Any]) -> None:
    module, _, name = what["function"].partition(":")
    getattr(importlib.import_module(module), name)(**what["with"])


if __name__ == "__main__":
    # Not under the name `__main__`, or what a child imports from here would be another module.
    importlib.import_module("tests.faults.nursery").main()
