"""Read shards, and compare them with what the table says of them."""

import hashlib
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from visual_search.errors import DamagedShardError, StorageError
from visual_search.images import ShardRecord
from visual_search.settings import StorageSettings
from visual_search.storage import Storage, locate, sha256_of, shown, words_of

_PART_BYTES: Final = 8 << 20
_ROWS_AT_ONCE: Final = 1_000


def read_vectors(
    uri: str, storage: StorageSettings
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The ids and vectors of one shard.

    Returns:
        `(N,)` int64 image ids and `(N, D)` float32 vectors, in the shard's order.
    """
    place, name = locate(uri, storage)
    with place.open(name) as file:
        table = pq.read_table(file, columns=["image_id", "embedding"])
    embedding = table.column("embedding").combine_chunks()
    vectors = embedding.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    ids = table.column("image_id").to_numpy()
    return ids, vectors.reshape(len(ids), -1)


def find_damage(record: ShardRecord, storage: StorageSettings) -> str | None:
    """What is wrong with a committed shard's file, `None` if it is as recorded.

    Raises:
        StorageError: Its storage cannot be reached, which is no damage.
    """
    place, name = locate(record.uri, storage)
    try:
        size = place.size(name)
        if size != record.bytes:
            return f"{size} bytes, recorded {record.bytes}"
        with place.open(name) as file:
            digest = sha256_of(file)
            if digest != record.sha256:
                return f"sha256 {digest[:12]}…, recorded {record.sha256[:12]}…"
            rows = pq.read_metadata(file).num_rows
    except FileNotFoundError:
        return "the file is missing"
    except (OSError, pa.ArrowException) as error:
        return f"cannot be read: {words_of(error)}"
    return None if rows == record.rows else f"{rows} rows, recorded {record.rows}"


def read_verified(record: ShardRecord, storage: StorageSettings) -> Iterator[pa.Table]:
    """The rows of a committed shard, some at a time, in the shard's order.

    They are read from a copy that was compared with the record, byte by byte, while it was made:
    what the storage answers a second time plays no part.

    Raises:
        DamagedShardError: The file is not as recorded.
        StorageError: Its storage cannot be reached, which is no damage; or there is no room for
            the copy.
    """
    place, name = locate(record.uri, storage)
    with tempfile.TemporaryFile() as copy:
        try:
            digest = _copy(place, name, copy)
            if copy.tell() != record.bytes:
                raise _damaged(record, f"{copy.tell()} bytes, recorded {record.bytes}")
            if digest != record.sha256:
                raise _damaged(record, f"sha256 {digest[:12]}…, recorded {record.sha256[:12]}…")
            file = pq.ParquetFile(copy)
            if file.metadata.num_rows != record.rows:
                raise _damaged(record, f"{file.metadata.num_rows} rows, recorded {record.rows}")
            # With what the file says of itself, which not all stands in the schema.
            schema = file.schema_arrow.with_metadata(file.metadata.metadata)
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                yield pa.Table.from_batches([batch], schema=schema)
        except FileNotFoundError:
            raise _damaged(record, "the file is missing") from None
        except (OSError, pa.ArrowException) as error:
            raise _damaged(record, f"cannot be read: {words_of(error)}") from error


def _copy(place: Storage, name: str, copy: BinaryIO) -> str:
    """Copy a file, and return the sha256 of what was copied."""
    digest = hashlib.sha256()
    with place.open(name) as file:
        while part := file.read(_PART_BYTES):
            digest.update(part)
            try:
                copy.write(part)
            except OSError as error:
                raise StorageError(
                    f"cannot copy a shard to {tempfile.gettempdir()}: {words_of(error)}; TMPDIR "
                    "names another folder"
                ) from error
    return digest.hexdigest()


def _damaged(record: ShardRecord, damage: str) -> DamagedShardError:
    return DamagedShardError(f"{shown(record.uri)}: {damage}")
