"""Every misbehaviour is a real server's, on loopback; times are the smallest that still tell."""

import asyncio
import gzip
import hashlib
import socket
import ssl
import threading
import time
import traceback
import tracemalloc
import zlib
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_network
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
import stamina
import structlog
from aiohttp import web
from aiohttp.abc import ResolveResult
from aiohttp.http_exceptions import HttpProcessingError
from stamina.instrumentation import RetryDetails, get_on_retry_hooks

from tests.server import ImageServer
from visual_search.download import Downloader
from visual_search.download.translation import REASONS
from visual_search.errors import FailureReason, ImageError
from visual_search.network_guard import GuardedResolver
from visual_search.settings import DownloadSettings

T = TypeVar("T")
OK = "HTTP/1.1 200 OK\r\n"
GOOD = b"\xff\xd8 a good image"


def run(work: Callable[[Downloader], Awaitable[T]], **settings: Any) -> T:
    """Do `work` with a downloader that may reach 127.0.0.1 only."""
    given = {"allow_networks": (ip_network("127.0.0.1/32"),), "deadline_s": 20.0, **settings}

    async def main() -> T:
        async with Downloader(DownloadSettings(**given)) as downloader:
            return await work(downloader)

    return asyncio.run(main())


def fetch(url: str, **settings: Any) -> bytes:
    return run(lambda downloader: downloader.fetch(url), **settings).body


def failure(url: str, **settings: Any) -> ImageError:
    with pytest.raises(ImageError) as caught:
        fetch(url, **settings)
    return caught.value


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with ImageServer() as server:
        server.serve("/good.jpg", GOOD)
        yield server


@pytest.fixture
def no_pauses() -> Iterator[None]:
    """Tries follow each other at once; their number stays the setting's."""
    with stamina.set_testing(True, attempts=100, cap=True):
        yield


def answers(server: ImageServer, path: str, *statuses: int, **headers: str) -> None:
    """Answer `path` with these statuses in turn, the last one for ever; 200 with the image."""
    left = list(statuses)

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        status = left.pop(0) if len(left) > 1 else left[0]
        body = GOOD if status == 200 else b"an error page"
        return web.Response(status=status, body=body, headers=headers)

    server.route(path, answer)


# What arrives


def test_a_download_is_the_bytes_sent_and_their_digest(server: ImageServer) -> None:
    body = bytes(range(256)) * 4000
    server.serve("/a.jpg", body)
    download = run(lambda downloader: downloader.fetch(server.url("/a.jpg?size=2")))
    assert download.body == body
    assert download.content_sha256 == hashlib.sha256(body).digest()
    assert server.hits["/a.jpg"] == 1


def test_requests_say_who_asks_and_for_what(server: ImageServer) -> None:
    fetch(server.url("/good.jpg"))
    sent = server.headers["/good.jpg"]
    assert sent["User-Agent"].startswith("vsearch/")
    assert sent["Accept-Encoding"] == "identity"
    assert sent["Accept"].startswith("image/jpeg")
    fetch(server.url("/good.jpg"), user_agent="shop-bot/2 (+https://shop.example)")
    assert server.headers["/good.jpg"]["User-Agent"] == "shop-bot/2 (+https://shop.example)"


def test_the_content_type_decides_nothing(server: ImageServer) -> None:
    server.serve("/a.jpg", GOOD, content_type="text/html")
    assert fetch(server.url("/a.jpg")) == GOOD
    server.serve("/a.jpg", b"<html>", content_type="image/jpeg")
    assert fetch(server.url("/a.jpg")) == b"<html>"


def test_a_signed_query_arrives_as_written(server: ImageServer) -> None:
    raw_paths = []

    async def note(request: web.BaseRequest) -> web.StreamResponse:
        raw_paths.append(request.raw_path)
        return web.Response(body=GOOD)

    server.route("/a b.jpg", note)
    fetch(server.url("/a%20b.jpg?s=a%2Fb%7E~&x=a+b%20c%3D|"))
    assert raw_paths == ["/a%20b.jpg?s=a%2Fb%7E~&x=a+b%20c%3D|"]


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda b: zlib.compress(b)[2:-4]),
    ],
)
def test_a_body_compressed_unasked_is_decoded(
    server: ImageServer, encoding: str, encode: Callable[[bytes], bytes]
) -> None:
    server.serve("/a.jpg", encode(GOOD), headers={"Content-Encoding": encoding})
    assert fetch(server.url("/a.jpg")) == GOOD


