"""Shards after they were written: find damage, repair it, and collect what no reader may see."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

from visual_search import record
from visual_search.database.connection import Database
from visual_search.database.schema import ShardState
from visual_search.errors import StorageError
from visual_search.images import ShardId, ShardRecord
from visual_search.settings import StorageSettings
from visual_search.shard import check_owner, find_damage, list_files, list_unfinished
from visual_search.storage import Storage, shown, words_of

_READ_WITHIN_S: Final = 24 * 3600.0
_WRITTEN_WITHIN_S: Final = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DamagedShard:
    """A committed shard whose file is not as recorded."""

    shard: ShardRecord
    damage: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """A file of ours that no committed shard needs.

    Attributes:
        path: Or, in an object store, the URI.
        why: `abandoned`, `discarded`, `superseded`, `unknown` to the table; `unfinished` if it is
            no shard's.
    """

    path: str
    bytes: int
    why: str


def find_damaged(shards: Sequence[ShardRecord], storage: StorageSettings) -> list[DamagedShard]:
    """Read every shard's file and compare it with the record.

    Raises:
        StorageError: A storage cannot be reached.
    """
    return [
        DamagedShard(shard=shard, damage=damage)
        for shard in shards
        if (damage := find_damage(shard, storage)) is not None
    ]


def repair(database: Database, damaged: Sequence[DamagedShard]) -> int:
    """Take damaged shards out of the history.

    Returns:
        How many images are pending again.
    """
    again = 0
    for bad in damaged:
        with database.transaction() as connection:
            again += record.discard_shard(connection, bad.shard.shard_id)
    return again


def collect_garbage(
    database: Database,
    storage: Storage,
    *,
    grace_s: float,
    delete: bool,
    superseded_grace_s: float = _READ_WITHIN_S,
) -> Iterator[Garbage]:
    """Find, and with `delete` remove, files of an output that no committed shard needs.

    Files are listed first and the table is read afterwards: what a worker commits in between is
    seen as committed. A shard that is still `writing` is touched only when its run has no living
    lease, and only after it was set to `abandoned`: a writer that wakes up then is refused. A shard
    that was merged into another stays for a while: who listed it before may still read it.

    Args:
        database: Whose catalogue.
        storage: Where its shards are.
        grace_s: Younger files are left alone.
        delete: Otherwise nothing is changed.
        superseded_grace_s: So long after it was merged into another a shard is kept; by the
            database's clock, since the file itself is older.

    Raises:
        UsageError: The output is another catalogue's, or nobody's.
        StorageError: A file cannot be deleted, or the storage not be reached.
    """
    check_owner(storage, database.run(record.catalogue_id))
    youngest = time.time() - grace_s
    files = [file for file in list_files(storage) if file.modified_at <= youngest]
    for file in files:

        def judge(connection: Connection, shard_id: ShardId = file.shard_id) -> str | None:
            return _why_garbage(
                connection, shard_id, abandon=delete, superseded_grace_s=superseded_grace_s
            )

        why = database.run(judge)
        if why is None:
            continue
        if delete:
            _delete(storage, file.name)
        yield Garbage(path=shown(storage.uri(file.name)), bytes=file.bytes, why=why)
    # No table knows who writes them, so time has to tell.
    youngest = time.time() - max(grace_s, _WRITTEN_WITHIN_S)
    for left in list_unfinished(storage):
        if left.modified_at <= youngest:
            if delete:
                _delete(storage, left.name)
            yield Garbage(path=shown(storage.uri(left.name)), bytes=left.bytes, why="unfinished")


def _delete(storage: Storage, name: str) -> None:
    try:
        storage.delete(name)
    except OSError as error:
        where = shown(storage.uri(name))
        raise StorageError(f"cannot delete {where}: {words_of(error)}") from error


def _why_garbage(
    connection: Connection, shard_id: ShardId, *, abandon: bool, superseded_grace_s: float
) -> str | None:
    state = record.shard_state(connection, shard_id)
    if state is None:
        return "unknown"
    if state is ShardState.COMMITTED:
        return None
    if state is ShardState.WRITING:
        if record.is_being_written(connection, shard_id):
            return None
        if abandon:
            record.abandon_shard(connection, shard_id)
        return ShardState.ABANDONED.value
    if state is ShardState.SUPERSEDED and not _was_superseded(
        connection, shard_id, at_least_ago_s=superseded_grace_s
    ):
        return None
    return state.value


def _was_superseded(connection: Connection, shard_id: ShardId, *, at_least_ago_s: float) -> bool:
    return bool(
        connection.execute(
            text("""
                SELECT superseded_at <= clock_timestamp() - make_interval(secs => :ago_s)
                FROM shards WHERE shard_id = :shard_id
            """),
            {"shard_id": shard_id, "ago_s": at_least_ago_s},
        ).scalar_one()
    )
