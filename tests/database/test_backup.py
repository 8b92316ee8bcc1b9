"""Backup and restore of the embedded database: whole or not there, at any kill."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.engine import URL

from tests import old_schemas
from tests.catalogue import add_images, statuses
from tests.database.test_record import Worker
from tests.end_to_end.workplace import PROJECT, Workplace
from tests.server import ImageServer
from tests.shards import local_path, paths_in, vectors_of
from visual_search import record, runs, status, upkeep
from visual_search.compaction import GroupOutcome, compact
from visual_search.database import archive, embedded, migrate
from visual_search.database.connection import Database, open_database
from visual_search.database.filelock import FileLock
from visual_search.errors import ExitCode, NoCatalogueError, SchemaError, UsageError
from visual_search.images import RunId
from visual_search.models import registry
from visual_search.settings import StorageSettings, load_settings
from visual_search.storage import Folder

IMAGES = 2_000
SCHEMA = "vsearch"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # Not pytest's: it is closed to the user that the server has where we are root.
    with tempfile.TemporaryDirectory(prefix="vsearch-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


@pytest.fixture(scope="module")
def home(folder: Path) -> Iterator[Path]:
    """A catalogue of 2,000 images."""
    with opened(folder / "home", create=True) as database:
        migrate.upgrade(database)
        add_images(database, IMAGES)
        yield folder / "home"


@pytest.fixture(scope="module")
def file(folder: Path, home: Path) -> Path:
    """Its backup."""
    embedded.back_up(home, folder / "shop.backup", schema=SCHEMA)
    return folder / "shop.backup"


@pytest.fixture
def other(folder: Path) -> Iterator[Path]:
    """A home that has no catalogue yet."""
    home = folder / uuid4().hex[:8]
    yield home
    embedded.remove(home)


@contextmanager
def opened(home: Path, *, create: bool = False) -> Iterator[Database]:
    with embedded.running(home, create=create) as url:
        database = Database(url, schema=SCHEMA, outage_s=5)
        yield database
        database.close()


def counted(database: Database) -> tuple[int, int]:
    """How many images there are, and how many there should be."""
    with database.transaction() as connection:
        row = connection.execute(
            text("SELECT (SELECT count(*) FROM images) AS there, images FROM catalogue")
        ).one()
    return row.there, row.images


def test_a_backup_is_its_owners_alone_and_replaces_nothing(home: Path, file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    with pytest.raises(UsageError, match="is there already, and backups replace nothing"):
        embedded.back_up(home, file, schema=SCHEMA)
    assert file.read_bytes() == before
    with pytest.raises(UsageError, match="cannot write"):
        embedded.back_up(home, file.parent / "nowhere" / "x", schema=SCHEMA)
    assert not list(file.parent.glob(".*.partial"))


def test_it_comes_back_as_it_was(file: Path, other: Path) -> None:
    assert embedded.restore(other, file, schema=SCHEMA) == migrate.head()
    with opened(other) as database:
        assert counted(database) == (IMAGES, IMAGES)
        # Also what comes next: no number is given twice.
        add_images(database, 1, start=IMAGES)
    with pytest.raises(UsageError, match="has a catalogue already, and a restore replaces none"):
        embedded.restore(other, file, schema=SCHEMA)
    with opened(other) as database:
        assert counted(database) == (IMAGES + 1, IMAGES + 1)


def test_a_backup_among_writers_is_one_moment(folder: Path, home: Path, other: Path) -> None:
    """Images and their count change together; here somebody adds some all the time."""
    over, added = threading.Event(), threading.Event()

    def add() -> None:
        with opened(home) as database:
            for start in range(10_000, 20_000, 50):
                add_images(database, 50, start=start)
                added.set()
                if over.is_set():
                    return

    writer = threading.Thread(target=add)
    writer.start()
    assert added.wait(60)
    embedded.back_up(home, folder / "busy.backup", schema=SCHEMA)
    over.set()
    writer.join()
    embedded.restore(other, folder / "busy.backup", schema=SCHEMA)
    with opened(other) as database:
        there, told = counted(database)
    assert there == told > IMAGES


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "byte", "missing"])
def test_what_is_no_whole_backup_is_refused_and_leaves_nothing(
    folder: Path, file: Path, other: Path, damage: str
) -> None:
    content = bytearray(file.read_bytes())
    bad = folder / f"{damage}.backup"
    match damage:
        case "text":
            bad.write_text("CREATE TABLE images ();\n" * 100)
        case "empty":
            bad.touch()
        case "cut":
            bad.write_bytes(content[: len(content) * 2 // 3])
        case "byte":
            content[len(content) // 2] ^= 255
            bad.write_bytes(content)
        case "missing":
            pass
    with pytest.raises(UsageError, match=f"{bad} is no backup of vsearch, or|cannot read {bad}: "):
        embedded.restore(other, bad, schema=SCHEMA)
    assert not other.exists()


def test_a_backup_of_another_schema_is_refused(file: Path, other: Path) -> None:
    with pytest.raises(UsageError, match='no catalogue in the schema "shop"'):
        embedded.restore(other, file, schema="shop")
    assert not other.exists()


def test_older_schemas_are_restored_and_what_was_under_way_is_nobodys_fault(
    folder: Path, other: Path
) -> None:
    home, old = folder / "aged", folder / "old.backup"
    with opened(home, create=True) as database:
        migrate.upgrade(database)
        worker = Worker(database, 5)
        with database.transaction() as connection:
            runs.start_run(connection, run_id=RunId(uuid4()), model_key=worker.model_key)
        with said_to_be(database, "9999"), pytest.raises(SchemaError):
            # Said at the backup, not on the day it is needed.
            embedded.back_up(home, folder / "new.backup", schema=SCHEMA)
        with said_to_be(database, "0002"):
            assert embedded.back_up(home, old, schema=SCHEMA) == "0002"
        worker.commit(5)  # a backup takes nothing from it
        assert statuses(database, worker.model_key) == {"done": 5}
    embedded.remove(home)
    assert embedded.restore(other, old, schema=SCHEMA) == "0002"
    with opened(other) as database:
        assert migrate.current(database) == "0002"
        with database.transaction() as connection:
            old_schemas.set_back(connection, "0002")
    with open_database(load_settings(home=other)) as database:
        assert migrate.current(database) == migrate.head()
        assert statuses(database, worker.model_key) == {"pending": 5}
        with database.transaction() as connection:
            row = connection.execute(
                text("""
                    SELECT (SELECT max(crashes) FROM extractions) AS crashes,
                           (SELECT count(*) FROM leases) AS leases,
                           (SELECT state FROM shards) AS state
                """)
            ).one()
            (run,) = runs.list_runs(connection)
        assert tuple(row) == (0, 0, "abandoned")
        assert (run.outcome, run.message) == (
            "failed",
            "the catalogue was restored from a backup made meanwhile",
        )
        (now,) = status.model_statuses(database)
        assert (now.pending, now.workers) == (5, 0)


def test_a_backup_of_a_newer_vsearch_is_refused(
    file: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "head", lambda: "0001")
    with pytest.raises(SchemaError, match=f"the backup {file} is at .*, newer than this vsearch"):
        embedded.restore(other, file, schema=SCHEMA)
    assert not other.exists()


@contextmanager
def said_to_be(database: Database, revision: str) -> Iterator[None]:
    """Meanwhile the schema says that it is of this revision."""
    for each in (revision, migrate.head()):
        with database.transaction() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :r"), {"r": each})
        if each == revision:
            yield


# Kills. The child replaces one function, and calls the product.

KILLED = """
import os, signal, sys
from pathlib import Path
from visual_search.database import archive, embedded, restored
what, when, name, home, file = sys.argv[1:]
owner, _, name = name.partition(".")
owner = {"archive": archive, "restored": restored}[owner]
original = getattr(owner, name)
def replaced(*given, **named):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    original(*given, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(owner, name, replaced)
getattr(embedded, what)(Path(home), Path(file), schema="vsearch")
"""


def killed(what: str, when: str, name: str, home: Path, file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, what, when, name, str(home), str(file)],
        cwd=PROJECT,
        check=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    "when",
    [
        pytest.param("before _dump", marks=pytest.mark.long),
        "after _dump",
        pytest.param("before _publish", marks=pytest.mark.long),
        "after _publish",
    ],
)
def test_a_killed_backup_is_there_whole_or_not_at_all(
    home: Path, tmp_path: Path, when: str
) -> None:
    file = tmp_path / "kill.backup"
    moment, _, name = when.partition(" ")
    killed("back_up", moment, f"archive.{name}", home, file)
    assert file.exists() == (when == "after _publish")
    assert len(list(tmp_path.glob(".kill.backup.*.partial"))) == 1
    living = FileLock(tmp_path / ".kill.backup.living.partial")
    if file.exists():
        assert archive.check(file, schema=SCHEMA) == migrate.head()
        file.unlink()
    embedded.back_up(home, file, schema=SCHEMA)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"kill.backup", ".kill.backup.living.partial"}
    living.close()


@pytest.mark.parametrize(
    "when",
    [
        pytest.param("before load", marks=pytest.mark.long),
        "after load",
        pytest.param("after settle", marks=pytest.mark.long),
    ],
)
def test_a_killed_restore_is_no_catalogue_and_the_next_one_is(
    file: Path, other: Path, when: str
) -> None:
    moment, _, name = when.partition(" ")
    owner = "restored" if name == "settle" else "archive"
    killed("restore", moment, f"{owner}.{name}", other, file)
    assert servers_below(other) == 1
    with pytest.raises(NoCatalogueError), embedded.running(other, create=False):
        pass
    embedded.restore(other, file, schema=SCHEMA)
    assert servers_below(other) == 0
    assert not list(other.glob(".postgres.unfinished-*"))
    with opened(other) as database:
        assert counted(database) == (IMAGES, IMAGES)


def servers_below(folder: Path) -> int:
    """Postgres servers, without their children, on data folders in `folder`."""
    found = 0
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue
        found += words[0].endswith(b"/postgres") and any(
            word.startswith(os.fsencode(folder) + b"/") for word in words
        )
    return found


# The catalogue of yesterday, and the work that was done since.


def test_after_a_restore_the_next_run_does_what_is_missing_and_nothing_twice(
    folder: Path, image_server: ImageServer
) -> None:
    home, file = folder / "shop", folder / "yesterday.backup"
    with at_work(home, image_server, create=True) as place:
        place.publish(10)
        place.extract()
        embedded.back_up(home, file, schema=SCHEMA)
        place.publish(5, start=10)
        place.extract()
        assert place.status().done == 15
        lost = local_path(listed(place.database)[-1])
    embedded.remove(home)
    embedded.restore(home, file, schema=SCHEMA)
    with at_work(home, image_server) as place:
        assert place.status().done == 10
        place.publish(5, start=10)
        (result,) = place.extract()
        assert (result.figures.claimed, result.figures.done) == (5, 5)
        ids = [image for uri in listed(place.database) for image in vectors_of(uri)[0].tolist()]
        assert sorted(ids) == [i for (i,) in place.rows("SELECT image_id FROM images ORDER BY 1")]
        assert len(ids) == 15
        assert garbage(place) == {lost: "unknown"}
        assert paths_in(home / "vectors") == {local_path(uri) for uri in listed(place.database)}
    embedded.remove(home)


@pytest.mark.long
def test_shards_that_were_merged_and_collected_since_the_backup_are_made_anew(
    folder: Path, image_server: ImageServer
) -> None:
    home, file = folder / "shop-2", folder / "before.backup"
    with at_work(home, image_server, create=True) as place:
        place.publish(10)
        place.extract(extract={"shard_rows": 5})
        embedded.back_up(home, file, schema=SCHEMA)
        merge_all(place)
        assert set(garbage(place).values()) == {"superseded"}
    embedded.remove(home)
    embedded.restore(home, file, schema=SCHEMA)
    with at_work(home, image_server) as place:
        with place.database.transaction() as connection:
            shards = record.list_shards(connection)
        damaged = upkeep.find_damaged(shards, StorageSettings())
        assert [bad.damage for bad in damaged] == ["the file is missing"] * 2
        assert upkeep.repair(place.database, damaged) == 10
        (result,) = place.extract()
        assert result.figures.done == 10
        assert set(garbage(place).values()) == {"unknown"}
    embedded.remove(home)


@contextmanager
def at_work(home: Path, server: ImageServer, *, create: bool = False) -> Iterator[Workplace]:
    with embedded.running(home, create=create) as url:
        database = Database(url, schema=SCHEMA, outage_s=5)
        migrate.upgrade(database)
        yield Workplace(home, database, shown(url), server)
        database.close()


def shown(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def listed(database: Database) -> list[str]:
    with database.transaction() as connection:
        return [shard.uri for shard in record.list_shards(connection)]


def garbage(place: Workplace) -> dict[Path, str]:
    """What gc deletes, however young."""
    found = upkeep.collect_garbage(
        place.database,
        Folder(place.home / "vectors"),
        grace_s=0,
        superseded_grace_s=0,
        delete=True,
    )
    return {Path(each.path): each.why for each in found}


def merge_all(place: Workplace) -> None:
    with place.database.transaction() as connection:
        models = registry.registered(connection)
    (merged,) = compact(
        place.database,
        Folder(place.home / "vectors"),
        models,
        below=50,
        max_rows=100,
        hold_s=60,
        settings=StorageSettings(),
        dry_run=False,
        tell=lambda _rows: None,
    )
    assert merged.outcome is GroupOutcome.MERGED


# The commands.


def test_the_commands_say_what_they_did(home: Path, other: Path, tmp_path: Path) -> None:
    file = tmp_path / "a b.backup"
    done = vsearch("db", "backup", str(file), VSEARCH_HOME=str(home))
    said = f"{file}: {file.stat().st_size:,} bytes, schema {migrate.head()}\n"
    assert (done.returncode, done.stdout) == (ExitCode.OK, said)
    done = vsearch("db", "restore", str(file), VSEARCH_HOME=str(other))
    said = f"restored the catalogue of {other}, schema {migrate.head()}\n"
    assert (done.returncode, done.stdout) == (ExitCode.OK, said)
    again = vsearch("db", "restore", str(file), VSEARCH_HOME=str(other))
    assert again.returncode == ExitCode.USAGE
    assert again.stderr.startswith(f"vsearch: {other} has a catalogue already")


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("backup", "`pg_dump --format=custom --schema=vsearch --file='a b' {url}`"),
        ("restore", "`pg_restore --single-transaction --no-owner --dbname={url} 'a b'`"),
    ],
)
def test_a_server_of_ones_own_has_tools_of_its_own(command: str, advice: str) -> None:
    url = "postgresql://me:secret@db.test/shop"
    done = vsearch("db", command, "a b", VSEARCH_DATABASE_URL=url)
    assert done.returncode == ExitCode.USAGE
    assert advice.format(url='"$VSEARCH_DATABASE_URL"') in done.stderr
    assert "secret" not in done.stderr


def vsearch(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("VSEARCH_")}
    return subprocess.run(
        [sys.executable, "-m", "visual_search", *arguments],
        env=inherited | {"PYTHONPATH": str(PROJECT)} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
