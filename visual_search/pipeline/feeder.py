"""Claims into downloads: the beginning of the pipeline, on an event loop of its own."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar
from uuid import uuid4

import structlog
from sqlalchemy import Connection

from visual_search import claim, hosts
from visual_search.claim import Outlook, Suspicion
from visual_search.database.connection import Database
from visual_search.download import Downloader
from visual_search.errors import FencedError, HostPausedError, ImageError
from visual_search.images import (
    ClaimedImage,
    Download,
    FailedImage,
    LeaseToken,
    PostponedImage,
    RunId,
)
from visual_search.models.registry import RegisteredModel
from visual_search.pipeline.core_time import CoreTime
from visual_search.pipeline.recorder import OpenShard, Recorder
from visual_search.settings import Settings

T = TypeVar("T")
log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_CLAIM_ROWS: Final = 256
_POLL_S: Final = 1.0
# For the last images' pauses to reach other workers; the run's own end does not depend on it.
_LAST_SHARING_S: Final = 5.0
# Images between claim and record, for each download that may run: enough that a slow host does
# not keep the others idle, few enough that they fit in memory as pixels of the model's size.
_AHEAD: Final = 8


class Feeder:
    """Claims images, downloads them, and hands bodies and failures on.

    `run` is the feeder's own thread. `release_slot`, `release_bytes`, `shard_closed`, `drain` and
    `cut` may be called from any thread.
    """

    def __init__(
        self,
        database: Database,
        model: RegisteredModel,
        *,
        run_id: RunId,
        settings: Settings,
        limit: int | None,
        core_time: CoreTime,
        recorder: Recorder,
        on_body: Callable[[ClaimedImage, Download], None],
    ) -> None:
        self._database = database
        self._model = model
        self._run_id = run_id
        self._settings = settings
        self._left = limit
        self._core_time = core_time
        self._recorder = recorder
        self._on_body = on_body
        self._loop = asyncio.new_event_loop()
        self._free_slots = _AHEAD * settings.download.concurrency
        self._draining = asyncio.Event()
        self._changed = asyncio.Event()
        self._held_bytes = 0
        self._open_shards = 0
        self._current: OpenShard | None = None
        self._claiming = False
        self._metered_to = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._paused_until: dict[str, float] = {}
        self._pause_noted = asyncio.Event()
        self._fed = asyncio.Event()
        self._bug: BaseException | None = None
        self.claimed = 0
        self.outlook: Outlook | None = None
        self.waiting = 0

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

    def release_bytes(self, count: int) -> None:
        """A body of so many bytes has been decoded."""
        self._call(self._free_bytes, count)

    def shard_closed(self) -> None:
        """A shard was recorded or given up."""
        self._call(self._forget_shard)

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

    def _free_bytes(self, count: int) -> None:
        self._held_bytes -= count
        self._changed.set()

    def _forget_shard(self) -> None:
        self._open_shards -= 1
        self._changed.set()

    def _drain(self) -> None:
        self._draining.set()
        self._changed.set()

    def _cancel(self) -> None:
        self._drain()
        for task in self._tasks:
            task.cancel()

    async def _main(self) -> None:
        async with Downloader(self._settings.download, self._note_pause) as downloader:
            rotation = asyncio.create_task(self._rotate())
            sharing = asyncio.create_task(self._share_pauses(downloader))
            sharing.add_done_callback(self._ended)
            try:
                await self._feed(downloader)
            finally:
                rotation.cancel()
                self._close_current()
                await asyncio.gather(*self._tasks)
                self._fed.set()
                self._pause_noted.set()
                await asyncio.wait([sharing], timeout=_LAST_SHARING_S)
                sharing.cancel()
        if self._bug is not None:
            raise self._bug

    async def _feed(self, downloader: Downloader) -> None:
        while not self._draining.is_set():
            if self._left == 0:
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
                self._close_current()
                await self._start(downloader, images)
                await self._settle()
                return True
        return False

    async def _wait(self) -> bool:
        """Wait for what another worker holds, or what is due soon. False: nothing is, or drain."""
        deadline = time.monotonic() + self._settings.extract.wait_s
        while not self._draining.is_set():
            outlook = await self._in_database(
                lambda connection: claim.outlook(connection, self._model.model_key)
            )
            soon = outlook.next_in_s
            if soon is None or time.monotonic() + soon > deadline:
                self.outlook = outlook
                self.waiting = await self._in_database(
                    lambda connection: claim.count_pending(connection, self._model.model_key)
                )
                return False
            if outlook.due_in_s is not None and outlook.due_in_s <= 0:
                return True
            await self._pause(min(max(soon, 0.05), _POLL_S))
            if outlook.lease_ends_in_s is None:
                continue
            # Another worker may give images back at any moment: look, and wait on.
            rescued = await self._in_database(self._rescue)
            if rescued:
                return True
        return False

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._draining.wait(), seconds)

    async def _settle(self) -> None:
        """Record all open shards, whatever they hold."""
        self._close_current()
        while self._open_shards and not self._draining.is_set():
            await self._next_change()

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _meter(self) -> None:
        """The loop's whole thread works for downloads."""
        now = time.thread_time()
        self._core_time.add("download", now - self._metered_to)
        self._metered_to = now

    async def _rotate(self) -> None:
        """Every second: close the current shard when it has been open for long enough."""
        while True:
            await asyncio.sleep(_POLL_S)
            self._meter()
            shard = self._current
            if (
                shard is not None
                and not self._claiming
                and time.monotonic() - shard.opened_at > self._settings.extract.shard_max_s
            ):
                self._close_current()

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

    def _close_current(self) -> None:
        if self._current is not None:
            self._recorder.close(self._current)
            self._current = None

    async def _claim(self, suspicion: Suspicion) -> list[ClaimedImage]:
        """Claim for the current shard, or for a new one."""
        self._claiming = True
        try:
            return await self._claim_for(self._current, suspicion)
        except FencedError:
            log.warning("lease_lost", model=self._model.name)
            self._close_current()
            return await self._claim_for(None, suspicion)
        finally:
            self._claiming = False

    async def _claim_for(self, shard: OpenShard | None, suspicion: Suspicion) -> list[ClaimedImage]:
        token = shard.token if shard else LeaseToken(uuid4())
        room = self._settings.extract.shard_rows - (shard.claimed if shard else 0)
        rows = min(_CLAIM_ROWS, room)
        if self._left is not None:
            rows = min(rows, self._left)

        def step(connection: Connection) -> tuple[list[ClaimedImage], bool]:
            self._rescue(connection)
            if shard is None:
                claim.open_lease(
                    connection,
                    token=token,
                    model_key=self._model.model_key,
                    run_id=self._run_id,
                    lease_s=self._settings.extract.lease_s,
                )
            due = claim.claim_images(
                connection,
                token=token,
                model_key=self._model.model_key,
                rows=rows,
                suspicion=suspicion,
            )
            images = claim.release_paused(connection, token=token, images=due)
            if shard is None and not images:
                claim.close_lease(connection, token)
            return images, bool(due)

        images, were_due = await self._in_database(step)
        # Behind images whose hosts are paused there may be others, as behind what is not seeded.
        while not images and (were_due or (suspicion is Suspicion.NONE and await self._seed())):
            images, were_due = await self._in_database(step)
        if images:
            self._count(shard, token, len(images))
        return images

    def _rescue(self, connection: Connection) -> int:
        return claim.rescue_images(
            connection,
            self._model.model_key,
            lease_s=self._settings.extract.lease_s,
            own_run=self._run_id,
        )

    def _count(self, shard: OpenShard | None, token: LeaseToken, rows: int) -> None:
        if shard is None:
            shard = OpenShard(token=token)
            self._current = shard
            self._open_shards += 1
            self._recorder.watch(shard)
        shard.claimed += rows
        self.claimed += rows
        if self._left is not None:
            self._left -= rows
        if shard.claimed >= self._settings.extract.shard_rows:
            self._close_current()

    async def _seed(self) -> int:
        return await self._in_database(
            lambda connection: claim.seed_images(connection, self._model.model_key)
        )

    async def _start(self, downloader: Downloader, images: list[ClaimedImage]) -> None:
        for image in images:
            while self._is_full() and not self._draining.is_set():
                await self._next_change()
            self._free_slots -= 1
            if self._draining.is_set():
                self._recorder.put(image)
                continue
            task = asyncio.create_task(self._fetch(downloader, image))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _is_full(self) -> bool:
        return self._free_slots <= 0 or self._held_bytes > self._settings.extract.memory_budget

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._bug = task.exception()
            self._drain()

    async def _fetch(self, downloader: Downloader, image: ClaimedImage) -> None:
        try:
            download = await downloader.fetch(image.url)
        except ImageError as error:
            self._recorder.put(
                FailedImage(
                    image=image,
                    reason=error.reason,
                    detail=error.detail,
                    http_status=error.http_status,
                    retry_after_s=error.retry_after_s,
                )
            )
        except HostPausedError as error:
            self._recorder.put(PostponedImage(image=image, wait_s=error.seconds))
        except asyncio.CancelledError:
            self._recorder.put(image)
        else:
            self._held_bytes += len(download.body)
            self._on_body(image, download)

    async def _in_database(self, step: Callable[[Connection], T]) -> T:
        def timed() -> T:
            with self._core_time.measured("database"):
                return self._database.run(step)

        return await asyncio.to_thread(timed)
