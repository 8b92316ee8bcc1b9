"""A backup of the embedded database: one file, an archive of pg_dump, which any Postgres takes."""

import errno
import os
import re
import subprocess
from glob import escape
from pathlib import Path
from typing import Final
from uuid import uuid4

from visual_search.database import migrate, programs
from visual_search.database.cluster import DATABASE, PORT, SUPERUSER, Cluster
from visual_search.database.connection import quoted
from visual_search.database.filelock import FileLock
from visual_search.errors import DatabaseGoneError, RunError, SchemaError, StorageError, UsageError

# A line of data of the table that holds nothing else.
_REVISION: Final = re.compile(r"^COPY \S+\.alembic_version .*\n(?P<revision>\S+)$", re.MULTILINE)


def write(cluster: Cluster, file: Path, *, schema: str) -> str:
    """Write what the database of a running cluster holds at this moment; whoever works goes on.

    The file is there whole, with its name, or not at all; it is read back before. It is its
    owner's alone, since URLs carry secrets.

    Returns:
        The revision of its schema.

    Raises:
        UsageError: There is a file of this name, or none can be made.
        StorageError: The disk is full.
        DatabaseGoneError: The server went away.
    """
    _check_free(file)
    try:
        _clear_left_over(file)
        partial = file.with_name(f".{file.name}.{uuid4()}.partial")
        # Held for as long as it is written: what nobody holds was left by a killed command.
        lock = FileLock(partial)
    except OSError as error:
        raise _refused(file, error) from error
    try:
        _dump(cluster, partial)
        revision = check(partial, schema=schema)
        _publish(partial, file)
    finally:
        partial.unlink(missing_ok=True)
        lock.close()
    return revision


def check(file: Path, *, schema: str) -> str:
    """Read all of a backup, as a restore into nothing would.

    Returns:
        The revision of the schema in it.

    Raises:
        UsageError: It is no backup, damaged, cannot be read, or has no catalogue in this schema.
        SchemaError: It was made by a newer vsearch.
    """
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}") from error
    said = _read(file, "--data-only", f"--schema={schema}", "--table=alembic_version", "--file=-")
    found = _REVISION.search(said)
    if found is None:
        raise UsageError(f"{file} holds no catalogue in the schema {quoted(schema)}")
    revision, known = found["revision"], migrate.head()
    if revision > known:
        raise SchemaError(
            f"the backup {file} is at {revision}, newer than this vsearch ({known}); install the "
            "newer vsearch"
        )
    _read(file, f"--file={os.devnull}")
    return revision


def load(cluster: Cluster, file: Path) -> None:
    """Fill the empty database of a running cluster from a backup; all of it, or nothing.

    Raises:
        UsageError: The backup is damaged.
        StorageError: The disk is full.
    """
    done = _run(
        "pg_restore",
        *("--single-transaction", "--exit-on-error", "--no-owner", *_database(cluster), str(file)),
    )
    if done.returncode != 0:
        raise programs.failed(
            f"cannot restore {file}", done.stderr, UsageError, "restore another backup"
        )


def _dump(cluster: Cluster, partial: Path) -> None:
    done = _run("pg_dump", "--format=custom", f"--file={partial}", *_database(cluster))
    if done.returncode != 0:
        raise programs.failed(
            f"cannot back up {cluster.folder}",
            done.stderr,
            DatabaseGoneError,
            f"try again; {cluster.log} says more",
        )


def _read(file: Path, *options: str) -> str:
    """What a restore of so much of it would do; a file that is cut or changed does not pass."""
    done = _run("pg_restore", *options, str(file))
    if done.returncode != 0:
        raise programs.failed(
            f"{file} is no backup of vsearch, or damaged",
            done.stderr,
            UsageError,
            "name another file",
        )
    return done.stdout


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # As ourselves: who runs the server need not be allowed to read or write the file.
    return programs.run(programs.binaries(None) / program, *arguments, user=None)


def _database(cluster: Cluster) -> tuple[str, ...]:
    return (
        f"--host={cluster.folder}",
        f"--port={PORT}",
        f"--username={SUPERUSER}",
        f"--dbname={DATABASE}",
    )


def _publish(partial: Path, file: Path) -> None:
    try:
        _sync(partial)
        try:
            os.link(partial, file)
        except FileExistsError:
            _check_free(file)
        except OSError:  # a file system without links
            partial.rename(file)
        # The name lasts only once the folder is synced.
        _sync(file.parent)
    except OSError as error:
        raise _refused(file, error) from error


def _check_free(file: Path) -> None:
    if os.path.lexists(file):
        raise UsageError(f"{file} is there already, and backups replace nothing; name another file")


def _clear_left_over(file: Path) -> None:
    """Delete what backups to this name left behind when they were killed."""
    for partial in file.parent.glob(f".{escape(file.name)}.*.partial"):
        try:
            lock = FileLock(partial, wait=False)
        except BlockingIOError:
            continue  # one that is being written
        partial.unlink(missing_ok=True)
        lock.close()


def _refused(file: Path, error: OSError) -> RunError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    kind = StorageError if full else UsageError
    return kind(f"cannot write {file}: {error.strerror}; name another file")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
