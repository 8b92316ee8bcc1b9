"""The embedded server's life: shared, killed, raced, hidden behind closed folders."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg2
import psycopg2.extensions
import pytest
from sqlalchemy.engine import URL

from visual_search.database import cluster as clusters
from visual_search.database import embedded, programs, server
from visual_search.database.filelock import FileLock
from visual_search.errors import DatabaseGoneError, NoCatalogueError, RunError, UsageError

AS_ROOT = os.geteuid() == 0
PROJECT = Path(__file__).parent.parent.parent

# Uses the database from each line it reads to the next.
USER = """
import sys
from pathlib import Path
import psycopg2
from visual_search.database import embedded
from visual_search.errors import RunError
try:
    while sys.stdin.readline():
        with embedded.running(Path(sys.argv[1]), create="create" in sys.argv) as url:
            connection = psycopg2.connect(**url.query, user=url.username, dbname=url.database)
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            connection.close()
            print("up", flush=True)
            sys.stdin.readline()
        print("left", flush=True)
except RunError as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(error.exit_code)
"""


class User:
    """A process that uses the database of `home` whenever it is told to."""

    def __init__(self, home: Path, *options: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", USER, str(home), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            start_new_session=True,
        )

    def told(self) -> None:
        """To join or to leave, in turn."""
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def says(self, word: str) -> None:
        assert self._process.stdout
        assert self._process.stdout.readline() == f"{word}\n"

    def joins(self) -> "User":
        self.told()
        self.says("up")
        return self

    def ends(self) -> None:
        assert self._process.communicate(timeout=60)[0] in ("", "left\n")
        assert self._process.returncode == 0

    def is_killed(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@contextmanager
def new_home() -> Iterator[Path]:
    # Not pytest's folder: it is closed to others, so that as root the database would be elsewhere.
    folder = Path(tempfile.mkdtemp(prefix="vsearch-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        embedded.stop(folder, force=True)
        embedded.remove(folder)
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def made_home() -> Iterator[Path]:
    with new_home() as home:
        with embedded.running(home, create=True):
            pass
        yield home


@pytest.fixture
def home(made_home: Path) -> Iterator[Path]:
    """A home with a database, and no server running before or after."""
    assert not is_up(made_home)
    yield made_home
    embedded.stop(made_home, force=True)
    assert not is_up(made_home)


@pytest.fixture
def empty_home() -> Iterator[Path]:
    with new_home() as home:
        yield home


@pytest.fixture
def other_home(made_home: Path, empty_home: Path) -> Path:
    """A home with a database of its own; copied, which is faster than making one."""
    subprocess.run(["cp", "-a", clusters.link(made_home), empty_home], check=True)
    return empty_home


def connect(url: URL) -> psycopg2.extensions.connection:
    connection = psycopg2.connect(
        host=str(url.query["host"]),
        port=str(url.query["port"]),
        user=url.username,
        dbname=url.database,
        connect_timeout=10,
    )
    connection.autocommit = True
    return connection


def query(url: URL, statement: str) -> object:
    connection = connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone() if cursor.description else None
            return row and row[0]
    finally:
        connection.close()


def ask(home: Path, statement: str, *, create: bool = False) -> object:
    """The answer that a command of its own gets."""
    with embedded.running(home, create=create) as url:
        return query(url, statement)


def is_up(home: Path) -> bool:
    try:
        psycopg2.connect(
            host=str(clusters.link(home).resolve()), port=5432, user="postgres"
        ).close()
    except psycopg2.OperationalError:
        return False
    return True


def server_pid(home: Path) -> int:
    return int((clusters.link(home) / "postmaster.pid").read_text().split()[0])


def wait_until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Not counting a zombie that nobody has reaped."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout
    return bool(state.strip()) and not state.startswith("Z")


def kill_server(home: Path) -> None:
    pid = server_pid(home)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))


def test_short_commands_come_and_go_beside_a_long_one_on_the_same_server(home: Path) -> None:
    long = User(home).joins()
    pid = server_pid(home)

    def short(_: int) -> int:
        User(home).joins().ends()
        return server_pid(home)

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(short, range(20))) == {pid}
    assert is_up(home)
    long.ends()
    assert not is_up(home)


def test_a_command_may_end_while_another_starts(home: Path) -> None:
    user, other = User(home).joins(), User(home)
    for _ in range(10):
        other.told()
        user.told()
        other.says("up")
        user.says("left")
        assert is_up(home)
        user, other = other, user
    user.ends()
    other.ends()
    assert not is_up(home)


def test_many_join_and_leave_at_once(home: Path) -> None:
    """Threads get closer to each other than processes that first have to be started."""

    with ThreadPoolExecutor(3) as pool:
        answers = pool.map(lambda number: ask(home, f"SELECT {number}"), range(40))
        assert list(answers) == list(range(40))
    assert not is_up(home)


def test_what_a_killed_command_leaves_running_the_next_one_stops(home: Path) -> None:
    User(home).joins().is_killed()
    assert is_up(home)
    User(home).joins().ends()
    assert not is_up(home)


def test_a_killed_server_is_started_again_with_its_data(home: Path) -> None:
    with embedded.running(home, create=False) as url:
        query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        kill_server(home)
        assert not is_up(home)
        with embedded.running(home, create=False) as again:
            assert again == url
            assert query(url, "SELECT answer FROM kept") == 42
    assert not is_up(home)


def test_a_server_is_not_started_beside_children_of_a_killed_one(home: Path) -> None:
    with embedded.running(home, create=False) as url:
        connection = connect(url)
        child = connection.info.backend_pid
        os.kill(child, signal.SIGSTOP)
        kill_server(home)
        with ThreadPoolExecutor(1) as pool:
            log = clusters.find(home).log
            next_command = pool.submit(ask, home, f"SELECT {child}")
            wait_until(lambda: "pre-existing shared memory" in log.read_text())
            assert not next_command.done()
            os.kill(child, signal.SIGCONT)
            assert next_command.result(timeout=30) == child
        connection.close()
    assert not is_alive(child)


def test_a_server_that_does_not_answer_is_waited_for(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_PROBE_TIMEOUT_S", 2)
    with embedded.running(home, create=False), ThreadPoolExecutor(1) as pool:
        pid = server_pid(home)
        os.kill(pid, signal.SIGSTOP)
        next_command = pool.submit(ask, home, "SELECT 1")
        with pytest.raises(TimeoutError):
            next_command.result(timeout=2.5)  # longer than one probe
        os.kill(pid, signal.SIGCONT)
        assert next_command.result(timeout=30) == 1
        assert server_pid(home) == pid


def test_a_server_is_waited_for_longer_than_pg_ctl_does(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LAUNCH_S", 1)
    pid_file = clusters.link(home) / "postmaster.pid"
    with ThreadPoolExecutor(1) as pool:
        command = pool.submit(ask, home, "SELECT 1")
        wait_until(lambda: pid_file.exists() and pid_file.read_text())
        pid = server_pid(home)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            command.result(timeout=1.5)
        os.kill(pid, signal.SIGCONT)
        assert command.result(timeout=30) == 1


@pytest.mark.parametrize("owner", ["server's user", "other user"])
def test_a_pid_file_whose_number_another_process_has_now(home: Path, owner: str) -> None:
    account = clusters.find(home).user if owner == "server's user" else None
    stranger = subprocess.Popen(["sleep", "60"], user=account.uid if account else None)
    try:
        folder = clusters.link(home)
        for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
            (folder / name).write_text(f"{stranger.pid}\n{folder}\n1\n5432\n.\n\n")
            shutil.chown(folder / name, folder.stat().st_uid)
            (folder / name).chmod(0o600)
        assert embedded.stop(home, force=True) is False
        assert ask(home, "SELECT 1") == 1
        assert not is_up(home)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_an_empty_pid_file_is_no_server(home: Path) -> None:
    """What a full disk leaves."""
    (clusters.link(home) / "postmaster.pid").touch()
    assert ask(home, "SELECT 1") == 1


def test_a_server_that_cannot_start_says_why(other_home: Path) -> None:
    (clusters.link(other_home) / "pg_hba.conf").unlink()
    with pytest.raises(DatabaseGoneError, match=r"could not load .*pg_hba.conf; .*server.log"):
        ask(other_home, "SELECT 1")


def test_two_homes_have_two_servers(home: Path, other_home: Path) -> None:
    with (
        embedded.running(home, create=False) as one,
        embedded.running(other_home, create=False) as other,
    ):
        query(other, "CREATE TABLE only_here (n int)")
        assert query(one, "SELECT to_regclass('only_here')") is None
        assert server_pid(home) != server_pid(other_home)


def test_children_of_a_command_do_not_keep_its_server_up(home: Path) -> None:
    with embedded.running(home, create=False):
        executed = subprocess.Popen(["sleep", "60"], close_fds=False)
        if (forked := os.fork()) == 0:
            signal.pause()
            os._exit(0)
    try:
        assert not is_up(home)
        assert ask(home, "SELECT 1") == 1
    finally:
        executed.kill()
        executed.wait()
        os.kill(forked, signal.SIGKILL)
        os.waitpid(forked, 0)


def test_stop_spares_a_used_server_unless_forced(home: Path) -> None:
    user = User(home).joins()
    with pytest.raises(UsageError, match=r"in use; .* `vsearch db stop --force`"):
        embedded.stop(home)
    assert is_up(home)
    assert embedded.stop(home, force=True) is True
    assert not is_up(home)
    user.ends()


def test_stop_ends_what_a_killed_command_left(home: Path) -> None:
    assert embedded.stop(home) is False
    User(home).joins().is_killed()
    assert embedded.stop(home) is True
    assert not is_up(home)


def test_without_create_nothing_is_made(tmp_path: Path) -> None:
    home = tmp_path / "wrong"
    with pytest.raises(NoCatalogueError, match=str(home)), embedded.running(home, create=False):
        pass
    assert embedded.stop(home) is False
    embedded.remove(home)
    assert not home.exists()


def test_a_database_whose_making_was_killed_is_made_anew(empty_home: Path) -> None:
    home = empty_home / "Ä 'b' %20:5"  # any path but a few will do
    maker = User(home, "create")
    maker.told()
    wait_until(lambda: list(home.glob(".postgres.unfinished-*/base")))
    maker.is_killed()
    assert not embedded.exists(home)
    assert ask(home, "SELECT current_database()", create=True) == "vsearch"
    assert {path.name for path in home.iterdir()} == {"postgres", "start.lock", "users.lock"}


def test_a_home_may_be_moved(other_home: Path) -> None:
    moved = other_home / "moved"
    moved.mkdir()
    clusters.link(other_home).rename(clusters.link(moved))
    assert ask(moved, "SELECT 1") == 1
    embedded.remove(moved)


def test_a_removed_database_is_gone(other_home: Path) -> None:
    with embedded.running(other_home, create=False):
        with pytest.raises(UsageError, match="in use"):
            embedded.remove(other_home)
        assert is_up(other_home)
    User(other_home).joins().is_killed()
    embedded.remove(other_home)
    assert not is_up(other_home)
    assert not embedded.exists(other_home)
    assert {path.name for path in other_home.iterdir()} == {"start.lock", "users.lock"}


def test_a_home_deleted_under_a_command_does_not_spoil_its_end(other_home: Path) -> None:
    with embedded.running(other_home, create=False):
        pid = server_pid(other_home)
        shutil.rmtree(other_home)
    os.kill(pid, signal.SIGQUIT)  # by itself a server looks for its folder once a minute
    wait_until(lambda: not is_alive(pid))
    other_home.mkdir()


def test_the_server_is_closed_to_others_and_keeps_commits(home: Path) -> None:
    with embedded.running(home, create=False) as url:
        folder = clusters.link(home)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / ".s.PGSQL.5432").stat().st_mode) == 0o700
        for setting, value in {
            "listen_addresses": "",
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "timezone": "UTC",
            "server_encoding": "UTF8",
            "jit": "off",
        }.items():
            assert query(url, f"SHOW {setting}") == value
        assert query(url, "SELECT 'Ä' < 'a'") is False
        assert query(url, "SELECT lower('Ä')") == "ä"


def test_variables_of_other_databases_change_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGPORT": "1", "PGDATA": "/x", "PGUSER": "me", "PGHOST": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with embedded.running(home, create=False) as url:
        assert query(url, "SELECT 1") == 1
        if (environment := Path(f"/proc/{server_pid(home)}/environ")).exists():
            assert b"secret" not in environment.read_bytes()


def test_a_lock_is_not_taken_on_a_file_that_was_deleted_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    first = FileLock(path)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(FileLock, path)
        wait_until(lambda: openings(path) == 2)
        path.unlink()
        first.close()
        second = waiting.result()
    assert second.is_current()
    second.close()


def openings(path: Path) -> int:
    """How often this process has `path` open."""
    return sum(each.exists() and each.samefile(path) for each in Path("/dev/fd").iterdir())


def test_the_servers_log_stays_small(home: Path) -> None:
    log = clusters.find(home).log
    with log.open("a") as file:
        file.write("x" * 1_100_000)
    assert ask(home, "SELECT 1") == 1
    assert log.stat().st_size < 100_000
    assert log.with_suffix(".log.1").stat().st_size >= 1_100_000


@pytest.mark.parametrize(
    ("name", "words"), [("x" * 120, "bytes too long"), ("a,b", "','"), ("$HOME", "'\\$'")]
)
def test_a_path_that_postgres_cannot_use_is_refused(
    empty_home: Path, name: str, words: str
) -> None:
    with (
        pytest.raises(UsageError, match=f"{words}.*VSEARCH_HOME"),
        embedded.running(empty_home / name, create=True),
    ):
        pass
    assert not embedded.exists(empty_home / name)


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.touch()
    assert not embedded.exists(home)
    with pytest.raises(UsageError, match="VSEARCH_HOME"), embedded.running(home, create=True):
        pass


def test_what_is_not_our_database_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    folder.mkdir()
    (folder / "notes").touch()
    with (
        pytest.raises(UsageError, match="is not a database"),
        embedded.running(tmp_path, create=True),
    ):
        pass
    (folder / "PG_VERSION").write_text("17\n")
    with pytest.raises(UsageError, match="PostgreSQL 17"), embedded.running(tmp_path, create=True):
        pass
    shutil.rmtree(folder)
    folder.symlink_to(tmp_path / "gone")
    with (
        pytest.raises(UsageError, match=r"gone.*restore it"),
        embedded.running(tmp_path, create=True),
    ):
        pass


@pytest.mark.skipif(not AS_ROOT, reason="only root can mount a small disk")
def test_a_full_disk_is_named(empty_home: Path) -> None:
    mount = f"mount -t tmpfs -o size=20m,mode=755 tmpfs {empty_home} && exec "
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} "$@"', "sh", sys.executable, "-c", USER,
         str(empty_home), "create"],
        input="\n", capture_output=True, text=True, check=False, cwd=PROJECT,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no mounts of our own here: {done.stderr.strip()}")
    assert done.stdout == (
        f"StorageError cannot make a database in {empty_home}: the disk is full; make room and "
        "try again\n"
    )
    assert done.returncode == 75


@pytest.mark.skipif(not AS_ROOT, reason="only root can become other users")
def test_without_root_the_server_is_our_own(empty_home: Path) -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    shutil.chown(empty_home, nobody)
    assert as_account(nobody, lambda: ask(empty_home, "SELECT 1", create=True)) == "1"
    assert clusters.link(empty_home).stat().st_uid == nobody
    refused = as_account(nobody - 1, lambda: ask(empty_home, "SELECT 1"))
    assert refused.startswith(f"UsageError: the database {empty_home}/postgres belongs to")
    # Root serves it as its owner, who is not locked out by that.
    assert ask(empty_home, "SELECT 1") == 1
    assert as_account(nobody, lambda: ask(empty_home, "SELECT 1")) == "1"
    assert not is_up(empty_home)


@pytest.mark.skipif(not AS_ROOT, reason="only root can become other users")
def test_a_user_who_has_only_a_number_is_told_what_to_do(empty_home: Path) -> None:
    """`docker run --user 12345`, and OpenShift; the images have a name for every number."""
    number = next(uid for uid in count(12345) if not has_name(uid))
    shutil.chown(empty_home, number)
    refused = as_account(number, lambda: ask(empty_home, "SELECT 1", create=True))
    assert refused == (
        f"UsageError: the user {number} has no name on this system, and PostgreSQL makes no "
        "database for such a user; run vsearch as a user with a name, or set VSEARCH_DATABASE_URL"
    )
    assert not embedded.exists(empty_home)
    assert {path.name for path in empty_home.iterdir()} == {"start.lock", "users.lock"}


def has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def as_account(uid: int, call: Callable[[], object]) -> str:
    """What `call` returns or raises in a child of this process that belongs to `uid`."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.setgroups([])
        os.setuid(uid)
        try:
            said = str(call())
        except RunError as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.skipif(not AS_ROOT, reason="only root runs the server as another user")
