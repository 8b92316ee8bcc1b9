"""One run of one model: the threads between claim and record, their queues, and their end.

    feeder (event loop)  claim → download ─┐ bodies
    decoder × n          decode, resize   ─┤ pixels of the model's size
    embedder             batches → vectors ┤ rows
    recorder             shard → record   ─┘ frees the feeder's slot

Everything between feeder and recorder is bounded by the feeder's slots and byte budget, so the
queues themselves need no limit.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import structlog
import torch
from sqlalchemy import Connection

from visual_search import claim, runs
from visual_search.claim import Outlook
from visual_search.database.connection import Database
from visual_search.decode import DecoderProcess, Picture
from visual_search.embed import Embedder, choose_device, usable_cores
from visual_search.errors import DatabaseGoneError, EmbedError, FailureReason, ImageError
from visual_search.images import ClaimedImage, Download, EmbeddedImage, FailedImage, RunId
from visual_search.models.registry import RegisteredModel
from visual_search.pipeline.core_time import CoreTime
from visual_search.pipeline.failure_rate import FailureRate
from visual_search.pipeline.feeder import Feeder
from visual_search.pipeline.recorder import Recorder
from visual_search.pipeline.signals import StopSignals
from visual_search.progress import Progress
from visual_search.runs import RunFigures
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
    """An image in the model's size, waiting for its batch."""

    image: ClaimedImage
    tensor: torch.Tensor
    content_sha256: bytes
    width: int
    height: int


