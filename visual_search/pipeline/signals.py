"""Stopping in two steps: the first signal drains the run, the second ends the process at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType, TracebackType
from typing import Final, Self

from visual_search.errors import ExitCode

_EXIT_CODES: Final = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
}


class StopSignals(AbstractContextManager["StopSignals"]):
    """What SIGINT and SIGTERM do while the block runs.

    Where there is work to drain (`deferred`), the first one only sets `exit_code`. Elsewhere, such
    as in a download of weights, it ends the program from within. The second one exits.

    Python as process 1 of a container ignores SIGTERM unless it has a handler; this is it.
    """

    def __init__(self) -> None:
        self.exit_code: ExitCode | None = None
        self._deferred = False
        self._before: dict[signal.Signals, object] = {}

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """In this block a signal must not end the program: someone looks at `exit_code`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _EXIT_CODES:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() returned

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        code = _EXIT_CODES[signal.Signals(number)]
        if self.exit_code is not None:
            # Locks and children end with the process; claims are rescued at their lease's end.
            os._exit(code)
        self.exit_code = code
        if not self._deferred:
            # Not an Exception: an event loop would only log that.
            raise SystemExit(int(code))