# Statuses and tries


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(
    ("status", "reason", "tries"),
    [
        (404, FailureReason.NOT_FOUND, 1),
        (410, FailureReason.GONE, 1),
        (204, FailureReason.HTTP_REFUSED, 1),
        (206, FailureReason.HTTP_REFUSED, 1),
        (300, FailureReason.HTTP_REFUSED, 1),
        (304, FailureReason.HTTP_REFUSED, 1),
        (400, FailureReason.HTTP_REFUSED, 1),
        (402, FailureReason.HTTP_REFUSED, 1),
        (451, FailureReason.HTTP_REFUSED, 1),
        (401, FailureReason.UNAUTHORIZED, 3),
        (403, FailureReason.FORBIDDEN, 3),
        (408, FailureReason.TIMEOUT, 3),
        (425, FailureReason.RATE_LIMITED, 3),
        (429, FailureReason.RATE_LIMITED, 3),
        (500, FailureReason.SERVER_ERROR, 3),
        (503, FailureReason.SERVER_ERROR, 3),
        (599, FailureReason.SERVER_ERROR, 3),
    ],
)
def test_a_status_gives_its_reason_and_verdicts_are_not_tried_again(
    server: ImageServer, status: int, reason: FailureReason, tries: int
) -> None:
    answers(server, "/a.jpg", status)
    error = failure(server.url("/a.jpg"))
    assert (error.reason, error.http_status) == (reason, status)
    assert server.hits["/a.jpg"] == tries
    assert reason.retryable == (tries > 1)


@pytest.mark.usefixtures("no_pauses")
def test_the_image_is_had_at_the_third_try(server: ImageServer) -> None:
    answers(server, "/a.jpg", 503, 503, 200)
    assert fetch(server.url("/a.jpg")) == GOOD
    assert server.hits["/a.jpg"] == 3


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("tries", [1, 2, 5])
def test_tries_are_a_setting(server: ImageServer, tries: int) -> None:
    answers(server, "/a.jpg", 500)
    failure(server.url("/a.jpg"), tries=tries)
    assert server.hits["/a.jpg"] == tries


@pytest.mark.usefixtures("no_pauses")
def test_an_unanswered_request_is_one_try(server: ImageServer) -> None:
    """aiohttp by itself would send each one twice."""
    server.raw("/a.jpg")
    assert failure(server.url("/a.jpg")).reason is FailureReason.DISCONNECTED
    assert server.hits["/a.jpg"] == 3


def test_a_connection_the_server_has_closed_costs_no_try(server: ImageServer) -> None:
    """Answered and hung up without a word: the kept connection is dead when it is used again."""
    server.raw("/a.jpg", f"{OK}Content-Length: 4\r\n\r\nbody")

    async def again_and_again(downloader: Downloader) -> set[bytes]:
        return {(await downloader.fetch(server.url("/a.jpg"))).body for _ in range(50)}

    assert run(again_and_again, tries=1) == {b"body"}


@pytest.mark.usefixtures("no_pauses")
def test_a_kept_connection_earns_a_request_one_repetition(server: ImageServer) -> None:
    server.raw("/a.jpg")

    async def after_a_good_one(downloader: Downloader) -> None:
        await downloader.fetch(server.url("/good.jpg"))
        with pytest.raises(ImageError):
            await downloader.fetch(server.url("/a.jpg"))

    run(after_a_good_one, tries=2, deadline_s=5)
    assert server.hits["/a.jpg"] == 3
    assert server.connections == 3


def test_connections_are_used_again(server: ImageServer) -> None:
    async def twenty(downloader: Downloader) -> None:
        for _ in range(20):
            await downloader.fetch(server.url("/good.jpg"))

    run(twenty)
    assert server.connections == 1


def test_pauses_between_tries_are_random(server: ImageServer) -> None:
    arrivals: list[float] = []
    with ImageServer() as other:
        # Eight failures in a row are not yet enough for a host to be left alone.
        urls = [one.url(f"/{n}.jpg") for one in (server, other) for n in range(8)]

        async def note(request: web.BaseRequest) -> web.StreamResponse:
            arrivals.append(time.monotonic())
            return web.Response(status=503 if len(arrivals) <= len(urls) else 404)

        for one in (server, other):
            for n in range(8):
                one.route(f"/{n}.jpg", note)

        async def many(downloader: Downloader) -> None:
            await asyncio.gather(*map(downloader.fetch, urls), return_exceptions=True)

        run(many, tries=2)
    second = [arrival - arrivals[0] for arrival in arrivals[16:]]
    assert len(second) == 16
    assert max(second) < 3
    # Drawn from 0 to 1 s: that 16 of them lie within a quarter of it has a chance of 1e-8.
    assert max(second) - min(second) > 0.25


