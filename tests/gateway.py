"""Stands in for a Prometheus pushgateway: keeps what it gets, or misbehaves."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Push:
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: str


class Gateway:
    """A web server on loopback, in threads of its own.

    Attributes:
        status: What every request is answered with.
        silent: Whether none is answered at all, until the server ends.
        dripping: Whether the answer comes letter by letter, so that no silence is long.
        pushes: All requests so far.
    """

    def __init__(self, *, status: int = 200, silent: bool = False, dripping: bool = False) -> None:
        self.status = status
        self.silent = silent
        self.dripping = dripping
        self.pushes: list[Push] = []
        self._ending = threading.Event()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                gateway.pushes.append(
                    Push(method=self.command, path=self.path, headers=dict(self.headers), body=body)
                )
                if gateway.silent:
                    gateway._ending.wait()
                    return
                if gateway.dripping:
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
                    while not gateway._ending.wait(0.2):
                        self.wfile.write(b"x")
                    return
                self.send_response(gateway.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_DELETE = do_PUT  # noqa: N815 - the names are http.server's

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - likewise
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_port}"

    def last(self, path: str) -> str:
        """The body of the last push to a group."""
        return next(push.body for push in reversed(self.pushes) if push.path == path)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._server.shutdown()
        self._thread.join(5)
        self._server.server_close()
