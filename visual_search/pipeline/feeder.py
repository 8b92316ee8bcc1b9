"""Claims into downloads: the beginning of the pipeline, on an event loop of its own."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import takewhile
from random import random
from typing import Final, TypeVar
from uuid import uuid4

import structlog
from sqlalchemy import Connection

from visual_search import claim, hosts
from visual_search.claim import Suspicion
from visual_search.database.connection import Database
from visual_search.download import BodyBudget, Downloader
from visual_search.errors import FencedError, HostPausedError, ImageError
from visual_search.images import (
    ClaimedImage,
    Download,
    FailedImage,
    ImageId,
    LeaseToken,
    PostponedImage,
)
from visual_search.pipeline.core_time import RunCoreTime
from visual_search.pipeline.model_run import ModelRun, WantedImage
from visual_search.pipeline.recorder import OpenShard
from visual_search.settings import Settings

T = TypeVar("T")
log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_CLAIM_ROWS: Final = 256
_POLL_S: Final = 1.0
# For the last images' pauses to reach other workers; the run's own end does not depend on it.
_LAST_SHARING_S: Final = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lease:
    """Under what a model claims: its current shard's lease, or a new one."""

    run: ModelRun
    token: LeaseToken
    new: bool


class _LeaseLostError(Exception):
    """Another worker has taken over the lease of this model's current shard."""

    def __init__(self, run: ModelRun) -> None:
        self.run = run


