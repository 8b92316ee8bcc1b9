"""Rows into shards, shards and failures into the database: the end of the pipeline."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Concatenate, Final, ParamSpec, TypeVar
from uuid import uuid4

import structlog
from sqlalchemy import Connection

from visual_search import claim, record
from visual_search.database.connection import Database
from visual_search.database.schema import ShardState
from visual_search.errors import FailureRateError, FailureReason, FencedError, StorageError
from visual_search.images import (
    ClaimedImage,
    EmbeddedImage,
    FailedImage,
    LeaseToken,
    PostponedImage,
    RunId,
    ShardId,
    UnchangedImage,
    WrittenShard,
)
from visual_search.models.registry import RegisteredModel
from visual_search.pipeline.core_time import CoreTime
from visual_search.pipeline.failure_rate import FailureRate
from visual_search.pipeline.ledger import Ledger, WithoutVector
from visual_search.settings import ExtractSettings
from visual_search.shard import ShardWriter
from visual_search.storage import Storage

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

T = TypeVar("T")
P = ParamSpec("P")
_TICK_S: Final = 0.5
_OUTCOMES_AT_ONCE: Final = 500


Outcome = EmbeddedImage | UnchangedImage | FailedImage | PostponedImage | ClaimedImage
"""What became of a claimed image; a bare claim is given back without a result."""


@dataclass(kw_only=True, slots=True)
class OpenShard:
    """One lease, the claims under it, and the shard that their vectors fill.

    `claimed` and `closed` are the feeder's to set, all else is the recorder's. Claims that turned
    out `unchanged` take no room in the shard.
    """

    token: LeaseToken
    opened_at: float = field(default_factory=time.monotonic)
    claimed: int = 0
    closed: bool = False
    settled: int = 0
    unchanged: int = 0
    writer: ShardWriter | None = None
    rows: list[record.RecordedRow] = field(default_factory=list)
    waiting: WithoutVector = field(default_factory=WithoutVector)


def _bound(
    method: Callable[Concatenate["Recorder", OpenShard, P], None],
) -> Callable[Concatenate["Recorder", OpenShard, P], None]:
    """Log lines from within are about the shard, once there is one."""

    @wraps(method)
    def bound(recorder: "Recorder", shard: OpenShard, /, *args: P.args, **named: P.kwargs) -> None:
        known = {} if shard.writer is None else {"shard": str(shard.writer.shard_id)}
        with structlog.contextvars.bound_contextvars(**known):
            method(recorder, shard, *args, **named)

    return bound


class Recorder:
    """Takes every claimed image's outcome exactly once; records a shard when all of its are in.

    `put` and `watch` may be called from any thread; `run` is the recorder's own thread.

    Attributes:
        runtime: What computes the vectors; known before the first of them is put.
    """

    def __init__(
        self,
        database: Database,
        model: RegisteredModel,
        storage: Storage,
        ledger: Ledger,
        *,
        run_id: RunId,
        settings: ExtractSettings,
        core_time: CoreTime,
        rate: FailureRate,
        on_settled: Callable[[], None],
        on_closed: Callable[[], None],
        on_hopeless: Callable[[FailureRateError], None],
    ) -> None:
        self._database = database
        self._model = model
        self._storage = storage
        self._ledger = ledger
        self._run_id = run_id
        self._settings = settings
        self._core_time = core_time
        self._rate = rate
        self._on_settled = on_settled
        self._on_closed = on_closed
        self._on_hopeless = on_hopeless
        self._inbox: queue.SimpleQueue[Outcome | OpenShard | None] = queue.SimpleQueue()
        self._open: dict[LeaseToken, OpenShard] = {}
        self._lock = threading.Lock()
        self._stopping = False
        self.runtime = ""
        self.done = 0
        self.unchanged = 0
        self.failed = 0
        self.failed_by_reason = dict.fromkeys(FailureReason, 0)
        self.shards = 0

    def watch(self, shard: OpenShard) -> None:
        """Expect outcomes under this shard's lease."""
        with self._lock:
            self._open[shard.token] = shard

    def put(self, outcome: Outcome) -> None:
        """Hand over an outcome."""
        self._inbox.put(outcome)

    def close(self, shard: OpenShard) -> None:
        """Nothing more is claimed under this lease: record the shard when all outcomes are in."""
        shard.closed = True
        self._inbox.put(shard)

    def stop(self) -> None:
        """End `run` once everything handed over is recorded."""
        self._inbox.put(None)

    def tokens(self) -> list[LeaseToken]:
        """The leases that must live."""
        with self._lock:
            return list(self._open)

    def run(self) -> None:
        """Record until `stop`; then close what is still open."""
        due = time.monotonic() + _TICK_S
        while not self._stopping:
            try:
                outcome = self._inbox.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                pass
            else:
                if outcome is None:
                    self._stopping = True
                elif isinstance(outcome, OpenShard):
                    self._close_if_complete(outcome)
                else:
                    self._take(outcome)
            if time.monotonic() >= due or self._stopping:
                self._tick()
                due = time.monotonic() + _TICK_S
        for shard in self._shards():
            self._close(shard)

    def discard(self) -> None:
        """Take outcomes until `stop` without recording any; after `run` has failed."""
        while not self._stopping:
            outcome = self._inbox.get()
            if outcome is None:
                self._stopping = True
            elif not isinstance(outcome, OpenShard):
                self._on_settled()

    def give_up(self) -> None:
        """Give back all claims, as far as the database answers; after `run` has failed."""
        for shard in self._shards():
            if shard.writer is not None:
                shard.writer.discard()
            with self._database.transaction() as connection:
                if shard.writer is not None:
                    record.abandon_shard(connection, shard.writer.shard_id)
                claim.close_lease(connection, shard.token)
            self._forget(shard)

    def _shards(self) -> list[OpenShard]:
        with self._lock:
            return list(self._open.values())

    def _forget(self, shard: OpenShard) -> None:
        with self._lock:
            del self._open[shard.token]

    def _take(self, outcome: Outcome) -> None:
        image = outcome if isinstance(outcome, ClaimedImage) else outcome.image
        shard = self._open.get(image.lease_token)
        self._on_settled()
        if shard is None:
            return  # fenced in the meantime: another worker has it
        if isinstance(outcome, EmbeddedImage):
            self._rate.embedded(image)
            self._write(shard, outcome)
        elif isinstance(outcome, UnchangedImage):
            shard.unchanged += 1
            shard.waiting.unchanged.append(outcome)
            self._rate.unchanged()
        elif isinstance(outcome, FailedImage):
            shard.waiting.failures.append(outcome)
            self._rate.failed(outcome)
        elif isinstance(outcome, PostponedImage):
            shard.waiting.postponed.append(outcome)
        if len(shard.waiting) >= _OUTCOMES_AT_ONCE:
            self._record_without_vector(shard)
        shard.settled += 1
        self._close_if_complete(shard)

    def _tick(self) -> None:
        for shard in self._shards():
            self._record_without_vector(shard)
        hopeless = self._rate.hopeless(self._database)
        if hopeless is not None:
            self._on_hopeless(hopeless)

    def _write(self, shard: OpenShard, image: EmbeddedImage) -> None:
        if shard.writer is None:
            shard.writer = self._begin_shard()
        with self._core_time.measured("write"):
            position = shard.writer.write(image)
        shard.rows.append(
            record.RecordedRow(
                image_id=image.image.image_id,
                row_in_shard=position,
                content_sha256=image.content_sha256,
                validators=image.validators,
            )
        )

    def _begin_shard(self) -> ShardWriter:
        writer = ShardWriter(
            self._storage,
            shard_id=ShardId(uuid4()),
            run_id=self._run_id,
            model=self._model.name,
            model_id=self._model.model_id,
            dim=self._model.dim,
            stored=self._model.spec.stored,
            spec=self._model.spec.to_json(),
            runtime=self.runtime,
        )

        with structlog.contextvars.bound_contextvars(shard=str(writer.shard_id)):
            self._in_database(
                lambda connection: record.begin_shard(
                    connection,
                    shard_id=writer.shard_id,
                    model_key=self._model.model_key,
                    uri=writer.uri,
                    run_id=self._run_id,
                )
            )
        return writer

    @_bound
    def _record_without_vector(self, shard: OpenShard) -> None:
        """Record what brings no vector at once; it need not wait for the shard's end."""
        outcomes = shard.waiting
        if not outcomes:
            return

        tries: list[str] = []

        def step(connection: Connection) -> None:
            # The lease first: it waits for an earlier try of whose COMMIT the reply was lost.
            claim.lock_lease(connection, shard.token)
            if any(record.took_place(connection, earlier) for earlier in tries):
                # Some of the images may even have been claimed again, under the same lease.
                return
            tries.append(record.transaction_id(connection))
            self._ledger.record(connection, token=shard.token, outcomes=outcomes)

        try:
            self._in_database(step)
        except FencedError as error:
            self._fence(shard, error)
        else:
            self.unchanged += len(outcomes.unchanged)
            self.failed += len(outcomes.failures)
            for failure in outcomes.failures:
                self.failed_by_reason[failure.reason] += 1
        outcomes.clear()

    def _close_if_complete(self, shard: OpenShard) -> None:
        if shard.closed and shard.settled == shard.claimed and shard.token in self._open:
            self._close(shard)

    @_bound
    def _close(self, shard: OpenShard) -> None:
        """All outcomes are in: make the shard visible and end the lease."""
        self._record_without_vector(shard)
        if shard.token not in self._open:
            return
        try:
            if shard.writer is None:
                self._in_database(lambda connection: claim.close_lease(connection, shard.token))
            else:
                written = self._finish(shard.writer)
                self._in_database(self._commit(shard, written))
                self.done += written.rows
                self.shards += 1
                log.info("shard_recorded", rows=written.rows)
        except FencedError as error:
            self._fence(shard, error)
            return
        self._forget(shard)
        self._on_closed()

    def _finish(self, writer: ShardWriter) -> WrittenShard:
        try:
            with self._core_time.measured("write"):
                return writer.finish()
        except StorageError as error:
            # gc may have deleted the file while this process slept for longer than its lease.
            state = self._in_database(lambda c: record.shard_state(c, writer.shard_id))
            if state is not ShardState.WRITING:
                raise FencedError(f"shard {writer.shard_id} is {state or 'gone'}") from error
            raise

    def _commit(self, shard: OpenShard, written: WrittenShard) -> Callable[[Connection], None]:
        def step(connection: Connection) -> None:
            # The state comes first: after a lost reply to COMMIT the same step runs again, and
            # only the table knows whether the first one counted.
            state = record.shard_state(connection, written.shard_id)
            if state is ShardState.COMMITTED:
                return
            if state is not ShardState.WRITING:
                raise FencedError(f"shard {written.shard_id} is {state or 'gone'}")
            self._ledger.commit(connection, token=shard.token, shard=written, rows=shard.rows)
            claim.close_lease(connection, shard.token)

        return step

    @_bound
    def _fence(self, shard: OpenShard, error: FencedError) -> None:
        """The images or the shard were taken from this worker: nothing of it may count."""
        log.warning("shard_given_up", lease=str(shard.token), rows=len(shard.rows), why=str(error))
        writer = shard.writer
        if writer is not None:
            writer.discard()

        def step(connection: Connection) -> None:
            if writer is not None:
                record.abandon_shard(connection, writer.shard_id)
            # Where gc took the shard alone, the images are still claimed, and no image's fault.
            claim.close_lease(connection, shard.token)

        self._in_database(step)
        shard.closed = True
        self._forget(shard)
        self._on_closed()

    def _in_database(self, step: Callable[[Connection], T]) -> T:
        with self._core_time.measured("database"):
            return self._database.run(step)
