"""URL → bytes: polite to hosts, bounded in time and size, and never inward.

One `Downloader` serves a whole run. What it holds at most, beside idle connections:
`concurrency` bodies of `max_bytes`.
"""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import sha256
from types import TracebackType
from typing import Self

import aiohttp
import stamina
import structlog
from aiohttp.http_exceptions import ContentEncodingError
from aiohttp.resolver import ThreadedResolver
from stamina.instrumentation import RetryDetails, set_on_retry_hooks
from yarl import URL

from visual_search import __version__
from visual_search.errors import FailureReason, ImageError
from visual_search.images import Download
from visual_search.network_guard import Guard, GuardedResolver
from visual_search.redaction import printable, redact_url
from visual_search.settings import DownloadSettings

log = structlog.get_logger(__name__)

# A host that wants a longer pause than this gets it from a later claim, not from a waiting one.
MAX_WAIT_S = 10.0
RETRY_AFTER_CAP_S = 3600.0
_BACKOFF_S = 1.0

_HEADERS = {
    # Without webp and avif by name: CDNs that convert on demand then send the original.
    "Accept": "image/jpeg,image/png,image/gif,image/bmp,image/*;q=0.8,*/*;q=0.5",
    # Images are compressed already. Servers that compress all the same are decoded, bounded.
    "Accept-Encoding": "identity",
    "User-Agent": f"vsearch/{__version__}",
}
_REDIRECTS = (301, 302, 303, 307, 308)
_BODIES = (200, 203)
# From the socket at once; what was read when the byte cap strikes is above it by at most this
# and one read of the event loop (256 KiB).
_READ_BYTES = 1 << 16

_STATUS_REASONS = {
    401: FailureReason.UNAUTHORIZED,
    403: FailureReason.FORBIDDEN,
    404: FailureReason.NOT_FOUND,
    408: FailureReason.TIMEOUT,
    410: FailureReason.GONE,
    425: FailureReason.RATE_LIMITED,
    429: FailureReason.RATE_LIMITED,
}

# Every error of aiohttp's, the narrower before the wider: the first that fits counts. The last
# line is for what a later aiohttp may add; a test fails on a class that only it would catch.
_REASONS: tuple[tuple[type[aiohttp.ClientError], FailureReason], ...] = (
    (aiohttp.ClientConnectorDNSError, FailureReason.DNS),
    (aiohttp.ClientSSLError, FailureReason.TLS),
    (aiohttp.ServerFingerprintMismatch, FailureReason.TLS),
    (aiohttp.ServerTimeoutError, FailureReason.TIMEOUT),
    (aiohttp.ClientConnectorError, FailureReason.CONNECT),
    (aiohttp.ClientHttpProxyError, FailureReason.CONNECT),
    (aiohttp.ClientConnectionError, FailureReason.DISCONNECTED),
    (aiohttp.ClientPayloadError, FailureReason.DISCONNECTED),
    (aiohttp.TooManyRedirects, FailureReason.TOO_MANY_REDIRECTS),
    (aiohttp.ClientResponseError, FailureReason.BAD_RESPONSE),
    (aiohttp.InvalidURL, FailureReason.BAD_URL),
    (aiohttp.NonHttpUrlClientError, FailureReason.BAD_URL),
    (aiohttp.RedirectClientError, FailureReason.BAD_URL),
    (aiohttp.ClientError, FailureReason.BAD_RESPONSE),
)


