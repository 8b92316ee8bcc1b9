"""What a host asks for and gets: pauses, pace, headers, a proxy in between."""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any, TypeVar

import pytest
import stamina
from aiohttp import web
from yarl import URL

from tests.server import ImageServer
from tests.unit.test_download import SELF_SIGNED
from visual_search.download import Downloader, hosts
from visual_search.download.hosts import Hosts
from visual_search.errors import FailureReason, HostPausedError, ImageError, SettingsError
from visual_search.settings import DownloadSettings

T = TypeVar("T")
GOOD = b"\xff\xd8 a good image"


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with ImageServer() as server:
        server.serve("/good.jpg", GOOD)
        yield server


@pytest.fixture(autouse=True)
def no_pauses_between_tries() -> Iterator[None]:
    with stamina.set_testing(True, attempts=100, cap=True):
        yield


def run(
    work: Callable[[Downloader], Awaitable[T]],
    on_pause: Callable[[str, float], None] = lambda _host, _seconds: None,
    **settings: Any,
) -> T:
    given = {"allow_networks": (ip_network("127.0.0.1/32"),), "deadline_s": 20.0, **settings}

    async def main() -> T:
        async with Downloader(DownloadSettings(**given), on_pause) as downloader:
            return await work(downloader)

    return asyncio.run(main())


async def outcome(downloader: Downloader, url: str) -> str:
    """What became of an image, in one word."""
    try:
        await downloader.fetch(url)
    except ImageError as error:
        return str(error.reason.value)
    except HostPausedError:
        return "paused"
    return "done"


def failing(server: ImageServer, path: str, status: int, **headers: str) -> None:
    server.serve(path, b"", status=status, headers=headers)


# Pauses that a host asks for


@pytest.mark.parametrize("status", [429, 503])
def test_one_images_retry_after_pauses_its_whole_host_and_no_other(
    server: ImageServer, status: int
) -> None:
    failing(server, "/busy.jpg", status, **{"Retry-After": "120"})
    told: list[tuple[str, float]] = []
    with ImageServer() as other:
        other.serve("/good.jpg", GOOD)

        async def work(downloader: Downloader) -> list[str]:
            first = await outcome(downloader, server.url("/busy.jpg"))
            rest = [await outcome(downloader, server.url("/good.jpg")) for _ in range(200)]
            return [first, *set(rest), await outcome(downloader, other.url("/good.jpg"))]

        reason = {429: "rate_limited", 503: "server_error"}[status]
        found = run(work, lambda host, seconds: told.append((host, seconds)))
        assert found == [reason, "paused", "done"]
    assert server.hits.total() == 1
    assert told == [(f"127.0.0.1:{server.port}", 120)]


def test_a_paused_image_says_for_how_long(server: ImageServer) -> None:
    failing(server, "/busy.jpg", 429, **{"Retry-After": "7200"})

    async def work(downloader: Downloader) -> float:
        await outcome(downloader, server.url("/busy.jpg"))
        with pytest.raises(HostPausedError) as caught:
            await downloader.fetch(server.url("/good.jpg"))
        return caught.value.seconds

    assert 3590 < run(work) <= 3600


def test_a_short_pause_is_sat_out_and_nobody_comes_early(server: ImageServer) -> None:
    asked_at = 0.0
    arrivals: list[float] = []

    async def busy(_request: web.BaseRequest) -> web.Response:
        nonlocal asked_at
        asked_at = time.monotonic()
        return web.Response(status=429, headers={"Retry-After": "1"})

    async def note(_request: web.BaseRequest) -> web.Response:
        arrivals.append(time.monotonic())
        return web.Response(body=GOOD)

    server.route("/busy.jpg", busy)
    server.route("/a.jpg", note)

    async def work(downloader: Downloader) -> list[str]:
        await outcome(downloader, server.url("/busy.jpg"))
        return await asyncio.gather(*(outcome(downloader, server.url("/a.jpg")) for _ in range(40)))

    # Waiting for a pause to end costs an image none of its time.
    assert set(run(work, tries=1, deadline_s=0.8)) == {"done"}
    assert min(arrivals) - asked_at >= 1


