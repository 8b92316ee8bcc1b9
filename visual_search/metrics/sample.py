"""What one model's run has come to at a moment, as its metrics say it."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from visual_search.errors import ExitCode
from visual_search.models.spec import ModelPrecision, ModelSpec
from visual_search.runs import RunFigures


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSample:
    """One model's run at a moment; times in seconds of the Unix epoch.

    Attributes:
        worker: Number of the process among those of its machine, from 0.
        model_id: `None` where the model could not even be resolved; likewise `precision`.
        exit_code: `None` while it runs.
    """

    model: str
    worker: int
    model_id: str | None
    precision: ModelPrecision | None
    started_at: float
    updated_at: float
    exit_code: ExitCode | None
    figures: RunFigures


class ModelMetrics:
    """What is known of one model's run. Any thread may ask for a sample.

    Attributes:
        succeeded_at: `None` unless it has ended, and well.
    """

    def __init__(
        self,
        name: str,
        spec: ModelSpec | None,
        figures: Callable[[], RunFigures],
        started_at: float,
    ) -> None:
        self._name = name
        self._spec = spec
        self._figures = figures
        self._started_at = started_at
        self._exit_code: ExitCode | None = None
        self._core_seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self.succeeded_at: float | None = None

    def end(self, exit_code: ExitCode) -> None:
        """The run has ended."""
        with self._lock:
            self._exit_code = exit_code
        if exit_code is ExitCode.OK:
            self.succeeded_at = time.time()

    def sample(self, worker: int) -> RunSample:
        """How far it is now."""
        with self._lock:
            figures = self._figures()
            # Embedding has what no other stage claims, and those claim some of it a little late;
            # but to Prometheus a counter that falls has begun anew.
            for stage, seconds in figures.core_seconds_per_stage.items():
                self._core_seconds[stage] = max(self._core_seconds.get(stage, 0.0), seconds)
            return RunSample(
                model=self._name,
                worker=worker,
                model_id=self._spec.model_id if self._spec else None,
                precision=self._spec.precision if self._spec else None,
                started_at=self._started_at,
                updated_at=time.time(),
                exit_code=self._exit_code,
                figures=replace(figures, core_seconds_per_stage=dict(self._core_seconds)),
            )