class Feeder:
    """Claims images, downloads each once for all models that want it, hands bodies and failures on.

    One model leads: its images are claimed, and for the other models those of them that they lack,
    too. The first to lead is the one that knows the least of the catalogue, so that whatever
    another model lacks, it lacks as well.

    `run` is the feeder's own thread. What releases, `shard_closed`, `drop`, `drain` and `cut` may
    be called from any thread.
    """

    def __init__(
        self,
        database: Database,
        models: Sequence[ModelRun],
        *,
        settings: Settings,
        slots: int,
        body_bytes: int,
        core_time: RunCoreTime,
        on_body: Callable[[WantedImage, Download], None],
    ) -> None:
        """Nothing is claimed yet.

        Args:
            database: Open.
            models: Which models to feed.
            settings: Of downloads, leases and shards.
            slots: Claims that may be between feeder and recorder, of all models together.
            body_bytes: What bodies may take in memory until they are decoded.
            core_time: Told of the time it takes.
            on_body: Gets each download.
        """
        self._database = database
        self._models = models
        self._settings = settings
        self._core_time = core_time
        self._on_body = on_body
        self._loop = asyncio.new_event_loop()
        self._free_slots = slots
        self._bodies = BodyBudget(body_bytes)
        self._draining = asyncio.Event()
        self._changed = asyncio.Event()
        self._claiming = False
        self._metered_to = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._paused_until: dict[str, float] = {}
        self._pause_noted = asyncio.Event()
        self._fed = asyncio.Event()
        self._bug: BaseException | None = None

    def run(self) -> None:
        """Feed until nothing is left to claim, or until told to stop."""
        self._metered_to = time.thread_time()
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()
            self._meter()

    def release_slot(self) -> None:
        """An image has left the pipeline."""
        self._call(self._free_slot)

    def release_body(self, size: int) -> None:
        """A body of so many bytes has been decoded."""
        self._call(self._bodies.give_back, size)

    def shard_closed(self, run: ModelRun) -> None:
        """A shard was recorded or given up."""
        self._call(self._forget_shard, run)

    def drop(self, run: ModelRun) -> None:
        """Claim no more for this model, which has an error."""
        self._call(self._drop, run)

    def drain(self) -> None:
        """Claim no more; downloads under way may finish."""
        self._call(self._drain)

    def cut(self) -> None:
        """Give back what is not downloaded yet."""
        self._call(self._cancel)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop has ended: everything it would be told of is over.
            if not self._loop.is_closed():
                raise

    def _free_slot(self) -> None:
        self._free_slots += 1
        self._changed.set()

    def _forget_shard(self, run: ModelRun) -> None:
        run.open_shards -= 1
        self._changed.set()

    def _drop(self, run: ModelRun) -> None:
        if not self._claiming:
            self._close_current(run)
        self._changed.set()

    def _drain(self) -> None:
        self._draining.set()
        self._changed.set()

    def _cancel(self) -> None:
        self._drain()
        for task in self._tasks:
            task.cancel()

    @property
    def _running(self) -> list[ModelRun]:
        """The models that nothing has stopped."""
        return [run for run in self._models if run.error is None]

    async def _main(self) -> None:
        downloader = Downloader(self._settings.download, self._note_pause, self._bodies)
        async with downloader:
            rotation = asyncio.create_task(self._rotate())
            sharing = asyncio.create_task(self._share_pauses(downloader))
            sharing.add_done_callback(self._ended)
            try:
                await self._feed(downloader)
            finally:
                rotation.cancel()
                self._close_all()
                await asyncio.gather(*self._tasks)
                self._fed.set()
                self._pause_noted.set()
                await asyncio.wait([sharing], timeout=_LAST_SHARING_S)
                sharing.cancel()
        if self._bug is not None:
            raise self._bug

    async def _feed(self, downloader: Downloader) -> None:
        while not self._draining.is_set():
            if all(run.left == 0 for run in self._running):
                await self._settle()
                return
            images = await self._claim(Suspicion.NONE)
            if images:
                await self._start(downloader, images)
                continue
            await self._settle()
            if not await self._feed_suspects(downloader) and not await self._wait():
                return

    async def _feed_suspects(self, downloader: Downloader) -> bool:
        """Images that were there when a worker died: few or one at a time, with nothing else."""
        for suspicion in (Suspicion.SOME, Suspicion.GRAVE):
            images = await self._claim(suspicion)
            if images:
                self._close_all()
                await self._start(downloader, images)
                await self._settle()
                return True
        return False

    async def _wait(self) -> bool:
        """Wait for what another worker holds, or what is due soon. False: nothing is, or drain."""
        deadline = time.monotonic() + self._settings.extract.wait_s
        while not self._draining.is_set():
            await self._in_database(self._look_out)
            outlooks = [run.outlook for run in self._running if run.outlook is not None]
            soon = min((o.next_in_s for o in outlooks if o.next_in_s is not None), default=None)
            if soon is None or time.monotonic() + soon > deadline:
                await self._in_database(self._count_waiting)
                return False
            if any(o.due_in_s is not None and o.due_in_s <= 0 for o in outlooks):
                return True
            await self._pause(min(max(soon, 0.05), _POLL_S))
            if all(o.lease_ends_in_s is None for o in outlooks):
                continue
            # Another worker may give images back at any moment: look, and wait on.
            if await self._in_database(self._rescue):
                return True
        return False

    def _look_out(self, connection: Connection) -> None:
        for run in self._running:
            run.outlook = claim.outlook(connection, run.model.model_key)

    def _count_waiting(self, connection: Connection) -> None:
        for run in self._running:
            run.waiting = claim.count_pending(connection, run.model.model_key)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._draining.wait(), seconds)

    async def _settle(self) -> None:
        """Record all open shards, whatever they hold."""
        self._close_all()
        while any(run.open_shards for run in self._running) and not self._draining.is_set():
            await self._next_change()

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _meter(self) -> None:
        """The loop's whole thread works for downloads."""
        now = time.thread_time()
        self._core_time.add("download", now - self._metered_to, self._core_time.models)
        self._metered_to = now

    async def _rotate(self) -> None:
        """Every second: close the current shards that have been open for long enough."""
        while True:
            await asyncio.sleep(_POLL_S)
            self._meter()
            if self._claiming:
                continue
            opened_before = time.monotonic() - self._settings.extract.shard_max_s
            for run in self._models:
                if run.current is not None and run.current.opened_at < opened_before:
                    self._close_current(run)

    def _note_pause(self, host: str, seconds: float) -> None:
        self._paused_until[host] = self._loop.time() + seconds
        self._pause_noted.set()

    async def _share_pauses(self, downloader: Downloader) -> None:
        """Every second, or at once if a host asks for a pause: tell it, and hear of others'."""
        while not self._fed.is_set() or self._paused_until:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._pause_noted.wait(), _POLL_S)
            self._pause_noted.clear()
            until, self._paused_until = self._paused_until, {}
            ours = {host: end - self._loop.time() for host, end in until.items()}
            paused = await self._in_database(
                lambda connection, ours=ours: hosts.share_pauses(connection, ours)  # type: ignore[misc]
            )
            for host, seconds in paused.items():
                downloader.pause(host, seconds)

    def _close_all(self) -> None:
        for run in self._models:
            self._close_current(run)

    def _close_current(self, run: ModelRun) -> None:
        if run.current is not None:
            run.recorder.close(run.current)
            run.current = None

    async def _claim(self, suspicion: Suspicion) -> list[WantedImage]:
        """Claim for the current shards, or for new ones; what the first model finds that leads."""
        self._claiming = True
        try:
            for run in await self._by_progress():
                images = await self._claim_led_by(run, suspicion)
                if images:
                    return images
            return []
        finally:
            self._claiming = False
            for run in self._models:
                if run.error is not None:
                    self._close_current(run)

    async def _by_progress(self) -> list[ModelRun]:
        """Those that may claim more, the one that knows the least of the catalogue first."""
        runs = {run.model.model_key: run for run in self._running if run.left != 0}
        if len(runs) < 2:
            return list(runs.values())
        order = await self._in_database(lambda c: claim.by_progress(c, list(runs)))
        return [runs[model_key] for model_key in order]

    async def _claim_led_by(self, leader: ModelRun, suspicion: Suspicion) -> list[WantedImage]:
        while True:
            try:
                claims, were_due = await self._claim_once(leader, suspicion)
            except _LeaseLostError as lost:
                log.warning("lease_lost", model=lost.run.model.name)
                self._close_current(lost.run)
                continue
            if claims:
                return self._count(claims)
            # Behind images whose hosts are paused there may be others, as behind what is not
            # seeded.
            if not were_due and (suspicion is not Suspicion.NONE or not await self._seed(leader)):
                return []

    async def _claim_once(
        self, leader: ModelRun, suspicion: Suspicion
    ) -> tuple[dict[_Lease, list[ClaimedImage]], bool]:
        """What each model got that got anything; and whether anything of the leader's was due."""
        others = [run for run in self._running if run is not leader and run.left != 0]
        first, *leases = [
            _Lease(
                run=run,
                token=run.current.token if run.current else LeaseToken(uuid4()),
                new=run.current is None,
            )
            for run in [leader, *others]
        ]
        rows = min(_CLAIM_ROWS, self._room(leader), *(self._room(run) for run in others))

        def step(connection: Connection) -> tuple[dict[_Lease, list[ClaimedImage]], bool]:
            self._rescue(connection)
            with self._claiming_under(connection, first) as led:
                due = claim.claim_images(
                    connection,
                    token=first.token,
                    model_key=leader.model.model_key,
                    rows=rows,
                    suspicion=suspicion,
                    place=leader.place if suspicion is Suspicion.NONE else None,
                )
                led.extend(claim.release_paused(connection, token=first.token, images=due))
            claims = {first: led}
            for lease in leases if led else []:
                with self._claiming_under(connection, lease) as along:
                    along.extend(
                        claim.claim_along(
                            connection,
                            token=lease.token,
                            model_key=lease.run.model.model_key,
                            images=led,
                            suspicion=suspicion,
                        )
                    )
                claims[lease] = along
            return {lease: images for lease, images in claims.items() if images}, bool(due)

        return await self._in_database(step)

    @contextmanager
    def _claiming_under(
        self, connection: Connection, lease: _Lease
    ) -> Iterator[list[ClaimedImage]]:
        """The list is to be filled with what is claimed; a lease that gets nothing is not kept."""
        if lease.new:
            claim.open_lease(
                connection,
                token=lease.token,
                model_key=lease.run.model.model_key,
                run_id=lease.run.run_id,
                lease_s=self._settings.extract.lease_s,
            )
        images: list[ClaimedImage] = []
        try:
            yield images
        except FencedError:
            raise _LeaseLostError(lease.run) from None
        if lease.new and not images:
            claim.close_lease(connection, lease.token)

    def _room(self, run: ModelRun) -> int:
        """How many images the model may claim for its current shard."""
        room = self._settings.extract.shard_rows - (run.current.claimed if run.current else 0)
        return room if run.left is None else min(room, run.left)

    def _rescue(self, connection: Connection) -> int:
        return sum(
            claim.rescue_images(
                connection,
                run.model.model_key,
                lease_s=self._settings.extract.lease_s,
                own_run=run.run_id,
            )
            for run in self._running
        )

    def _count(self, claims: Mapping[_Lease, Sequence[ClaimedImage]]) -> list[WantedImage]:
        """Take note of what was claimed; by image."""
        wanted: dict[ImageId, list[tuple[ModelRun, ClaimedImage]]] = {}
        for lease, images in claims.items():
            run = lease.run
            shard = run.current
            if shard is None:
                shard = run.current = OpenShard(token=lease.token)
                run.open_shards += 1
                run.recorder.watch(shard)
            shard.claimed += len(images)
            run.claimed += len(images)
            if run.left is not None:
                run.left -= len(images)
            if shard.claimed >= self._settings.extract.shard_rows:
                self._close_current(run)
            for image in images:
                wanted.setdefault(image.image_id, []).append((run, image))
        return [WantedImage(claims=tuple(parts)) for parts in wanted.values()]

    async def _seed(self, leader: ModelRun) -> int:
        """Make more images pending for a model, and for those that know no more than it now."""
        seeded = await self._in_database(
            lambda connection: claim.seed_images(connection, leader.model.model_key)
        )
        if seeded:
            for run in takewhile(lambda run: run is not leader, await self._by_progress()):
                await self._in_database(
                    lambda connection, run=run: claim.seed_images(connection, run.model.model_key)  # type: ignore[misc]
                )
        return seeded

    async def _start(self, downloader: Downloader, images: list[WantedImage]) -> None:
        for image in images:
            while self._is_full() and not self._draining.is_set():
                await self._next_change()
            self._free_slots -= len(image.claims)
            if self._draining.is_set():
                _give_back(image)
                continue
            task = asyncio.create_task(self._fetch(downloader, image))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _is_full(self) -> bool:
        return self._free_slots <= 0

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._bug = task.exception()
            self._drain()

    async def _fetch(self, downloader: Downloader, wanted: WantedImage) -> None:
        try:
            download = await downloader.fetch(wanted.url)
        except ImageError as error:
            jitter = random()  # noqa: S311 - spreads load, keeps no secret
            for run, image in wanted.claims:
                run.recorder.put(
                    FailedImage(
                        image=image,
                        reason=error.reason,
                        detail=error.detail,
                        http_status=error.http_status,
                        retry_after_s=error.retry_after_s,
                        jitter=jitter,
                    )
                )
        except HostPausedError as error:
            for run, image in wanted.claims:
                run.recorder.put(PostponedImage(image=image, wait_s=error.seconds))
        except asyncio.CancelledError:
            _give_back(wanted)
        else:
            self._on_body(wanted, download)

    async def _in_database(self, step: Callable[[Connection], T]) -> T:
        def timed() -> T:
            with self._core_time.measured("database", self._core_time.models):
                return self._database.run(step)

        return await asyncio.to_thread(timed)


def _give_back(wanted: WantedImage) -> None:
    for run, image in wanted.claims:
        run.recorder.put(image)
