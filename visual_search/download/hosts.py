"""What each host gets and wants: its slots, its pace, its pauses, and whether it answers at all."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aiolimiter import AsyncLimiter
from yarl import URL

from visual_search.errors import FailureReason, HostPausedError, ImageError
from visual_search.settings import DownloadSettings

# A longer pause is not sat out by images that hold a place in the pipeline: they are given back.
MAX_WAIT_S: Final = 10.0
# So many requests in a row that a host did not serve, and it is left alone for a while.
_FAILURES_TO_PAUSE: Final = 10
_FIRST_PAUSE_S: Final = 30.0
_LONGEST_PAUSE_S: Final = 600.0
_REMEMBERED_HOSTS: Final = 10_000

# Answers of a host that works, and that refuses this one image.
_REFUSALS: Final = (FailureReason.UNAUTHORIZED, FailureReason.FORBIDDEN)


@dataclass(slots=True)
class Host:
    """One host and port, as long as someone wants it or something is known of it.

    Attributes:
        users: Images that wait for it or are being fetched from it.
        paused_until: By the event loop's clock.
        failures: Requests in a row that it did not serve.
        pauses: How often in a row it was left alone for that.
        on_trial: One image's request decides whether it works again.
    """

    name: str
    slots: asyncio.Semaphore
    pace: AsyncLimiter | None
    users: int = 0
    paused_until: float = 0.0
    failures: int = 0
    pauses: int = 0
    on_trial: bool = False


class Hosts:
    """Whose turn it is. Lives on one event loop.

    At most `concurrency` requests are out at a time, `per_host` of them to one host and port, and
    no more in a second than `requests_per_second`. A host that asks for a pause, or that serves
    nothing any more, is left alone: with images that wait for a short time, by sending those back
    that would have to wait for longer. After a pause of the second kind a single request tries
    it; the pause doubles until one succeeds.
    """

    def __init__(self, settings: DownloadSettings, on_pause: Callable[[str, float], None]) -> None:
        """`on_pause` is told of each pause: the host, and for how many seconds."""
        self._settings = settings
        self._on_pause = on_pause
        self._all_slots = asyncio.Semaphore(settings.concurrency)
        self._hosts: OrderedDict[str, Host] = OrderedDict()
        self._now = asyncio.get_running_loop().time

    def __len__(self) -> int:
        return len(self._hosts)

    def pause(self, name: str, seconds: float) -> None:
        """Send nothing to a host for so long, because another worker was asked not to."""
        host = self._known(name)
        host.paused_until = max(host.paused_until, self._now() + seconds)

    @asynccontextmanager
    async def turn(self, url: URL) -> AsyncIterator[Host]:
        """A place among the requests to this host, then one among all.

        In this order, so that those who queue for a slow host keep no other host waiting.

        Raises:
            HostPausedError: The host must not be asked for longer than one waits.
        """
        host = self._known(url.host_port_subcomponent or "")
        host.users += 1
        trying = False
        try:
            async with host.slots:
                if host.pace is not None:
                    await host.pace.acquire()
                trying = await self._enter(host)
                try:
                    yield host
                finally:
                    self._all_slots.release()
        finally:
            if trying:
                host.on_trial = False
            host.users -= 1
            self._forget_some()

    def served(self, host: Host) -> None:
        """The host answered as a host does that works."""
        host.failures = host.pauses = 0

    def failed(self, host: Host, error: ImageError) -> None:
        """A request brought no image: is that the host's fault, and does it want a pause?"""
        if error.retry_after_s is not None:
            self._pause_all(host, error.retry_after_s)
        if not error.reason.retryable or error.reason in _REFUSALS:
            if error.http_status is not None:
                self.served(host)
            return
        host.failures += 1
        if host.failures >= _FAILURES_TO_PAUSE and self._now() >= host.paused_until:
            self._pause_all(host, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**host.pauses))
            host.pauses += 1

    def _pause_all(self, host: Host, seconds: float) -> None:
        self.pause(host.name, seconds)
        self._on_pause(host.name, seconds)

    async def _enter(self, host: Host) -> bool:
        """Wait until the host may be asked and a place is free; whether this is a trial."""
        while True:
            await self._sit_out_pause(host)
            await self._all_slots.acquire()
            # What others did meanwhile counts: they may have learnt of a pause, or be trying.
            if self._now() >= host.paused_until and not host.on_trial:
                host.on_trial = host.pauses > 0
                return host.on_trial
            self._all_slots.release()

    async def _sit_out_pause(self, host: Host) -> None:
        if host.on_trial:
            raise HostPausedError(host.name, self._settings.deadline_s)
        while (left_s := host.paused_until - self._now()) > 0:
            if left_s > MAX_WAIT_S:
                raise HostPausedError(host.name, left_s)
            await asyncio.sleep(left_s)

    def _known(self, name: str) -> Host:
        host = self._hosts.get(name)
        if host is None:
            rate = self._settings.requests_per_second
            host = self._hosts[name] = Host(
                name=name,
                slots=asyncio.Semaphore(self._settings.per_host),
                # One at a time: a whole second's worth at once is what a pace is to avoid.
                pace=None if rate is None else AsyncLimiter(1, 1 / rate),
            )
        self._hosts.move_to_end(name)
        return host

    def _forget_some(self) -> None:
        """A catalogue may name a million hosts; a few thousand that were asked last are kept."""
        while len(self._hosts) > _REMEMBERED_HOSTS:
            oldest = next(iter(self._hosts.values()))
            if oldest.users:
                return
            del self._hosts[oldest.name]
