"""Where a run's processor time goes, by stage."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from visual_search.runs import STAGES


class CoreTime:
    """Core-seconds of each stage, added up by the threads that work on it.

    Embedding runs on torch's own threads, so its share is what the process used and no other
    stage of this process claims. Decoder children are separate processes and add to it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spent = dict.fromkeys(STAGES, 0.0)
        self._children = 0.0
        self._started = time.process_time()

    def add(self, stage: str, seconds: float, *, in_child: bool = False) -> None:
        """Add core-seconds of this process, or of a child."""
        with self._lock:
            self._spent[stage] += seconds
            if in_child:
                self._children += seconds

    @contextmanager
    def measured(self, stage: str) -> Iterator[None]:
        """Add what the calling thread spends in the block."""
        before = time.thread_time()
        try:
            yield
        finally:
            self.add(stage, time.thread_time() - before)

    def per_stage(self) -> dict[str, float]:
        """Core-seconds so far, rounded to milliseconds."""
        with self._lock:
            spent = dict(self._spent)
            own = time.process_time() - self._started
            spent["embed"] = max(0.0, own - (sum(spent.values()) - self._children))
        return {stage: round(seconds, 3) for stage, seconds in spent.items()}
