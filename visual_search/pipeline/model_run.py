"""What a run keeps apart for each of its models: leases, shards, failures and the network."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from visual_search.claim import Outlook
from visual_search.database.connection import Database
from visual_search.images import ClaimedImage, RunId, Validators
from visual_search.models.registry import RegisteredModel
from visual_search.pipeline.checking import Checking
from visual_search.pipeline.core_time import CoreTime
from visual_search.pipeline.failure_rate import FailureRate
from visual_search.pipeline.ledger import Extraction, Ledger
from visual_search.pipeline.recorder import OpenShard, Recorder
from visual_search.refresh import Refresh
from visual_search.runs import RunFigures
from visual_search.settings import ExtractSettings
from visual_search.storage import Storage

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelWork:
    """A model for which there is something to do.

    Attributes:
        run_id: One row of `runs`.
        weights: The file, already checked; `None` where the model needs none.
        limit: Claim at most so many images.
        refresh: Which vectors to check; `None`: images that have none are to be embedded.
    """

    model: RegisteredModel
    run_id: RunId
    weights: Path | None
    limit: int | None
    refresh: Refresh | None = None


class ModelRun:
    """One model's part in a run.

    Attributes:
        refresh: Which vectors it checks, if it does.
        ledger: Where its images come from, and where outcomes go.
        recorder: Takes the outcome of every image that was claimed for the model.
        cut: Set when what is not embedded yet is to be given back.
        error: What stopped the model, if anything did; the run may go on with others.
        current: The shard for which images are claimed. This, what follows and
            `close_shard` are the feeder's.
        open_shards: How many are not recorded yet.
        left: How many images may still be claimed; `None`: all.
        outlook: What was left for later when nothing more could be claimed.
        waiting: How many images were left then.
        downloaded_bytes: The model's part of what arrived; the feeder's, too.
    """

    def __init__(
        self,
        work: ModelWork,
        database: Database,
        storage: Storage,
        settings: ExtractSettings,
        *,
        core_time: CoreTime,
        on_settled: Callable[[], None],
        on_closed: Callable[["ModelRun"], None],
        on_failed: Callable[["ModelRun"], None],
    ) -> None:
        self.model = work.model
        self.run_id = work.run_id
        self.weights = work.weights
        self.refresh = work.refresh
        self.core_time = core_time
        self.rate = FailureRate(settings.max_failure_rate, checking=work.refresh is not None)
        self.steady = SteadyRate()
        self.cut = threading.Event()
        self.error: BaseException | None = None
        self.current: OpenShard | None = None
        self.open_shards = 0
        self.claimed = 0
        self.left = work.limit
        self.outlook: Outlook | None = None
        self.waiting = 0
        self.downloaded_bytes = 0.0
        self._settled = 0
        self._on_settled = on_settled
        self._on_failed = on_failed
        self.ledger: Ledger = (
            Extraction(work.model.model_key, settings)
            if work.refresh is None
            else Checking(work.model.model_key, work.refresh)
        )
        self.recorder = Recorder(
            database,
            work.model,
            storage,
            self.ledger,
            run_id=work.run_id,
            settings=settings,
            core_time=core_time,
            rate=self.rate,
            on_settled=self._settle,
            on_closed=lambda: on_closed(self),
            on_hopeless=self.fail,
        )

    def fail(self, error: BaseException) -> None:
        """Stop this model because of `error`: give back what is not embedded yet."""
        if self.error is None:
            self.error = error
        self.cut.set()
        self._on_failed(self)

    def close_shard(self) -> None:
        """Claim no more for the current shard, if there is one: what it holds is recorded."""
        if self.current is not None:
            self.recorder.close(self.current)
            self.current = None

    def figures(self) -> RunFigures:
        """What was done so far."""
        return RunFigures(
            claimed=self.claimed,
            done=self.recorder.done,
            unchanged=self.recorder.unchanged,
            failed=self.recorder.failed,
            images_per_second=self.steady.images_per_second,
            core_seconds_per_stage=self.core_time.per_stage(),
            failed_by_reason={
                reason.value: count for reason, count in self.recorder.failed_by_reason.items()
            },
            in_flight=self.claimed - self._settled,
            shards=self.recorder.shards,
            downloaded_bytes=self.downloaded_bytes,
        )

    def bound(self) -> AbstractContextManager[None]:
        """Log lines from within are about this model's run."""
        return structlog.contextvars.bound_contextvars(
            model=self.model.name, run_id=str(self.run_id)
        )

    def _settle(self) -> None:
        self._settled += 1
        self._on_settled()


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedImage:
    """An image to be fetched once, with the claim of each model that wants it; at least one."""

    claims: tuple[tuple[ModelRun, ClaimedImage], ...]

    @property
    def url(self) -> str:
        """Where it is."""
        return self.claims[0][1].url

    @property
    def validators(self) -> Validators | None:
        """To ask with whether it has changed since the vectors of all these models were made.

        `None`: at least one has none, or they were made of different versions; then the content
        tells which of them are out of date.
        """
        versions = [image.version for _, image in self.claims]
        first = versions[0]
        if first is None or any(
            each is None or each.content_sha256 != first.content_sha256 for each in versions
        ):
            return None
        return next((each.validators for each in versions if each and each.validators), None)

    def count_bytes(self, size: int) -> None:
        """So many bytes arrived of it, or of what was in its place."""
        for run, _ in self.claims:
            run.downloaded_bytes += size / len(self.claims)

    @property
    def core_times(self) -> list[CoreTime]:
        """Whose work it is."""
        return [run.core_time for run, _ in self.claims]


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A claimed image in the size of a model, waiting for its batch.

    Attributes:
        tensor: As of `embed.prepare`.
        width: Of the whole image, upright.
        height: Likewise.
    """

    run: ModelRun
    image: ClaimedImage
    tensor: "Tensor"
    content_sha256: bytes
    validators: Validators | None
    width: int
    height: int


class SteadyRate:
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
        self._lock = threading.Lock()

    def begin(self) -> None:
        self._begun_at = time.monotonic()

    def add(self, images: int) -> None:
        with self._lock:
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
