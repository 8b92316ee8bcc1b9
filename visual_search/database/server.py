"""Start and stop the server of a cluster. The caller holds the start lock throughout."""

import os
import subprocess
import time
from enum import Enum, auto
from pathlib import Path
from typing import Final

import psycopg2

from visual_search.database import programs
from visual_search.database.cluster import DATABASE, PORT, SOCKET, SUPERUSER, Cluster
from visual_search.errors import DatabaseGoneError

_MAX_LOG_BYTES: Final = 1_000_000
_PROBE_TIMEOUT_S: Final = 5
# pg_ctl's own patience, in which it does not disturb; then we wait while there is progress.
_LAUNCH_S: Final = 30
# A server that does not stay is launched again for so long.
_RELAUNCH_S: Final = 60
# A server that neither takes connections nor writes to its log for so long is given up.
_PATIENCE_S: Final = 300
_STOP_S: Final = 300
# What a server says that is there but lets nobody in just now.
_BUSY: Final = ("starting up", "shutting down", "recovery", "not yet accepting")


class _State(Enum):
    UP = auto()
    BUSY = auto()
    SILENT = auto()


def bring_up(cluster: Cluster) -> None:
    """Wait until the server takes connections; launch it if there is none.

    Raises:
        DatabaseGoneError: It does not come up, or not for long.
        StorageError: The disk is full.
    """
    begun = moved = time.monotonic()
    said, pause_s = -1, 0.02
    while (state := _probe(cluster)) is not _State.UP:
        now = time.monotonic()
        if state is _State.SILENT and _postmaster(cluster) is None:
            if now - begun > _RELAUNCH_S:
                raise DatabaseGoneError(
                    f"the database {cluster.folder} does not stay up; {cluster.log} says why"
                )
            _launch(cluster)
        elif (last := _last_said(cluster)) != said:
            said, moved = last, now
        elif now - moved > _PATIENCE_S:
            raise DatabaseGoneError(
                f"the database {cluster.folder} has made no progress towards taking connections "
                f"for {_PATIENCE_S} s; {cluster.log} says more"
            )
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.5)


def shut_down(cluster: Cluster) -> bool:
    """Stop the server, cutting off who is connected; `False` if there is none.

    Raises:
        DatabaseGoneError: It does not stop.
    """
    # pg_ctl itself would signal whatever process has the number in the pid file.
    if _postmaster(cluster) is None:
        return False
    done = cluster.run(
        "pg_ctl", "stop", "-D", str(cluster.folder), "-m", "fast", "-s", "-w", "-t", str(_STOP_S)
    )
    if done.returncode != 0 and _postmaster(cluster):
        raise DatabaseGoneError(
            f"the database {cluster.folder} does not stop ({done.stderr.strip()}); {cluster.log} "
            "says more"
        )
    return True


def _probe(cluster: Cluster) -> _State:
    try:
        psycopg2.connect(
            host=str(cluster.folder),
            port=PORT,
            user=SUPERUSER,
            dbname=DATABASE,
            connect_timeout=_PROBE_TIMEOUT_S,
        ).close()
    except psycopg2.OperationalError as error:
        words = str(error)
        if "FATAL" in words:
            # "Too many clients" and the like come from a server that is up.
            return _State.BUSY if any(sign in words for sign in _BUSY) else _State.UP
        return _State.SILENT
    return _State.UP


def _postmaster(cluster: Cluster) -> int | None:
    """Process id of the server of this very folder.

    The number in the pid file alone proves nothing: after a crash it may belong to any process.
    """
    try:
        pid = int((cluster.folder / "postmaster.pid").read_bytes().partition(b"\n")[0])
    except (FileNotFoundError, ValueError):
        return None
    program, *arguments = _command(pid)
    ours = Path(program).name == "postgres" and str(cluster.folder) in arguments
    return pid if ours else None


def _command(pid: int) -> list[str]:
    """Program and arguments of a process; one empty word if there is no such process."""
    if Path("/proc/self/cmdline").exists():
        try:
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
        except (FileNotFoundError, ProcessLookupError):
            return [""]
    shown = subprocess.run(
        ["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout.strip()
    # Paths may have spaces, but a server has only this argument.
    program, option, folder = shown.partition(" -D ")
    return [program, option.strip(), folder]


def _launch(cluster: Cluster) -> None:
    """Start the server; it may still be recovering afterwards."""
    _clear_stale_pid_files(cluster)
    if _log_bytes(cluster) > _MAX_LOG_BYTES:
        cluster.log.replace(cluster.log.with_suffix(".log.1"))
    before = _log_bytes(cluster)
    where = ("-D", str(cluster.folder), "-l", str(cluster.log))
    done = cluster.run("pg_ctl", "start", *where, "-s", "-w", "-t", str(_LAUNCH_S))
    if done.returncode == 0 or "did not start in time" in done.stderr:
        return
    said = done.stderr
    if cluster.log.exists():
        said = cluster.log.read_bytes()[before:].decode(errors="replace") or said
    if "pre-existing shared memory block" in said:
        # A killed server's last statements still run, on the same files, and will end.
        return
    raise programs.failed(
        f"the database {cluster.folder} does not start",
        said,
        DatabaseGoneError,
        f"{cluster.log} says more",
    )


def _clear_stale_pid_files(cluster: Cluster) -> None:
    """Remove pid files of a dead server whose number another process has now, or that are empty.

    PostgreSQL would not start beside them. All others are left to it: by what else they hold it
    sees whether children of the dead server still write to the folder.
    """
    for name in ("postmaster.pid", f"{SOCKET}.lock"):
        file = cluster.folder / name
        try:
            os.kill(int(file.read_bytes().partition(b"\n")[0]), 0)
        except (FileNotFoundError, ProcessLookupError):
            continue
        except (ValueError, PermissionError):
            pass  # empty; another user's process
        file.unlink()


def _log_bytes(cluster: Cluster) -> int:
    return cluster.log.stat().st_size if cluster.log.exists() else 0


def _last_said(cluster: Cluster) -> int:
    """Where in its log the server last spoke about itself; our refused probes stand there, too."""
    return cluster.log.read_bytes().rfind(b" LOG:  ") if cluster.log.exists() else -1