class Downloader:
    """Fetches images, many at once; an async context manager.

    At most `concurrency` requests are out at a time and `per_host` to one host and port. Waiting
    for either costs an image none of its time.
    """

    _session: aiohttp.ClientSession

    def __init__(self, settings: DownloadSettings) -> None:
        self._settings = settings
        self._guard = Guard(settings.allow_networks, settings.allow_ports)
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._hosts: dict[tuple[str | None, int | None], _Host] = {}
        self._retry = stamina.AsyncRetryingCaller(attempts=settings.tries, timeout=None)

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            resolver=GuardedResolver(self._guard, ThreadedResolver()),
            socket_factory=self._guard.make_socket,
            ttl_dns_cache=300,
            limit=0,  # our own slots limit; the connector's queue would count as connecting
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
            middlewares=(_send_once,),
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

    async def fetch(self, url: str) -> Download:
        """Fetch one image, in up to `tries` requests (and their redirects).

        All tries, redirects and pauses together take at most `deadline_s`.

        Raises:
            ImageError: With the last try's reason; a long `Retry-After` is not waited for but
                handed on in it.
        """
        target = self._guard.check_url(url)
        patience = _Patience(self._settings.deadline_s)
        return await self._retry(patience.before_next_try, self._try, target, patience)

    async def _try(self, url: URL, patience: "_Patience") -> Download:
        for _ in range(self._settings.max_redirects + 1):
            answer = await self._request(url, patience)
            if isinstance(answer, Download):
                return answer
            url = answer
        raise ImageError(
            FailureReason.TOO_MANY_REDIRECTS,
            f"more than {self._settings.max_redirects}, the last to {_shown(url)}",
        )

    async def _request(self, url: URL, patience: "_Patience") -> Download | URL:
        """One request: the image, or the URL to go on with."""
        async with self._slot(url, patience):
            try:
                # Redirects are followed here, not by aiohttp, so that each meets the guard's
                # check of its text and waits for a slot of its own host.
                async with (
                    asyncio.timeout_at(patience.ends),
                    self._session.get(url, allow_redirects=False) as response,
                ):
                    location = response.headers.get("Location")
                    if response.status in _REDIRECTS and location is not None:
                        return self._guard.follow(url, location)
                    if response.status not in _BODIES:
                        raise _refused(response, url)
                    return await self._read(response)
            except aiohttp.ClientError as error:
                # "from None": aiohttp's messages hold the URL with all its secrets.
                raise _translated(error, url) from None
            except TimeoutError:
                raise ImageError(
                    FailureReason.TIMEOUT,
                    f"{_shown(url)}: not complete after {self._settings.deadline_s:g} s",
                ) from None

    async def _read(self, response: aiohttp.ClientResponse) -> Download:
        """The body, counted after decompression, given up within a read above the cap."""
        limit, status = int(self._settings.max_bytes), response.status
        if (response.content_length or 0) > limit:
            raise ImageError(
                FailureReason.TOO_LARGE,
                f"{response.content_length} bytes, limit {limit}",
                http_status=status,
            )
        chunks, size, digest = [], 0, sha256()
        async for chunk in response.content.iter_any():
            size += len(chunk)
            if size > limit:
                raise ImageError(
                    FailureReason.TOO_LARGE,
                    f"{size} bytes and more, limit {limit}",
                    http_status=status,
                )
            chunks.append(chunk)
            digest.update(chunk)
        if not size:
            raise ImageError(FailureReason.EMPTY_BODY, "0 bytes", http_status=status)
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
        try:
            queued = patience.now()
            async with host.slots, self._slots:
                patience.ends += patience.now() - queued
                yield
        finally:
            host.users -= 1
            if not host.users:
                del self._hosts[key]


@dataclass(slots=True)
class _Host:
    """The slots of one host and port. Lives while someone uses it, so their number is bounded."""

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
        if not isinstance(error, ImageError) or not error.reason.retryable:
            return False
        pause_s = error.retry_after_s
        if pause_s is None:
            pause_s = random.uniform(0, _BACKOFF_S * 2 ** (self._tries - 1))  # noqa: S311 - no secret
        return pause_s if pause_s < min(MAX_WAIT_S, self.ends - self.now()) else False


async def _send_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from repeating a request on its own: tries are counted in one place."""
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _translated(error, request.url) from None


def _translated(error: aiohttp.ClientError, url: URL) -> ImageError:
    reason = next(reason for kind, reason in _REASONS if isinstance(error, kind))
    if isinstance(error.__cause__, ContentEncodingError):
        reason = FailureReason.BAD_RESPONSE
    return ImageError(reason, f"{url.raw_host}:{url.port}: {_cause(error)}")


def _cause(error: aiohttp.ClientError) -> str:
    """What happened, without aiohttp's messages: they quote the URL and what the server sent."""
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        return printable(cause.strerror or type(cause).__name__)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no connection in time"
    return type(error.__cause__ or error).__name__


def _refused(response: aiohttp.ClientResponse, url: URL) -> ImageError:
    """The error for a status that brings no image."""
    status = response.status
    reason = _STATUS_REASONS.get(status)
    if reason is None:
        server = 500 <= status <= 599
        reason = FailureReason.SERVER_ERROR if server else FailureReason.HTTP_REFUSED
    return ImageError(
        reason,
        f"{_shown(url)} answered {status}",
        http_status=status,
        retry_after_s=_retry_after_s(response) if reason.retryable else None,
    )


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    """`Retry-After` (seconds or a date), at most an hour; None if absent, past or unreadable."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        wait_s = float(text)
    else:
        try:
            date = parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        # A date with zone "-0000" comes without a zone, and means UTC.
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        wait_s = (date - datetime.now(UTC)).total_seconds()
    return min(wait_s, RETRY_AFTER_CAP_S) if wait_s > 0 else None


def _shown(url: URL) -> str:
    return redact_url(str(url))


def _log_retry(details: RetryDetails) -> None:
    # stamina's own hooks print arguments and exceptions whole, and so a URL's secrets.
    cause = details.caused_by
    log.debug(
        "retry_scheduled",
        name=details.name,
        caused_by=str(cause) if isinstance(cause, ImageError) else type(cause).__name__,
        wait_s=round(details.wait_for, 2),
    )


set_on_retry_hooks([_log_retry])
