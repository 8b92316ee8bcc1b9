"""Where a run's processor time goes, by stage and model."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from visual_search.runs import STAGES


class CoreTime:
    """Core-seconds of each stage for one model, added up by the threads that work on it.

    Embedding runs on torch's own threads. All models of a run together have for it what the
    process used and no other stage claims; each has the share of its batches in the time that
    batches took. Decoder children are separate processes and add to the process.
    """

    def __init__(self, run: "RunCoreTime") -> None:
        self._run = run
        self.spent = dict.fromkeys(STAGES, 0.0)
        self.embedding_s = 0.0

    @contextmanager
    def measured(self, stage: str) -> Iterator[None]:
        """Add what the calling thread spends in the block."""
        before = time.thread_time()
        try:
            yield
        finally:
            self._run.add(stage, time.thread_time() - before, [self])

    @contextmanager
    def embedding(self) -> Iterator[None]:
        """The block is the work of a batch."""
        before = time.monotonic()
        try:
            yield
        finally:
            self._run.add_embedding(self, time.monotonic() - before)

    def per_stage(self) -> dict[str, float]:
        """Core-seconds so far, rounded to milliseconds."""
        return self._run.per_stage(self)


class RunCoreTime:
    """The core-seconds of all models of a run; shared work counts for each in equal parts."""

    def __init__(self, models: int) -> None:
        self._lock = threading.Lock()
        self._children = 0.0
        self._started = time.process_time()
        self.models = [CoreTime(self) for _ in range(models)]

    def add(
        self, stage: str, seconds: float, models: Sequence[CoreTime], *, in_child: bool = False
    ) -> None:
        """Add core-seconds of this process, or of a child, that were spent for these models."""
        with self._lock:
            for model in models:
                model.spent[stage] += seconds / len(models)
            if in_child:
                self._children += seconds

    def add_embedding(self, model: CoreTime, seconds: float) -> None:
        """Add the time that a batch of this model took."""
        with self._lock:
            model.embedding_s += seconds

    @contextmanager
    def measured(self, stage: str, models: Sequence[CoreTime]) -> Iterator[None]:
        """Add what the calling thread spends in the block."""
        before = time.thread_time()
        try:
            yield
        finally:
            self.add(stage, time.thread_time() - before, models)

    def per_stage(self, model: CoreTime) -> dict[str, float]:
        """Core-seconds of one model so far, rounded to milliseconds."""
        with self._lock:
            spent = dict(model.spent)
            known = sum(sum(each.spent.values()) for each in self.models) - self._children
        embedding_s = sum(each.embedding_s for each in self.models)
        if embedding_s:
            left = time.process_time() - self._started - known
            spent["embed"] = max(0.0, left * model.embedding_s / embedding_s)
        return {stage: round(seconds, 3) for stage, seconds in spent.items()}
