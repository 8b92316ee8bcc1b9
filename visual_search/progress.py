"""How far a run is: a bar on a terminal, a log line every 30 seconds elsewhere."""

import sys
import time
from types import TracebackType
from typing import Final, Never, Self

import structlog
from tqdm import tqdm

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_LOG_EVERY_S: Final = 30.0


class Progress:
    """Shows counts on stderr; `show` may be called as often as one likes.

    Args:
        label: What goes on.
        total: `None`: not known.
        unit: What is counted, for the rate.
        failed: The name of those that went wrong.
    """

    def __init__(
        self, label: str, total: int | None = None, *, unit: str = "img", failed: str = "failed"
    ) -> None:
        self._label = label
        self._total = total
        self._failed = failed
        self._logged_at = time.monotonic()
        # disable=None: no bar where stderr is not a terminal.
        self._bar: tqdm[Never] = tqdm(
            total=total,
            desc=label,
            unit=unit,
            unit_scale=total is None,
            disable=None,
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def show(self, done: int, failed: int) -> None:
        """How many are done, and how many went wrong, so far."""
        if not self._bar.disable:
            if done + failed != self._bar.n:
                self._bar.set_postfix({self._failed: failed}, refresh=False)
                self._bar.update(done + failed - self._bar.n)
        elif time.monotonic() - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = time.monotonic()
            total = {} if self._total is None else {"total": self._total}
            log.info("progress", of=self._label, done=done, **{self._failed: failed}, **total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
