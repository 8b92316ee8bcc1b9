"""Read shards, and compare them with what the table says of them."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from visual_search.images import ShardRecord
from visual_search.settings import StorageSettings
from visual_search.storage import locate, sha256_of, words_of


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
