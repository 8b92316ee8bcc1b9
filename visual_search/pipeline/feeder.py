"""Claims into downloads: the beginning of the pipeline, on an event loop of its own."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import random
from typing import Final

from visual_search import hosts
from visual_search.claim import Suspicion
from visual_search.database.connection import Database
from visual_search.download import BodyBudget, Downloader
from visual_search.errors import HostPausedError, ImageError
from visual_search.images import (
    ClaimedImage,
    Download,
    FailedImage,
    PostponedImage,
    UnchangedImage,
    Version,
)
from visual_search.pipeline.background import BackgroundDatabase
from visual_search.pipeline.claiming import Claimer
from visual_search.pipeline.core_time import RunCoreTime
from visual_search.pipeline.model_run import ModelRun, WantedImage
from visual_search.pipeline.traffic import TrafficLog
from visual_search.settings import Settings

_POLL_S: Final = 1.0
# For what hosts did last to reach other workers; the run's own end does not depend on it.
_LAST_TELLING_S: Final = 5.0


class Feeder:
    """Claims images, downloads each once for all models that want it, hands bodies and failures on.

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
        self._database = BackgroundDatabase(database, core_time)
        self._claimer = Claimer(self._database, models, settings.extract)
        self._models = models
        self._settings = settings
        self._core_time = core_time
        self._on_body = on_body
        self._loop = asyncio.new_event_loop()
        self._free_slots = slots
        self._bodies = BodyBudget(body_bytes)
        self._traffic = TrafficLog(self._database)
        self._draining = asyncio.Event()
        self._changed = asyncio.Event()
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
        if not self._claimer.busy:
            run.close_shard()
        self._changed.set()

    def _drain(self) -> None:
        self._draining.set()
        self._changed.set()

    def _cancel(self) -> None:
        self._drain()
        for task in self._tasks:
            task.cancel()

    async def _main(self) -> None:
        downloader = Downloader(
            self._settings.download, self._note_pause, self._bodies, self._traffic.note
        )
        async with downloader:
            rotation = asyncio.create_task(self._rotate())
            telling = [
                asyncio.create_task(self._share_pauses(downloader)),
                asyncio.create_task(self._traffic.record(self._fed)),
            ]
            for task in telling:
                task.add_done_callback(self._ended)
            try:
                await self._feed(downloader)
            finally:
                rotation.cancel()
                self._close_shards()
                await asyncio.gather(*self._tasks)
                self._fed.set()
                self._pause_noted.set()
                await asyncio.wait(telling, timeout=_LAST_TELLING_S)
                for task in telling:
                    task.cancel()
        if self._bug is not None:
            raise self._bug

    async def _feed(self, downloader: Downloader) -> None:
        while not self._draining.is_set():
            if all(run.left == 0 for run in self._claimer.running):
                await self._settle()
                return
            images = await self._claimer.claim(Suspicion.NONE)
            if images:
                await self._start(downloader, images)
                continue
            await self._settle()
            if not await self._feed_suspects(downloader) and not await self._wait():
                return

    async def _feed_suspects(self, downloader: Downloader) -> bool:
        """Images that were there when a worker died: few or one at a time, with nothing else."""
        for suspicion in (Suspicion.SOME, Suspicion.GRAVE):
            images = await self._claimer.claim(suspicion)
            if images:
                self._close_shards()
                await self._start(downloader, images)
                await self._settle()
                return True
        return False

    async def _wait(self) -> bool:
        """Wait for what another worker holds, or what is due soon. False: nothing is, or drain."""
        deadline = time.monotonic() + self._settings.extract.wait_s
        while not self._draining.is_set():
            outlooks = await self._claimer.look_out()
            soon = min((o.next_in_s for o in outlooks if o.next_in_s is not None), default=None)
            if soon is None or time.monotonic() + soon > deadline:
                await self._claimer.count_waiting()
                return False
            if any(o.due_in_s is not None and o.due_in_s <= 0 for o in outlooks):
                return True
            await self._pause(min(max(soon, 0.05), _POLL_S))
            if all(o.lease_ends_in_s is None for o in outlooks):
                continue
            # Another worker may give images back at any moment: look, and wait on.
            if await self._claimer.rescue():
                return True
        return False

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._draining.wait(), seconds)

    async def _settle(self) -> None:
        """Record all open shards, whatever they hold."""
        self._close_shards()
        while any(run.open_shards for run in self._claimer.running) and not self._draining.is_set():
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
            if self._claimer.busy:
                continue
            opened_before = time.monotonic() - self._settings.extract.shard_max_s
            for run in self._models:
                if run.current is not None and run.current.opened_at < opened_before:
                    run.close_shard()

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
            paused = await self._database.run(
                lambda connection, ours=ours: hosts.share_pauses(connection, ours)  # type: ignore[misc]
            )
            for host, seconds in paused.items():
                downloader.pause(host, seconds)

    def _close_shards(self) -> None:
        for run in self._models:
            run.close_shard()

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
            download = await downloader.fetch(
                wanted.url, wanted.count_bytes, known=wanted.validators
            )
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
            outdated = _settle_unchanged(wanted, download)
            if download is not None:
                if outdated:
                    self._on_body(WantedImage(claims=outdated), download)
                else:
                    self._bodies.give_back(len(download.body))


def _settle_unchanged(
    wanted: WantedImage, download: Download | None
) -> tuple[tuple[ModelRun, ClaimedImage], ...]:
    """Tell the models whose vectors were made of the same bytes; the claims of the others."""
    outdated = []
    for run, image in wanted.claims:
        version = image.version
        if download is not None:
            if version is None or version.content_sha256 != download.content_sha256:
                outdated.append((run, image))
                continue
            version = Version(
                content_sha256=download.content_sha256, validators=download.validators
            )
        if version is not None:
            run.recorder.put(UnchangedImage(image=image, version=version))
    return tuple(outdated)


def _give_back(wanted: WantedImage) -> None:
    for run, image in wanted.claims:
        run.recorder.put(image)
