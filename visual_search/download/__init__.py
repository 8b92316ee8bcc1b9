"""URL → bytes: polite to hosts, bounded in time and size, and never inward.

One `Downloader` serves a whole run. What its bodies take in memory is bounded by a `BodyBudget`.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from types import TracebackType
from typing import Final, Self, overload

import aiohttp
import stamina
import structlog
from aiohttp.http_exceptions import HttpProcessingError
from stamina.instrumentation import RetryDetails, set_on_retry_hooks
from yarl import URL

from visual_search import __version__
from visual_search.download.budget import BodyBudget, Reservation
from visual_search.download.conditional import ASKING, conditions, validators_of
from visual_search.download.hosts import Hosts
from visual_search.download.lookup import SystemResolver
from visual_search.download.patience import Patience
from visual_search.download.sending import Sending, tracing
from visual_search.download.translation import refused, translated
from visual_search.errors import FailureReason, HostPausedError, ImageError, SettingsError
from visual_search.images import Download, Exchange, Validators
from visual_search.network_guard import Guard, GuardedResolver
from visual_search.redaction import printable, redact_url
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
_NOT_MODIFIED: Final = 304
_READ_BYTES: Final = 1 << 16

__all__ = ["BodyBudget", "Downloader"]


class Downloader:
    """Fetches images, many at once; an async context manager.

    At most `concurrency` requests are out at a time, and `per_host` to one host and port. Waiting
    for either, or for a host's pause to end, costs an image none of its time.
    """

    _hosts: Hosts
    _resolver: GuardedResolver
    _session: aiohttp.ClientSession

    def __init__(
        self,
        settings: DownloadSettings,
        on_pause: Callable[[str, float], None] = lambda _host, _seconds: None,
        bodies: BodyBudget | None = None,
        on_exchange: Callable[[Exchange], None] = lambda _exchange: None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            settings: Limits, manners, and what may be reached.
            on_pause: Told of each host that is to be left alone, and for how many seconds.
            bodies: What a body takes of it, from before it is asked for, is the caller's to give
                back once it is decoded. `None`: as much as there is.
            on_exchange: Told of each request that came to an end, whatever end.

        Raises:
            SettingsError: `ca_file` cannot be read, or holds no certificates.
        """
        self._settings = settings
        self._on_pause = on_pause
        self._bodies = bodies or BodyBudget()
        self._on_exchange = on_exchange
        self._guard = Guard(settings.allow_networks, settings.allow_ports)
        self._tls = _tls_context(settings)
        self._proxy = None if settings.proxy is None else URL(settings.proxy.get_secret_value())
        self._headers: Mapping[str, Mapping[str, str]] = {
            host.lower(): {name: value.get_secret_value() for name, value in headers.items()}
            for host, headers in settings.headers.items()
        }
        self._retry = stamina.AsyncRetryingCaller(attempts=settings.tries, timeout=None)

    async def __aenter__(self) -> Self:
        self._hosts = Hosts(self._settings, self._on_pause)
        system = SystemResolver()
        self._resolver = GuardedResolver(self._guard, system)
        connector = aiohttp.TCPConnector(
            # A proxy is the operator's own choice, at whatever address, and with one no connection
            # goes anywhere else: what an image's host resolves to is checked before it is asked.
            resolver=self._resolver if self._proxy is None else system,
            socket_factory=self._guard.make_socket if self._proxy is None else None,
            ssl=self._tls,
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

    @overload
    async def fetch(self, url: str, on_bytes: Callable[[int], None] = ...) -> Download: ...

    @overload
    async def fetch(
        self, url: str, on_bytes: Callable[[int], None] = ..., *, known: Validators | None
    ) -> Download | None: ...

    async def fetch(
        self,
        url: str,
        on_bytes: Callable[[int], None] = lambda _size: None,
        *,
        known: Validators | None = None,
    ) -> Download | None:
        """Fetch one image in up to `tries` tries, each a request and its redirects.

        All of them and the pauses between take at most `deadline_s`, but for waits for a host or
        for memory.

        Args:
            url: Where it is.
            on_bytes: Told of each piece of a body that arrives, also of what comes to nothing.
            known: Of the version that need not be sent again.

        Returns:
            The image; `None` if it is still the known one.

        Raises:
            ImageError: With the last try's reason. A long `Retry-After` is not waited for but
                handed on in it.
            HostPausedError: Its host is to be left alone for longer than one waits, and it was
                not asked for this image yet.
        """
        target = self._guard.check_url(url)
        room = Reservation(self._bodies)
        await room.resize(self._bodies.usual_bytes)
        patience = Patience(self._settings.deadline_s, room, on_bytes)
        try:
            download = await self._retry(
                patience.before_next_try, self._try, target, known, patience
            )
        except BaseException as error:
            room.release()
            if isinstance(error, HostPausedError) and patience.failure is not None:
                raise patience.failure from None
            raise
        if download is None:
            room.release()
        return download

    def pause(self, host: str, seconds: float) -> None:
        """Leave a host alone for so long, since another worker was asked to."""
        self._hosts.pause(host, seconds)

    async def _try(self, url: URL, known: Validators | None, patience: Patience) -> Download | None:
        if patience.failure is not None and patience.failure.reason is FailureReason.BAD_RESPONSE:
            # Such as a 304 with a body, by a server that otherwise serves the image.
            known = None
        # Redirects are followed here, not by aiohttp, so that each meets the guard's check of its
        # text and waits for a slot of its own host.
        in_clear = url.scheme == "http"
        for _ in range(self._settings.max_redirects + 1):
            # What a host's headers keep secret does not leave TLS because of a redirect.
            headers = self._headers_for(url) if in_clear or url.scheme == "https" else {}
            answer = await self._request(url, {**headers, **conditions(url, known)}, patience)
            if not isinstance(answer, URL):
                return answer
            url = answer
        raise ImageError(
            FailureReason.TOO_MANY_REDIRECTS,
            f"more than {self._settings.max_redirects}, the last to {redact_url(str(url))}",
        )

    def _headers_for(self, url: URL) -> Mapping[str, str]:
        return self._headers.get(url.host_port_subcomponent or "", {})

    async def _request(
        self, url: URL, headers: Mapping[str, str], patience: Patience
    ) -> Download | URL | None:
        """One request: the image, the URL to go on with, or `None` for "not modified"."""
        queued = patience.now()
        async with self._hosts.turn(url) as host:
            patience.ends += patience.now() - queued
            try:
                with self._measured(host.name, patience):
                    answer = await self._ask(url, headers, patience)
            except ImageError as error:
                self._hosts.failed(host, error)
                raise
            self._hosts.served(host)
            return answer

    @contextmanager
    def _measured(self, host: str, patience: Patience) -> Iterator[None]:
        """Tell of a request, unless it is cancelled."""
        left_s, received = patience.left_s, patience.received

        def tell(*, failed: bool) -> None:
            self._on_exchange(
                Exchange(
                    host=host,
                    seconds=left_s - patience.left_s,
                    bytes=patience.received - received,
                    failed=failed,
                )
            )

        try:
            yield
        except ImageError:
            tell(failed=True)
            raise
        tell(failed=False)

    async def _ask(
        self, url: URL, headers: Mapping[str, str], patience: Patience
    ) -> Download | URL | None:
        sending = Sending()
        try:
            async with asyncio.timeout_at(patience.ends) as timer:
                if self._proxy is not None:
                    await self._check_addresses(url)
                async with self._session.get(
                    url,
                    allow_redirects=False,
                    headers=headers,
                    proxy=self._proxy,
                    middlewares=(sending,),
                    trace_request_ctx=sending,
                ) as response:
                    location = response.headers.get("Location")
                    if response.status in _REDIRECTS and location is not None:
                        return self._guard.follow(url, location)
                    if response.status == _NOT_MODIFIED and headers.keys() & ASKING:
                        return None
                    if response.status not in _WITH_BODY:
                        raise refused(response)
                    return await self._read(response, patience, timer)
        except (aiohttp.ClientError, HttpProcessingError) as error:
            raise translated(error, url) from None  # its message holds the whole URL
        except TimeoutError:
            raise ImageError(
                FailureReason.TIMEOUT,
                f"{redact_url(str(url))} not complete after {self._settings.deadline_s:g} s",
            ) from None

    async def _check_addresses(self, url: URL) -> None:
        """What the connector would check if it, not a proxy, looked up the name."""
        try:
            await self._resolver.resolve(url.raw_host or "", url.port or 0)
        except OSError as error:
            raise ImageError(
                FailureReason.DNS, f"{url.raw_host}: {printable(error.strerror or 'no address')}"
            ) from None

    async def _read(
        self, response: aiohttp.ClientResponse, patience: Patience, timer: asyncio.Timeout
    ) -> Download:
        """The body, counted after decompression, given up within a read above the cap."""
        limit = int(self._settings.max_bytes)
        announced = response.content_length
        if (announced or 0) > limit:
            raise _too_large(f"{announced} bytes", limit, response.status)
        # What is compressed or announces no length may become as long as is allowed.
        compressed = response.headers.get("Content-Encoding", "identity") != "identity"
        await patience.wait_for_room(limit if compressed else announced or limit, timer)
        chunks, size, digest = [], 0, sha256()
        async for chunk in response.content.iter_any():
            size += len(chunk)
            patience.note_bytes(len(chunk))
            if size > limit:
                raise _too_large(f"{size} bytes or more", limit, response.status)
            chunks.append(chunk)
            digest.update(chunk)
        if not size:
            raise ImageError(FailureReason.EMPTY_BODY, "0 bytes", http_status=response.status)
        self._bodies.note(size)
        await patience.wait_for_room(size, timer)
        return Download(
            body=b"".join(chunks),
            content_sha256=digest.digest(),
            validators=validators_of(response.url, response.headers),
        )


def _tls_context(settings: DownloadSettings) -> ssl.SSLContext:
    """Trusts what the system trusts, and the authorities in `ca_file`."""
    context = ssl.create_default_context()
    if settings.ca_file is not None:
        try:
            context.load_verify_locations(cafile=settings.ca_file)
        except OSError as error:  # ssl.SSLError is one, too
            words = (
                "it holds no certificates" if isinstance(error, ssl.SSLError) else error.strerror
            )
            raise SettingsError(
                f"cannot use download.ca_file {settings.ca_file}: {words}"
            ) from error
    return context


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