# Retry-After


def test_a_short_retry_after_is_obeyed(server: ImageServer) -> None:
    answers(server, "/a.jpg", 429, 200, **{"Retry-After": "1"})
    started = time.monotonic()
    assert fetch(server.url("/a.jpg")) == GOOD
    assert 1 <= time.monotonic() - started < 3
    assert server.hits["/a.jpg"] == 2


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        ("120", 120),
        ("3601", 3600),
        ("315360000", 3600),
        ("9" * 5000, 3600),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600),
        ("Fri, 31 Dec 9999 23:59:59 -0000", 3600),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_long_retry_after_is_handed_on_and_not_waited_for(
    server: ImageServer, status: int, sent: str, seconds: float
) -> None:
    answers(server, "/a.jpg", status, **{"Retry-After": sent})
    error = failure(server.url("/a.jpg"))
    assert error.retry_after_s == seconds
    assert server.hits["/a.jpg"] == 1


def test_a_retry_after_may_be_a_date(server: ImageServer) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=10), usegmt=True)
    answers(server, "/a.jpg", 503, **{"Retry-After": date})
    assert failure(server.url("/a.jpg")).retry_after_s == pytest.approx(600, abs=10)


def test_a_retry_after_beyond_the_deadline_is_handed_on(server: ImageServer) -> None:
    answers(server, "/a.jpg", 503, **{"Retry-After": "5"})
    assert failure(server.url("/a.jpg"), deadline_s=1).retry_after_s == 5
    assert server.hits["/a.jpg"] == 1


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(
    "sent",
    [
        *("", "0", "-5", "soon", "1.5", "١٢", "Mon, 99 Foo 2026 99:99:99 GMT"),
        "Mon, 01 Jan 2001 00:00:00 GMT",
    ],
)
def test_a_retry_after_that_says_nothing_is_as_none(server: ImageServer, sent: str) -> None:
    answers(server, "/a.jpg", 503, **{"Retry-After": sent})
    assert failure(server.url("/a.jpg")).retry_after_s is None
    assert server.hits["/a.jpg"] == 3


def test_a_verdict_has_no_retry_after(server: ImageServer) -> None:
    answers(server, "/a.jpg", 404, **{"Retry-After": "60"})
    assert failure(server.url("/a.jpg")).retry_after_s is None


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location", ["/good.jpg", "good.jpg", "{server}/good.jpg", "//{host}/good.jpg"]
)
def test_redirects_are_followed(server: ImageServer, status: int, location: str) -> None:
    host = f"{server.host}:{server.port}"
    server.redirect("/a.jpg", location.format(server=f"http://{host}", host=host), status)
    assert fetch(server.url("/a.jpg")) == GOOD


def test_five_redirects_are_followed_and_a_sixth_is_not(server: ImageServer) -> None:
    for hop in range(1, 6):
        server.redirect(f"/{hop}", f"/{hop + 1}")
    server.serve("/6", GOOD)
    server.redirect("/0", "/1")
    assert fetch(server.url("/1")) == GOOD
    server.forget()
    assert failure(server.url("/0")).reason is FailureReason.TOO_MANY_REDIRECTS
    assert server.hits == {f"/{hop}": 1 for hop in range(6)}


def test_a_redirect_loop_ends(server: ImageServer) -> None:
    server.redirect("/a.jpg", "/a.jpg?again")
    assert failure(server.url("/a.jpg")).reason is FailureReason.TOO_MANY_REDIRECTS
    assert server.hits["/a.jpg"] == 6


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_inward_is_refused_once_and_for_all(server: ImageServer, status: int) -> None:
    with ImageServer("127.0.0.2") as canary:
        server.redirect("/a.jpg", canary.url("/"), status)
        server.redirect("/b.jpg", "/a.jpg", status)
        assert failure(server.url("/b.jpg")).reason is FailureReason.BLOCKED_ADDRESS
        assert canary.connections == 0
    assert server.hits == {"/a.jpg": 1, "/b.jpg": 1}


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "data:,x", "\\\\127.0.0.2", "/\\127.0.0.2", "http://a b/"]
)
def test_a_redirect_to_what_is_no_url_is_refused(server: ImageServer, location: str) -> None:
    server.redirect("/a.jpg", location)
    assert failure(server.url("/a.jpg")).reason is FailureReason.BAD_URL
    assert server.hits["/a.jpg"] == 1


