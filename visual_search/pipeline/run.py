"""One run: the threads between claim and record, their queues, and their end.

    feeder (event loop)  claim → download ─┐ bodies
    decoder × n          decode, resize   ─┤ pixels of each model's size  (decoding.py)
    embedder             batches → vectors ┤ rows                         (embedding.py)
    recorder × models    shard → record   ─┘ frees the feeder's slot

What is between feeder and recorder is bounded by the feeder's slots and by the parts of the memory
budget, so the queues themselves need no limit.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Final

import structlog
from sqlalchemy import Connection

from visual_search import claim, runs
from visual_search.cores import usable_cores
from visual_search.database.connection import Database
from visual_search.decode import DecoderProcess, PixelBudget
from visual_search.errors import DatabaseGoneError
from visual_search.images import Download
from visual_search.pipeline.core_time import RunCoreTime
from visual_search.pipeline.feeder import Feeder
from visual_search.pipeline.memory import shares
from visual_search.pipeline.model_run import ModelRun, ModelWork, Picture, WantedImage
from visual_search.pipeline.signals import StopSignals
from visual_search.settings import Settings
from visual_search.storage import Storage

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_BEATS_PER_LEASE: Final = 3
_POLL_S: Final = 0.1
# Of the time to drain, the share that downloads, decoding and embedding may use; the rest is for
# the last shards.
_DRAIN_SHARE: Final = 0.6


class Run:
    """Embeds what is claimable for some models; `execute` once."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        work: Sequence[ModelWork],
        *,
        storage: Storage,
        stop: StopSignals,
        show: Callable[[int, int], None],
    ) -> None:
        self._database = database
        self._settings = settings
        self._stop = stop
        self._show = show
        self._core_time = RunCoreTime(len(work))
        self._bodies: queue.SimpleQueue[tuple[WantedImage, Download] | None] = queue.SimpleQueue()
        self._pictures: queue.SimpleQueue[Picture | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._cut = False
        self._ended = threading.Event()
        self._loaded = threading.Event()
        self._stop_deadline: float | None = None
        self.models = [
            ModelRun(
                each,
                database,
                storage,
                settings.extract,
                core_time=core_time,
                on_settled=self._settled,
                on_closed=self._shard_closed,
                on_failed=self._model_failed,
            )
            for each, core_time in zip(work, self._core_time.models, strict=True)
        ]
        self._memory = shares(
            settings.extract.memory_budget,
            specs=[each.model.spec for each in work],
            downloads=settings.download.concurrency,
        )
        self._pixels = PixelBudget(self._memory.pixel_bytes)
        self._feeder = Feeder(
            database,
            self.models,
            settings=settings,
            slots=self._memory.slots,
            body_bytes=self._memory.body_bytes,
            core_time=self._core_time,
            on_body=self._downloaded,
        )

    def execute(self) -> None:
        """Run to the end, or until a signal or errors stop it; what was finished is recorded.

        What stopped a model is its `error` then: its own, or the one that stopped all of them.
        """
        heartbeat = self._thread("heartbeat", self._beat)
        feeder = self._thread("feeder", self._feeder.run)
        count = self._settings.decode.workers or usable_cores()
        decoders = [self._thread(f"decoder-{n}", self._decode) for n in range(count)]
        embedder = self._thread("embedder", self._embed)
        recorders = [
            self._thread(f"recorder-{run.model.name}", self._record, run) for run in self.models
        ]
        try:
            self._watch(feeder)
            for _ in decoders:
                self._bodies.put(None)
            self._watch(*decoders)
            self._pictures.put(None)
            self._watch(embedder)
            for run in self.models:
                run.recorder.stop()
            self._watch(*recorders)
        finally:
            self._ended.set()
            heartbeat.join()
        for run in self.models:
            run.error = run.error or self._error or run.rate.fruitless()
            if run.error is not None:
                with run.bound():
                    self._give_up(run)

    def _downloaded(self, wanted: WantedImage, download: Download) -> None:
        self._bodies.put((wanted, download))

    def _settled(self) -> None:
        self._feeder.release_slot()

    def _shard_closed(self, run: ModelRun) -> None:
        self._feeder.shard_closed(run)

    def _model_failed(self, run: ModelRun) -> None:
        """Go on with the others, if there are any."""
        if all(each.error is not None for each in self.models):
            self._cut_short()
        else:
            with run.bound():
                log.warning("model_stopped", why=str(run.error))
            self._feeder.drop(run)

    def _cut_short(self) -> None:
        """Claim no more, give back what is not embedded yet."""
        self._cut = True
        for run in self.models:
            run.cut.set()
        self._loaded.set()
        self._feeder.cut()

    def _thread(self, name: str, work: Callable[..., None], *parts: ModelRun) -> threading.Thread:
        def guarded() -> None:
            try:
                work(*parts)
            except BaseException as error:  # noqa: BLE001 - of all models, whose caller raises it
                if self._error is None:
                    self._error = error
                self._cut_short()

        # A thread begins with nothing bound; its log lines are about the same runs.
        context = copy_context()
        thread = threading.Thread(target=context.run, args=(guarded,), name=name, daemon=True)
        thread.start()
        return thread

    def _watch(self, *threads: threading.Thread) -> None:
        """Wait for threads to end; show progress and obey signals meanwhile."""
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(_POLL_S)
            self._show(
                sum(run.steady.images + run.recorder.unchanged for run in self.models),
                sum(run.recorder.failed for run in self.models),
            )
            if self._stop.exit_code is not None:
                self._drain()

    def _drain(self) -> None:
        if self._stop_deadline is None:
            drain_s = self._settings.extract.drain_s
            log.info("draining", seconds=drain_s)
            self._stop_deadline = time.monotonic() + drain_s * _DRAIN_SHARE
            self._database.limit_patience(drain_s)
            self._feeder.drain()
        elif time.monotonic() > self._stop_deadline and not self._cut:
            self._cut_short()

    def _beat(self) -> None:
        interval_s = self._settings.extract.lease_s / _BEATS_PER_LEASE
        while not self._ended.wait(interval_s):
            try:
                with (
                    self._core_time.measured("database", self._core_time.models),
                    self._database.transaction() as connection,
                ):
                    for run in self.models:
                        self._beat_for(run, connection)
            except DatabaseGoneError as error:
                # The lease may end meanwhile; whether it was taken over is the commit's question.
                log.warning("heartbeat_missed", error=str(error))

    def _beat_for(self, run: ModelRun, connection: Connection) -> None:
        claim.renew_leases(
            connection,
            run_id=run.run_id,
            tokens=run.recorder.tokens(),
            lease_s=self._settings.extract.lease_s,
        )
        runs.beat_run(connection, run.run_id, run.figures())

    def _decode(self) -> None:
        limits = self._settings.decode
        with DecoderProcess(
            max_pixels=limits.max_pixels, timeout_s=limits.timeout_s, budget=self._pixels
        ) as decoder:
            self._loaded.wait()
            from visual_search.pipeline.decoding import Decoding  # noqa: PLC0415 - imports torch

            decoding = Decoding(decoder, self._core_time, self._pictures)
            while (body := self._bodies.get()) is not None:
                wanted, download = body
                decoding.decode(wanted, download)
                self._feeder.release_body(len(download.body))

    def _embed(self) -> None:
        # Downloads begin meanwhile.
        from visual_search.pipeline.embedding import Embedding  # noqa: PLC0415 - imports torch

        embedding = Embedding(self._settings, self.models)
        self._loaded.set()
        embedding.run(self._pictures)

    def _record(self, run: ModelRun) -> None:
        with run.bound():
            try:
                run.recorder.run()
            except BaseException as error:  # noqa: BLE001 - as of `_load`
                run.fail(error)
                self._give_up(run)
                run.recorder.discard()

    def _give_up(self, run: ModelRun) -> None:
        try:
            run.recorder.give_up()
        except DatabaseGoneError as error:
            # The leases end by themselves, and another run takes the images over.
            log.warning("claims_not_given_back", error=str(error))
