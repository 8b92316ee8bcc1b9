"""The embedded Postgres under `home`: it runs while anyone uses it, and the last one stops it.

Two lock files keep the account, because the kernel drops their locks whatever ends a process:
`users.lock` is held shared by every user, `start.lock` exclusively by whoever starts or stops.
"""

import errno
import fcntl
import os
import subprocess
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path
from typing import Final

import psycopg2
import structlog
from sqlalchemy.engine import URL

from visual_search.database import cluster as clusters
from visual_search.database.cluster import Cluster
from visual_search.errors import DatabaseGoneError, StorageError, UsageError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_LOG: Final = "server.log"
_MAX_LOG_BYTES: Final = 1_000_000
_PROBE_TIMEOUT_S: Final = 5
_LAUNCH_S: Final = 5
_LAUNCHES: Final = 3
# Without a sign of progress, a recovery or a shutdown is given up after this time.
_PATIENCE_S: Final = 300
_STOP_S: Final = 300


class _Lock:
    """An flock that no child process keeps: closed by exec itself, and by us after a fork."""

    def __init__(self, path: Path, kind: int) -> None:
        self.path = path
        self._descriptor: int | None = None
        reference = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: (own := reference()) and own.close())
        while self._descriptor is None:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._descriptor, kind)
            if not self.is_current():
                # The folder was deleted while we waited, and perhaps made again.
                self.close()

    def is_current(self) -> bool:
        """Whether the path still names the locked file."""
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def alone(self) -> bool:
        """Give up a shared lock; whether nobody else holds it."""
        assert self._descriptor is not None
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _State(Enum):
    UP = auto()
    BUSY = auto()
    SILENT = auto()


def exists(home: Path) -> bool:
    """Whether `home` holds a completely made embedded database."""
    return os.path.lexists(clusters.link(home))


@contextmanager
def running(home: Path, *, create: bool) -> Iterator[URL]:
    """The server on the database of `home` is up while the block runs; the last user stops it.

    Raises:
        NoCatalogueError: There is no database and `create` is not set.
        UsageError: It cannot be made or used here.
        StorageError: The disk is full.
        DatabaseGoneError: The server does not come up.
    """
    home = home.absolute()
    if not create and not exists(home):
        clusters.find(home)
    with _starting(home):
        users = _Lock(home / "users.lock", fcntl.LOCK_SH)
        try:
            if not exists(home):
                clusters.make(home)
            cluster = clusters.find(home)
            _bring_up(cluster)
        except BaseException:
            users.close()
            raise
    try:
        yield _url(cluster)
    finally:
        _leave(home, cluster, users)


def stop(home: Path, *, force: bool = False) -> bool:
    """Stop the server of `home`; `False` if none was running.

    Raises:
        UsageError: Others use it, and `force` is not set.
    """
    home = home.absolute()
    if not exists(home):
        return False
    with _starting(home):
        cluster = clusters.find(home)
        users = _Lock(home / "users.lock", fcntl.LOCK_SH)
        try:
            if not users.alone() and not force:
                raise UsageError(
                    f"the database of {home} is in use; wait for the others to end, or cut them "
                    "off with `vsearch db stop --force`"
                )
            return _shut_down(cluster)
        finally:
            users.close()


def remove(home: Path) -> None:
    """Stop the server of `home` and delete its database, wherever it is kept.

    Raises:
        UsageError: Others use it.
    """
    stop(home)
    if exists(home):
        with _starting(home.absolute()):
            clusters.discard(home.absolute())


@contextmanager
def _starting(home: Path) -> Iterator[None]:
    """Be the only one who starts or stops the server of `home`."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = _Lock(home / "start.lock", fcntl.LOCK_EX)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        kind = StorageError if full else UsageError
        raise kind(f"cannot use {home}: {error.strerror}; choose another VSEARCH_HOME") from error
    try:
        yield
    finally:
        lock.close()


def _leave(home: Path, cluster: Cluster, users: _Lock) -> None:
    try:
        start = _Lock(home / "start.lock", fcntl.LOCK_EX)
    except FileNotFoundError:
        users.close()
        return
    try:
        if users.is_current() and users.alone():
            _shut_down(cluster)
    finally:
        users.close()
        start.close()


def _url(cluster: Cluster) -> URL:
    return URL.create(
        "postgresql+psycopg2",
        username=clusters.SUPERUSER,
        database=clusters.DATABASE,
        query={"host": str(cluster.folder), "port": str(clusters.PORT)},
    )


def _bring_up(cluster: Cluster) -> None:
    launches = 0
    progress = _Progress(cluster.folder / _LOG)
    while (state := _probe(cluster)) is not _State.UP:
        if state is _State.SILENT and _postmaster(cluster) is None:
            if launches == _LAUNCHES:
                raise DatabaseGoneError(f"the database {cluster.folder} does not stay up")
            launches += 1
            _launch(cluster)
        elif progress.stalled_s() > _PATIENCE_S:
            raise DatabaseGoneError(f"the database {cluster.folder} does not come up")
        else:
            time.sleep(0.05)


class _Progress:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = -1
        self._since = time.monotonic()

    def stalled_s(self) -> float:
        size = self._path.stat().st_size if self._path.exists() else 0
        if size != self._size:
            self._size, self._since = size, time.monotonic()
        return time.monotonic() - self._since


def _probe(cluster: Cluster) -> _State:
    try:
        psycopg2.connect(
            host=str(cluster.folder),
            port=clusters.PORT,
            user=clusters.SUPERUSER,
            dbname=clusters.DATABASE,
            connect_timeout=_PROBE_TIMEOUT_S,
        ).close()
    except psycopg2.OperationalError as error:
        words = str(error)
        if "FATAL" not in words:
            return _State.BUSY if "timeout" in words else _State.SILENT
        busy = ("starting up", "shutting down", "recovery", "not yet accepting")
        return _State.BUSY if any(sign in words for sign in busy) else _State.UP
    return _State.UP


def _postmaster(cluster: Cluster) -> int | None:
    """The process id of the postgres that serves this very folder."""
    try:
        pid = int((cluster.folder / "postmaster.pid").read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return None
    command = _command(pid)
    return pid if "postgres" in command and str(cluster.folder) in command else None


def _command(pid: int) -> str:
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            return ""
    listed = subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return listed.stdout


def _launch(cluster: Cluster) -> None:
    for name in ("postmaster.pid", f".s.PGSQL.{clusters.PORT}.lock"):
        (cluster.folder / name).unlink(missing_ok=True)
    server_log = cluster.folder / _LOG
    if server_log.exists() and server_log.stat().st_size > _MAX_LOG_BYTES:
        server_log.replace(server_log.with_suffix(".log.1"))
    told = server_log.stat().st_size if server_log.exists() else 0
    done = cluster.call(
        "pg_ctl", "start", "-D", str(cluster.folder), "-l", str(server_log),
        "-w", "-t", str(_LAUNCH_S), "-s",
    )
    if done.returncode != 0 and _postmaster(cluster) is None:
        said = server_log.read_bytes()[told:].decode(errors="replace") or done.stderr
        raise clusters.failure(f"the database {cluster.folder} does not start", said)


def _shut_down(cluster: Cluster) -> bool:
    if _postmaster(cluster) is None:
        return False
    done = cluster.call(
        "pg_ctl", "stop", "-D", str(cluster.folder), "-m", "fast", "-w", "-t", str(_STOP_S), "-s"
    )
    if done.returncode != 0 and _postmaster(cluster) is not None:
        log.warning("database_not_stopped", folder=str(cluster.folder), said=done.stderr.strip())
    return True
