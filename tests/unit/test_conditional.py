"""Conditional requests: what servers say of versions, odd ones too, and what they are asked."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_network

import pytest
from aiohttp import web

from tests.server import ImageServer, RawAnswer
from tests.unit.test_download import GOOD, no_pauses, run

__all__ = ["no_pauses"]
from visual_search.download import Downloader
from visual_search.errors import FailureReason, ImageError
from visual_search.images import Download, Validators
from visual_search.settings import DownloadSettings

OLD = datetime(2024, 2, 29, 12, 30, 1, tzinfo=UTC)
OLD_TEXT = "Thu, 29 Feb 2024 12:30:01 GMT"
ASKING = ("If-None-Match", "If-Modified-Since")


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with ImageServer() as server:
        yield server


def first(server: ImageServer, path: str = "/a.jpg") -> Download:
    return run(lambda downloader: downloader.fetch(server.url(path)))


def again(server: ImageServer, known: Validators | None, path: str = "/a.jpg") -> Download | None:
    return run(lambda downloader: downloader.fetch(server.url(path), known=known))


def asked(server: ImageServer, path: str = "/a.jpg") -> dict[str, str]:
    """The conditions of the last request for a path."""
    return {name: server.headers[path][name] for name in ASKING if name in server.headers[path]}


def serve_version(server: ImageServer, etag: str, path: str = "/a.jpg", body: bytes = GOOD) -> None:
    """A server as it should be."""

    async def answer(request: web.BaseRequest) -> web.Response:
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers={"ETag": etag})
        return web.Response(body=body, headers={"ETag": etag})

    server.route(path, answer)


def test_what_has_not_changed_is_not_sent_again(server: ImageServer) -> None:
    serve_version(server, '"v1"')
    known = first(server).validators
    assert known is not None
    assert again(server, known) is None
    assert asked(server) == {"If-None-Match": '"v1"'}
    serve_version(server, '"v2"', body=GOOD + b"2")
    changed = again(server, known)
    assert changed is not None
    assert (changed.body, changed.validators) == (GOOD + b"2", replace(known, etag='"v2"'))


def test_date_and_weak_tag_are_sent_back_as_they_came(server: ImageServer) -> None:
    server.serve("/a.jpg", GOOD, headers={"ETag": 'W/"x,y"', "Last-Modified": OLD_TEXT})
    download = first(server)
    assert asked(server) == {}
    assert download.validators is not None
    assert download.validators.last_modified == OLD
    again(server, download.validators)
    assert asked(server) == {"If-None-Match": 'W/"x,y"', "If-Modified-Since": OLD_TEXT}


def test_a_date_from_another_zone_is_sent_in_that_of_http(server: ImageServer) -> None:
    server.serve("/a.jpg", GOOD, headers={"Last-Modified": OLD_TEXT})
    known = first(server).validators
    assert known is not None
    assert known.last_modified is not None
    elsewhere = known.last_modified.astimezone(None) + timedelta(0)
    again(server, replace(known, last_modified=elsewhere))
    assert asked(server) == {"If-Modified-Since": OLD_TEXT}


@pytest.mark.parametrize(
    "etag",
    [
        "",
        "v1",
        "*",
        'w/"v1"',
        '"a", "b"',
        '"not closed',
        '"with space"',
        '"\xe4"',
        '"' + "x" * 300 + '"',
        '"' + "x" * 7000 + '"',
    ],
)
def test_a_tag_that_is_none_or_absurdly_long_is_not_kept(server: ImageServer, etag: str) -> None:
    server.raw(
        "/a.jpg", f"HTTP/1.1 200 OK\r\nContent-Length: {len(GOOD)}\r\nETag: {etag}\r\n\r\n", GOOD
    )
    assert first(server).validators is None


@pytest.mark.parametrize("control", ["\t", "\x01", "\x0b", "\x7f", "\x80"])
def test_a_tag_with_control_characters_is_not_kept(server: ImageServer, control: str) -> None:
    server.raw(
        "/a.jpg",
        f'HTTP/1.1 200 OK\r\nContent-Length: {len(GOOD)}\r\nETag: "a{control}b"\r\n\r\n',
        GOOD,
    )
    assert first(server).validators is None


@pytest.mark.parametrize("control", ["\0", "\r"])
def test_an_answer_with_others_is_not_even_read(server: ImageServer, control: str) -> None:
    server.raw(
        "/a.jpg",
        f'HTTP/1.1 200 OK\r\nContent-Length: {len(GOOD)}\r\nETag: "a{control}b"\r\n\r\n',
        GOOD,
    )
    with pytest.raises(ImageError) as caught:
        run(lambda downloader: downloader.fetch(server.url("/a.jpg")), tries=1)
    assert caught.value.reason is FailureReason.BAD_RESPONSE


@pytest.mark.parametrize(
    "modified",
    ["", "yesterday", "Thu, 99 Feb 2024 12:30:01 GMT", "Thu, 29 Feb 99999 12:30:01 GMT", "0"],
)
def test_a_date_that_is_none_is_not_kept(server: ImageServer, modified: str) -> None:
    server.serve("/a.jpg", GOOD, headers={"Last-Modified": modified})
    assert first(server).validators is None


@pytest.mark.parametrize("ago_s", [0, -3600])
def test_a_date_in_whose_second_the_picture_may_change_again_is_not_kept(
    server: ImageServer, ago_s: int
) -> None:
    async def answer(_request: web.BaseRequest) -> web.Response:
        now = datetime.now(UTC)
        modified = now - timedelta(seconds=ago_s)
        return web.Response(
            body=GOOD,
            headers={
                "Date": format_datetime(now, usegmt=True),
                "Last-Modified": format_datetime(modified, usegmt=True),
            },
        )

    server.route("/a.jpg", answer)
    assert first(server).validators is None


def test_nothing_is_asked_by_what_another_url_said(server: ImageServer) -> None:
    serve_version(server, '"1"')
    serve_version(server, '"1"', path="/b.jpg", body=GOOD + b"b")
    known = first(server).validators
    download = again(server, known, path="/b.jpg")
    assert download is not None
    assert download.body == GOOD + b"b"
    assert asked(server, "/b.jpg") == {}


def test_behind_a_redirect_the_url_that_answered_is_asked(server: ImageServer) -> None:
    server.redirect("/old.jpg", "/a.jpg")
    serve_version(server, '"1"')
    known = first(server, "/old.jpg").validators
    assert again(server, known, "/old.jpg") is None
    assert asked(server, "/old.jpg") == {}
    assert asked(server) == {"If-None-Match": '"1"'}


def test_a_placeholder_older_than_the_picture_does_not_pass_for_it(server: ImageServer) -> None:
    server.serve("/a.jpg", GOOD, headers={"Last-Modified": OLD_TEXT})
    known = first(server).validators
    server.redirect("/a.jpg", "/placeholder.jpg")

    async def much_older(request: web.BaseRequest) -> web.Response:
        status = 304 if "If-Modified-Since" in request.headers else 200
        return web.Response(status=status, body=b"placeholder")

    server.route("/placeholder.jpg", much_older)
    download = again(server, known)
    assert download is not None
    assert download.body == b"placeholder"


def test_a_304_that_nobody_asked_for_is_refused(server: ImageServer) -> None:
    server.serve("/a.jpg", b"", status=304)
    with pytest.raises(ImageError) as caught:
        again(server, None)
    assert caught.value.reason is FailureReason.HTTP_REFUSED
    assert caught.value.http_status == 304


@pytest.mark.parametrize("announced", ["", f"Content-Length: {len(GOOD)}\r\n"])
def test_a_304_with_a_body_is_asked_again_without_a_condition(
    server: ImageServer, no_pauses: None, announced: str
) -> None:
    head = f"HTTP/1.1 304 Not Modified\r\n{announced}\r\n"

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if "If-None-Match" in request.headers:
            return RawAnswer(head.encode(), GOOD, pause_s=0)
        return web.Response(body=GOOD, headers={"ETag": '"1"'})

    server.route("/a.jpg", answer)
    known = first(server).validators
    download = again(server, known)
    assert download is None or download.body == GOOD
    assert server.hits["/a.jpg"] == (2 if download is None else 3)


def test_a_304_is_an_answer_of_a_host_that_works(server: ImageServer) -> None:
    """Between failures it ends the row of them after which a host is left alone."""
    serve_version(server, '"1"')
    known = first(server).validators
    server.serve("/away.jpg", b"", status=503)

    async def work(downloader: Downloader) -> None:
        for _ in range(3):
            for _ in range(6):
                with pytest.raises(ImageError):
                    await downloader.fetch(server.url("/away.jpg"))
            assert await downloader.fetch(server.url("/a.jpg"), known=known) is None

    run(work, tries=1)
    assert server.hits["/away.jpg"] == 18


def test_conditions_come_beside_headers_of_the_settings(server: ImageServer) -> None:
    serve_version(server, '"1"')
    known = first(server).validators
    host = f"127.0.0.1:{server.port}"
    headers = DownloadSettings(
        allow_networks=(ip_network("127.0.0.1/32"),), headers={host: {"Authorization": "Bearer x"}}
    ).headers
    assert run(lambda d: d.fetch(server.url("/a.jpg"), known=known), headers=headers) is None
    assert server.headers["/a.jpg"]["Authorization"] == "Bearer x"
    assert asked(server) == {"If-None-Match": '"1"'}
