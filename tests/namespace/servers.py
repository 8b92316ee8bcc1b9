"""A web server on every address and a name server, on one event loop, that note all they see."""

import asyncio
import contextlib
import re
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import cast

from tests.namespace.network import NAME_SERVER

_SAY = re.compile("[^\n]*/say/((?:[0-9a-f]{2})+) HTTP/")
_TYPE_A, _TYPE_CNAME, _TYPE_AAAA = 1, 5, 28


def place(address: str, port: int) -> str:
    """How an address and port are written in what is reported."""
    plain = str(ip_address(address))
    return f"[{plain}]:{port}" if ":" in plain else f"{plain}:{port}"


def image_from(where: str) -> bytes:
    return f"an image from {where}".encode()


class WebServer:
    """Answers on all addresses; what it answers stands in the request.

    `/say/HEX` gets the bytes that are written there, everything else an image that names the
    place it came from.

    Attributes:
        connections: The place of each connection, in order, with or without a request on it.
        heads: The place and the head of each request, in order.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = ports
        self._arrival = asyncio.Condition()
        self.connections: list[str] = []
        self.heads: list[tuple[str, str]] = []

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for port in self._ports:
                for host in ("0.0.0.0", "::"):
                    server = await asyncio.start_server(self._serve, host, port)
                    await stack.enter_async_context(server)
            yield

    def forget(self) -> None:
        self.connections.clear()
        self.heads.clear()

    async def seen(self, count: int) -> None:
        """Wait until so many connections have arrived, for those that were given up at once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                async with self._arrival:
                    await self._arrival.wait_for(lambda: len(self.connections) >= count)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address, port, *_ = writer.get_extra_info("sockname")
        where = place(address, port)
        async with self._arrival:
            self.connections.append(where)
            self._arrival.notify_all()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            # One that does not speak HTTP (TLS, to port 443) is not waited for.
            if (first := await reader.readexactly(1)).isalpha():
                head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.heads.append((where, head))
                writer.write(_answer(head, where))
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def _answer(head: str, where: str) -> bytes:
    if wanted := _SAY.match(head):
        return bytes.fromhex(wanted[1])
    body = image_from(where)
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


class NameServer(asyncio.DatagramProtocol):
    """Answers A and AAAA questions, each time with time to live 0.

    A name has a list of answers that are given in turn, each a list of addresses of both families.

    Attributes:
        lookups: How often each name was looked up.
    """

    def __init__(
        self, names: Mapping[str, Sequence[Sequence[str]]], aliases: Mapping[str, str]
    ) -> None:
        self._names = names
        self._aliases = aliases
        self._asked: Counter[tuple[str, int]] = Counter()
        self.lookups: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self, (NAME_SERVER, 53)
        )
        yield
        transport.close()

    def forget(self) -> None:
        """Give the first answers again."""
        self._asked.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        name, end = _read_name(data, 12)
        (kind,) = struct.unpack_from("!H", data, end)
        question = data[12 : end + 4]
        if kind == _TYPE_A:
            self.lookups[name] += 1
        records = []
        while name in self._aliases:
            records.append(_record(name, _TYPE_CNAME, _written(self._aliases[name])))
            name = self._aliases[name]
        records += [
            _record(name, kind, address.packed)
            for address in map(ip_address, self._next_answer(name, kind))
            if kind == (_TYPE_A if address.version == 4 else _TYPE_AAAA)
        ]
        status = 0 if name in self._names else 3  # no such domain
        head = data[:2] + struct.pack("!5H", 0x8180 | status, 1, len(records), 0, 0)
        self._transport.sendto(head + question + b"".join(records), addr)

    def _next_answer(self, name: str, kind: int) -> Sequence[str]:
        in_turn = self._names.get(name, [()])
        turn = self._asked[name, kind]
        self._asked[name, kind] += 1
        return in_turn[turn % len(in_turn)]


def _read_name(message: bytes, start: int) -> tuple[str, int]:
    """The name at `start`, and where it ends."""
    labels = []
    while length := message[start]:
        labels.append(message[start + 1 : start + 1 + length].decode("ascii").lower())
        start += 1 + length
    return ".".join(labels), start + 1


def _written(name: str) -> bytes:
    labels = name.encode("ascii").split(b".")
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def _record(name: str, kind: int, data: bytes) -> bytes:
    return _written(name) + struct.pack("!HHIH", kind, 1, 0, len(data)) + data


def connections_opened() -> int:
    """How many TCP connections were begun in this namespace, by the kernel's own count."""
    lines = Path("/proc/self/net/snmp").read_text().splitlines()
    names, values = (line.split() for line in lines if line.startswith("Tcp:"))
    return int(values[names.index("ActiveOpens")])


def reachable(host: str, port: int) -> bool:
    """Whether a client without a guard gets a connection."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True
