"""Many small shards become few large ones; no reader is disturbed, no vector changes.

`groups.py` says which shards go together, `merge.py` makes one of them, `table.py` has the steps
that the table takes meanwhile.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from uuid import uuid4

import structlog

from visual_search.compaction import table
from visual_search.compaction.groups import Group, group_shards
from visual_search.compaction.merge import merge_group
from visual_search.database.connection import Database
from visual_search.errors import DamagedShardError, FencedError
from visual_search.images import RunId, WrittenShard
from visual_search.models.registry import RegisteredModel
from visual_search.record import catalogue_id
from visual_search.settings import StorageSettings
from visual_search.shard import check_owner
from visual_search.storage import Storage

__all__ = ["Group", "GroupOutcome", "GroupResult", "compact"]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class GroupOutcome(StrEnum):
    """What became of a group; only a merged one is not as it was before."""

    PLANNED = "planned"
    MERGED = "merged"
    DAMAGED = "damaged"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupResult:
    """A group, and what became of it.

    Attributes:
        shard: The new one, of a group that was merged.
        why: Which shard is damaged and how, or what came in between.
    """

    group: Group
    outcome: GroupOutcome
    shard: WrittenShard | None = None
    why: str | None = None


def compact(
    database: Database,
    storage: Storage,
    models: Sequence[RegisteredModel],
    *,
    below: int,
    max_rows: int,
    hold_s: float,
    settings: StorageSettings,
    dry_run: bool,
    tell: Callable[[int], None],
) -> Iterator[GroupResult]:
    """Merge the small shards of each model that lie in an output, group after group.

    A group that cannot be merged does not keep the others from it. What was merged is recorded
    before the next group begins, so it may be stopped at any moment.

    Args:
        database: With the models' history.
        storage: The output; shards elsewhere are left alone, and the new ones are written here.
        models: Whose shards.
        below: Shards with fewer rows that count are small.
        max_rows: Of a new shard.
        hold_s: So long after its last sign of life a merge is taken for dead.
        settings: How shards are reached.
        dry_run: Only say what would be merged.
        tell: Called with the number of rows that were read, again and again.

    Raises:
        UsageError: The output is another catalogue's.
        StorageError: Something cannot be written, or the storage not be reached.
        DatabaseGoneError: The database was away for too long.
    """
    run_id = RunId(uuid4())
    rows_read = 0

    def told(rows: int) -> None:
        nonlocal rows_read
        rows_read += rows
        tell(rows_read)

    for model in models:
        for group in find_groups(database, storage, model, below=below, max_rows=max_rows):
            if dry_run:
                yield GroupResult(group=group, outcome=GroupOutcome.PLANNED)
                continue
            check_owner(storage, database.run(catalogue_id))
            try:
                shard = merge_group(
                    database,
                    storage,
                    model,
                    group,
                    run_id=run_id,
                    hold_s=hold_s,
                    settings=settings,
                    tell=told,
                )
            except DamagedShardError as error:
                yield GroupResult(group=group, outcome=GroupOutcome.DAMAGED, why=str(error))
            except FencedError as error:
                log.warning("group_given_up", model=model.name, why=str(error))
                yield GroupResult(group=group, outcome=GroupOutcome.GIVEN_UP, why=str(error))
            else:
                yield GroupResult(group=group, outcome=GroupOutcome.MERGED, shard=shard)


def find_groups(
    database: Database, storage: Storage, model: RegisteredModel, *, below: int, max_rows: int
) -> list[Group]:
    """Which shards of a model would be merged in an output; none are once they were."""
    small = database.run(
        lambda connection: table.small_shards(connection, model.model_key, below=below)
    )
    here = storage.uri("_").removesuffix("_")
    return group_shards(
        [each for each in small if each.shard.uri.startswith(here)], max_rows=max_rows
    )