def test_another_workers_pause_is_kept_too(server: ImageServer) -> None:
    async def work(downloader: Downloader) -> str:
        downloader.pause(f"127.0.0.1:{server.port}", 60)
        return await outcome(downloader, server.url("/good.jpg"))

    assert run(work) == "paused"
    assert not server.connections


# Hosts that serve nothing


def test_a_host_that_only_fails_is_left_alone(server: ImageServer) -> None:
    failing(server, "/a.jpg", 500)
    told: list[tuple[str, float]] = []

    async def work(downloader: Downloader) -> list[str]:
        return [await outcome(downloader, server.url("/a.jpg")) for _ in range(30)]

    found = run(work, lambda host, seconds: told.append((host, seconds)), tries=1)
    assert found == ["server_error"] * 10 + ["paused"] * 20
    assert server.hits.total() == 10
    assert told == [(f"127.0.0.1:{server.port}", 30)]


def test_an_image_that_was_refused_before_the_pause_has_its_own_reason(
    server: ImageServer,
) -> None:
    failing(server, "/a.jpg", 500)

    async def work(downloader: Downloader) -> list[str]:
        return [await outcome(downloader, server.url("/a.jpg")) for _ in range(5)]

    # Tries 1-3, 4-6, 7-9, then 10 of the fourth image, whose second try would come in the pause.
    assert run(work, tries=3) == ["server_error"] * 4 + ["paused"]


@pytest.mark.parametrize("status", [401, 403, 404, 410, 451])
def test_refusals_are_answers(server: ImageServer, status: int) -> None:
    failing(server, "/a.jpg", status)

    async def work(downloader: Downloader) -> list[str]:
        return [await outcome(downloader, server.url("/a.jpg")) for _ in range(30)]

    assert "paused" not in run(work, tries=1)


def test_one_success_clears_a_host(server: ImageServer) -> None:
    failing(server, "/a.jpg", 500)

    async def work(downloader: Downloader) -> list[str]:
        paths = (["/a.jpg"] * 9 + ["/good.jpg"]) * 3
        return [await outcome(downloader, server.url(path)) for path in paths]

    assert "paused" not in run(work, tries=1)


def test_after_the_pause_one_request_tries_and_the_pause_doubles(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "_FIRST_PAUSE_S", 0.3)
    monkeypatch.setattr(hosts, "MAX_WAIT_S", 0.0)
    failing(server, "/a.jpg", 500)
    told: list[float] = []

    async def all_at_once(downloader: Downloader) -> dict[str, int]:
        found = await asyncio.gather(
            *(outcome(downloader, server.url("/a.jpg")) for _ in range(12))
        )
        return {word: found.count(word) for word in sorted(set(found))}

    async def work(downloader: Downloader) -> list[dict[str, int]]:
        seen = [await all_at_once(downloader)]
        for pause_s in (0.3, 0.6):
            await asyncio.sleep(pause_s)
            seen.append(await all_at_once(downloader))
        await asyncio.sleep(1.2)
        server.serve("/a.jpg", GOOD)
        seen.append(await all_at_once(downloader))
        seen.append(await all_at_once(downloader))
        return seen

    seen = run(work, lambda _host, seconds: told.append(seconds), tries=1, per_host=20)
    trial = {"paused": 11, "server_error": 1}
    assert seen == [{"server_error": 12}, trial, trial, {"done": 1, "paused": 11}, {"done": 12}]
    assert told == [0.3, 0.6, 1.2]