def test_a_redirect_without_a_location_is_a_verdict(server: ImageServer) -> None:
    server.raw("/a.jpg", "HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n")
    assert failure(server.url("/a.jpg")).reason is FailureReason.HTTP_REFUSED


def test_a_refresh_header_leads_nowhere(server: ImageServer) -> None:
    with ImageServer("127.0.0.2") as canary:
        target = canary.url("/")
        page = f'<meta http-equiv="refresh" content="0;url={target}">'.encode()
        server.serve("/a.jpg", page, headers={"Refresh": f"0; url={target}"})
        assert fetch(server.url("/a.jpg")) == page
        assert canary.connections == 0


# What is never carried along


def test_credentials_go_to_their_own_host_only(server: ImageServer) -> None:
    with ImageServer() as other:
        other.serve("/good.jpg", GOOD)
        server.redirect("/here.jpg", "/good.jpg")
        server.redirect("/there.jpg", other.url("/good.jpg"))
        with_user = server.url("/here.jpg").replace("http://", "http://user:pass@")
        fetch(with_user)
        assert server.headers["/here.jpg"]["Authorization"] == "Basic dXNlcjpwYXNz"
        assert server.headers["/good.jpg"]["Authorization"] == "Basic dXNlcjpwYXNz"
        fetch(with_user.replace("/here.jpg", "/there.jpg"))
        assert server.headers["/there.jpg"]["Authorization"] == "Basic dXNlcjpwYXNz"
        assert "Authorization" not in other.headers["/good.jpg"]


def test_cookies_are_not_kept(server: ImageServer) -> None:
    server.serve("/a.jpg", GOOD, headers={"Set-Cookie": "session=1; Path=/"})

    async def twice(downloader: Downloader) -> None:
        await downloader.fetch(server.url("/a.jpg"))
        await downloader.fetch(server.url("/a.jpg"))

    run(twice)
    assert "Cookie" not in server.headers["/a.jpg"]


def test_proxies_and_netrc_of_the_environment_are_not_used(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password pass\n")
    netrc.chmod(0o600)
    with ImageServer("127.0.0.2") as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url("/"))
            monkeypatch.setenv(name.upper(), proxy.url("/"))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setenv("NETRC", str(netrc))
        assert fetch(server.url("/good.jpg")) == GOOD
        assert proxy.connections == 0
    assert "Authorization" not in server.headers["/good.jpg"]


# Size


@pytest.mark.usefixtures("no_pauses")
def test_an_honest_length_above_the_cap_is_refused_unread(server: ImageServer) -> None:
    server.raw("/a.jpg", f"{OK}Content-Length: 1001\r\n\r\n", hang_up=False)
    error = failure(server.url("/a.jpg"), max_bytes=1000)
    assert error.reason is FailureReason.TOO_LARGE
    assert error.detail == "1001 bytes, limit 1000"
    assert server.hits["/a.jpg"] == 1


def test_the_cap_itself_is_allowed(server: ImageServer) -> None:
    server.serve("/a.jpg", bytes(1000))
    assert len(fetch(server.url("/a.jpg"), max_bytes=1000)) == 1000


