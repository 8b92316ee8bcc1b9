"""The embedded Postgres of a `home`: up while anyone uses it, stopped by the last who does.

Two files in `home` keep the account by locks, which the kernel drops however a process ends:

- `users.lock` is held shared by every command for its life;
- `start.lock` is held exclusively by whoever joins or leaves: then the server is started or
  stopped.

So a killed command leaves at most a running server, and the next command's exit stops it.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from sqlalchemy.engine import URL

from visual_search.database import archive, restored, server
from visual_search.database import cluster as clusters
from visual_search.database.cluster import Cluster, exists
from visual_search.database.filelock import FileLock
from visual_search.errors import RunError, StorageError, UsageError

__all__ = ["back_up", "exists", "remove", "restore", "running", "stop"]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@contextmanager
def running(home: Path, *, create: bool) -> Iterator[URL]:
    """The server of `home` is up while the block runs.

    Args:
        home: The folder of settings, vectors and database.
        create: Make folder and database if they are not there.

    Raises:
        NoCatalogueError: There is no database, and `create` is not set.
        UsageError: It cannot be made or used here, or not by us.
        StorageError: The disk is full.
        DatabaseGoneError: The server does not come up.
    """
    home = home.absolute()
    if not create:
        clusters.find(home)  # before anything is written to a folder that may be a wrong one
    with _alone(home):
        users = FileLock(home / "users.lock", shared=True)
        cluster = None
        try:
            if create and not exists(home):
                _stop_unfinished(home)
                clusters.make(home)
            cluster = clusters.find(home)
            server.bring_up(cluster)
        except BaseException:
            _part(users, cluster)
            raise
    try:
        yield _url(cluster)
    finally:
        _leave(home, users, cluster)


def stop(home: Path, *, force: bool = False) -> bool:
    """Stop the server of `home`; `False` if none was running.

    Raises:
        UsageError: Others use it, and `force` is not set.
        DatabaseGoneError: It does not stop.
    """
    home = home.absolute()
    if not exists(home):
        return False
    with _alone(home):
        if not force:
            _check_unused(home)
        return server.shut_down(clusters.find(home))


def back_up(home: Path, file: Path, *, schema: str) -> str:
    """Write a backup of the database of `home`; whoever works with it goes on.

    Returns:
        The revision of its schema.

    Raises:
        NoCatalogueError: There is no database.
        UsageError: There is a file of this name, or none can be made.
        StorageError: The disk is full.
        DatabaseGoneError: The server does not come up, or went away.
    """
    home = home.absolute()
    with running(home, create=False):
        return archive.write(clusters.find(home), file.absolute(), schema=schema)


def restore(home: Path, file: Path, *, schema: str) -> str:
    """Make the database of `home` from a backup; `home` has one only once all is there.

    Returns:
        The revision of its schema.

    Raises:
        UsageError: `home` has a database, or this is no backup, or it is damaged.
        SchemaError: The backup was made by a newer vsearch.
        StorageError: The disk is full.
    """
    home, file = home.absolute(), file.absolute()
    _check_no_catalogue(home)
    revision = archive.check(file, schema=schema)

    def fill(cluster: Cluster) -> None:
        try:
            server.bring_up(cluster)
            archive.load(cluster, file)
            restored.settle(_url(cluster), schema=schema)
        finally:
            server.shut_down(cluster)

    with _alone(home):
        _check_no_catalogue(home)  # somebody may have made one meanwhile
        _stop_unfinished(home)
        clusters.make(home, fill=fill)
    return revision


def remove(home: Path) -> None:
    """Stop the server of `home` and delete its database, also where that is kept elsewhere.

    Raises:
        UsageError: Others use it.
        DatabaseGoneError: It does not stop.
    """
    home = home.absolute()
    if not exists(home):
        return
    with _alone(home):
        _check_unused(home)
        if clusters.link(home).exists():
            server.shut_down(clusters.find(home))
        clusters.discard(home)


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Nobody else joins or leaves meanwhile. What the file system refuses gets its name here."""
    try:
        # As root the server's user must pass through, but need not look around.
        home.mkdir(mode=0o711 if os.geteuid() == 0 else 0o777, parents=True, exist_ok=True)
        start = FileLock(home / "start.lock")
        try:
            yield
        finally:
            start.close()
    except OSError as error:
        words = f"{error.strerror or error} ({error.filename or home})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"cannot keep a database in {home}: {words}; make room and try again"
            ) from error
        raise UsageError(
            f"cannot keep a database in {home}: {words}; choose another VSEARCH_HOME"
        ) from error


def _check_no_catalogue(home: Path) -> None:
    if exists(home):
        raise UsageError(
            f"{home} has a catalogue already, and a restore replaces none; set VSEARCH_HOME to "
            f"another folder, or move {clusters.link(home)} away"
        )


def _stop_unfinished(home: Path) -> None:
    """Stop servers of restores that were killed; what they served is deleted next."""
    for cluster in clusters.find_unfinished(home):
        server.shut_down(cluster)


def _check_unused(home: Path) -> None:
    users = FileLock(home / "users.lock", shared=True)
    try:
        if not users.was_last():
            raise UsageError(
                f"the database of {home} is in use; wait for the other commands to end, or cut "
                "them off with `vsearch db stop --force`"
            )
    finally:
        users.close()


def _leave(home: Path, users: FileLock, cluster: Cluster) -> None:
    """Stop the server unless others use it. The work is done: a failure here is only told."""
    try:
        # Taken before our own lock is dropped, so nobody joins between the look and the stop.
        start = FileLock(home / "start.lock")
    except OSError:
        # `home` was deleted under us. The server notices that, too, and ends by itself.
        users.close()
        return
    try:
        _part(users, cluster)
    except RunError as error:
        log.warning("database_not_stopped", error=str(error))
    finally:
        start.close()


def _part(users: FileLock, cluster: Cluster | None) -> None:
    try:
        if users.is_current() and users.was_last() and cluster:
            server.shut_down(cluster)
    finally:
        users.close()


def _url(cluster: Cluster) -> URL:
    return URL.create(
        "postgresql+psycopg2",
        username=clusters.SUPERUSER,
        database=clusters.DATABASE,
        # With its port, or a variable PGPORT would decide.
        query={"host": str(cluster.folder), "port": str(clusters.PORT)},
    )
