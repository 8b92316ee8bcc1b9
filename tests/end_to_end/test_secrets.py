"""What is shown, logged or left behind: no secret, and nothing that passes for something else."""

import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import structlog
from PIL import Image, PngImagePlugin
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from typer.testing import CliRunner

from tests import pictures
from tests.catalogue import add_urls
from tests.database.test_hostile_strings import migrated
from tests.end_to_end.workplace import Workplace
from tests.server import ImageServer
from visual_search.catalog.tables import add_to_count
from visual_search.cli import app
from visual_search.database.connection import Database
from visual_search.errors import VsearchError
from visual_search.report import showcase
from visual_search.report.page.document import write_page
from visual_search.settings import StorageSettings

# A word that nobody else says. Where it shows, a password or a part of one shows.
CANARY = "Kanarienvogel"
needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@pytest.fixture
def place(
    tmp_path: Path, database: Database, database_url: str, image_server: ImageServer
) -> Workplace:
    """Its database is opened with a password, which the server does not ask for."""
    url = make_url(database_url).set(password=CANARY)
    return Workplace(tmp_path, database, url.render_as_string(hide_password=False), image_server)


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """Where a server speaks Postgres' protocol, has no TLS, and takes no password."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse_all, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def refuse_all(listener: socket.socket) -> None:
    words = b'SFATAL\0C28P01\0Mpassword authentication failed for user "shop"\0\0'
    with suppress(OSError):  # the test is over
        while True:
            client, _ = listener.accept()
            with client, suppress(OSError):  # it did not want to go on
                if client.recv(1024)[4:8] == struct.pack("!I", 80877103):  # TLS?
                    client.sendall(b"N")
                    client.recv(1024)
                client.sendall(b"R" + struct.pack("!II", 8, 3))  # the password, please
                client.recv(1024)
                client.sendall(b"E" + struct.pack("!I", len(words) + 4) + words)


class Watched:
    """A `vsearch` process, and what others can see of it.

    Attributes:
        visible: Command lines of it and its children, and its children's environments.
    """

    def __init__(
        self, folder: Path, arguments: Sequence[str], variables: Mapping[str, str]
    ) -> None:
        folder.mkdir()
        self._output = folder / "output"
        self.visible: set[bytes] = set()
        temporary = folder / "tmp"
        temporary.mkdir()
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "visual_search", *arguments],
                env=dict(variables) | {"TMPDIR": str(temporary), "PYTHONFAULTHANDLER": "1"},
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def look(self) -> None:
        """What `ps` and whoever may read `/proc` see at this moment."""
        own = read(f"/proc/{self.process.pid}/cmdline")
        self.visible.add(own)
        for pid in descendants(self.process.pid):
            command = read(f"/proc/{pid}/cmdline")
            # A child that is still its parent's copy, memory and all, has not become a program yet.
            if command != own:
                self.visible.add(command + b"\n" + read(f"/proc/{pid}/environ"))

    def end(self) -> int:
        """Look until it has ended; its exit code."""
        while True:
            self.look()
            try:
                return self.process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue

    @property
    def output(self) -> str:
        return self._output.read_text()


def descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in read(str(task)).split():
            yield int(child)
            yield from descendants(int(child))


def read(file: str) -> bytes:
    """What is in it; nothing if it went with its process."""
    try:
        return Path(file).read_bytes()
    except OSError:
        return b""


def assert_silent(folder: Path, ended: Watched) -> None:
    """No part of the password in the output, in any file, or where other users look."""
    assert CANARY not in ended.output
    assert not [seen for seen in ended.visible if CANARY.encode() in seen]
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert [file for file in files if CANARY.encode() in file.read_bytes()] == []


# No connection comes about

UNREACHABLE = {
    "unescaped @": (f"postgresql://shop:{CANARY}@{CANARY}@127.0.0.1:9/shop", 2),
    "a / in the user's name": (f"postgresql://sh/op:{CANARY}@127.0.0.1:9/shop", 2),
    "escaped": (f"postgresql://shop:{CANARY}%40%25%2F%3A{CANARY}@127.0.0.1:9/shop", 75),
    "key=value": (f"host=127.0.0.1 port=9 user=shop password={CANARY} dbname=shop", 2),
    "key=value behind a URL": (f"postgresql://127.0.0.1:9/shop password={CANARY}", 2),
    "another scheme": (f"mysql://shop:{CANARY}@127.0.0.1:9/shop", 2),
    "no number for a port": (f"postgresql://127.0.0.1:{CANARY}/shop", 2),
    "a misspelt option": (f"postgresql://127.0.0.1:9/shop?user=shop&passwd={CANARY}", 2),
    "no such host": (f"postgresql://shop:{CANARY}@{'x' * 64}.invalid/shop", 75),
    "no such socket": (f"postgresql://shop:{CANARY}@/shop?host=/nonexistent", 75),
    "refuses the password": (f"postgresql://shop:{CANARY}@127.0.0.1:{{refusing}}/shop", 2),
    "has no TLS": (f"postgresql://shop:{CANARY}@127.0.0.1:{{refusing}}/shop?sslmode=require", 75),
}
MORE_UNREACHABLE = {
    "unescaped /": (f"postgresql://shop:{CANARY}/{CANARY}@127.0.0.1:9/shop", 75),
    "a lone %": (f"postgresql://shop:{CANARY}%zz%{CANARY}@127.0.0.1:9/shop", 75),
    "every mark": (f"postgresql://shop:{CANARY}#?&=;'\"$({CANARY}@127.0.0.1:9/shop", 75),
    "no scheme": (f"shop:{CANARY}@127.0.0.1:9/shop", 2),
    "another driver": (f"postgresql+asyncpg://shop:{CANARY}@127.0.0.1:9/shop", 2),
    "no such port": (f"postgresql://shop:{CANARY}@127.0.0.1:99999/shop", 2),
    "half a bracket": (f"postgresql://shop:{CANARY}@[::1/shop", 2),
    "in the query": (f"postgresql://127.0.0.1:9/shop?user=shop&password={CANARY}", 75),
    "is no Postgres": (f"postgresql://shop:{CANARY}@127.0.0.1:{{web}}/shop", 75),
}
COMMANDS = (
    ["status"],
    ["extract", "--model", "tiny"],
    ["db", "current"],
    ["models", "list"],
    ["config", "show"],
    ["doctor"],
)


@needs_proc
def test_a_database_that_cannot_be_reached_keeps_its_password(
    place: Workplace, refusing_port: int
) -> None:
    check_unreachable(place, refusing_port, ["--debug", "status"], UNREACHABLE)


@needs_proc
@pytest.mark.long
@pytest.mark.parametrize("debug", [True, False], ids=["debug", "plain"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_tells_the_password_of_a_database_that_cannot_be_reached(
    place: Workplace, refusing_port: int, debug: bool, command: list[str]
) -> None:
    arguments = ["--debug", *command] if debug else command
    check_unreachable(place, refusing_port, arguments, UNREACHABLE | MORE_UNREACHABLE)


def check_unreachable(
    place: Workplace, refusing_port: int, arguments: list[str], urls: dict[str, tuple[str, int]]
) -> None:
    environment = place.environment() | {"VSEARCH_DATABASE__OUTAGE_S": "0"}

    def run(number: int, name: str) -> tuple[Watched, int]:
        url = urls[name][0].format(refusing=refusing_port, web=place.server.port)
        folder = place.home / str(number)
        own = {"VSEARCH_DATABASE_URL": url, "VSEARCH_HOME": str(folder / "home")}
        ended = Watched(folder, arguments, environment | own)
        return ended, ended.end()

    with ThreadPoolExecutor(3) as threads:
        results = threads.map(run, range(len(urls)), urls)
    for name, (ended, code) in zip(urls, results, strict=True):
        assert_silent(place.home, ended)
        if arguments[-2:] == ["config", "show"]:
            assert code == 0, name
        elif arguments[-1] == "doctor":
            assert code == 1, name
        else:
            said = [line for line in ended.output.splitlines() if line.startswith("vsearch: ")]
            assert (code, len(said)) == (urls[name][1], 1), (name, ended.output)
            assert "bug" not in said[0], name


# The connection is there, and something else goes wrong


@needs_proc
@pytest.mark.parametrize(
    "debug", [True, pytest.param(False, marks=pytest.mark.long)], ids=["debug", "plain"]
)
def test_a_database_that_refuses_keeps_its_password(place: Workplace, debug: bool) -> None:
    url = make_url(place.database_url)
    elsewhere = url.set(database="nowhere").render_as_string(hide_password=False)
    stranger = url.set(username="stranger").render_as_string(hide_password=False)
    with place.database.transaction() as connection:
        connection.execute(text("ALTER TABLE runs RENAME heartbeat_at TO beat"))
    cases: dict[str, tuple[list[str], dict[str, str], int]] = {
        "no such database": (["status"], {"VSEARCH_DATABASE_URL": elsewhere}, 2),
        "no such user": (["status"], {"VSEARCH_DATABASE_URL": stranger}, 2),
        "no such schema": (["status"], {"VSEARCH_DATABASE__SCHEMA": "elsewhere"}, 2),
        "a failing statement": (["status"], {}, 1),
        "a failing query": (["catalog", "import", "--query", "SELECT 1/0 AS image_url"], {}, 2),
    }

    def run(name: str) -> tuple[Watched, int]:
        command, variables, _ = cases[name]
        ended = Watched(
            place.home / name,
            ["--debug", *command] if debug else command,
            environment | variables,
        )
        return ended, ended.end()

    environment = place.environment() | {"VSEARCH_DATABASE__OUTAGE_S": "0"}
    with ThreadPoolExecutor(3) as threads:
        results = dict(zip(cases, threads.map(run, cases), strict=True))
    for name, (ended, code) in results.items():
        assert code == cases[name][2], (name, ended.output)
        assert "vsearch: " in ended.output, name
        assert_silent(place.home, ended)


@needs_proc
@pytest.mark.parametrize(
    "end",
    [
        "the database goes",
        pytest.param(signal.SIGABRT, marks=pytest.mark.long),
        pytest.param(signal.SIGKILL, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_run_that_ends_badly_keeps_its_password(place: Workplace, end: str | int) -> None:
    """In the middle of downloads, with decoders running beside it."""
    # The server's socket behind a name of our own, so that it can be taken away.
    url = make_url(place.database_url)
    door = place.home / "door"
    door.symlink_to(str(url.query["host"]))
    through_door = url.set(query={"host": str(door)}).render_as_string(hide_password=False)
    place.publish(2)
    place.server.raw("/silent.jpg", hang_up=False)
    add_urls(place.database, [place.server.url("/silent.jpg")])
    run = Watched(
        place.home / "run",
        ["--debug", "extract", "--model", "tiny"],
        place.environment()
        | {
            "VSEARCH_DATABASE_URL": through_door,
            "VSEARCH_DATABASE__OUTAGE_S": "0",
            "VSEARCH_DOWNLOAD__DEADLINE_S": "60",
            "VSEARCH_EXTRACT__LEASE_S": "3",
        },
    )
    while not place.server.hits["/silent.jpg"]:
        assert run.process.poll() is None, run.output
        run.look()
    run.look()
    children = [seen for seen in run.visible if b"visual_search.decode.child" in seen]
    assert children
    if isinstance(end, int):
        run.process.send_signal(end)
        assert run.end() == -end
    else:
        door.unlink()
        with place.database.transaction() as connection:
            connection.execute(
                text("""
                    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid()
                """)
            )
        assert run.end() == 75, run.output
        assert "does not answer" in run.output
    assert_silent(place.home, run)


# A run over all that shops, servers and files may say, and every command afterwards

SECRET = "Geheimnis"  # in URLs, headers and settings
FORGED = "Falschgeld"  # in what wants to be a log line or a terminal's command
HIDDEN = "Wasserzeichen"  # in what image files say about themselves

FORGERY = f'\r\n{{"event": "{FORGED}"}}\x1b[31m\x1b]0;{FORGED}\x07\x9b2J\u202e'
# What the run meets of each: these are tried twice, so that each leaves one record of a retry.
RETRIED = ("unavailable", "hung-up", "garbage")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def hostile_files() -> dict[str, bytes]:
    """Good and broken pictures that say `HIDDEN` wherever a file can say something."""
    said = f"{HIDDEN}{FORGERY}"
    drawn = Image.fromarray(pictures.drawn())
    exif = Image.Exif()
    for tag in (0x010E, 0x010F, 0x0110, 0x0131, 0x013B, 0x8298):  # from description to copyright
        exif[tag] = said
    encoded = said.encode()
    everywhere = {"exif": exif.tobytes(), "icc_profile": encoded * 20, "xmp": encoded}
    png_text = PngImagePlugin.PngInfo()
    for key in ("Title", HIDDEN, f"{HIDDEN}\x1b[31m"):
        png_text.add_text(key, said)
        png_text.add_itxt(key, said, HIDDEN, HIDDEN, zip=True)
    good = {
        "a.jpg": pictures.encoded(drawn, "JPEG", comment=encoded, **everywhere),
        "b.png": pictures.encoded(drawn, "PNG", pnginfo=png_text, **everywhere),
        "c.webp": pictures.encoded(drawn, "WEBP", **everywhere),
        "d.gif": pictures.encoded(drawn.quantize(16), "GIF", comment=encoded),
    }
    chunks = [(HIDDEN.encode()[:4], encoded), (b"tEXt", encoded), (b"iCCP", encoded + b"\0\7")]
    broken = {
        **{f"cut-{name}": body[: len(body) * 2 // 3] for name, body in good.items()},
        "chunks.png": pictures.png(4, 4, depth=8, colour=2, data=b"junk", extra=chunks),
        "page.html": f"<html><title>{said}</title>".encode(),
        "words.txt": encoded,
        "magic.bin": b"\x1b[31m" + encoded,
    }
    return good | broken


class Aftermath:
    """A catalogue after a run, and the commands that show it.

    Attributes:
        output: What the run wrote, both streams.
        good: How many images have a vector.
    """

    def __init__(self, place: Workplace, private: ImageServer, cluster_url: URL) -> None:
        self.place = place
        self.private = private
        self.good = 6
        server = place.server
        for name, body in hostile_files().items():
            server.serve(f"/{name}", body, headers={"X-Said": HIDDEN})
        reason = FORGED + ' {"event": "' + FORGED + '"}'
        server.raw("/gone", f"HTTP/1.1 404 {reason}\r\nContent-Length: 0\r\n\r\n")
        server.raw("/unavailable", f"HTTP/1.1 503 {reason}\r\nContent-Length: 0\r\n\r\n")
        server.raw("/garbage", f"HTTP/1.1 200 \x1b[31m{FORGED}\0{FORGERY}\r\n\r\n".encode())
        server.raw("/hung-up", "")
        server.redirect("/inward", f"http://user:{SECRET}@127.0.0.2/{FORGED}?{SECRET}")
        server.redirect("/away", f"http://\x1b[31m{FORGED}/?{SECRET}")
        server.redirect("/loop", f"/loop?sig={SECRET}")
        names = [*hostile_files(), "gone", *RETRIED, "inward", "away", "loop", "nothing"]
        signed = f"?sig={SECRET}#{SECRET}"
        rows = [
            (f"{server.url(f'/{name}')}{signed}old", f"{server.url(f'/{name}')}{signed}")
            for name in names
        ]
        mine = server.url("/a.jpg").replace("//", f"//user:{SECRET}@")
        rows += [
            (f"key{FORGERY}", f"{mine}{signed}"),
            ("injected", f"{server.url('/')}{FORGERY}{signed}"),
            ("scheme", f"ftp{FORGED}://user:{SECRET}@127.0.0.1/{signed}"),
            ("address", f"http://user:{SECRET}@127.0.0.2/{signed}"),
            ("port", f"http://user:{SECRET}@127.0.0.1:99999/{signed}"),
            ("nobody", f"http://user:{SECRET}@127.0.0.1:9/{signed}"),
            ("private", f"{private.url('/a.jpg')}{signed}"),
        ]
        private.serve("/a.jpg", hostile_files()["a.jpg"])
        self.images = len(rows)
        with place.database.transaction() as connection:
            connection.execute(
                text("""
                    INSERT INTO images (image_key, key_hash, url, host)
                    SELECT key, substring(sha256(convert_to(key, 'UTF8')) FOR 16), url, :host
                    FROM unnest(CAST(:keys AS text[]), CAST(:urls AS text[])) AS r (key, url)
                """),
                {
                    "keys": [key for key, _ in rows],
                    "urls": [url for _, url in rows],
                    "host": f"h{FORGERY}.test",
                },
            )
            add_to_count(connection, len(rows))
            connection.execute(
                text("INSERT INTO products (product_id, attributes) VALUES (:id, :attributes)"),
                {
                    "id": f"p{FORGERY}",
                    "attributes": json.dumps({f"title{FORGERY}": FORGERY}),
                },
            )
        place.models["signed"] = place.models["tiny"] | {
            "weights": f"{server.url('/loop')}?{SECRET}".replace("//", f"//user:{SECRET}@"),
            "weights_sha256": "0" * 64,
        }
        password = cluster_url.set(password=SECRET).render_as_string(hide_password=False)
        host = f"127.0.0.1:{private.port}"
        self.environment = place.environment() | {
            "VSEARCH_DATABASE_URL": password,
            "VSEARCH_DOWNLOAD__TRIES": "2",
            "VSEARCH_DOWNLOAD__DEADLINE_S": "20",
            "VSEARCH_DOWNLOAD__HEADERS": json.dumps({host: {"Authorization": f"Bearer {SECRET}"}}),
            "VSEARCH_WEIGHTS__MIRROR": f"https://user:{SECRET}@mirror.test/?{SECRET}",
        }
        ended = self.process("--debug", "extract", "--model", "tiny", "--max-failure-rate", "1")
        assert ended.returncode == 0, ended.stderr
        self.output = ended.stdout + ended.stderr
        self.errors = ended.stderr

    def process(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "visual_search", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    def shown(self, *arguments: str, **variables: str) -> str:
        """What a command shows, run in this process."""
        result = CliRunner().invoke(app, arguments, env=self.environment | variables)
        assert isinstance(result.exception, VsearchError | SystemExit | None), result.exception
        complaint = "" if result.exception is None else str(result.exception)
        return result.stdout + result.stderr + complaint


@pytest.fixture(scope="module")
def aftermath(cluster: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    home = tmp_path_factory.mktemp("home")
    with migrated(cluster, "aftermath") as url, ImageServer() as server, ImageServer() as private:
        database = Database(url, schema="vsearch", outage_s=5)
        place = Workplace(home, database, url.render_as_string(hide_password=False), server)
        yield Aftermath(place, private, url)
        database.close()


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """Commands that run in this process set up logs to their own stderr."""
    yield
    structlog.reset_defaults()


COMMANDS_THAT_SHOW = (
    ["status"],
    ["status", "--json"],
    ["failures", "list"],
    ["failures", "list", "--json"],
    ["runs", "list"],
    ["runs", "list", "--json"],
    ["shards", "list"],
    ["shards", "list", "--json"],
    ["shards", "verify"],
    ["models", "list"],
    ["models", "list", "--json"],
    ["models", "show", "tiny"],
    ["models", "show", "signed"],
    ["models", "show", "signed", "--json"],
    ["models", "pull", "signed"],
    ["config", "show"],
    ["config", "show", "--json"],
    ["catalog", "stats"],
    ["catalog", "stats", "--json"],
    ["extract", "--model", "tiny", "--dry-run", "--json"],
    ["db", "current"],
)


def test_the_run_met_all_of_it(aftermath: Aftermath) -> None:
    status = aftermath.place.status()
    assert status.total == aftermath.images
    assert status.done == aftermath.good
    assert status.failed + status.waiting == aftermath.images - aftermath.good
    assert set(status.failed_by_reason) >= {
        "bad_url",
        "blocked_address",
        "not_an_image",
        "not_found",
        "too_many_redirects",
        "truncated_image",
        "undecodable",
    }
    assert set(status.waiting_by_reason) >= {"server_error", "disconnected", "connect"}
    assert aftermath.private.headers["/a.jpg"]["Authorization"] == f"Bearer {SECRET}"


def test_a_run_tells_no_secret(aftermath: Aftermath) -> None:
    assert SECRET not in aftermath.output


@pytest.mark.parametrize("command", COMMANDS_THAT_SHOW, ids=" ".join)
def test_no_command_shows_a_secret_or_what_steers_a_terminal(
    aftermath: Aftermath, command: list[str]
) -> None:
    shown = aftermath.shown(*command)
    assert len(shown) > 10
    assert SECRET not in shown
    assert HIDDEN not in shown
    if "--json" in command:
        assert json.loads(shown)
    else:
        assert CONTROL.findall(shown) == []


def test_one_run_shows_no_secret_either(aftermath: Aftermath) -> None:
    (run,) = json.loads(aftermath.shown("runs", "list", "--json"))["runs"]
    for form in ([], ["--json"]):
        shown = aftermath.shown("runs", "show", run["run_id"], *form)
        assert run["run_id"] in shown
        assert SECRET not in shown


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_an_output_with_a_key_in_it_is_shown_without(aftermath: Aftermath, form: list[str]) -> None:
    bucket = f"s3://key:{SECRET}@bucket/vectors"
    for command in (["config", "show"], ["extract", "--model", "tiny", "--dry-run"]):
        shown = aftermath.shown(*command, *form, VSEARCH_OUTPUT=bucket)
        assert SECRET not in shown
    assert SECRET not in aftermath.shown("extract", "--model", "tiny", VSEARCH_OUTPUT=bucket)


def test_status_that_is_watched_steers_no_terminal(
    aftermath: Aftermath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("visual_search.cli.status.time.sleep", stop)
    result = CliRunner().invoke(app, ["status", "--watch"], env=aftermath.environment)
    assert "tiny" in result.stdout
    assert CONTROL.findall(result.stdout) == []
    assert SECRET not in result.stdout


def test_a_traceback_shows_no_secret_of_the_errors_that_led_to_it(aftermath: Aftermath) -> None:
    """aiohttp's quote whole URLs."""
    ended = aftermath.process("--debug", "models", "pull", "signed")
    assert ended.returncode == 75
    assert "TooManyRedirects" in ended.stderr
    assert "Traceback" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("vsearch: weights of signed")
    assert SECRET not in ended.stdout + ended.stderr


