"""The demo shop's web server, in a process of its own.

    python -m visual_search.demo.server FOLDER

It says its port on standard output, then answers each line on standard input with the number of
requests so far. It ends when its standard input does, so it never outlives who started it.
"""

import asyncio
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from aiohttp import web

from visual_search.demo.broken import BROKEN_LINKS
from visual_search.errors import InternalError

HOST: Final = "127.0.0.1"
_SHUTDOWN_S: Final = 0.2


class ShopServer:
    """The server as its parent process sees it: it serves a folder while the block runs.

    A thread of ours would do as well, but it would take its turns from the pipeline's threads.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = 0

    def __enter__(self) -> Self:
        # In a process group of its own: Ctrl-C is for the pipeline, which drains, and still needs
        # a server for that.
        self._process = subprocess.Popen(
            # -P: whatever folder is the current one, it provides no modules.
            [sys.executable, "-P", "-m", "visual_search.demo.server", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        self.port = self._answer()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def url(self, name: str, host: str | None = None) -> str:
        """The link to a picture; at another `host`, where nothing listens."""
        return f"http://{host or HOST}:{self.port}/{name}"

    def requests(self) -> int:
        """How many requests came in so far."""
        assert self._process.stdin is not None  # noqa: S101 - a PIPE was asked for
        # A server that is gone says so by the end of its output.
        with suppress(BrokenPipeError):
            self._process.stdin.write("?\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self._process.stdout is not None  # noqa: S101 - a PIPE was asked for
        line = self._process.stdout.readline()
        if not line:
            raise InternalError(
                f"the demo's web server ended with code {self._process.wait()}; its last words "
                "stand above, `vsearch demo` tries again"
            )
        return int(line)


class _Shop:
    """Answers with the folder's files, and as the broken links want it."""

    def __init__(self, folder: Path) -> None:
        self.requests = 0
        self._folder = folder
        self._answers = {link.name: link.answer for link in BROKEN_LINKS if link.answer}

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests += 1
        name = request.path.removeprefix("/")
        if name in self._answers:
            return await self._answers[name](request)
        # Names come from our own catalogue, but a path must never lead out of the folder.
        file = self._folder / Path(name).name
        return web.FileResponse(file) if file.is_file() else web.Response(status=404)


async def _serve(folder: Path) -> None:
    shop = _Shop(folder)
    protocols = web.Server(shop.answer, access_log=None, handler_cancellation=True)
    listening = await asyncio.get_running_loop().create_server(protocols, HOST, 0)
    print(listening.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - read by the parent
    while await asyncio.to_thread(sys.stdin.readline):
        print(shop.requests, flush=True)  # noqa: T201 - read by the parent
    listening.close()
    await protocols.shutdown(_SHUTDOWN_S)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
