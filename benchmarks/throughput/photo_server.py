"""A web server for the photos, in a process of its own, as cheap as it can be.

    python -m benchmarks.throughput.photo_server FOLDER

All files are in memory and an answer is one write, so that the server takes as little as possible
of the cores that the contenders share with it. It says its port on standard output, then answers
each line on standard input with its processor time so far; it ends when its input does.
"""

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class PhotoServer:
    """The server as the benchmark sees it: it serves a folder while the block runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.throughput.photo_server", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._port = self._answer()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate()

    def url(self, name: str) -> str:
        return f"http://{HOST}:{self._port}/{name}"

    def core_seconds(self) -> float:
        """Its processor time so far."""
        assert self._process.stdin is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class _Connection(asyncio.Protocol):
    """Answers GET and HEAD, as many on one connection as the client likes."""

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self._answers = answers
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self._unread = (self._unread + data).split(b"\r\n\r\n")
        for request in requests:
            method, target, _ = request.split(b" ", 2)
            answer = self._answers.get(target.partition(b"?")[0], _NOT_FOUND)
            if method == b"HEAD":
                answer = answer[: answer.index(b"\r\n\r\n") + 4]
            self._transport.write(answer)


def _answer_with(body: bytes) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _answers(folder: Path) -> dict[bytes, bytes]:
    return {
        f"/{path.name}".encode(): _answer_with(path.read_bytes())
        for path in folder.iterdir()
        if path.is_file()
    }


async def _serve(answers: dict[bytes, bytes]) -> None:
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: _Connection(answers), HOST, 0)
    print(listening.sockets[0].getsockname()[1], flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(time.process_time(), flush=True)
    listening.close()


if __name__ == "__main__":
    asyncio.run(_serve(_answers(Path(sys.argv[1]))))
