"""Links of the demo shop that cannot succeed, each for another reason, and what makes them so."""

import asyncio
import struct
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from visual_search.errors import FailureReason

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# Loopback as well, but nothing listens there: only the guard of private addresses refuses it.
_PRIVATE_HOST: Final = "127.0.0.2"
_PAGE: Final = b"<!doctype html><title>Sign in</title><p>Please sign in to see this picture."
_JPEG_BEGIN: Final = b"\xff\xd8\xff\xe0"
_HUGE_BYTES: Final = 30_000_000
_BOMB_SIDE_PX: Final = 30_000
_DRIP_S: Final = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenLink:
    """A product whose picture cannot be had.

    Attributes:
        name: The last part of its URL.
        reason: What the failure ledger has to say about it.
        answer: What the server does; `None`: it sends the file of that name, if there is one.
        host: Where the link points to; `None`: to the server.
    """

    name: str
    title: str
    reason: FailureReason
    answer: Answer | None = None
    host: str | None = None


def write_broken_files(folder: Path, sample: Path) -> None:
    """Put the files among the pictures that are no pictures; `sample` is a good JPEG."""
    whole = sample.read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "page.jpg").write_bytes(_PAGE)
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "bomb.png").write_bytes(_pixel_bomb())


def _pixel_bomb() -> bytes:
    """A valid PNG of 900 million black pixels in about 100 kB."""
    row = bytes(1 + _BOMB_SIDE_PX // 8)
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(row) for _ in range(_BOMB_SIDE_PX)) + packer.flush()
    header = struct.pack(">IIBBBBB", _BOMB_SIDE_PX, _BOMB_SIDE_PX, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


async def _gone(_request: web.BaseRequest) -> web.Response:
    return web.Response(status=410)


async def _busy(_request: web.BaseRequest) -> web.Response:
    return web.Response(status=503)


async def _loop(request: web.BaseRequest) -> web.Response:
    return web.Response(status=302, headers={"Location": request.path})


async def _huge(request: web.BaseRequest) -> web.StreamResponse:
    """Tell the size, and wait to see who still reads."""
    answer = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
    answer.content_length = _HUGE_BYTES
    await answer.prepare(request)
    await answer.write(_JPEG_BEGIN)
    return answer


async def _drip(request: web.BaseRequest) -> web.StreamResponse:
    """A few bytes now and then: only a limit for the whole download ends it."""
    answer = web.StreamResponse(headers={"Content-Type": "image/jpeg"})
    await answer.prepare(request)
    while True:
        await answer.write(_JPEG_BEGIN)
        await asyncio.sleep(_DRIP_S)


BROKEN_LINKS: Final = (
    BrokenLink(name="missing.jpg", title="Scarf, at a dead link", reason=FailureReason.NOT_FOUND),
    BrokenLink(
        name="gone.jpg", title="Parasol, taken down", reason=FailureReason.GONE, answer=_gone
    ),
    BrokenLink(
        name="page.jpg", title="Umbrella, behind a sign-in", reason=FailureReason.NOT_AN_IMAGE
    ),
    BrokenLink(name="cut.jpg", title="Gloves, half a file", reason=FailureReason.TRUNCATED_IMAGE),
    BrokenLink(name="empty.jpg", title="Belt, no bytes", reason=FailureReason.EMPTY_BODY),
    BrokenLink(name="bomb.png", title="Poster, a pixel bomb", reason=FailureReason.TOO_MANY_PIXELS),
    BrokenLink(
        name="huge.jpg", title="Carpet, 30 MB", reason=FailureReason.TOO_LARGE, answer=_huge
    ),
    BrokenLink(
        name="loop.jpg",
        title="Ring, redirected in circles",
        reason=FailureReason.TOO_MANY_REDIRECTS,
        answer=_loop,
    ),
    BrokenLink(
        name="private.jpg",
        title="Safe, at a private address",
        reason=FailureReason.BLOCKED_ADDRESS,
        host=_PRIVATE_HOST,
    ),
    BrokenLink(
        name="slow.jpg", title="Slippers, far too slow", reason=FailureReason.TIMEOUT, answer=_drip
    ),
    BrokenLink(
        name="busy.jpg",
        title="Teapot, server overloaded",
        reason=FailureReason.SERVER_ERROR,
        answer=_busy,
    ),
)
