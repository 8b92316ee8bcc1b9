"""One clean set of a model's vectors, for programs that know nothing of shards or the database.

`held.py` says what the shards hold, `parts.py` what a part holds, `formats.py` how it is written,
`destination.py` which parts are there already.
"""

from collections.abc import Callable
from dataclasses import dataclass

from visual_search.database.connection import Database
from visual_search.errors import StorageError
from visual_search.export.destination import Destination, Part
from visual_search.export.formats import Format
from visual_search.export.held import Held, find_held
from visual_search.export.parts import read_part
from visual_search.models.registry import RegisteredModel
from visual_search.record import catalogue_id
from visual_search.settings import StorageSettings
from visual_search.storage import Storage, words_of

__all__ = ["Exported", "Format", "export"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What is there after an export.

    Attributes:
        rows: In all parts.
        written: Parts of this call.
        kept: Parts that were there already.
        deleted: Parts of which something was taken out of the history since they were written.
    """

    rows: int
    written: int
    kept: int
    deleted: int


def export(
    database: Database,
    model: RegisteredModel,
    to: Storage,
    *,
    format_: Format,
    storage: StorageSettings,
    fresh: bool,
    tell: Callable[[int], None],
) -> Exported:
    """Write a part for each shard, with the rows that count; parts that are there are kept.

    So an export that was cut short is finished by the same call, and one of yesterday gets what
    came since. An image has one row at most. Where shards were merged since, the parts of those
    that the new one was made of hold the same vectors, and are kept, too.

    Args:
        database: With the model's history.
        model: Whose vectors.
        to: Where the parts go; a place of its own.
        format_: Of the parts.
        storage: How the shards are reached.
        fresh: Write every part anew, since attributes of products may have changed.
        tell: Called with the rows that are there, part after part.

    Raises:
        UsageError: The place holds something else.
        StorageError: Something cannot be read or written.
    """
    destination = Destination(to, format_)
    try:
        destination.claim(catalogue_id=database.run(catalogue_id), model_id=model.model_id)
        there = set() if fresh else destination.parts()
        written: set[Part] = set()
        current: set[Part] = set()
        held: Held | None = None
        while True:
            before, held = held, database.run(lambda connection: find_held(connection, model))
            if held == before:
                break
            current, as_counted = set(), True
            for shard, rows in held.shards:
                parts = held.parts_that_hold(shard.shard_id, rows, there | written)
                if not parts and rows > 0:
                    table = read_part(database, model.model_key, shard, storage)
                    as_counted &= table.num_rows == rows
                    if table.num_rows > 0:
                        part = Part(shard_id=shard.shard_id, rows=table.num_rows)
                        destination.write(part, table)
                        written.add(part)
                        parts = {part}
                current |= parts
                tell(sum(part.rows for part in current))
            if as_counted:
                break
            # What a refresh took out of a shard meanwhile is in another one, not counted yet.
        deleted = destination.sweep(current)
    except OSError as error:
        raise StorageError(f"cannot export to {to.address}: {words_of(error)}") from error
    return Exported(
        rows=sum(part.rows for part in current),
        written=len(current & written),
        kept=len(current - written),
        deleted=deleted,
    )
