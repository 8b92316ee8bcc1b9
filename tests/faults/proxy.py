"""Between workers and Postgres: a way on which replies get lost."""

import asyncio
import struct
import threading
from collections.abc import Callable
from enum import Enum, auto
from pathlib import Path
from types import TracebackType
from typing import Self

from sqlalchemy.engine import make_url

_COMMIT = b"COMMIT\0"
_READY = b"Z"


class Fate(Enum):
    """What becomes of a COMMIT."""

    PASSES = auto()
    # It takes place, and the connection breaks before the reply has come through.
    REPLY_LOST = auto()
    # The connection breaks before it gets to the server.
    LOST = auto()
    # The connection breaks; it gets to the server, but a while later.
    LATE = auto()


Decide = Callable[[list[str]], Fate]
"""Told of a transaction's statements when its COMMIT comes by."""


class Proxy:
    """Listens on loopback and speaks to the server's Unix socket; a context manager.

    Args:
        url: Of the database, by its socket's folder.
        decide: Asked at every COMMIT, in the proxy's thread.
        on_lost: Called after a COMMIT whose reply is being kept back took place; the connection
            breaks when it returns.
    """

    def __init__(
        self, url: str, decide: Decide, on_lost: Callable[[], None] = lambda: None
    ) -> None:
        self._target = make_url(url)
        self._decide = decide
        self._on_lost = on_lost
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._port = 0
        self.fates: list[Fate] = []

    @property
    def url(self) -> str:
        """Of the database, through here."""
        return (
            f"postgresql://{self._target.username}@127.0.0.1:{self._port}/{self._target.database}"
            "?sslmode=disable&gssencmode=disable"
        )

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._down.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._down = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._down.wait()
        server.close()
        await asyncio.gather(*self._open)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        query = self._target.query
        socket = Path(str(query["host"])) / f".s.PGSQL.{query['port']}"
        server = await asyncio.open_unix_connection(str(socket))
        way = _Way(self, (reader, writer), server)
        try:
            await way.run(self._down)
        finally:
            writer.close()
            server[1].close()
            self._open.discard(task)

    def fate(self, statements: list[str]) -> Fate:
        fate = self._decide(statements)
        self.fates.append(fate)
        return fate

    async def lose(self) -> None:
        await asyncio.to_thread(self._on_lost)


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Way:
    """One connection, both directions."""

    def __init__(self, proxy: Proxy, client: Stream, server: Stream) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._keeps_back = False
        self._is_ready = asyncio.Event()

    async def run(self, down: asyncio.Event) -> None:
        """Until one side is gone, a reply is lost, or the proxy goes down."""
        tasks = [asyncio.create_task(work) for work in (self._back(), self._forth(), down.wait())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            gone = (ConnectionError, EOFError, asyncio.CancelledError)
            if isinstance(end, BaseException) and not isinstance(end, gone):
                raise end

    async def _back(self) -> object:
        """Server to client: message by message, since it matters where a reply ends."""
        reader, writer = self._server[0], self._client[1]
        while True:
            head = await reader.readexactly(5)
            body = await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
            if self._keeps_back:
                if head[:1] == _READY:
                    self._is_ready.set()
                continue
            writer.write(head + body)
            await writer.drain()

    async def _forth(self) -> object:
        """Client to server."""
        reader, writer = self._client[0], self._server[1]
        start = await reader.readexactly(4)
        writer.write(start + await reader.readexactly(struct.unpack("!I", start)[0] - 4))
        statements: list[str] = []
        while True:
            head = await reader.readexactly(5)
            body = await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
            if head[:1] == b"Q" and body == _COMMIT:
                fate = self._proxy.fate(statements)
                statements = []
                if fate is Fate.LOST:
                    return fate
                if fate is Fate.LATE:
                    self._client[1].close()
                    await asyncio.sleep(0.3)
                    self._keeps_back = True
                    writer.write(head + body)
                    await self._is_ready.wait()
                    return fate
                if fate is Fate.REPLY_LOST:
                    self._keeps_back = True
                    writer.write(head + body)
                    await self._is_ready.wait()
                    await self._proxy.lose()
                    return fate
            elif head[:1] == b"Q":
                text = body[:-1].decode(errors="replace")
                # BEGIN and what follows come as one.
                statements = [text] if text.startswith("BEGIN") else [*statements, text]
            writer.write(head + body)
            await writer.drain()
