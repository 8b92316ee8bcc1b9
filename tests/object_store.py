"""An object store of this process that speaks S3, and fails as it is told."""

import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "shop-vectors"


class Fault(StrEnum):
    """What becomes of a request that writes."""

    ERROR = "500"
    SLOW_DOWN = "503"
    RESET = "reset"
    LOST_REPLY = "lost-reply"


class ObjectServer(ThreadingHTTPServer):
    """Objects in memory.

    Attributes:
        objects: By key.
        fault: Asked at each request that writes, with the object's key.
        struck: How often each fault took place.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.fault: Callable[[str], Fault | None] = lambda _key: None
        self.struck: dict[Fault, int] = dict.fromkeys(Fault, 0)
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients hang up; that is what some tests are about."""

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Self]:
        server = cls()
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ObjectServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_HEAD(self) -> None:
        key, _ = self._target()
        body = self.server.objects.get(key)
        if key and body is None:
            return self._answer(404)
        return self._answer(200, headers={"Content-Length": str(len(body or b""))})

    def do_GET(self) -> None:
        key, query = self._target()
        if "list-type" in query:
            return self._list(query)
        body = self.server.objects.get(key)
        if body is None:
            return self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            return self._answer(200, body)
        first, last = int(wanted[1]), min(int(wanted[2]), len(body) - 1)
        span = {"Content-Range": f"bytes {first}-{last}/{len(body)}"}
        return self._answer(206, body[first : last + 1], span)

    def do_PUT(self) -> None:
        key, query = self._target()
        fault = self._struck_by(key)
        if fault is Fault.RESET:
            self.rfile.read(10)
            return self._hang_up()
        body = self._body()
        if fault in (Fault.ERROR, Fault.SLOW_DOWN):
            return self._fail(fault)
        if "uploadId" in query:
            self.server.parts[query["uploadId"][0]][int(query["partNumber"][0])] = body
        else:
            self.server.objects[key] = body
        return self._hang_up() if fault else self._answer(200, headers={"ETag": '"1"'})

    def do_POST(self) -> None:
        key, query = self._target()
        self._body()
        if "uploads" in query:
            with self.server.lock:
                upload = str(len(self.server.parts))
                self.server.parts[upload] = {}
            return self._answer(
                200,
                f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId>"
                "</InitiateMultipartUploadResult>".encode(),
            )
        fault = self._struck_by(key)
        if fault in (Fault.ERROR, Fault.SLOW_DOWN):
            return self._fail(fault)
        if fault is not Fault.RESET:
            parts = self.server.parts[query["uploadId"][0]]
            self.server.objects[key] = b"".join(parts[number] for number in sorted(parts))
        if fault:
            return self._hang_up()
        return self._answer(
            200,
            b"<CompleteMultipartUploadResult><ETag>1</ETag></CompleteMultipartUploadResult>",
        )

    def do_DELETE(self) -> None:
        key, _ = self._target()
        self.server.objects.pop(key, None)
        self._answer(204)

    def _target(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        _, _, key = unquote(parts.path).lstrip("/").partition("/")
        return key, parse_qs(parts.query, keep_blank_values=True)

    def _struck_by(self, key: str) -> Fault | None:
        with self.server.lock:
            fault = self.server.fault(key)
            if fault is not None:
                self.server.struck[fault] += 1
            return fault

    def _body(self) -> bytes:
        """What was sent, without the chunks of a signed transfer."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            body = _unchunked(body)
        return body

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(body)}</Size>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key, body in sorted(self.server.objects.items())
            if key.startswith(prefix)
        )
        page = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        self._answer(200, page.encode())

    def _fail(self, fault: Fault) -> None:
        code = "SlowDown" if fault is Fault.SLOW_DOWN else "InternalError"
        self._answer(int(fault), f"<Error><Code>{code}</Code></Error>".encode())

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (
            {
                "Content-Length": str(len(body)),
                "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
                "x-amz-bucket-region": "us-east-1",
            }
            | (headers or {})
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        """With a reset, as a router does it."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
        self.close_connection = True


def _unchunked(body: bytes) -> bytes:
    found = b""
    while body:
        head, _, body = body.partition(b"\r\n")
        size = int(head.split(b";")[0], 16)
        if size == 0:
            break
        found, body = found + body[:size], body[size + 2 :]
    return found
