"""What a downloader tells of its requests: which host, how long, how much, and whether in vain."""

import asyncio
import threading
from collections.abc import Iterator
from ipaddress import ip_network

import pytest
import stamina
from aiohttp import web

from tests.server import ImageServer
from tests.unit.test_download import GOOD, answers
from visual_search.download import BodyBudget, Downloader
from visual_search.errors import ImageError
from visual_search.images import Exchange
from visual_search.settings import DownloadSettings


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with ImageServer() as server:
        server.serve("/good.jpg", GOOD)
        yield server


@pytest.fixture(autouse=True)
def no_pauses_between_tries() -> Iterator[None]:
    with stamina.set_testing(True, attempts=100, cap=True):
        yield


def exchanges(*urls: str, deadline_s: float = 20.0, tries: int = 3) -> list[Exchange]:
    """Those of images that are fetched one after the other."""
    told: list[Exchange] = []
    settings = DownloadSettings(
        allow_networks=(ip_network("127.0.0.0/30"),), deadline_s=deadline_s, tries=tries
    )

    async def main() -> None:
        async with Downloader(settings, on_exchange=told.append) as downloader:
            for url in urls:
                try:
                    await downloader.fetch(url)
                except ImageError:
                    continue

    asyncio.run(main())
    return told


def test_an_image_is_one_exchange_with_its_host(server: ImageServer) -> None:
    (only,) = exchanges(server.url("/good.jpg"))
    assert (only.host, only.bytes, only.failed) == (f"127.0.0.1:{server.port}", len(GOOD), False)
    assert 0 < only.seconds < 5


def test_every_try_counts_and_those_that_brought_nothing_are_told_apart(
    server: ImageServer,
) -> None:
    answers(server, "/late.jpg", 503, 503, 200)
    told = exchanges(server.url("/late.jpg"), server.url("/missing.jpg"))
    assert [each.failed for each in told] == [True, True, False, True]


def test_a_redirect_is_an_exchange_with_the_host_that_sent_it(server: ImageServer) -> None:
    with ImageServer("127.0.0.2") as other:
        other.redirect("/moved.jpg", server.url("/good.jpg"))
        told = exchanges(other.url("/moved.jpg"))
    assert [(each.host, each.bytes, each.failed) for each in told] == [
        (f"127.0.0.2:{other.port}", 0, False),
        (f"127.0.0.1:{server.port}", len(GOOD), False),
    ]


def test_bytes_that_came_to_nothing_count(server: ImageServer) -> None:
    server.raw("/cut.jpg", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x" * 300)
    (only,) = exchanges(server.url("/cut.jpg"), tries=1)
    assert (only.bytes, only.failed) == (300, True)


def test_a_host_that_does_not_answer_takes_as_long_as_it_was_waited_for(
    server: ImageServer,
) -> None:
    server.raw("/silent.jpg", b"", hang_up=False)
    (only,) = exchanges(server.url("/silent.jpg"), deadline_s=0.5, tries=1)
    assert only.failed
    assert only.seconds == pytest.approx(0.5, abs=0.3)


def test_waits_for_memory_are_not_the_hosts_time(server: ImageServer) -> None:
    # Announces no length, so it needs more than is free once its head is there.
    server.raw("/photo.jpg", b"HTTP/1.1 200 OK\r\n\r\n" + GOOD)
    told: list[Exchange] = []
    settings = DownloadSettings(allow_networks=(ip_network("127.0.0.1/32"),))

    async def main() -> None:
        bodies = BodyBudget(1_000_000)
        async with Downloader(settings, bodies=bodies, on_exchange=told.append) as downloader:
            held = 1_000_000 - bodies.usual_bytes
            await bodies.take(held)
            fetching = asyncio.create_task(downloader.fetch(server.url("/photo.jpg")))
            await asyncio.sleep(1)
            assert not fetching.done()
            bodies.give_back(held)
            await fetching

    asyncio.run(main())
    assert told[0].seconds < 0.7


def test_nothing_is_told_of_a_request_that_was_given_up(server: ImageServer) -> None:
    asked = threading.Event()

    async def never(_request: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    server.route("/silent.jpg", never)
    told: list[Exchange] = []
    settings = DownloadSettings(allow_networks=(ip_network("127.0.0.1/32"),))

    async def main() -> None:
        async with Downloader(settings, on_exchange=told.append) as downloader:
            fetching = asyncio.create_task(downloader.fetch(server.url("/silent.jpg")))
            await asyncio.to_thread(asked.wait, 10)
            fetching.cancel()
            await asyncio.wait([fetching])

    asyncio.run(main())
    assert told == []