class ModelRun:
    """Embeds what is claimable for one model; `execute` once."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        model: RegisteredModel,
        *,
        run_id: RunId,
        weights: Path | None,
        folder: Path,
        limit: int | None,
        stop: StopSignals,
        progress: Progress,
    ) -> None:
        self._database = database
        self._settings = settings
        self._model = model
        self._run_id = run_id
        self._weights = weights
        self._stop = stop
        self._progress = progress
        self._core_time = CoreTime()
        self._rate = FailureRate(settings.extract.max_failure_rate)
        self._bodies: queue.SimpleQueue[tuple[ClaimedImage, Download] | None] = queue.SimpleQueue()
        self._pictures: queue.SimpleQueue[_Picture | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._cut = threading.Event()
        self._ended = threading.Event()
        self._loaded = threading.Event()
        self._embedder: Embedder | None = None
        self._stop_deadline: float | None = None
        self._steady = _SteadyRate()
        self._recorder = Recorder(
            database,
            model,
            folder,
            run_id=run_id,
            settings=settings.extract,
            core_time=self._core_time,
            rate=self._rate,
            on_settled=self._settled,
            on_closed=self._shard_closed,
            on_hopeless=self._abort,
        )
        self._feeder = Feeder(
            database,
            model,
            run_id=run_id,
            settings=settings,
            limit=limit,
            core_time=self._core_time,
            recorder=self._recorder,
            on_body=self._downloaded,
        )

    @property
    def outlook(self) -> Outlook | None:
        """What was left for later when the run found nothing more to claim."""
        return self._feeder.outlook

    @property
    def waiting(self) -> int:
        """How many images were pending then."""
        return self._feeder.waiting

    def execute(self) -> None:
        """Run to the end, or until a signal or an error stops it.

        Raises:
            RunError: What stopped it; what was finished before is recorded.
        """
        heartbeat = self._thread("heartbeat", self._beat)
        feeder = self._thread("feeder", self._feeder.run)
        count = self._settings.decode.workers or usable_cores()
        decoders = [self._thread(f"decoder-{n}", self._decode) for n in range(count)]
        embedder = self._thread("embedder", self._embed)
        recorder = self._thread("recorder", self._recorder.run)
        try:
            self._watch(feeder)
            for _ in decoders:
                self._bodies.put(None)
            self._watch(*decoders)
            self._pictures.put(None)
            self._watch(embedder)
            self._recorder.stop()
            self._watch(recorder)
            if self._error is None:
                self._error = self._rate.fruitless()
        finally:
            self._ended.set()
            heartbeat.join()
        if self._error is not None:
            self._give_up()
            raise self._error

    def figures(self) -> RunFigures:
        """What the run has done so far."""
        return RunFigures(
            claimed=self._feeder.claimed,
            done=self._recorder.done,
            failed=self._recorder.failed,
            images_per_second=self._steady.images_per_second,
            core_seconds_per_stage=self._core_time.per_stage(),
        )

    @property
    def shards(self) -> int:
        """How many shards were recorded."""
        return self._recorder.shards

    def _downloaded(self, image: ClaimedImage, download: Download) -> None:
        self._bodies.put((image, download))

    def _settled(self) -> None:
        self._feeder.release_slot()

    def _shard_closed(self) -> None:
        self._feeder.shard_closed()

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised again by `execute`
                self._abort(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _abort(self, error: BaseException) -> None:
        """Stop because of `error`: claim no more, give back what is not embedded yet."""
        if self._error is None:
            self._error = error
        self._cut.set()
        self._loaded.set()
        self._feeder.cut()

    def _watch(self, *threads: threading.Thread) -> None:
        """Wait for threads to end; show progress and obey signals meanwhile."""
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(_POLL_S)
            self._progress.show(self._steady.images, self._recorder.failed)
            if self._stop.exit_code is not None:
                self._drain()

    def _drain(self) -> None:
        if self._stop_deadline is None:
            drain_s = self._settings.extract.drain_s
            log.info("draining", seconds=drain_s)
            self._stop_deadline = time.monotonic() + drain_s * _DRAIN_SHARE
            self._database.limit_patience(drain_s)
            self._feeder.drain()
        elif time.monotonic() > self._stop_deadline and not self._cut.is_set():
            self._cut.set()
            self._feeder.cut()

    def _beat(self) -> None:
        interval_s = self._settings.extract.lease_s / _BEATS_PER_LEASE
        while not self._ended.wait(interval_s):
            tokens = self._recorder.tokens()

            def step(connection: Connection) -> int:
                alive = claim.renew_leases(
                    connection,
                    run_id=self._run_id,
                    tokens=tokens,  # noqa: B023 - used before the next round
                    lease_s=self._settings.extract.lease_s,
                )
                runs.beat_run(connection, self._run_id, self.figures())
                return len(alive)

            try:
                with self._core_time.measured("database"), self._database.transaction() as c:
                    step(c)
            except DatabaseGoneError as error:
                # The lease may end meanwhile; whether it was taken over is the commit's question.
                log.warning("heartbeat_missed", error=str(error))

    def _decode(self) -> None:
        limits = self._settings.decode
        with DecoderProcess(
            max_pixels=limits.max_pixels,
            timeout_s=limits.timeout_s,
            least_px=self._model.spec.least_px,
        ) as decoder:
            while (body := self._bodies.get()) is not None:
                image, download = body
                self._loaded.wait()
                if self._cut.is_set():
                    self._recorder.put(image)
                else:
                    self._decode_one(decoder, image, download)
                self._feeder.release_bytes(len(download.body))

    def _decode_one(self, decoder: DecoderProcess, image: ClaimedImage, download: Download) -> None:
        embedder = self._embedder
        assert embedder is not None  # noqa: S101 - loaded, or the run is cut

        def to_tensor(picture: Picture) -> tuple[torch.Tensor, int, int]:
            return embedder.prepare(picture.pixels), picture.width, picture.height

        cpu_before = decoder.cpu_seconds
        try:
            with self._core_time.measured("decode"):
                tensor, width, height = decoder.decode(download.body, to_tensor)
        except ImageError as error:
            self._recorder.put(FailedImage(image=image, reason=error.reason, detail=error.detail))
        else:
            self._pictures.put(
                _Picture(
                    image=image,
                    tensor=tensor,
                    content_sha256=download.content_sha256,
                    width=width,
                    height=height,
                )
            )
        self._core_time.add("decode", decoder.cpu_seconds - cpu_before, in_child=True)

    def _embed(self) -> None:
        embedder = Embedder(
            self._model.spec,
            self._weights,
            choose_device(self._settings.embed.device),
            batch_size=self._settings.embed.batch_size,
        )
        self._embedder = embedder
        self._steady.begin()
        self._loaded.set()
        log.info(
            "model_loaded",
            model=self._model.model_id,
            device=str(embedder.device),
            batch_size=embedder.batch_size,
        )
        running = True
        while running:
            batch, running = self._next_batch(embedder.batch_size)
            if self._cut.is_set():
                for picture in batch:
                    self._recorder.put(picture.image)
            elif batch:
                self._embed_batch(embedder, batch)

    def _next_batch(self, size: int) -> tuple[list[_Picture], bool]:
        """Up to `size` pictures; fewer when no more come for a while. False: the last ones."""
        batch: list[_Picture] = []
        while len(batch) < size:
            try:
                picture = self._pictures.get(timeout=_BATCH_WAIT_S if batch else None)
            except queue.Empty:
                break
            if picture is None:
                return batch, False
            batch.append(picture)
        return batch, True

    def _embed_batch(self, embedder: Embedder, batch: list[_Picture]) -> None:
        try:
            vectors = embedder.embed(torch.stack([picture.tensor for picture in batch]))
        except EmbedError as error:
            good = [p for row, p in enumerate(batch) if row not in error.rows]
            for row in error.rows:
                self._recorder.put(
                    FailedImage(
                        image=batch[row].image,
                        reason=FailureReason.NOT_FINITE,
                        detail="the vector holds a value that is not finite",
                    )
                )
            if good:
                self._embed_batch(embedder, good)
            return
        self._steady.add(len(batch))
        for picture, vector in zip(batch, np.asarray(vectors), strict=True):
            self._recorder.put(
                EmbeddedImage(
                    image=picture.image,
                    vector=vector,
                    content_sha256=picture.content_sha256,
                    width=picture.width,
                    height=picture.height,
                )
            )

    def _give_up(self) -> None:
        try:
            self._recorder.give_up()
        except DatabaseGoneError as error:
            # The leases end by themselves, and another run takes the images over.
            log.warning("claims_not_given_back", error=str(error))


class _SteadyRate:
    """Images per second from the first batch's end to the latest batch's end.

    So start-up, model loading and the last shard do not count, and neither does the first batch,
    which waited for them; a run of a single batch is measured from the loaded model on.
    """

    def __init__(self) -> None:
        self.images = 0
        self._begun_at = 0.0
        self._first = 0
        self._first_at = 0.0
        self._last_at = 0.0

    def begin(self) -> None:
        self._begun_at = time.monotonic()

    def add(self, images: int) -> None:
        now = time.monotonic()
        if self.images == 0:
            self._first, self._first_at = images, now
        self.images += images
        self._last_at = now

    @property
    def images_per_second(self) -> float | None:
        """`None` until there is a batch."""
        if self.images == 0:
            return None
        if self.images == self._first:
            return round(self.images / (self._last_at - self._begun_at), 2)
        return round((self.images - self._first) / (self._last_at - self._first_at), 2)
