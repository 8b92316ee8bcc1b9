"""The demo's web server: it serves, counts, misbehaves as asked, and ends with its parent."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.end_to_end.workplace import PROJECT
from visual_search.demo.server import HOST, ShopServer
from visual_search.errors import InternalError


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[ShopServer]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"a picture")
    (tmp_path / "secret.txt").write_text("a secret")
    with ShopServer(folder) as server:
        yield server


def get(shop: ShopServer, path: str) -> tuple[int, bytes]:
    connection = HTTPConnection(HOST, shop.port, timeout=20)
    connection.request("GET", path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def test_files_are_served_and_requests_counted(shop: ShopServer) -> None:
    assert shop.requests() == 0
    assert shop.url("a.jpg") == f"http://127.0.0.1:{shop.port}/a.jpg"
    assert get(shop, "/a.jpg") == (200, b"a picture")
    assert get(shop, "/b.jpg")[0] == 404
    assert shop.requests() == 2


@pytest.mark.parametrize(
    "path", ["/../secret.txt", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "//etc/passwd", "/"]
)
def test_nothing_outside_the_folder_is_served(shop: ShopServer, path: str) -> None:
    assert get(shop, path)[0] in (400, 404)


def test_broken_links_answer_as_they_should(shop: ShopServer) -> None:
    assert get(shop, "/gone.jpg")[0] == 410
    assert get(shop, "/busy.jpg")[0] == 503
    connection = HTTPConnection(HOST, shop.port, timeout=20)
    connection.request("GET", "/loop.jpg")
    response = connection.getresponse()
    assert (response.status, response.headers["Location"]) == (302, "/loop.jpg")
    connection.close()


def test_it_ends_while_a_slow_picture_is_still_on_its_way(tmp_path: Path) -> None:
    with ShopServer(tmp_path) as shop:
        connection = HTTPConnection(HOST, shop.port, timeout=20)
        connection.request("GET", "/slow.jpg")
        assert connection.getresponse().read(8)
        port = shop.port
    connection.close()
    assert not listens(port)


def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from visual_search.demo.server import ShopServer\n"
        "with ShopServer(Path(sys.argv[1])) as shop:\n"
        "    print(shop.port, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    port = int(ended.stdout)
    deadline = time.monotonic() + 20
    while listens(port):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_server_that_died_is_named(shop: ShopServer) -> None:
    shop._process.kill()
    shop._process.wait()
    with pytest.raises(InternalError, match="web server ended with code -9"):
        shop.requests()


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((HOST, port)) == 0
