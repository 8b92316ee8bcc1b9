"""One run: the threads between claim and record, their queues, and their end.

    feeder (event loop)  claim → download ─┐ bodies
    decoder × n          decode, resize   ─┤ pixels of each model's size
    embedder             batches → vectors ┤ rows
    recorder × models    shard → record   ─┘ frees the feeder's slot

What is between feeder and recorder is bounded by the feeder's slots and by the parts of the memory
budget, so the queues themselves need no limit.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import structlog
import torch
from sqlalchemy import Connection

from visual_search import claim, runs
from visual_search.database.connection import Database
from visual_search.decode import DecoderProcess, Picture, PixelBudget
from visual_search.embed import Embedder, choose_device, prepare, usable_cores
from visual_search.errors import DatabaseGoneError, EmbedError, FailureReason, ImageError
from visual_search.images import ClaimedImage, Download, EmbeddedImage, FailedImage
from visual_search.models.spec import Preprocessing
from visual_search.pipeline.core_time import RunCoreTime
from visual_search.pipeline.feeder import Feeder
from visual_search.pipeline.memory import shares
from visual_search.pipeline.model_run import ModelRun, ModelWork, WantedImage
from visual_search.pipeline.recorder import Outcome
from visual_search.pipeline.signals import StopSignals
from visual_search.progress import Progress
from visual_search.settings import Settings

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_BEATS_PER_LEASE: Final = 3
_BATCH_WAIT_S: Final = 0.5
_POLL_S: Final = 0.1
# Of the time to drain, the share that downloads, decoding and embedding may use; the rest is for
# the last shards.
_DRAIN_SHARE: Final = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class _Picture:
    """An image in a model's size, waiting for its batch."""

    image: ClaimedImage
    tensor: torch.Tensor
    content_sha256: bytes
    width: int
    height: int