@pytest.mark.usefixtures("no_pauses")
def test_an_endless_body_is_cut_at_the_cap(server: ImageServer) -> None:
    chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    server.raw("/a.jpg", f"{OK}Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 1000)
    error = failure(server.url("/a.jpg"), max_bytes=1_000_000)
    assert error.reason is FailureReason.TOO_LARGE
    assert int(error.detail.split()[0]) <= 1_000_000 + (1 << 18)
    assert server.hits["/a.jpg"] == 1


@pytest.mark.parametrize("members", [1, 20], ids=["one member", "many members"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_bomb_is_cut_at_the_cap_in_little_memory(
    server: ImageServer, encoding: str, members: int
) -> None:
    compress = gzip.compress if encoding == "gzip" else zlib.compress
    bomb = compress(bytes((200 << 20) // members)) * members
    server.serve("/a.jpg", bomb, headers={"Content-Encoding": encoding})
    tracemalloc.start()
    try:
        error = failure(server.url("/a.jpg"), max_bytes=1_000_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.reason is FailureReason.TOO_LARGE
    assert peak < 8 << 20


def test_nested_compression_is_decoded_once_at_most(server: ImageServer) -> None:
    inner = gzip.compress(gzip.compress(bytes(1 << 20)))
    server.serve("/a.jpg", inner, headers={"Content-Encoding": "gzip, gzip"})
    assert len(fetch(server.url("/a.jpg"))) < 1 << 15


def test_an_empty_body_is_a_verdict(server: ImageServer) -> None:
    server.serve("/a.jpg", b"")
    assert failure(server.url("/a.jpg")).reason is FailureReason.EMPTY_BODY
    assert server.hits["/a.jpg"] == 1


# Time


@pytest.mark.parametrize("where", ["silence", "slow header", "slow body", "endless 1xx"])
def test_the_deadline_cuts(server: ImageServer, where: str) -> None:
    if where == "silence":
        server.raw("/a.jpg", hang_up=False)
    elif where == "slow header":
        server.raw("/a.jpg", *OK, *"X: y\r\n" * 100, pause_s=0.05)
    elif where == "slow body":
        server.raw("/a.jpg", f"{OK}Content-Length: 100\r\n\r\n", *["x"] * 100, pause_s=0.05)
    else:
        server.raw("/a.jpg", *["HTTP/1.1 100 Continue\r\n\r\n"] * 100, pause_s=0.05)

    async def timed(downloader: Downloader) -> float:
        started = time.monotonic()
        with pytest.raises(ImageError) as caught:
            await downloader.fetch(server.url("/a.jpg"))
        assert caught.value.reason is FailureReason.TIMEOUT
        return time.monotonic() - started

    assert 0.5 <= run(timed, deadline_s=0.5) < 1.5
    assert server.hits["/a.jpg"] == 1


def test_redirects_and_tries_share_the_deadline(server: ImageServer) -> None:
    async def late_redirect(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.6)
        raise web.HTTPFound("/b.jpg")

    async def late_image(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.6)
        return web.Response(body=GOOD)

    server.route("/a.jpg", late_redirect)
    server.route("/b.jpg", late_image)
    assert failure(server.url("/a.jpg"), deadline_s=0.9).reason is FailureReason.TIMEOUT
    assert server.hits == {"/a.jpg": 1, "/b.jpg": 1}


def test_waiting_for_a_slot_costs_no_time(server: ImageServer) -> None:
    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.25)
        return web.Response(body=GOOD)

    server.route("/a.jpg", slow)

    async def queue(downloader: Downloader) -> None:
        await asyncio.gather(*(downloader.fetch(server.url("/a.jpg")) for _ in range(4)))

    run(queue, per_host=1, deadline_s=0.6)
    assert server.hits["/a.jpg"] == 4


# Politeness


def test_a_host_never_sees_more_requests_at_once_than_allowed(server: ImageServer) -> None:
    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return web.Response(body=GOOD)

    server.route("/a.jpg", slow)
    server.redirect("/to.jpg", "/a.jpg")

    async def many(downloader: Downloader) -> None:
        urls = [server.url(path) for path in ("/a.jpg", "/to.jpg")] * 15
        await asyncio.gather(*map(downloader.fetch, urls))

    run(many, per_host=3)
    assert server.peak == 3


def test_all_hosts_together_see_no_more_than_the_concurrency(server: ImageServer) -> None:
    active = peak = 0

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        nonlocal active, peak
        active += 1
        peak = max(peak, active)
        await asyncio.sleep(0.02)
        active -= 1
        return web.Response(body=GOOD)

    with ImageServer() as other:
        for one in (server, other):
            one.route("/a.jpg", slow)

        async def many(downloader: Downloader) -> None:
            urls = [one.url("/a.jpg") for one in (server, other)] * 15
            await asyncio.gather(*map(downloader.fetch, urls))

        run(many, concurrency=4, per_host=3)
    assert peak == 4


def test_a_slow_host_does_not_hold_up_another(server: ImageServer) -> None:
    with ImageServer() as tarpit:
        tarpit.raw("/a.jpg", hang_up=False)

        async def both(downloader: Downloader) -> None:
            stuck = [asyncio.create_task(downloader.fetch(tarpit.url("/a.jpg"))) for _ in range(20)]
            await asyncio.sleep(0)
            async with asyncio.timeout(5):
                await asyncio.gather(
                    *(downloader.fetch(server.url("/good.jpg")) for _ in range(20))
                )
            assert not any(task.done() for task in stuck)
            for task in stuck:
                task.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)

        run(both, concurrency=4, per_host=2)


def test_a_cancelled_download_gives_its_slot_back(server: ImageServer) -> None:
    asked = threading.Event()

    async def stick(request: web.BaseRequest) -> web.StreamResponse:
        asked.set()
        await asyncio.Event().wait()
        return web.Response()

    server.route("/stuck.jpg", stick)

    async def cancel_then_fetch(downloader: Downloader) -> bytes:
        stuck = asyncio.create_task(downloader.fetch(server.url("/stuck.jpg")))
        assert await asyncio.to_thread(asked.wait, 10)
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)
        assert stuck.cancelled()
        return (await downloader.fetch(server.url("/good.jpg"))).body

    assert run(cancel_then_fetch, concurrency=1, per_host=1) == GOOD


# Answers that are none

MALFORMED = {
    "garbage": ("garbage\r\n\r\n", FailureReason.BAD_RESPONSE),
    "another protocol": ("SSH-2.0-OpenSSH_9\r\n", FailureReason.BAD_RESPONSE),
    "no status line": ("just a body", FailureReason.BAD_RESPONSE),
    "status no number": ("HTTP/1.1 abc OK\r\n\r\n", FailureReason.BAD_RESPONSE),
    "status 0": ("HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n", FailureReason.BAD_RESPONSE),
    "status 999": ("HTTP/1.1 999 No\r\nContent-Length: 0\r\n\r\n", FailureReason.BAD_RESPONSE),
    "negative length": (f"{OK}Content-Length: -5\r\n\r\nabc", FailureReason.BAD_RESPONSE),
    "length no number": (f"{OK}Content-Length: x\r\n\r\nabc", FailureReason.BAD_RESPONSE),
    "length of 26 digits": (f"{OK}Content-Length: {'9' * 26}\r\n\r\n", FailureReason.BAD_RESPONSE),
    "two lengths": (
        f"{OK}Content-Length: 5\r\nContent-Length: 3\r\n\r\nabc",
        FailureReason.BAD_RESPONSE,
    ),
    "length and chunks": (
        f"{OK}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        FailureReason.BAD_RESPONSE,
    ),
    "bad chunk": (f"{OK}Transfer-Encoding: chunked\r\n\r\nzz\r\nab", FailureReason.BAD_RESPONSE),
    "header of 1 MB": (f"{OK}X: {'a' * 1_000_000}\r\n\r\n", FailureReason.BAD_RESPONSE),
    "10,000 headers": (OK + "X: y\r\n" * 10_000 + "\r\n", FailureReason.BAD_RESPONSE),
    "NUL in a header": (f"{OK}X: a\0b\r\n\r\n", FailureReason.BAD_RESPONSE),
    "plain body called gzip": (
        f"{OK}Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        FailureReason.BAD_RESPONSE,
    ),
    "hung up": ("", FailureReason.DISCONNECTED),
    "hung up in the header": ("HTTP/1.1 200 OK\r\nContent-", FailureReason.DISCONNECTED),
    "short body": (f"{OK}Content-Length: 10\r\n\r\nabc", FailureReason.DISCONNECTED),
    "short chunks": (
        f"{OK}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        FailureReason.DISCONNECTED,
    ),
    "101": ("HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", None),
}


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_answer_is_classified_and_the_session_survives(
    server: ImageServer, name: str
) -> None:
    answer, reason = MALFORMED[name]
    server.raw("/a.jpg", answer)

    async def bad_then_good(downloader: Downloader) -> ImageError:
        with pytest.raises(ImageError) as caught:
            await downloader.fetch(server.url("/a.jpg"))
        assert (await downloader.fetch(server.url("/good.jpg"))).body == GOOD
        return caught.value

    error = run(bad_then_good)
    assert error.reason is (reason or FailureReason.HTTP_REFUSED)
    assert server.hits["/a.jpg"] == (1 if reason is None else 3)
    assert error.detail.isprintable()


def test_a_chunk_that_turns_bad_in_mid_body_is_cut_at_the_deadline(server: ImageServer) -> None:
    """aiohttp tells the reader of the body nothing then; only the deadline ends it."""
    head = f"{OK}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"
    server.raw("/a.jpg", head, "zz\r\n", pause_s=0.05)
    error = failure(server.url("/a.jpg"), deadline_s=0.5)
    assert error.reason in (FailureReason.TIMEOUT, FailureReason.BAD_RESPONSE)


@pytest.mark.usefixtures("no_pauses")
def test_a_truncated_body_is_fetched_again(server: ImageServer) -> None:
    left = [True]

    async def truncated_once(request: web.BaseRequest) -> web.StreamResponse:
        if left:
            left.clear()
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b"only this")
            assert request.transport is not None
            request.transport.abort()
            return response
        return web.Response(body=GOOD)

    server.route("/a.jpg", truncated_once)
    assert fetch(server.url("/a.jpg")) == GOOD
    assert server.hits["/a.jpg"] == 2


# Before HTTP


@pytest.mark.usefixtures("no_pauses")
def test_nobody_listening_is_a_failed_connection() -> None:
    with ImageServer() as gone:
        url = gone.url("/a.jpg")
    error = failure(url)
    assert error.reason is FailureReason.CONNECT
    assert "127.0.0.1" in error.detail


@pytest.mark.usefixtures("no_pauses")
def test_a_connection_that_does_not_come_about_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", never)
    error = failure("http://127.0.0.1:1/", connect_timeout_s=0.1, tries=2)
    assert error.reason is FailureReason.TIMEOUT
    assert error.detail == "127.0.0.1:1: no connection in time"


@pytest.mark.usefixtures("no_pauses")
def test_a_name_without_an_address_is_a_failed_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups = []

    def no_such_name(host: str, *_: object, **__: object) -> None:
        lookups.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    error = failure("http://gone.test/a.jpg")
    assert error.reason is FailureReason.DNS
    assert error.detail == "gone.test:80: Name or service not known"
    assert lookups == ["gone.test"] * 3


def test_a_name_is_looked_up(server: ImageServer) -> None:
    loopback = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
    assert fetch(server.url("/good.jpg", host="localhost"), allow_networks=loopback) == GOOD


def test_a_name_with_one_private_address_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    with ImageServer() as canary:
        mixed = [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, canary.port))
            for ip in ("127.0.0.1", "127.0.0.2")
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: mixed)
        error = failure(f"http://mixed.test:{canary.port}/")
        assert error.reason is FailureReason.BLOCKED_ADDRESS
        assert error.detail.startswith("mixed.test: 127.0.0.2 ")
        assert canary.connections == 0


