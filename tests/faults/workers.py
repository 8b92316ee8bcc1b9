"""The test's side of the nursery: start workers, hurt them by their pid, learn how they ended."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.end_to_end.workplace import PROJECT

VSEARCH = {"function": "visual_search.cli:main", "with": {}}
# How long a test waits for what must happen soon, on a machine that does other things, too.
PATIENCE_S = 60.0


def wait_until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Come back as soon as `condition` holds; fail if it does not."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_s:.0f} s: {what}"
        time.sleep(0.005)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a worker ended.

    Attributes:
        code: Its exit code; negative: the signal that killed it.
    """

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit {self.code}\n{self.out}\n{self.err}"


class Worker:
    """A process that the nursery bore."""

    def __init__(self, out: Path, err: Path) -> None:
        self.pid = 0
        self._out = out
        self._err = err
        self._status: int | None = None
        self._born = threading.Event()
        self._ended = threading.Event()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        assert self.pid, "not born"  # 0 would be everybody in this process's group
        if not self._ended.is_set():
            with suppress(ProcessLookupError):  # ended, and the news is on its way
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.wait()

    def freeze(self) -> bool:
        """SIGSTOP, and wait until not one of its threads runs. False: it has ended instead."""
        self.send(signal.SIGSTOP)
        wait_until(lambda: self.is_frozen() or self.has_ended, "the worker stops")
        return not self.has_ended

    def wait_frozen(self) -> None:
        """Wait until it has stopped itself."""
        wait_until(lambda: self.is_frozen() or self.has_ended, "the worker stops")
        assert not self.has_ended, str(self.wait())

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def is_frozen(self) -> bool:
        try:
            tasks = [
                (task / "stat").read_text() for task in Path(f"/proc/{self.pid}/task").iterdir()
            ]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in tasks)

    def has_said(self, words: str) -> bool:
        """Whether its log has these words so far."""
        return words in self._err.read_text()

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def wait(self, patience_s: float = PATIENCE_S) -> Ended:
        """Wait for its end."""
        if not self._ended.wait(patience_s):
            raise AssertionError(
                f"a worker has not ended after {patience_s:.0f} s: {self._err.read_text()}"
            )
        assert self._status is not None
        return Ended(
            code=os.waitstatus_to_exitcode(self._status),
            out=self._out.read_text(),
            err=self._err.read_text(),
        )

    def ends(self, *codes: int, patience_s: float = PATIENCE_S) -> Ended:
        """Wait for its end, which must be one of these."""
        ended = self.wait(patience_s)
        assert ended.code in codes, str(ended)
        return ended

    def be_born(self, pid: int) -> None:
        self.pid = pid
        self._born.set()

    def wait_born(self) -> None:
        assert self._born.wait(PATIENCE_S), "the nursery bears nobody"

    def end(self, status: int) -> None:
        self._status = status
        self._ended.set()


class Nursery:
    """A running `tests.faults.nursery`; a context manager.

    Args:
        folder: Takes what the workers print.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = count(1)
        self._workers: dict[int, Worker] = {}
        self._lock = threading.Lock()
        self._ready = threading.Event()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            # One thread: what forks must not leave other threads' locks behind.
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        self._listener = threading.Thread(target=self._listen, name="nursery", daemon=True)
        self._listener.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._listener.join(PATIENCE_S)
        self._process.stdout.close()

    def wait_ready(self) -> None:
        """Wait until it has imported all."""
        wait_until(
            lambda: self._ready.is_set() or self._process.poll() is not None, "the nursery starts"
        )
        assert self._ready.is_set(), "the nursery has ended: something cannot be imported"

    def bear(
        self,
        *arguments: str,
        environment: Mapping[str, str],
        patches: Sequence[Mapping[str, Any]] = (),
        call: Mapping[str, Any] = VSEARCH,
    ) -> Worker:
        """Start a worker.

        Args:
            arguments: Of the command line.
            environment: All of it.
            patches: Calls made in the child first: `{"function": "module:name", "with": {…}}`.
            call: What the child then does instead of `vsearch`.
        """
        assert self._process.stdin is not None
        number = next(self._numbers)
        out, err = self._folder / f"{number}.out", self._folder / f"{number}.err"
        for file in (out, err):
            file.touch()  # it may be killed before it has written anything
        worker = Worker(out, err)
        request = {
            "number": number,
            "arguments": arguments,
            "environment": dict(environment),
            "patches": patches,
            "call": call,
            "out": str(out),
            "err": str(err),
        }
        with self._lock:
            self._workers[number] = worker
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        worker.wait_born()
        return worker

    def kill_all(self) -> None:
        """End whoever still lives."""
        with self._lock:
            left = [w for w in self._workers.values() if w.pid and not w.has_ended]
        for worker in left:
            worker.kill()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            if "ready" in answer:
                self._ready.set()
                continue
            worker = self._workers.get(answer["number"])
            if worker is None:
                continue
            if "pid" in answer:
                worker.be_born(answer["pid"])
            else:
                worker.end(answer["status"])
