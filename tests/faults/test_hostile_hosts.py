"""Whole runs over hosts that answer wrongly, slowly or without end: a reason each, and no more.

What single answers do to a single download is in `tests/unit/test_download.py`.
"""

import asyncio
import gzip
import time
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from aiohttp import web

from tests.catalogue import add_urls
from tests.end_to_end.workplace import TINY, jpeg
from tests.faults.stage import Stage
from tests.pictures import photo_bytes
from tests.server import Handler, ImageServer

OK = "HTTP/1.1 200 OK\r\n"
CAP = 100_000
# What may come in one piece behind the cap.
MARGIN = 1 << 18
BOMB_BYTES = 200 << 20
DEADLINE_S = 4
# Failures of the surroundings count for good at once, so that the ledger has them all.
AT_ONCE: dict[str, Any] = {
    "VSEARCH_EXTRACT__MAX_ATTEMPTS": "1",
    "VSEARCH_EXTRACT__MAX_FAILURE_RATE": "1",
}


async def _without_end(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    while True:
        await response.write(bytes(1 << 16))


def _coded(coding: str, body: bytes) -> Callable[[ImageServer, str], None]:
    return lambda server, path: server.serve(path, body, headers={"Content-Encoding": coding})


def _bodies() -> dict[str, tuple[str, Callable[[ImageServer, str], None]]]:
    """By kind: what the ledger says in the end, and who serves it."""
    zeros = bytes(BOMB_BYTES)
    bomb = gzip.compress(zeros)
    members = gzip.compress(bytes(1 << 20)) * 200
    return {
        "honest length": ("too_large", lambda server, path: server.serve(path, bytes(CAP + 1))),
        "more than the length": (
            "bad_response",
            lambda server, path: server.raw(path, f"{OK}Content-Length: 99\r\n\r\n{'x' * CAP}"),
        ),
        "no end": ("too_large", lambda server, path: server.route(path, _without_end)),
        "gzip": ("too_large", _coded("gzip", bomb)),
        "deflate": ("too_large", _coded("deflate", zlib.compress(zeros))),
        "gzip of many members": ("too_large", _coded("gzip", members)),
        "gzip in gzip": ("not_an_image", _coded("gzip, gzip", gzip.compress(bomb))),
        "a coding that nobody asked for": ("bad_response", _coded("br", b"\x8b\x02\x80abc\x03")),
        "another one": ("bad_response", _coded("zstd", b"\x28\xb5\x2f\xfd\x04\x00\x09\x00\x00a")),
    }


@pytest.mark.parametrize("each", [2, pytest.param(20, marks=pytest.mark.long)])
def test_bodies_without_measure_are_cut_at_the_cap(stage: Stage, each: int) -> None:
    failed = {}
    with ExitStack() as stack:
        # Few of each kind on one host, which otherwise would be left alone.
        servers = [stack.enter_context(ImageServer()) for _ in range(each // 2)]
        for kind, (reason, serve) in enumerate(_bodies().values()):
            for n in range(each):
                server, path = servers[n // 2], f"/{kind}/{n}.jpg"
                serve(server, path)
                failed[server.url(path)] = reason
        add_urls(stage.database, list(failed))
        stage.publish_slowly(2 * each, delay_s=0)
        stage.work(VSEARCH_DOWNLOAD__MAX_BYTES=str(CAP), **AT_ONCE).ends(0)
    stage.assert_whole(failed=failed)
    details = stage.rows(
        "SELECT failure_detail FROM extractions WHERE failure_reason = 'too_large'"
    )
    read = [int(detail.split()[0]) for (detail,) in details]
    print(f"{len(failed)} bodies, at most {max(read)} bytes taken of one, limit {CAP}")
    assert max(read) <= CAP + MARGIN


@pytest.mark.parametrize("each", [2, pytest.param(20, marks=pytest.mark.long)])
def test_slow_answers_are_cut_at_the_deadline(stage: Stage, each: int) -> None:
    """By the servers' own clock: from the request until nobody listens any more."""
    kinds: dict[str, tuple[bytes, ...]] = {
        "silence": (),
        "slow header": (OK.encode(), *[b"X: y\r\n"] * 1_000),
        "slow body": (f"{OK}Content-Length: 1000\r\n\r\n".encode(), *[b"x"] * 1_000),
    }
    cut: list[float] = []
    with ExitStack() as stack:
        slow = []
        for pieces in kinds.values():
            server = stack.enter_context(ImageServer())
            for n in range(each):
                server.route(f"/{n}.jpg", _slowly(pieces, cut))
                slow.append(server.url(f"/{n}.jpg"))
        add_urls(stage.database, slow)
        stage.publish_slowly(2 * each, delay_s=0)
        stage.work(
            VSEARCH_DOWNLOAD__CONCURRENCY="100",
            VSEARCH_DOWNLOAD__PER_HOST="20",
            VSEARCH_DOWNLOAD__DEADLINE_S=str(DEADLINE_S),
            VSEARCH_EXTRACT__SHARD_ROWS="1000",
            VSEARCH_EXTRACT__LEASE_S="10",
            **AT_ONCE,
        ).ends(0)
    print(f"{len(cut)} slow answers cut after {min(cut):.2f} to {max(cut):.2f} s")
    assert len(cut) == len(slow) == 3 * each
    stage.assert_whole(failed=dict.fromkeys(slow, "timeout"))


def _slowly(pieces: tuple[bytes, ...], cut: list[float]) -> Handler:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        begun = time.monotonic()
        assert request.transport is not None
        try:
            for piece in pieces:
                request.transport.write(piece)
                await asyncio.sleep(0.05)
            await asyncio.Event().wait()
        finally:
            cut.append(time.monotonic() - begun)
        raise AssertionError("nobody cut it")

    return answer


@pytest.mark.parametrize("images", [8, pytest.param(50, marks=pytest.mark.long)])
def test_half_a_body_is_fetched_again_and_never_embedded(stage: Stage, images: int) -> None:
    """Of half of them the second answer is whole, of the others none ever is."""
    with ExitStack() as stack:
        # Four on one host: after ten failures in a row it would be left alone.
        servers = [stack.enter_context(ImageServer()) for _ in range(0, images, 4)]
        half = []
        for n in range(images):
            servers[n // 4].route(f"/{n}.jpg", _halved(jpeg(n), wholes=n % 2))
            half.append(servers[n // 4].url(f"/{n}.jpg"))
            stage.bodies[half[n]] = jpeg(n)
        add_urls(stage.database, half)
        stage.publish_slowly(images, delay_s=0, start=images)
        stage.work(VSEARCH_DOWNLOAD__TRIES="2", **AT_ONCE).ends(0)
        assert {hits for server in servers for hits in server.hits.values()} == {2}
        assert sum(server.hits.total() for server in servers) == 2 * images
    stage.assert_whole(failed=dict.fromkeys(half[::2], "disconnected"))


def _halved(body: bytes, *, wholes: int) -> Handler:
    """Hang up in the middle of the first answer; then send so many whole ones."""
    answers = [False, *[True] * wholes]

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if answers and answers.pop(0):
            return web.Response(body=body)
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        assert request.transport is not None
        request.transport.close()
        return response

    return answer


def test_what_a_file_is_says_the_file_and_nobody_else(stage: Stage) -> None:
    """Names and content types that contradict the bytes."""
    good = {
        "/jpeg.html": (jpeg(1), "text/html"),
        "/jpeg.png": (jpeg(2), "image/png"),
        "/png.jpg": (photo_bytes(60, 40, "PNG"), "image/jpeg"),
        "/webp.gif": (photo_bytes(60, 40, "WEBP"), "image/gif"),
        "/gif": (photo_bytes(60, 40, "GIF"), "application/octet-stream"),
        "/bmp.txt": (photo_bytes(60, 40, "BMP"), "nonsense"),
    }
    bad = {
        "/page.jpg": b"<!doctype html><html><body><img src=a.jpg></body></html>",
        "/drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "/document.jpg": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        "/archive.webp": b"PK\x03\x04" + bytes(40),
        "/program.gif": b"\x7fELF\x02\x01\x01" + bytes(40),
        "/answer.jpg": b'{"error": "not found"}',
        "/script.jpg": b"#!/bin/sh\nexit 1\n",
        "/postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "/scan.jpg": b"II*\0\x08\0\0\0" + bytes(40),
        "/film.jpg": b"\0\0\0\x18ftypmp42" + bytes(40),
    }
    for path, (body, content_type) in good.items():
        stage.server.serve(path, body, content_type)
        stage.bodies[stage.server.url(path)] = body
    for path, body in bad.items():
        stage.server.serve(path, body, "image/jpeg")
    add_urls(stage.database, [stage.server.url(path) for path in (*good, *bad)])
    stage.work().ends(0)
    stage.assert_whole(failed={stage.server.url(path): "not_an_image" for path in bad})


@pytest.mark.parametrize("images", [400, pytest.param(2_000, marks=pytest.mark.long)])
def test_a_host_of_twenty_that_never_answers_holds_nobody_up(stage: Stage, images: int) -> None:
    """The same images for two models, first while all hosts answer, then while one does not."""
    stage.models["other"] = TINY
    with ExitStack() as stack:
        servers = [stack.enter_context(ImageServer()) for _ in range(20)]
        urls = [_serve_late(stage, servers[n % 20], n) for n in range(images)]
        stage.import_urls(urls)
        clean = _images_per_second(stage, "tiny")
        tarpit = servers[0]
        tarpit.forget()
        for n in range(0, images, 20):
            tarpit.raw(f"/{n}.jpg", hang_up=False)
        held_up = _images_per_second(stage, "other")
        asked = tarpit.hits.total()
    status = stage.status("other")
    print(
        f"{images} images, one host of 20 does not answer: {held_up:.0f} images/s, "
        f"{clean:.0f} without it; it was asked {asked} times for {images // 20} images"
    )
    assert (status.done, status.failed, status.pending) == (images * 19 // 20, 0, images // 20)
    # Ten in a row, and those that were under way when the tenth failed.
    assert asked <= min(images // 20, 10 + 8)
    assert stage.status("tiny").done == images


def _serve_late(stage: Stage, server: ImageServer, n: int) -> str:
    body = jpeg(n)

    async def answer(_request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.05)
        return web.Response(body=body)

    server.route(f"/{n}.jpg", answer)
    return server.url(f"/{n}.jpg")


def _images_per_second(stage: Stage, model: str) -> float:
    """What a run of this model reports."""
    stage.work(
        *("extract", "--model", model, "--max-failure-rate", "1"),
        VSEARCH_DOWNLOAD__CONCURRENCY="64",
        VSEARCH_DOWNLOAD__PER_HOST="8",
        VSEARCH_DOWNLOAD__DEADLINE_S=str(DEADLINE_S),
        VSEARCH_EXTRACT__LEASE_S="10",
        VSEARCH_EXTRACT__WAIT_S="0",
    ).ends(0)
    last = stage.status(model).last_run
    assert last is not None
    assert last.images_per_second is not None
    return last.images_per_second