def test_a_trial_that_is_cancelled_gives_way_to_another(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "_FIRST_PAUSE_S", 0.1)
    asked = asyncio.Event()

    async def stick(_request: web.BaseRequest) -> web.Response:
        loop.call_soon_threadsafe(asked.set)
        await asyncio.Event().wait()
        return web.Response()

    failing(server, "/a.jpg", 500)
    server.route("/stuck.jpg", stick)
    loop: asyncio.AbstractEventLoop

    async def work(downloader: Downloader) -> str:
        nonlocal loop
        loop = asyncio.get_running_loop()
        for _ in range(10):
            await outcome(downloader, server.url("/a.jpg"))
        trial = asyncio.create_task(downloader.fetch(server.url("/stuck.jpg")))
        await asked.wait()
        assert await outcome(downloader, server.url("/good.jpg")) == "paused"
        trial.cancel()
        await asyncio.gather(trial, return_exceptions=True)
        return await outcome(downloader, server.url("/good.jpg"))

    assert run(work, tries=1) == "done"


def test_a_host_that_answers_nobody_does_not_hold_up_the_others(server: ImageServer) -> None:
    """All good images are done while a tarpit costs some requests, not one for each image."""
    with ImageServer() as tarpit:
        tarpit.raw("/a.jpg", hang_up=False)
        urls = [
            (tarpit.url("/a.jpg") if n % 5 == 0 else server.url("/good.jpg")) + f"?{n}"
            for n in range(200)
        ]

        async def work(downloader: Downloader) -> list[str]:
            return await asyncio.gather(*(outcome(downloader, url) for url in urls))

        found = run(work, tries=1, deadline_s=0.4, per_host=5)
        assert found.count("done") == 160
        # Ten in a row, and those that were under way when the tenth failed.
        assert 10 <= found.count("timeout") <= 14
        assert found.count("paused") == 40 - found.count("timeout")


# How much is remembered, how fast is asked


def test_a_million_hosts_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_REMEMBERED_HOSTS", 10)

    async def work() -> int:
        known = Hosts(DownloadSettings(), lambda _host, _seconds: None)
        async with known.turn(URL("http://in.use/")):
            for n in range(1000):
                async with known.turn(URL(f"http://host{n}.test/")):
                    pass
        async with known.turn(URL("http://last.test/")):
            pass
        return len(known)

    assert asyncio.run(work()) <= 11


def test_a_pace_spreads_the_requests_to_a_host(server: ImageServer) -> None:
    arrivals: list[float] = []

    async def note(_request: web.BaseRequest) -> web.Response:
        arrivals.append(time.monotonic())
        return web.Response(body=GOOD)

    server.route("/a.jpg", note)

    async def work(downloader: Downloader) -> None:
        await asyncio.gather(*(downloader.fetch(server.url("/a.jpg")) for _ in range(11)))

    run(work, requests_per_second=20)
    assert max(arrivals) - min(arrivals) >= 0.45


# Private CDNs


def test_a_hosts_headers_go_to_it_alone(server: ImageServer) -> None:
    with ImageServer() as other:
        other.serve("/good.jpg", GOOD)
        server.redirect("/away.jpg", other.url("/good.jpg"))
        headers = {f"127.0.0.1:{server.port}": {"Authorization": "Bearer SECRET"}}

        async def work(downloader: Downloader) -> None:
            await downloader.fetch(server.url("/away.jpg"))
            await downloader.fetch(other.url("/good.jpg"))

        run(work, headers=headers)
        assert server.headers["/away.jpg"]["Authorization"] == "Bearer SECRET"
        assert "Authorization" not in other.headers["/good.jpg"]


