"""A real web server on loopback, in a thread of its own, that can misbehave on request."""

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from multidict import CIMultiDict, CIMultiDictProxy

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class RawAnswer(web.StreamResponse):
    """Bytes sent as they are, past all that aiohttp would put around them."""

    def __init__(self, *pieces: bytes, pause_s: float = 0, hang_up: bool = True) -> None:
        super().__init__()
        self._pieces = pieces
        self._pause_s = pause_s
        self._hang_up = hang_up

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        transport = request.transport
        assert transport is not None
        for piece in self._pieces:
            transport.write(piece)
            await asyncio.sleep(self._pause_s)
        if self._hang_up:
            transport.close()
        else:
            await asyncio.Event().wait()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing more: the pieces were all there is."""


class ImageServer:
    """Serves what a test gives it, and counts.

    Attributes:
        hits: Requests by path, without the query.
        connections: Connections accepted, with or without a request on them.
        peak: Most requests that were ever being answered at once.
        headers: Headers of the last request, by path.
    """

    def __init__(self, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.host = host
        self.port = 0
        self.hits: Counter[str] = Counter()
        self.connections = 0
        self.peak = 0
        self.headers: dict[str, CIMultiDictProxy[str]] = {}
        self._tls = tls
        self._active = 0
        self._handlers: dict[str, Handler] = {}
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="image-server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._up.wait(timeout=10):
            raise RuntimeError("the image server did not start within 10 s")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._down.set)
        self._thread.join(timeout=10)

    def url(self, path: str, host: str | None = None) -> str:
        """`path` on this server, under `host` if another name of it is wanted."""
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{host or self.host}:{self.port}{path}"

    def serve(
        self,
        path: str,
        body: bytes,
        content_type: str = "image/jpeg",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer `path` with `body`; `headers` come on top of the type and the length."""
        sent = CIMultiDict(headers or {})
        sent.setdefault("Content-Type", content_type)

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            return web.Response(body=body, status=status, headers=sent)

        self.route(path, answer)

    def redirect(self, path: str, target: str, status: int = 302) -> None:
        """Answer `path` with a redirect whose `Location` is `target`, unchanged."""
        self.raw(
            path, f"HTTP/1.1 {status} Moved\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n"
        )

    def raw(
        self, path: str, *pieces: str | bytes, pause_s: float = 0, hang_up: bool = True
    ) -> None:
        """Answer `path` with exactly these bytes, with `pause_s` after each piece.

        Afterwards the connection is closed, or, without `hang_up`, kept open in silence.
        """
        sent = tuple(p.encode("latin-1") if isinstance(p, str) else p for p in pieces)

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            return RawAnswer(*sent, pause_s=pause_s, hang_up=hang_up)

        self.route(path, answer)

    def route(self, path: str, handler: Handler) -> None:
        """Answer `path` with an aiohttp handler."""
        self._handlers[path] = handler

    def forget(self) -> None:
        """Set the counts back to zero."""
        self.hits.clear()
        self.connections = self.peak = 0

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.hits[request.path] += 1
        self.headers[request.path] = request.headers
        self._active += 1
        self.peak = max(self.peak, self._active)
        try:
            handler = self._handlers.get(request.path)
            return web.Response(status=404) if handler is None else await handler(request)
        finally:
            self._active -= 1

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._down = asyncio.Event()
        protocols = web.Server(self._answer, handler_cancellation=True, access_log=None)

        def accept() -> asyncio.BaseProtocol:
            self.connections += 1
            return protocols()

        listening = await self._loop.create_server(accept, self.host, 0, ssl=self._tls)
        self.port = listening.sockets[0].getsockname()[1]
        self._up.set()
        await self._down.wait()
        listening.close()
        await protocols.shutdown(timeout=0.2)
