"""Where an export goes, and which of its parts are there already."""

import json
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import pyarrow as pa

from visual_search.errors import UsageError
from visual_search.export.formats import WRITERS, Format
from visual_search.images import ShardId
from visual_search.storage import Storage, words_of

MARKER: Final = "_vsearch_export.json"
_PART: Final = re.compile(r"part-(?P<shard_id>[0-9a-f-]{36})-(?P<rows>[0-9]+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What of a shard is exported. With other rows it is another part."""

    shard_id: ShardId
    rows: int

    @property
    def name(self) -> str:
        """Without a folder and an ending."""
        return f"part-{self.shard_id}-{self.rows}"


class Destination:
    """The files of one export. A part is there once its last file is."""

    def __init__(self, storage: Storage, format_: Format) -> None:
        self._storage = storage
        self._format: Format = format_
        self._writers = WRITERS[format_]

    def claim(self, *, catalogue_id: UUID, model_id: str) -> None:
        """Mark the place as this export's.

        Raises:
            UsageError: It holds something else.
        """
        mine = {
            "catalogue_id": str(catalogue_id),
            "model_id": model_id,
            "format": self._format,
        }
        where = self._storage.address
        try:
            found = json.loads(self._storage.read(MARKER))
        except FileNotFoundError:
            # What another program put there is not to be mixed with ours, or deleted.
            if next(iter(self._storage.files()), None) is not None:
                raise UsageError(
                    f"{where} is not empty and no export; --to names another place"
                ) from None
            self._storage.write(MARKER, json.dumps(mine).encode() + b"\n")
            return
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read {MARKER} in {where}: {words_of(error)}") from error
        if found != mine:
            raise UsageError(f"{where} holds another export: {found}; --to names another place")

    def parts(self) -> set[Part]:
        """Those that are there, whole."""
        *_, last = self._writers
        return {part for part, file in self._files() if file == last.format(part=part.name)}

    def write(self, part: Part, table: pa.Table) -> None:
        """Write a part; what is there of it already is replaced.

        Raises:
            OSError, StorageError: It cannot be written.
        """
        for file, writer in self._writers.items():
            new = self._storage.begin(file.format(part=part.name))
            try:
                writer(table, new.file)
                new.file.flush()
                new.publish()
            finally:
                new.discard()

    def sweep(self, current: Set[Part]) -> int:
        """Delete all other parts; says how many."""
        others = [(part, file) for part, file in self._files() if part not in current]
        for _, file in others:
            self._storage.delete(file)
        return len({part for part, _ in others})

    def _files(self) -> Iterator[tuple[Part, str]]:
        """The files of parts, and of which."""
        for file in self._storage.files():
            named = _PART.search(file.name)
            if named is not None:
                part = Part(shard_id=ShardId(UUID(named["shard_id"])), rows=int(named["rows"]))
                if file.name in {each.format(part=part.name) for each in self._writers}:
                    yield part, file.name