def test_a_hosts_headers_do_not_leave_tls_by_a_redirect(tmp_path: Path) -> None:
    pem = tmp_path / "own.pem"
    pem.write_text(SELF_SIGNED)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    with ImageServer() as plain, ImageServer(tls=context) as server:
        plain.serve("/good.jpg", GOOD)
        server.redirect("/away.jpg", plain.url("/good.jpg"))
        headers = {f"127.0.0.1:{port}": {"X-Token": "SECRET"} for port in (plain.port, server.port)}

        async def work(downloader: Downloader) -> None:
            await downloader.fetch(server.url("/away.jpg"))
            assert "X-Token" not in plain.headers["/good.jpg"]
            await downloader.fetch(plain.url("/good.jpg"))

        run(work, headers=headers, ca_file=pem)
        assert server.headers["/away.jpg"]["X-Token"] == "SECRET"
        assert plain.headers["/good.jpg"]["X-Token"] == "SECRET"


def test_an_authority_of_ones_own_is_trusted(tmp_path: Path) -> None:
    pem = tmp_path / "own.pem"
    pem.write_text(SELF_SIGNED)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    with ImageServer(tls=context) as server:
        server.serve("/a.jpg", GOOD)

        async def work(downloader: Downloader) -> bytes:
            return (await downloader.fetch(server.url("/a.jpg"))).body

        assert run(work, ca_file=pem) == GOOD


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_bundle_that_cannot_be_used_is_a_wrong_setting(
    tmp_path: Path, content: str | None
) -> None:
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_text(content)
    with pytest.raises(SettingsError, match=r"ca\.pem"):
        Downloader(DownloadSettings(ca_file=bundle))


# A proxy


@pytest.fixture
def proxy() -> Iterator[ImageServer]:
    """It answers for everybody: what an origin would send is not the point here."""
    with ImageServer("127.0.0.2") as proxy:
        proxy.serve("/a.jpg", GOOD)
        yield proxy


def through(proxy: ImageServer, url: str) -> str:
    async def work(downloader: Downloader) -> str:
        return await outcome(downloader, url)

    # Nothing is allowed: the proxy itself may stand at any address.
    return run(work, proxy=proxy.url(""), allow_networks=(), tries=1)


def test_requests_go_through_the_proxy(proxy: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, proxy, "93.184.216.34")
    assert through(proxy, "http://shop.test/a.jpg") == "done"
    assert proxy.headers["/a.jpg"]["Host"] == "shop.test"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1/a.jpg", ""),
        ("http://[::ffff:10.0.0.1]/a.jpg", ""),
        ("http://inward.test/a.jpg", "10.0.0.1"),
        ("https://inward.test/a.jpg", "169.254.169.254"),
        ("http://shop.test:6379/a.jpg", "93.184.216.34"),
    ],
)
def test_the_guard_is_in_force_behind_a_proxy(
    proxy: ImageServer, monkeypatch: pytest.MonkeyPatch, url: str, address: str
) -> None:
    resolve_to(monkeypatch, proxy, address)
    assert through(proxy, url) == "blocked_address"
    assert not proxy.connections


def test_the_proxys_own_address_is_no_image_host(proxy: ImageServer) -> None:
    assert through(proxy, proxy.url("/a.jpg")) == "blocked_address"
    assert not proxy.connections


def test_a_redirect_behind_a_proxy_is_checked(
    proxy: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, proxy, "93.184.216.34")
    proxy.redirect("/inward.jpg", "http://127.0.0.1/a.jpg")
    assert through(proxy, "http://shop.test/inward.jpg") == "blocked_address"
    assert not proxy.hits["/a.jpg"]


def test_a_proxy_that_is_away_is_a_failed_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with ImageServer("127.0.0.2") as gone:
        pass
    resolve_to(monkeypatch, gone, "93.184.216.34")
    assert through(gone, "http://shop.test/a.jpg") == FailureReason.CONNECT.value


def resolve_to(monkeypatch: pytest.MonkeyPatch, proxy: ImageServer, address: str) -> None:
    """Every name has this one address; the proxy's is a literal."""
    honest = socket.getaddrinfo

    def look_up(host: str, port: int, *rest: Any, **more: Any) -> Any:
        return honest(host if host == proxy.host else address, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
