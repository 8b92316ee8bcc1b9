"""The folder, or prefix of a bucket, that holds one catalogue's vectors."""

import json
import re
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from visual_search.errors import StorageError, UsageError
from visual_search.images import ShardId
from visual_search.storage import Storage, StoredFile, words_of

MARKER: Final = "_vsearch.json"
_SHARD_NAME: Final = re.compile(
    r"model_id=[^/]+/date=[^/]+/"
    r"(?:\.(?=.*\.partial$))?(?P<shard_id>[0-9a-f-]{36})\.parquet(?:\.partial)?"
)
_UNFINISHED_NAME: Final = re.compile(r"(?:artefacts/)?\.[^/]+\.[0-9a-f-]{36}\.partial")


def prepare_output(storage: Storage, catalogue_id: UUID) -> None:
    """Mark the output as this catalogue's, and prove that it can be written.

    Raises:
        StorageError: It cannot be written, or not be reached.
        UsageError: It holds the vectors of another catalogue; image ids would be mixed up.
    """
    try:
        if _owner(storage) is None:
            content = json.dumps({"catalogue_id": str(catalogue_id)}) + "\n"
            storage.write(MARKER, content.encode())
        # Another catalogue may have come in between.
        check_owner(storage, catalogue_id)
        storage.try_out(MARKER)
    except (OSError, StorageError) as error:
        raise StorageError(
            f"cannot write vectors to {storage.address}: {words_of(error)}; --output names another "
            "place"
        ) from error


def check_owner(storage: Storage, catalogue_id: UUID) -> None:
    """Raise `UsageError` unless the output is marked as this catalogue's."""
    try:
        owner = _owner(storage)
    except OSError as error:
        raise _unreadable(storage, error) from error
    if owner is None:
        raise UsageError(f"{storage.address} is no folder of vectors: it has no {MARKER}")
    if owner != str(catalogue_id):
        raise UsageError(
            f"{storage.address} holds the vectors of another catalogue ({owner}); "
            "--output names another place"
        )


def _owner(storage: Storage) -> str | None:
    try:
        return str(json.loads(storage.read(MARKER))["catalogue_id"])
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError) as error:
        raise _unreadable(storage, error) from error


def _unreadable(storage: Storage, error: Exception) -> UsageError:
    return UsageError(f"cannot read {MARKER} in {storage.address}: {words_of(error)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFile:
    """A file that a writer of shards made, finished or not.

    Attributes:
        modified_at: Seconds since 1970 by the storage's clock.
    """

    name: str
    shard_id: ShardId
    bytes: int
    modified_at: float


def list_files(storage: Storage) -> list[ShardFile]:
    """All files of an output that have a shard's name; no others."""
    return [
        ShardFile(
            name=file.name,
            shard_id=ShardId(UUID(named["shard_id"])),
            bytes=file.bytes,
            modified_at=file.modified_at,
        )
        for file in storage.files()
        if (named := _SHARD_NAME.fullmatch(file.name)) is not None
    ]


def list_unfinished(storage: Storage) -> list[StoredFile]:
    """What writers of small files, the marker and artefacts, left behind when they were killed."""
    return [file for file in storage.files() if _UNFINISHED_NAME.fullmatch(file.name)]
