"""What bodies and pixels may take in memory: waits, turns, and nobody waits for ever."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from tests import pictures
from tests.server import ImageServer
from visual_search.decode import DecoderProcess, Picture, PixelBudget
from visual_search.download import BodyBudget, Downloader
from visual_search.download.budget import Reservation
from visual_search.errors import ImageError
from visual_search.models import resolve
from visual_search.models.spec import ModelSpec
from visual_search.pipeline.memory import shares
from visual_search.settings import load_settings

_MIB = 1 << 20


def asynchronously(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 10))


# Bodies


def test_a_body_waits_until_there_is_room() -> None:
    async def scenario() -> None:
        budget = BodyBudget(100)
        await budget.take(70)
        second = asyncio.create_task(budget.take(40))
        await asyncio.sleep(0.01)
        assert not second.done()
        budget.give_back(20)
        await second

    asynchronously(scenario())


def test_a_body_larger_than_the_budget_gets_in_alone() -> None:
    async def scenario() -> None:
        budget = BodyBudget(100)
        await budget.take(1)
        large = asyncio.create_task(budget.take(5000))
        await asyncio.sleep(0.01)
        assert not large.done()
        budget.give_back(1)
        await large
        small = asyncio.create_task(budget.take(1))
        await asyncio.sleep(0.01)
        assert not small.done()
        budget.give_back(5000)
        await small

    asynchronously(scenario())


def test_a_large_body_is_not_overtaken_for_ever() -> None:
    async def scenario() -> None:
        budget = BodyBudget(100)
        await budget.take(60)
        large = asyncio.create_task(budget.take(90))
        await asyncio.sleep(0.01)
        small = asyncio.create_task(budget.take(10))
        await asyncio.sleep(0.01)
        assert not small.done()  # there is room for it, but the large one came first
        budget.give_back(60)
        await asyncio.gather(large, small)

    asynchronously(scenario())


def test_one_that_gives_up_waiting_holds_nothing() -> None:
    async def scenario() -> None:
        budget = BodyBudget(100)
        await budget.take(100)
        waiting = Reservation(budget)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting.resize(50), 0.01)
        waiting.release()
        budget.give_back(100)
        await budget.take(100)

    asynchronously(scenario())


def test_two_that_grow_do_not_wait_for_each_other() -> None:
    async def scenario() -> None:
        budget = BodyBudget(100)
        one, other = Reservation(budget), Reservation(budget)
        await one.resize(40)
        await other.resize(40)

        async def grow(reservation: Reservation) -> None:
            await reservation.resize(90)
            reservation.release()

        await asyncio.gather(grow(one), grow(other))

    asynchronously(scenario())


def test_a_download_holds_what_its_body_has_and_a_failed_one_nothing(
    image_server: ImageServer,
) -> None:
    body = pictures.photo_bytes(60, 40, "JPEG")
    image_server.serve("/photo.jpg", body)
    image_server.raw("/endless.jpg", b"HTTP/1.1 200 OK\r\n\r\n" + body)  # announces no length
    image_server.serve("/gone.jpg", b"", status=404)
    settings = load_settings(download={"allow_networks": ["127.0.0.1/32"]}).download

    async def scenario() -> None:
        budget = BodyBudget(settings.max_bytes)
        async with Downloader(settings, bodies=budget) as downloader:
            for path in ("/photo.jpg", "/endless.jpg"):
                download = await downloader.fetch(image_server.url(path))
                # All the rest is free, and not a byte more.
                rest = settings.max_bytes - len(body)
                await asyncio.wait_for(budget.take(rest), 1)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(budget.take(1), 0.01)
                budget.give_back(rest)
                budget.give_back(len(download.body))
            with pytest.raises(ImageError):
                await downloader.fetch(image_server.url("/gone.jpg"))
            await asyncio.wait_for(budget.take(settings.max_bytes), 1)

    asynchronously(scenario())


def test_the_time_limit_stands_still_while_there_is_no_memory(image_server: ImageServer) -> None:
    image_server.serve("/photo.jpg", pictures.photo_bytes(60, 40, "JPEG"))
    settings = load_settings(
        download={"allow_networks": ["127.0.0.1/32"], "deadline_s": 0.5}
    ).download

    async def scenario() -> None:
        budget = BodyBudget(1_000_000)
        async with Downloader(settings, bodies=budget) as downloader:
            held = 1_000_000 - budget.usual_bytes
            await budget.take(held)
            # Announces no length, so it needs more than is free once its head is there.
            image_server.raw("/late.jpg", b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10)
            late = asyncio.create_task(downloader.fetch(image_server.url("/late.jpg")))
            await asyncio.sleep(1)
            assert not late.done()
            budget.give_back(held)
            assert (await late).body == b"x" * 10

    asynchronously(scenario())


# Pixels


def test_large_pictures_are_decoded_one_after_the_other() -> None:
    body = pictures.photo_bytes(2000, 1500, "JPEG")  # 42 MB by the header
    budget = PixelBudget(60 * _MIB)
    at_once, most, lock = [0], [0], threading.Lock()
    entered = threading.Barrier(2)

    def consume(_picture: Picture) -> None:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        threading.Event().wait(0.2)
        with lock:
            at_once[0] -= 1

    def work() -> None:
        with DecoderProcess(max_pixels=10_000_000, timeout_s=10, budget=budget) as decoder:
            entered.wait()
            for _ in range(3):
                decoder.decode(body, consume)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


def test_waiting_for_memory_is_no_time_of_the_picture() -> None:
    body = pictures.photo_bytes(2000, 1500, "JPEG")
    budget = PixelBudget(_MIB)
    with DecoderProcess(max_pixels=10_000_000, timeout_s=2, budget=budget) as decoder:
        with budget.room(_MIB):
            done = threading.Event()

            def decode() -> None:
                decoder.decode(body, lambda _: done.set())

            thread = threading.Thread(target=decode)
            thread.start()
            assert not done.wait(4)
        thread.join()
        assert done.is_set()


def test_small_pictures_and_reduced_ones_need_not_wait() -> None:
    large = pictures.photo_bytes(4000, 3000, "JPEG")
    budget = PixelBudget(_MIB)
    with (
        DecoderProcess(max_pixels=20_000_000, timeout_s=10, budget=budget) as decoder,
        budget.room(_MIB),
    ):
        assert decoder.decode(pictures.photo_bytes(500, 400, "PNG"), lambda p: p.width) == 500
        # At a quarter of its size it takes as little as a small one.
        assert decoder.decode(large, lambda p: p.pixels.shape, least_px=448) == (750, 1000, 3)


def test_a_picture_that_does_not_decode_gives_its_memory_back() -> None:
    body = pictures.photo_bytes(2000, 1500, "JPEG")
    budget = PixelBudget(_MIB)
    with DecoderProcess(max_pixels=10_000_000, timeout_s=10, budget=budget) as decoder:
        with pytest.raises(ImageError):
            decoder.decode(body[:-20_000], lambda _: None)
        assert decoder.decode(body, lambda p: p.width) == 2000


# Shares


def test_the_parts_of_the_budget_are_no_more_than_the_whole() -> None:
    spec = _spec()
    parts = shares(1 << 30, specs=[spec], downloads=64)
    assert parts.slots == 8 * 64
    assert parts.body_bytes + parts.pixel_bytes + parts.slots * 3 * 224 * 224 <= 1 << 30
    small = shares(64 * _MIB, specs=[spec, spec], downloads=64)
    assert small.slots == 16 * _MIB // (3 * 224 * 224)
    assert shares(1, specs=[spec], downloads=1).slots == 1


def _spec() -> ModelSpec:
    settings = load_settings()
    return resolve("resnet18", settings.models, precision="fp32", home=settings.home)
