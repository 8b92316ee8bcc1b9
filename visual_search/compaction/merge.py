"""One group of shards becomes one: read and compared with the record, written, recorded."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import Final
from uuid import uuid4

import pyarrow as pa
import structlog

from visual_search import record
from visual_search.compaction import table
from visual_search.compaction.groups import Group
from visual_search.database.connection import Database
from visual_search.database.schema import ShardState
from visual_search.errors import (
    DamagedShardError,
    DatabaseGoneError,
    FencedError,
    StorageError,
)
from visual_search.images import ImageId, ModelKey, RunId, ShardId, ShardRecord, WrittenShard
from visual_search.models.registry import RegisteredModel
from visual_search.settings import StorageSettings
from visual_search.shard import ShardWriter, read_verified
from visual_search.storage import Storage, shown

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_BEATS_PER_HOLD: Final = 3
_RUNTIME: Final = b"vsearch.runtime"
_SEPARATOR: Final = "; "


def merge_group(
    database: Database,
    storage: Storage,
    model: RegisteredModel,
    group: Group,
    *,
    run_id: RunId,
    hold_s: float,
    settings: StorageSettings,
    tell: Callable[[int], None],
) -> WrittenShard:
    """Write a new shard with what counts of a group, and let it take the group's place.

    Until that is recorded, all is as before for everybody else. The old files stay; gc deletes
    them once no reader may be at them any more.

    Args:
        database: With the model's history.
        storage: Where the new shard goes.
        model: Whose vectors.
        group: The shards; all of the model.
        run_id: Whose work the new shard is.
        hold_s: So long after its last sign of life this merge is taken for dead.
        settings: How the old shards are reached.
        tell: Called with the rows read since the last call.

    Raises:
        DamagedShardError: An old shard is not as recorded; nothing was merged.
        FencedError: Something came in between; nothing was merged.
        StorageError: Something cannot be written, or a storage not be reached.
    """
    sources = [each.shard for each in group.shards]
    writer = ShardWriter(
        storage,
        shard_id=ShardId(uuid4()),
        run_id=run_id,
        model=model.name,
        model_id=model.model_id,
        dim=model.dim,
        stored=model.spec.stored,
        spec=model.spec.to_json(),
    )
    with structlog.contextvars.bound_contextvars(
        model=model.name, model_id=model.model_id, shard=str(writer.shard_id)
    ):
        database.run(
            lambda connection: table.begin_merge(
                connection,
                shard_id=writer.shard_id,
                model_key=model.model_key,
                uri=writer.uri,
                run_id=run_id,
                sources=[source.shard_id for source in sources],
                hold_s=hold_s,
            )
        )
        with _given_up_unless_recorded(database, writer), _held(database, writer.shard_id, hold_s):
            copying = _Copying(database, model.model_key, writer)
            for source in sources:
                copying.copy(source, settings, tell)
            shard = copying.finish()
            database.run(
                lambda connection: table.commit_merge(
                    connection, model_key=model.model_key, shard=shard, moved=copying.moved
                )
            )
        log.info("shards_merged", shards=len(sources), rows=shard.rows, bytes=shard.bytes)
    return shard


class _Copying:
    """Rows on their way into the new shard, few at a time in memory.

    Attributes:
        moved: Of each old shard the rows that are in the new one.
    """

    def __init__(self, database: Database, model_key: ModelKey, writer: ShardWriter) -> None:
        self.moved: dict[ShardId, table.MovedRows] = {}
        self._database = database
        self._model_key = model_key
        self._writer = writer
        self._runtimes: set[str] = set()

    def copy(
        self, source: ShardRecord, settings: StorageSettings, tell: Callable[[int], None]
    ) -> None:
        """Append what counts of a shard; rows of images that were removed are left behind."""
        moved = self.moved[source.shard_id] = table.MovedRows()
        begin = 0
        for rows in read_verified(source, settings):
            if not rows.schema.equals(self._writer.schema):
                raise DamagedShardError(f"{shown(source.uri)}: has other columns than a new shard")
            self._runtimes |= {*rows.schema.metadata[_RUNTIME].decode().split(_SEPARATOR)}
            counting = self._counting(source.shard_id, rows)
            kept = [n for n in range(rows.num_rows) if begin + n in counting]
            moved.image_ids += [counting[begin + n] for n in kept]
            moved.positions += range(self._writer.rows, self._writer.rows + len(kept))
            self._writer.append(rows.take(pa.array(kept, pa.int64())))
            begin += rows.num_rows
            tell(rows.num_rows)

    def finish(self) -> WrittenShard:
        """Make the new shard visible to who knows its name.

        Raises:
            FencedError: There is nothing in it, or gc took it away.
            StorageError: It cannot be written.
        """
        if self._writer.rows == 0:
            raise FencedError("all its images were removed meanwhile")
        self._writer.add_metadata(
            {
                _RUNTIME.decode(): _SEPARATOR.join(sorted(self._runtimes)),
                "vsearch.merged_from": " ".join(str(shard_id) for shard_id in self.moved),
            }
        )
        try:
            return self._writer.finish()
        except StorageError as error:
            # gc may have deleted the file while this process slept for too long.
            state = self._database.run(lambda c: record.shard_state(c, self._writer.shard_id))
            if state is not ShardState.WRITING:
                raise FencedError(f"shard {self._writer.shard_id} is {state or 'gone'}") from error
            raise

    def _counting(self, shard_id: ShardId, rows: pa.Table) -> dict[int, ImageId]:
        return self._database.run(
            lambda connection: table.rows_that_count(
                connection,
                model_key=self._model_key,
                shard_id=shard_id,
                image_ids=rows.column("image_id").to_pylist(),
            )
        )


@contextmanager
def _given_up_unless_recorded(database: Database, writer: ShardWriter) -> Iterator[None]:
    """At the end of the block the shard is recorded, or nothing of it counts."""
    with writer:
        try:
            yield
        except BaseException:
            # A COMMIT of which the reply was lost is waited for: what is recorded stays so. Where
            # the database is away, gc does the same once this merge is taken for dead.
            with suppress(DatabaseGoneError), database.transaction() as connection:
                record.abandon_shard(connection, writer.shard_id)
            raise


@contextmanager
def _held(database: Database, shard_id: ShardId, hold_s: float) -> Iterator[None]:
    """Others see meanwhile that the shard's writer lives."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(hold_s / _BEATS_PER_HOLD):
            try:
                with database.transaction() as connection:
                    table.hold_shard(connection, shard_id, hold_s=hold_s)
            except DatabaseGoneError as error:
                # Whether somebody took it for dead meanwhile is the commit's question.
                log.warning("heartbeat_missed", error=str(error))

    # A thread begins with nothing bound; its log lines are about the same shard.
    context = copy_context()
    thread = threading.Thread(target=context.run, args=(beat,), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
