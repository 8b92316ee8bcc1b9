"""URL → bytes: polite to hosts, bounded in time and size, and never inward.

One `Downloader` serves a whole run. What it holds at most, beside idle connections:
`concurrency` bodies of `max_bytes`.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from types import TracebackType
from typing import Final, Self

import aiohttp
import stamina
import structlog
from aiohttp.http_exceptions import HttpProcessingError
from stamina.instrumentation import RetryDetails, set_on_retry_hooks
from yarl import URL

from visual_search import __version__
from visual_search.download.lookup import SystemResolver
from visual_search.download.sending import Sending, tracing
from visual_search.download.translation import refused, translated
from visual_search.errors import FailureReason, ImageError
from visual_search.images import Download
from visual_search.network_guard import Guard, GuardedResolver
from visual_search.redaction import redact_url
from visual_search.settings import DownloadSettings

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_HEADERS: Final = {
    # Without webp and avif by name: CDNs that convert on demand then send the original.
    "Accept": "image/jpeg,image/png,image/gif,image/bmp,image/*;q=0.8,*/*;q=0.5",
    # Images are compressed already. Servers that compress all the same are decoded, bounded.
    "Accept-Encoding": "identity",
    "User-Agent": f"vsearch/{__version__}",
}
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_WITH_BODY: Final = (200, 203)
_READ_BYTES: Final = 1 << 16

# A host that wants a longer pause than this gets it from a later claim, not from a waiting one.
_MAX_PAUSE_S: Final = 10.0
_BACKOFF_S: Final = 1.0


class Downloader:
    """Fetches images, many at once; an async context manager.

    At most `concurrency` requests are out at a time, and `per_host` to one host and port. Waiting
    for either costs an image none of its time.
    """

    _resolver: GuardedResolver
    _session: aiohttp.ClientSession

    def __init__(self, settings: DownloadSettings) -> None:
        self._settings = settings
        self._guard = Guard(settings.allow_networks, settings.allow_ports)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._hosts: dict[tuple[str | None, int | None], _Host] = {}
        self._retry = stamina.AsyncRetryingCaller(attempts=settings.tries, timeout=None)

    async def __aenter__(self) -> Self:
        self._resolver = GuardedResolver(self._guard, SystemResolver())
        connector = aiohttp.TCPConnector(
            resolver=self._resolver,
            socket_factory=self._guard.make_socket,
            ttl_dns_cache=300,
            limit=0,  # our own slots limit; a queue in here would count as time to connect
        )
        headers = dict(_HEADERS)
        if self._settings.user_agent:
            headers["User-Agent"] = self._settings.user_agent
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._settings.connect_timeout_s),
            trust_env=False,  # a proxy or .netrc would lead around the guard
            trace_configs=[tracing()],
            read_bufsize=_READ_BYTES,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()
        await self._resolver.close()

    async def fetch(self, url: str) -> Download:
        """Fetch one image in up to `tries` tries, each a request and its redirects.

        All of them and the pauses between take at most `deadline_s`.

        Raises:
            ImageError: With the last try's reason. A long `Retry-After` is not waited for but
                handed on in it.
        """
        target = self._guard.check_url(url)
        patience = _Patience(self._settings.deadline_s)
        return await self._retry(patience.before_next_try, self._try, target, patience)

    async def _try(self, url: URL, patience: "_Patience") -> Download:
        # Redirects are followed here, not by aiohttp, so that each meets the guard's check of its
        # text and waits for a slot of its own host.
        for _ in range(self._settings.max_redirects + 1):
            answer = await self._request(url, patience)
            if isinstance(answer, Download):
                return answer
            url = answer
        raise ImageError(
            FailureReason.TOO_MANY_REDIRECTS,
            f"more than {self._settings.max_redirects}, the last to {redact_url(str(url))}",
        )

    async def _request(self, url: URL, patience: "_Patience") -> Download | URL:
        """One request: the image, or the URL to go on with."""
        async with self._slot(url, patience):
            sending = Sending()
            try:
                async with (
                    asyncio.timeout_at(patience.ends),
                    self._session.get(
                        url,
                        allow_redirects=False,
                        middlewares=(sending,),
                        trace_request_ctx=sending,
                    ) as response,
                ):
                    location = response.headers.get("Location")
                    if response.status in _REDIRECTS and location is not None:
                        return self._guard.follow(url, location)
                    if response.status not in _WITH_BODY:
                        raise refused(response)
                    return await self._read(response)
            except (aiohttp.ClientError, HttpProcessingError) as error:
                raise translated(error, url) from None  # its message holds the whole URL
            except TimeoutError:
                raise ImageError(
                    FailureReason.TIMEOUT,
                    f"{redact_url(str(url))} not complete after {self._settings.deadline_s:g} s",
                ) from None

    async def _read(self, response: aiohttp.ClientResponse) -> Download:
        """The body, counted after decompression, given up within a read above the cap."""
        limit = int(self._settings.max_bytes)
        if (response.content_length or 0) > limit:
            raise _too_large(f"{response.content_length} bytes", limit, response.status)
        chunks, size, digest = [], 0, sha256()
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise _too_large(f"{size} bytes or more", limit, response.status)
            chunks.append(chunk)
            digest.update(chunk)
        if not size:
            raise ImageError(FailureReason.EMPTY_BODY, "0 bytes", http_status=response.status)
        return Download(body=b"".join(chunks), content_sha256=digest.digest())

    @asynccontextmanager
    async def _slot(self, url: URL, patience: "_Patience") -> AsyncIterator[None]:
        """A place among the requests to this host, then one among all.

        In this order, so that those who queue for a slow host keep no other host waiting.
        """
        key = (url.raw_host, url.port)
        host = self._hosts.get(key)
        if host is None:
            host = self._hosts[key] = _Host(asyncio.Semaphore(self._settings.per_host))
        host.users += 1
        queued = patience.now()
        try:
            async with host.slots, self._slots:
                patience.ends += patience.now() - queued
                yield
        finally:
            host.users -= 1
            if not host.users:
                del self._hosts[key]


@dataclass(slots=True)
class _Host:
    """The slots of one host and port; kept only while someone wants one."""

    slots: asyncio.Semaphore
    users: int = 0


class _Patience:
    """How long one image may still take, over all its tries."""

    def __init__(self, seconds: float) -> None:
        self.now = asyncio.get_running_loop().time
        self.ends = self.now() + seconds
        self._tries = 0

    def before_next_try(self, error: Exception) -> float | bool:
        """What stamina asks after a failed try: the pause in seconds, or False for no more tries.

        Full jitter, so that images that failed together do not come back together.
        """
        self._tries += 1
        left_s = self.ends - self.now()
        if not isinstance(error, ImageError) or not error.reason.retryable or left_s <= 0:
            return False
        if error.retry_after_s is None:
            longest_s = min(left_s, _BACKOFF_S * 2 ** (self._tries - 1))
            return random.uniform(0, longest_s)  # noqa: S311 - jitter is no secret
        return error.retry_after_s < min(left_s, _MAX_PAUSE_S) and error.retry_after_s


def _too_large(size: str, limit: int, status: int) -> ImageError:
    return ImageError(FailureReason.TOO_LARGE, f"{size}, limit {limit}", http_status=status)


def _log_retry(details: RetryDetails) -> None:
    cause = details.caused_by
    log.debug(
        "retry_scheduled",
        caused_by=str(cause) if isinstance(cause, ImageError) else type(cause).__name__,
        wait_s=round(details.wait_for, 2),
    )


# stamina's own hooks print arguments and exceptions as they are, and so the secrets of URLs.
set_on_retry_hooks([_log_retry])