class TestAsRoot:
    @pytest.fixture
    def elsewhere(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """Stands for /var/lib/vsearch, so that nothing of a user's is touched."""
        folder = Path(tempfile.mkdtemp(prefix="vsearch-"))
        folder.chmod(0o755)
        for module in (programs, clusters):
            monkeypatch.setattr(module, "ELSEWHERE", folder)
        yield folder
        shutil.rmtree(folder)

    @pytest.fixture
    def closed(self) -> Iterator[Path]:
        folder = Path(tempfile.mkdtemp(prefix="vsearch-"))
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        yield folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        shutil.rmtree(folder)

    def test_the_server_runs_as_nobody_and_home_lets_it_pass(self, empty_home: Path) -> None:
        home = empty_home / "home"
        before = os.umask(0o077)
        try:
            assert ask(home, "SELECT 1", create=True) == 1
        finally:
            os.umask(before)
        with embedded.running(home, create=False):
            owner = Path(f"/proc/{server_pid(home)}").stat().st_uid
            assert owner == pwd.getpwnam("nobody").pw_uid == clusters.link(home).stat().st_uid
        assert stat.S_IMODE(home.stat().st_mode) == 0o711
        # A folder above that is closed later on is named, not opened.
        empty_home.chmod(0o700)
        with pytest.raises(UsageError, match=rf"`chmod o\+x {empty_home}`"):
            ask(home, "SELECT 1")
        assert stat.S_IMODE(empty_home.stat().st_mode) == 0o700
        empty_home.chmod(0o711)
        embedded.remove(home)

    def test_what_lies_below_closed_folders_is_kept_elsewhere(
        self, closed: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = programs.binaries(None).parent.parent
        for source in (package / "pginstall18", package.with_name(f"{package.name}.libs")):
            target = closed / source.relative_to(package.parent)
            shutil.copytree(source, target, symlinks=True)
        (closed / package.name / "__init__.py").touch()
        monkeypatch.syspath_prepend(closed)
        home, moved = closed / "home", closed / "moved"
        with embedded.running(home, create=True) as url:
            query(url, "CREATE EXTENSION vector")
            query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
            place = clusters.link(home).resolve()
            assert place.parent == elsewhere
            assert stat.S_IMODE(place.stat().st_mode) == 0o700
        (copy,) = elsewhere.glob("pgserver-*")
        made = copy.stat().st_ino
        home.rename(moved)
        # A new home in the place of a moved one does not take its database.
        with embedded.running(home, create=True) as url:
            assert query(url, "SELECT to_regclass('kept')") is None
            assert ask(moved, "SELECT answer FROM kept") == 42
        assert copy.stat().st_ino == made
        embedded.remove(home)
        embedded.remove(moved)
        assert {path.name for path in elsewhere.iterdir()} == {copy.name, "copy.lock"}
