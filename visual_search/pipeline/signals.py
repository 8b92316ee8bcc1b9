"""Stopping in two steps: the first signal drains the run, the second ends the process at once."""

import os
import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Final, Self

from visual_search.errors import ExitCode

_EXIT_CODES: Final = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
}


class StopSignals(AbstractContextManager["StopSignals"]):
    """While the block runs, SIGINT and SIGTERM only set `exit_code`; the second one exits.

    Python as process 1 of a container ignores SIGTERM unless it has a handler; this is it.
    """

    def __init__(self) -> None:
        self.exit_code: ExitCode | None = None
        self._before: dict[signal.Signals, object] = {}

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
