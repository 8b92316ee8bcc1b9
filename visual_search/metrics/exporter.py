"""Metrics of the models of one `vsearch extract`, sent while it lasts and when it ends."""

import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import structlog

from visual_search.errors import ExitCode
from visual_search.metrics.sample import ModelMetrics
from visual_search.metrics.worker_number import WorkerNumber
from visual_search.models.spec import ModelSpec
from visual_search.runs import RunFigures
from visual_search.settings import MetricsSettings

if TYPE_CHECKING:
    from visual_search.metrics.sending import Gateway, Sender, Textfiles

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Exporter:
    """A context manager that tells Prometheus of runs; where nothing is set it does nothing.

    Whatever goes wrong with it costs a run a warning in the log, and seconds at its end.
    """

    def __init__(
        self, settings: MetricsSettings, home: Path, *, tells_success: bool = True
    ) -> None:
        """Nothing is opened yet.

        Args:
            settings: Where to, and how often.
            home: Where workers are told apart that write no files.
            tells_success: Whether a good end here is a good end of the whole command.
        """
        self._settings = settings
        self._home = home
        self._tells_success = tells_success
        self._models: dict[str, ModelMetrics] = {}
        self._worker: WorkerNumber | None = None
        self._senders: list[Sender] = []
        self._began_at = time.time()

    def __enter__(self) -> Self:
        folder, gateway = self._settings.textfile_folder, self._settings.pushgateway
        if folder is None and gateway is None:
            return self
        try:
            if folder is None:
                self._home.mkdir(parents=True, exist_ok=True)
            self._worker = WorkerNumber(folder or self._home)
        except OSError as error:
            where = str(folder or self._home)
            log.warning("metrics_not_sent", to=where, why=error.strerror or str(error))
            return self
        # Takes a tenth of a second, for what most runs do not use.
        from visual_search.metrics.sending import Gateway, Sender, Textfiles  # noqa: PLC0415

        sinks: list[Textfiles | Gateway] = []
        if folder is not None:
            sinks.append(Textfiles(folder, self._worker.number))
        if gateway is not None:
            sinks.append(
                Gateway(
                    gateway.get_secret_value(),
                    job=self._settings.job,
                    instance=self._settings.instance or socket.gethostname(),
                    worker=self._worker.number,
                )
            )
        send = partial(self._send, self._worker.number)
        self._senders = [Sender(sink, send, self._settings.interval_s) for sink in sinks]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._senders:
            from visual_search.metrics.sending import end_all  # noqa: PLC0415 - as above

            end_all(self._senders)
        if self._worker is not None:
            self._worker.close()

    def begin(self, spec: ModelSpec, figures: Callable[[], RunFigures]) -> None:
        """A model's run begins; `figures`, asked from another thread, say how far it is."""
        self._models[spec.name] = ModelMetrics(spec.name, spec, figures, time.time())
        for sender in self._senders:
            sender.wake()

    def end(self, name: str, exit_code: ExitCode) -> None:
        """The work for a model has ended, whether a run began or not."""
        model = self._models.get(name) or ModelMetrics(name, None, RunFigures, self._began_at)
        model.end(exit_code)
        self._models[name] = model

    def _send(self, worker: int, sink: "Textfiles | Gateway") -> None:
        from visual_search.metrics.families import (  # noqa: PLC0415 - as above
            run_families,
            success_families,
        )

        for name, model in list(self._models.items()):
            sink.send_run(name, run_families(model.sample(worker)))
            if self._tells_success and model.succeeded_at is not None:
                sink.send_success(name, success_families(name, model.succeeded_at))