def test_an_answer_that_changes_after_the_check_is_blocked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def lie(_: object, host: str, port: int, family: int) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host="127.0.0.2", port=port, family=2, proto=6, flags=0)
        ]

    monkeypatch.setattr(GuardedResolver, "resolve", lie)
    with ImageServer("127.0.0.2") as canary:
        error = failure(f"http://rebound.test:{canary.port}/")
        assert error.reason is FailureReason.BLOCKED_ADDRESS
        assert canary.connections == 0


@pytest.mark.usefixtures("no_pauses")
def test_a_server_without_tls_is_a_tls_failure(server: ImageServer) -> None:
    url = server.url("/good.jpg").replace("http:", "https:")
    assert failure(url).reason is FailureReason.TLS


@pytest.mark.usefixtures("no_pauses")
def test_a_certificate_nobody_vouches_for_is_a_tls_failure(tmp_path: Path) -> None:
    pem = tmp_path / "self_signed.pem"
    pem.write_text(SELF_SIGNED)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem)
    with ImageServer(tls=context) as server:
        server.serve("/a.jpg", GOOD)
        error = failure(server.url("/a.jpg"))
        assert error.reason is FailureReason.TLS
        assert "self-signed certificate" in error.detail
        assert not server.hits


# Secrets


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(
    "case",
    ["status", "redirect loop", "redirect inward", "silence", "garbage", "short body", "hung up"],
)
def test_no_message_traceback_or_log_tells_a_secret(
    server: ImageServer, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {
        "status": "HTTP/1.1 500 SECRET\r\nContent-Length: 0\r\n\r\n",
        "redirect loop": "HTTP/1.1 302 Go\r\nLocation: ?sig=SECRET2\r\nContent-Length: 0\r\n\r\n",
        "redirect inward": "HTTP/1.1 302 Go\r\nLocation: http://u:SECRET@127.0.0.2/?SECRET\r\n\r\n",
        "silence": "",
        "garbage": "SECRET\r\n\r\n",
        "short body": f"{OK}Content-Length: 10\r\n\r\nabc",
        "hung up": "",
    }[case]
    server.raw("/a.jpg", answer, hang_up=case != "silence")
    url = server.url("/a.jpg?sig=SECRET#SECRET").replace("http://", "http://user:SECRET@")
    with structlog.testing.capture_logs() as logs:
        error = failure(url, deadline_s=0.5)
    shown = capsys.readouterr()
    told = "".join(traceback.format_exception(error))
    for text in (told, repr(error), error.detail, repr(logs), shown.out, shown.err):
        assert "SECRET" not in text


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("answer", ["nobody listens", "HTTP/1.1 407 SECRET\r\n\r\n", "SECRET\r\n"])
def test_a_proxy_that_fails_tells_neither_its_password_nor_a_hosts_header(
    server: ImageServer, capsys: pytest.CaptureFixture[str], answer: str
) -> None:
    server.raw("/a.jpg", answer)
    port = 9 if answer == "nobody listens" else server.port
    with structlog.testing.capture_logs() as logs:
        error = failure(
            "http://127.0.0.1/a.jpg?SECRET",
            proxy=f"http://me:SECRET@127.0.0.1:{port}",
            headers={"127.0.0.1": {"Authorization": "Bearer SECRET"}},
        )
    shown = capsys.readouterr()
    told = "".join(traceback.format_exception(error))
    assert error.reason is not FailureReason.BLOCKED_ADDRESS
    for text in (told, repr(error), error.detail, repr(logs), shown.out, shown.err):
        assert "SECRET" not in text


def test_other_retries_of_this_process_tell_no_secret_either() -> None:
    (hook,) = get_on_retry_hooks()
    details = RetryDetails(
        name="pull",
        args=("http://host/?SECRET",),
        kwargs={"token": "SECRET"},
        retry_num=1,
        wait_for=1,
        waited_so_far=0,
        caused_by=OSError("SECRET"),
    )
    with structlog.testing.capture_logs() as logs:
        hook(details)
    assert "SECRET" not in repr(logs)


# aiohttp


def all_errors(base: type[Exception]) -> Iterator[type[Exception]]:
    for error in base.__subclasses__():
        yield error
        yield from all_errors(error)


def test_every_error_of_aiohttp_has_its_reason() -> None:
    last_resort = len(REASONS) - 1
    # Of uploads, which there are none of here; absent from the oldest aiohttp allowed.
    never_met = {"UploadAbortedError"}
    errors = [
        error
        for base in (aiohttp.ClientError, HttpProcessingError)
        for error in all_errors(base)
        if error.__module__.startswith("aiohttp")
    ]
    assert len(errors) > 20
    for error in errors:
        first = next(i for i, (kind, _) in enumerate(REASONS) if issubclass(error, kind))
        assert first < last_resort or error.__name__ in never_met, error


# A key that protects nothing, for 127.0.0.1, valid until 2126.
SELF_SIGNED = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgtSfQjDK582RWkDy2
06YU65fqWdD9/7weliLt69mO7XOhRANCAASCOELA7czCNFD7JRG7BTzE6n4zDMjL
Ial5P2CW9HpCWwVLKxKn87917kJPx7BPWHCW2sn+DtNm1B2tmWOPfcVs
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBmjCCAUGgAwIBAgIUWgSTnTMaGxesy1Y1FWI5TUD/3bswCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyNDA0NDY0OFoYDzIxMjYxMDMx
MDQ0NjQ4WjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAASCOELA7czCNFD7JRG7BTzE6n4zDMjLIal5P2CW9HpCWwVLKxKn8791
7kJPx7BPWHCW2sn+DtNm1B2tmWOPfcVso28wbTAdBgNVHQ4EFgQUQNkbL5WhOEvj
xnzq3gcYGkPORSowHwYDVR0jBBgwFoAUQNkbL5WhOEvjxnzq3gcYGkPORSowDwYD
VR0TAQH/BAUwAwEB/zAaBgNVHREEEzARhwR/AAABgglsb2NhbGhvc3QwCgYIKoZI
zj0EAwIDRwAwRAIgWt4ljAtDXHCLfcItqbD7O/Qt1IZJbLOBs3I8zPNQ/gkCIDor
Ym8YaV4lx0TAxP5rFOnD1ReS4VwPSNGpC/QJQeMx
-----END CERTIFICATE-----
"""
