"""Wrong uses: one clear sentence with the way out, and the right exit code."""

import re
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from tests.catalogue import add_urls
from tests.end_to_end.workplace import Finished, Workplace

SECRET = "hunter2"


@pytest.fixture
def refusing_server() -> Iterator[int]:
    """A port that speaks Postgres' protocol and refuses every password."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_refuse, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _refuse(listener: socket.socket) -> None:
    words = b'SFATAL\0C28P01\0Mpassword authentication failed for user "shop"\0\0'
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            first = connection.recv(1024)
            if first[4:8] == struct.pack("!I", 80877103):  # may we speak TLS? no
                connection.sendall(b"N")
                connection.recv(1024)
            connection.sendall(b"R" + struct.pack("!II", 8, 3))  # the password, please
            connection.recv(1024)
            connection.sendall(b"E" + struct.pack("!I", len(words) + 4) + words)


def sentence(ended: Finished, code: int) -> str:
    """The one line for the user."""
    assert ended.code == code, ended
    assert "Traceback" not in ended.err
    assert SECRET not in ended.err + ended.out
    lines = [line for line in ended.err.splitlines() if line.startswith("vsearch: ")]
    assert len(lines) == 1, ended
    return lines[0]


def test_no_catalogue_here(place: Workplace) -> None:
    nowhere = str(place.home / "nowhere")
    ended = place.vsearch("status", VSEARCH_HOME=nowhere, VSEARCH_DATABASE_URL="")
    said = sentence(ended, 2)
    assert f"no catalogue at {nowhere}" in said
    assert "vsearch catalog import" in said
    assert not Path(nowhere).exists()


def test_wrong_password(place: Workplace, refusing_server: int) -> None:
    url = f"postgresql://shop:{SECRET}@127.0.0.1:{refusing_server}/shop"
    said = sentence(place.vsearch("status", VSEARCH_DATABASE_URL=url), 2)
    assert "password authentication failed" in said
    assert "VSEARCH_DATABASE_URL" in said


def test_database_away(place: Workplace) -> None:
    url = f"postgresql://shop:{SECRET}@127.0.0.1:9/shop"
    said = sentence(place.vsearch("status", VSEARCH_DATABASE_URL=url), 75)
    assert "127.0.0.1:9/shop does not answer" in said


@pytest.mark.parametrize("url", [f"shop:{SECRET}@host", f"mysql://shop:{SECRET}@host/shop"])
def test_not_a_database_url(place: Workplace, url: str) -> None:
    assert "postgresql://" in sentence(place.vsearch("status", VSEARCH_DATABASE_URL=url), 2)


def test_schema_behind_and_ahead(place: Workplace) -> None:
    with place.database.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    assert "run `vsearch db upgrade`" in sentence(place.vsearch("extract", "--model", "tiny"), 2)
    with place.database.transaction() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    assert "newer than this vsearch" in sentence(place.vsearch("status"), 2)


def test_schema_missing(place: Workplace) -> None:
    ended = place.vsearch("status", VSEARCH_DATABASE__SCHEMA="elsewhere")
    assert "run `vsearch db upgrade`" in sentence(ended, 2)


def test_unknown_model(place: Workplace) -> None:
    said = sentence(place.vsearch("extract", "--model", "resnet81"), 2)
    assert "resnet18" in said
    assert "vsearch models list" in said


def test_missing_weights(place: Workplace) -> None:
    gone = place.home / "gone.safetensors"
    place.models["mine"] = place.models["tiny"] | {"weights": str(gone)}
    place.publish(1)
    assert str(gone) in sentence(place.vsearch("extract", "--model", "mine"), 2)


def test_unreadable_file_and_unknown_column(place: Workplace) -> None:
    gone = place.home / "gone.csv"
    assert str(gone) in sentence(place.vsearch("catalog", "import", str(gone)), 2)
    file = place.home / "products.csv"
    file.write_text("id,picture\n1,http://h.test/1.jpg\n")
    said = sentence(place.vsearch("catalog", "import", str(file)), 2)
    assert "image_url" in said
    assert "picture" in said
    assert "--url-column" in said


def test_unwritable_output(place: Workplace) -> None:
    place.publish(1)
    blocked = place.home / "file"
    blocked.write_text("")
    said = sentence(place.vsearch("extract", "--model", "tiny", "--output", f"{blocked}/v"), 75)
    assert f"{blocked}/v" in said
    assert "--output" in said
    assert place.status().pending == 1


def test_unknown_and_wrong_settings(place: Workplace) -> None:
    config = place.home / "wrong.toml"
    config.write_text("[download]\nper_hots = 3\n")
    said = sentence(place.vsearch("--config", str(config), "status"), 2)
    assert "download.per_hots" in said
    ended = place.vsearch("extract", "--model", "tiny", "--precision", "int4")
    assert "embed.precision" in sentence(ended, 2)
    gone = place.vsearch("--config", str(place.home / "gone.toml"), "status")
    assert "gone.toml" in sentence(gone, 2)


def test_an_unknown_variable_only_warns(place: Workplace) -> None:
    ended = place.vsearch("status", VSEARCH_PORT="tcp://10.0.0.1:80")
    assert ended.code == 0
    assert "VSEARCH_PORT" in ended.err


def test_all_urls_failing(place: Workplace) -> None:
    add_urls(place.database, [f"http://127.0.0.1:9/{n}.jpg" for n in range(30)])
    said = sentence(place.vsearch("extract", "--model", "tiny"), 3)
    # Not all were tried: a host that only fails is left alone.
    assert re.search(r"(1\d) of \1 images failed", said)
    assert "vsearch failures list" in said


def test_no_model_named(place: Workplace) -> None:
    assert "--model" in sentence(place.vsearch("extract"), 2)
    assert "--model" in sentence(place.vsearch("extract", "--all-models"), 2)


@pytest.mark.parametrize(
    "command", ["failures list", "failures retry", "shards list", "shards verify", "runs list"]
)
def test_a_model_that_has_not_run_is_no_empty_list(place: Workplace, command: str) -> None:
    said = sentence(place.vsearch(*command.split(), "--model", "nosuch"), 2)
    assert "model 'nosuch' has not run on this catalogue" in said


def test_unknown_reason_and_run(place: Workplace) -> None:
    assert "not_found" in sentence(place.vsearch("failures", "list", "--reason", "bad"), 2)
    assert "vsearch runs list" in sentence(place.vsearch("runs", "show", "ffff"), 2)