def test_a_report_tells_no_secret_and_runs_nothing(aftermath: Aftermath, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    content = showcase.gather(
        aftermath.place.database,
        "tiny",
        title=FORGERY,
        pictures=lambda _url: None,
        storage=StorageSettings(),
    )
    write_page(page, showcase.render(content))
    written = page.read_text()
    assert SECRET not in written
    assert HIDDEN not in written
    assert f'{{"event": "{FORGED}"}}' not in written


def test_each_record_of_a_log_is_one_line_of_json(aftermath: Aftermath) -> None:
    """Off a terminal. The one sentence for people is not a record."""
    lines = [line for line in aftermath.errors.split("\n")[:-1] if not line.startswith("vsearch: ")]
    records = [json.loads(line) for line in lines]
    events = Counter(record["event"] for record in records)
    assert events["retry_scheduled"] == len(RETRIED) + 1  # and nobody who listens
    assert events["run_started"] == events["model_loaded"] == events["shard_recorded"] == 1
    assert FORGED not in events
    assert all({"event", "level", "timestamp"} <= record.keys() for record in records)
    assert CONTROL.findall(aftermath.errors) == []


def test_what_a_file_says_about_itself_goes_nowhere(aftermath: Aftermath) -> None:
    """Neither to logs, nor into a table, nor into a shard."""
    assert HIDDEN not in aftermath.output
    with aftermath.place.database.transaction() as connection:
        tables = connection.execute(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'vsearch'")
        ).scalars()
        for table in tables.all():
            rows = connection.execute(text(f"SELECT t::text FROM {table} t")).scalars().all()
            said = "\n".join(rows)
            assert HIDDEN not in said, table
            if table not in ("images", "products"):  # where the catalogue's own words belong
                assert SECRET not in said, table
                assert CONTROL.findall(said) == [], table
    shards = list((aftermath.place.home / "vectors").rglob("*.parquet"))
    assert len(shards) == 1
    table = pq.read_table(shards[0])
    assert table.num_rows == aftermath.good
    assert HIDDEN not in repr(table.to_pylist()) + repr(table.schema.metadata)


def test_a_file_of_weights_steers_no_terminal(place: Workplace) -> None:
    """torch quotes the name of what a pickle wants to call, in colours of its own."""
    file = place.home / "evil.pth"
    file.write_bytes(b"\x80\x02c" + f"\x1b]0;{FORGED}\x07\n".encode() + b"f\n.")
    place.models["evil"] = place.models["tiny"] | {"weights": str(file)}
    place.publish(1)

    def shown(*arguments: str) -> str:
        return CliRunner().invoke(app, arguments, env=place.environment()).output

    ran = shown("extract", "--model", "evil")
    (said,) = [line for line in ran.splitlines() if line.startswith("vsearch: ")]
    assert f"{file} is no checkpoint" in said
    ((run_id,),) = place.rows("SELECT run_id FROM runs")
    for output in (ran, shown("runs", "show", str(run_id))):
        assert str(file) in output
        assert CONTROL.findall(output) == []


def test_bad_rows_of_an_import_are_one_plain_line_each(
    aftermath: Aftermath, tmp_path: Path
) -> None:
    rows = [
        f'"http://h.test/{FORGERY}",x',
        f'"{FORGERY}",x',
        f"http://user:{SECRET}@h.test:port/?{SECRET},x",
        f"ftp://{SECRET},x",
        f"http://h.test/a,b,c,{FORGED}",
    ]
    file = tmp_path / "products.csv"
    file.write_text("\n".join([f"image_url,title{FORGED}", *rows, ""]))
    lines = [json.dumps({"image_url": f"{FORGERY}{SECRET}", FORGERY: FORGERY}), "{" + FORGED]
    more = tmp_path / "products.jsonl"
    more.write_text("\n".join([*lines, ""]))
    for path, bad in ((file, len(rows)), (more, len(lines))):
        result = CliRunner().invoke(
            app, ["catalog", "import", str(path)], env=aftermath.environment
        )
        assert isinstance(result.exception, VsearchError)
        told = result.stderr.splitlines()
        assert len(told) == bad, told
        assert all(line.startswith(f"{path}:") for line in told)
        assert CONTROL.findall(result.stderr + result.stdout) == []
        assert SECRET not in result.stderr + result.stdout + str(result.exception)
