"""The embedded database's folder: where it lies, who serves it, and its making."""

import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Final

import structlog

from visual_search.database import programs
from visual_search.database.programs import ELSEWHERE, ServerUser
from visual_search.errors import NoCatalogueError, UsageError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

DATABASE: Final = "vsearch"
SUPERUSER: Final = "postgres"
PORT: Final = 5432
SOCKET: Final = f".s.PGSQL.{PORT}"

_LINUX: Final = os.uname().sysname == "Linux"
# What the address of a Unix socket holds, less the final NUL: 108 bytes on Linux, 104 elsewhere.
_MAX_SOCKET_PATH: Final = 107 if _LINUX else 103
_SYNC_METHOD: Final = "syncfs" if _LINUX else "fsync"
# pg_ctl hands paths to a shell in double quotes, postmaster.pid keeps one a line, and to libpq a
# comma separates two hosts.
_UNUSABLE: Final = frozenset('"$`\\,\n\r')

_SERVER_SETTINGS: Final = {
    # Relative to the data folder, so a home may be moved.
    "unix_socket_directories": ".",
    "unix_socket_permissions": "0700",
    "listen_addresses": "",
    "port": str(PORT),
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "15min",
    # There are no replicas, so filling a new table need not be logged.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # Statements and the details of errors carry image URLs, and those carry secrets.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    # These lines tell a recovery that goes on from one that hangs.
    "log_startup_progress_interval": "1s",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """A data folder, in which also the server's socket and its log lie.

    Attributes:
        folder: Absolute, links resolved, mode 0700.
        binaries: Where PostgreSQL's programs are.
        user: Who runs them; `None`: we ourselves.
    """

    folder: Path
    binaries: Path
    user: ServerUser | None

    @property
    def log(self) -> Path:
        """What the server says about itself."""
        return self.folder / "server.log"

    def run(self, program: str, *arguments: str, say: str = "") -> subprocess.CompletedProcess[str]:
        """Run one of the programs as the server's user; `say` is its standard input."""
        return programs.run(self.binaries / program, *arguments, user=self.user, say=say)


def link(home: Path) -> Path:
    """The data folder of `home`, or a link to it; nothing incomplete ever has this name."""
    return home / "postgres"


def exists(home: Path) -> bool:
    """Whether `home` has an embedded database. One whose making was cut off is none.

    Raises:
        UsageError: We may not look.
    """
    try:
        link(home).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UsageError(f"cannot look into {home}: {error.strerror}") from error
    return True


def find(home: Path) -> Cluster:
    """The cluster of `home`.

    Raises:
        NoCatalogueError: There is none.
        UsageError: It cannot be served from here, or not by us.
    """
    if not exists(home):
        raise NoCatalogueError(f"no catalogue at {home}; `vsearch catalog import FILE` makes one")
    folder = link(home).resolve()
    try:
        owner = folder.stat()
    except FileNotFoundError:
        raise UsageError(
            f"the database of {home} was kept in {folder}, which is gone; restore it, or remove "
            f"{link(home)} to begin anew"
        ) from None
    name = programs.user_name(owner.st_uid)
    if os.geteuid() not in (0, owner.st_uid):
        raise UsageError(
            f"the database {folder} belongs to the user {name}; run vsearch as who made it, or "
            "choose another VSEARCH_HOME"
        )
    _check_path(folder)
    _check_version(folder)
    cluster = _at(folder)
    if cluster.user and (closed := programs.closed_above(folder, cluster.user)):
        raise UsageError(
            f"the user {name}, who runs the database {folder}, cannot enter {closed}; "
            f"`chmod o+x {closed}` lets them pass"
        )
    return cluster


def find_unfinished(home: Path) -> list[Cluster]:
    """Those of `home` whose making was cut off; a server may still run on one."""
    places = (link(home.resolve()), _elsewhere(home))
    return [_at(folder) for place in places for folder in programs.left_over(place)]


def make(home: Path, *, fill: Callable[[Cluster], None] | None = None) -> None:
    """Make the cluster of `home`; the caller holds the start lock.

    Args:
        home: It has none.
        fill: Called with the new cluster before it is that of `home`; it stops what it starts.

    Raises:
        UsageError: It cannot be made here.
        StorageError: The disk is full.
    """
    place, user = link(home.resolve()), None
    if os.geteuid() == 0:
        user = programs.unprivileged()
        _let_pass(home)
        if closed := programs.closed_above(place, user) or programs.closed_package(user):
            place = _place_elsewhere(home)
            log.warning(
                "database_kept_elsewhere",
                home=str(home),
                place=str(place),
                reason=f"the user {user.name}, who runs it, cannot enter {closed}",
            )
    else:
        programs.check_named(os.geteuid())
    _check_path(place)
    # It gets its name when it is complete and on the disk. So one whose making was killed is
    # never taken for a database.
    with programs.unfinished(place) as folder:
        if user:
            os.chown(folder, user.uid, user.gid)
        cluster = Cluster(folder=folder, binaries=programs.binaries(user), user=user)
        _initialise(cluster)
        if fill:
            _check_path(folder)
            fill(cluster)
    _sync(place.parent)
    if place.parent != home.resolve():
        link(home).symlink_to(place)
        _sync(home)


def discard(home: Path) -> None:
    """Delete the cluster of `home`, wherever it lies; no server may run on it."""
    folder = link(home).resolve()
    if link(home).is_symlink():
        link(home).unlink()
    if folder.exists():
        # Renamed first: what remains of an interrupted deletion must not look like a database.
        doomed = programs.unfinished_name(folder)
        folder.rename(doomed)
        shutil.rmtree(doomed)


def _initialise(cluster: Cluster) -> None:
    folder = str(cluster.folder)
    settings = [f"--set={name}={value}" for name, value in _SERVER_SETTINGS.items()]
    # The built-in locale sorts the same on every machine. The socket lies in a closed folder:
    # who reaches it is trusted.
    options = ["--username", SUPERUSER, "--auth=trust", "--encoding=UTF8", "--locale=C",
               "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]  # fmt: skip
    steps = (
        ("", "initdb", "-D", folder, "--no-sync", *options, *settings),
        # Without exit_on_error a statement that failed would not be a failure.
        (f"CREATE DATABASE {DATABASE}\n", "postgres", "--single", "-D", folder,
         "-c", "fsync=off", "-c", "exit_on_error=on", "postgres"),
        # Everything at once: on a busy disk file by file takes seconds.
        ("", "initdb", "-D", folder, "--sync-only", f"--sync-method={_SYNC_METHOD}"),
    )  # fmt: skip
    for say, *command in steps:
        done = cluster.run(*command, say=say)
        if done.returncode != 0:
            raise programs.failed(
                f"cannot make a database in {cluster.folder.parent}",
                done.stderr,
                UsageError,
                "choose another VSEARCH_HOME, or set VSEARCH_DATABASE_URL",
            )


def _place_elsewhere(home: Path) -> Path:
    """A name that no cluster has: the home of one found there may only have been moved."""
    ELSEWHERE.mkdir(mode=0o755, parents=True, exist_ok=True)
    first = _elsewhere(home)
    others = (first.with_name(f"{first.name}-{number}") for number in count(2))
    return next(place for place in chain([first], others) if not place.exists())


def _elsewhere(home: Path) -> Path:
    return ELSEWHERE / hashlib.sha256(os.fsencode(home)).hexdigest()[:16]


def _at(folder: Path) -> Cluster:
    """The cluster of a data folder, run by whom the folder belongs to."""
    user = None
    if os.geteuid() == 0:
        owner = folder.stat()
        name = programs.user_name(owner.st_uid)
        user = ServerUser(name=name, uid=owner.st_uid, gid=owner.st_gid)
    return Cluster(folder=folder, binaries=programs.binaries(user), user=user)


def _let_pass(home: Path) -> None:
    """Let others through `home`, where it is ours, to the server's folder; not look around."""
    state = home.stat()
    if state.st_uid == os.geteuid() and state.st_mode & 0o111 != 0o111:
        home.chmod(stat.S_IMODE(state.st_mode) | 0o111)


def _check_path(folder: Path) -> None:
    if unusable := _UNUSABLE.intersection(str(folder)):
        raise UsageError(
            f"PostgreSQL cannot work in {str(folder)!r} because of the character "
            f"{min(unusable)!r}; choose another VSEARCH_HOME"
        )
    excess = len(os.fsencode(folder / SOCKET)) - _MAX_SOCKET_PATH
    if excess > 0:
        raise UsageError(
            f"the path {folder} is {excess} bytes too long for the database's socket; choose a "
            "shorter VSEARCH_HOME"
        )


def _check_version(folder: Path) -> None:
    try:
        version = (folder / "PG_VERSION").read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{folder} is not a database of vsearch; choose another VSEARCH_HOME"
        ) from None
    if version != programs.VERSION:
        raise UsageError(
            f"the database {folder} was made by PostgreSQL {version}, this vsearch brings "
            f"{programs.VERSION}; use the vsearch that made it, or choose another VSEARCH_HOME"
        )


def _sync(folder: Path) -> None:
    """Make a new name in `folder` outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
