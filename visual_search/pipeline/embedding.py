"""Pixels into vectors: what the embedder threads of a run do, for all its models."""

import gc
import queue
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Semaphore
from types import TracebackType
from typing import Final, ParamSpec

import numpy as np
import structlog
import torch

from visual_search.embed import Embedder, batches_at_a_time, choose_device, threads_for_each
from visual_search.errors import EmbedError, FailureReason
from visual_search.images import EmbeddedImage, FailedImage
from visual_search.pipeline.model_run import ModelRun, Picture
from visual_search.pipeline.recorder import Outcome
from visual_search.settings import Settings

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

P = ParamSpec("P")
_BATCH_WAIT_S: Final = 0.5


class Embedding:
    """The networks of all models of a run: whichever has a whole batch is next.

    A model whose network cannot be loaded, or breaks, keeps no other from its work.
    """

    def __init__(self, settings: Settings, models: Sequence[ModelRun]) -> None:
        """Load the networks; takes seconds."""
        self._settings = settings
        self._models = models
        self._workers = 1
        self._embedders: dict[ModelRun, Embedder] = {}
        for run in models:
            with run.bound():
                self._load(run)
        # A full collection goes through all that torch is made of, a quarter of a second in which
        # neither downloads nor batches move on: now, and then never again.
        gc.collect()
        gc.freeze()

    def run(self, pictures: queue.SimpleQueue[Picture | None]) -> None:
        """Embed what comes, until `None` does."""
        batches: dict[ModelRun, list[Picture]] = {run: [] for run in self._models}
        with _Pool(self._workers, self._settings.embed.threads) as pool:
            running = True
            while running:
                try:
                    picture = pictures.get(timeout=_BATCH_WAIT_S if any(batches.values()) else None)
                except queue.Empty:
                    ready = self._models
                else:
                    running = picture is not None
                    ready = self._models if picture is None else [picture.run]
                    if picture is not None:
                        batches[picture.run].append(picture)
                        if len(batches[picture.run]) < self._batch_size(picture.run):
                            continue
                # A whole batch; or what there is, where no more comes for a while.
                for run in ready:
                    if batches[run]:
                        pool.start(self._embed_or_give_back, run, batches[run])
                        batches[run] = []

    def _load(self, run: ModelRun) -> None:
        settings = self._settings.embed
        try:
            device = choose_device(settings.device)
            workers = settings.workers or batches_at_a_time(device, settings.threads)
            embedder = Embedder(
                run.model.spec,
                run.weights,
                device,
                batch_size=settings.batch_size,
                runtime=settings.runtime,
                compiled=settings.compile,
                kept=self._settings.home / "converted",
                workers=workers,
                threads=settings.threads,
            )
        except BaseException as error:  # noqa: BLE001 - the model's, whose caller raises it
            run.fail(error)
            return
        self._workers = workers
        self._embedders[run] = embedder
        run.recorder.runtime = embedder.runtime
        run.steady.begin()
        log.info(
            "model_loaded",
            model_id=run.model.model_id,
            device=str(embedder.device),
            runtime=embedder.runtime,
            batch_size=embedder.batch_size,
            workers=workers,
        )

    def _batch_size(self, run: ModelRun) -> int:
        """For a model that could not be loaded there is nothing to wait for."""
        return self._embedders[run].batch_size if run in self._embedders else 1

    def _embed_or_give_back(self, run: ModelRun, batch: Sequence[Picture]) -> None:
        outcomes: list[Outcome] = [picture.image for picture in batch]
        if run in self._embedders and not run.cut.is_set():
            try:
                with run.bound(), run.core_time.embedding():
                    outcomes = self._embedded(run, batch)
            except BaseException as error:  # noqa: BLE001 - as of `_load`
                run.fail(error)
        for outcome in outcomes:
            run.recorder.put(outcome)

    def _embedded(self, run: ModelRun, batch: Sequence[Picture]) -> list[Outcome]:
        """The outcome of each picture of a batch."""
        try:
            tensors = torch.stack([picture.tensor for picture in batch])
            vectors = self._embedders[run].embed(tensors)
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
            return bad + self._embedded(run, good) if good else bad
        run.steady.add(len(batch))
        return [
            EmbeddedImage(
                image=picture.image,
                vector=vector,
                content_sha256=picture.content_sha256,
                validators=picture.validators,
                width=picture.width,
                height=picture.height,
            )
            for picture, vector in zip(batch, np.asarray(vectors), strict=True)
        ]


class _Pool(ThreadPoolExecutor):
    """Threads that share the cores; a batch is taken only once one of them can soon begin it."""

    def __init__(self, workers: int, threads: int | None) -> None:
        for_each = threads_for_each(workers, threads)
        super().__init__(workers, "embedder", torch.set_num_threads, (for_each,))
        self._room = Semaphore(workers + 1)
        self._bug: BaseException | None = None

    def start(self, work: Callable[P, None], *args: P.args, **named: P.kwargs) -> None:
        """Have one of the threads do it; waits until they have not much else to do."""
        self._room.acquire()
        self._raise_bug()
        self.submit(work, *args, **named).add_done_callback(self._end)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        if error is None:
            self._raise_bug()

    def _end(self, done: Future[None]) -> None:
        self._bug = self._bug or done.exception()
        self._room.release()

    def _raise_bug(self) -> None:
        if self._bug is not None:
            raise self._bug