class Run:
    """Embeds what is claimable for some models; `execute` once."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        work: Sequence[ModelWork],
        *,
        folder: Path,
        stop: StopSignals,
        progress: Progress,
    ) -> None:
        self._database = database
        self._settings = settings
        self._stop = stop
        self._progress = progress
        self._core_time = RunCoreTime(len(work))
        self._bodies: queue.SimpleQueue[tuple[WantedImage, Download] | None] = queue.SimpleQueue()
        self._pictures: queue.SimpleQueue[tuple[ModelRun, _Picture] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._cut = False
        self._ended = threading.Event()
        self._loaded = threading.Event()
        self._stop_deadline: float | None = None
        self.models = [
            ModelRun(
                each,
                database,
                folder,
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
            log.warning("model_stopped", model=run.model.name, why=str(run.error))
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

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _watch(self, *threads: threading.Thread) -> None:
        """Wait for threads to end; show progress and obey signals meanwhile."""
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(_POLL_S)
            self._progress.show(
                sum(run.steady.images for run in self.models),
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
            while (body := self._bodies.get()) is not None:
                wanted, download = body
                self._loaded.wait()
                self._decode_one(decoder, wanted, download)
                self._feeder.release_body(len(download.body))

    def _decode_one(self, decoder: DecoderProcess, wanted: WantedImage, download: Download) -> None:
        """Decode an image once for all models that take it whole, or of the same reduced size."""
        wishes: dict[int | None, list[tuple[ModelRun, ClaimedImage]]] = {}
        for run, image in wanted.claims:
            if run.cut.is_set():
                run.recorder.put(image)
            else:
                wishes.setdefault(run.model.spec.least_px, []).append((run, image))
        cpu_before = decoder.cpu_seconds
        core_times = wanted.core_times
        with self._core_time.measured("decode", core_times):
            for least_px, claims in wishes.items():
                self._decode_for(claims, decoder, download, least_px)
        spent = decoder.cpu_seconds - cpu_before
        self._core_time.add("decode", spent, core_times, in_child=True)

    def _decode_for(
        self,
        claims: Sequence[tuple[ModelRun, ClaimedImage]],
        decoder: DecoderProcess,
        download: Download,
        least_px: int | None,
    ) -> None:
        wanted = {run.model.spec.preprocessing for run, _ in claims}

        def to_tensors(picture: Picture) -> tuple[dict[Preprocessing, torch.Tensor], int, int]:
            tensors = {each: prepare(picture.pixels, each) for each in wanted}
            return tensors, picture.width, picture.height

        try:
            tensors, width, height = decoder.decode(download.body, to_tensors, least_px=least_px)
        except ImageError as error:
            for run, image in claims:
                run.recorder.put(FailedImage(image=image, reason=error.reason, detail=error.detail))
            return
        for run, image in claims:
            picture = _Picture(
                image=image,
                tensor=tensors[run.model.spec.preprocessing],
                content_sha256=download.content_sha256,
                width=width,
                height=height,
            )
            self._pictures.put((run, picture))

    def _embed(self) -> None:
        for run in self.models:
            self._load(run)
        self._loaded.set()
        batches: dict[ModelRun, list[_Picture]] = {run: [] for run in self.models}
        running = True
        while running:
            try:
                item = self._pictures.get(timeout=_BATCH_WAIT_S if any(batches.values()) else None)
            except queue.Empty:
                ready = list(self.models)
            else:
                running = item is not None
                ready = list(self.models) if item is None else [item[0]]
                if item is not None:
                    batches[item[0]].append(item[1])
                    if len(batches[item[0]]) < _batch_size(item[0]):
                        continue
            # A whole batch; or what there is, where no more comes for a while.
            for run in ready:
                batch, batches[run] = batches[run], []
                self._embed_or_give_back(run, batch)

    def _load(self, run: ModelRun) -> None:
        """Load a model's network; one that cannot be loaded keeps no other from its work."""
        try:
            embedder = Embedder(
                run.model.spec,
                run.weights,
                choose_device(self._settings.embed.device),
                batch_size=self._settings.embed.batch_size,
                runtime=self._settings.embed.runtime,
                compiled=self._settings.embed.compile,
            )
        except BaseException as error:  # noqa: BLE001 - the model's, whose caller raises it
            run.fail(error)
            return
        run.embedder = embedder
        run.recorder.runtime = embedder.runtime
        run.steady.begin()
        log.info(
            "model_loaded",
            model=run.model.model_id,
            device=str(embedder.device),
            runtime=embedder.runtime,
            batch_size=embedder.batch_size,
        )

    def _embed_or_give_back(self, run: ModelRun, batch: list[_Picture]) -> None:
        outcomes: list[Outcome] = [picture.image for picture in batch]
        if batch and run.embedder is not None and not run.cut.is_set():
            try:
                with run.core_time.embedding():
                    outcomes = self._embedded(run, run.embedder, batch)
            except BaseException as error:  # noqa: BLE001 - as of `_load`
                run.fail(error)
        for outcome in outcomes:
            run.recorder.put(outcome)

    def _embedded(self, run: ModelRun, embedder: Embedder, batch: list[_Picture]) -> list[Outcome]:
        """The outcome of each picture of a batch."""
        try:
            vectors = embedder.embed(torch.stack([picture.tensor for picture in batch]))
        except EmbedError as error:
            good = [p for row, p in enumerate(batch) if row not in error.rows]
            bad: list[Outcome] = [
                FailedImage(
                    image=batch[row].image,
                    reason=FailureReason.NOT_FINITE,
                    detail="the vector holds a value that is not finite",
                )
                for row in error.rows
            ]
            return bad + self._embedded(run, embedder, good) if good else bad
        run.steady.add(len(batch))
        return [
            EmbeddedImage(
                image=picture.image,
                vector=vector,
                content_sha256=picture.content_sha256,
                width=picture.width,
                height=picture.height,
            )
            for picture, vector in zip(batch, np.asarray(vectors), strict=True)
        ]

    def _record(self, run: ModelRun) -> None:
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


def _batch_size(run: ModelRun) -> int:
    """One at a time for a model that could not be loaded: there is nothing to wait for."""
    return run.embedder.batch_size if run.embedder is not None else 1
