"""Write a shard under a name that is never used again."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visual_search import __version__
from visual_search.errors import StorageError
from visual_search.images import EmbeddedImage, RunId, ShardId, WrittenShard
from visual_search.storage import NewFile, Storage, sha256_of, shown, words_of

_ROW_GROUP_ROWS: Final = 1_000


class ShardWriter:
    """One shard: rows go to a file that nobody sees, in row groups; `finish` makes it visible.

    Not thread-safe. Nothing is kept in memory but the rows of the next row group.

    Args:
        runtime: What computes the vectors; `None`: `add_metadata` will tell.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        shard_id: ShardId,
        run_id: RunId,
        model: str,
        model_id: str,
        dim: int,
        stored: str,
        spec: dict[str, Any],
        runtime: str | None = None,
    ) -> None:
        day = datetime.now(UTC).date()
        self.shard_id = shard_id
        self._storage = storage
        self._name = f"model_id={model_id}/date={day}/{shard_id}.parquet"
        self.uri = storage.uri(self._name)
        self.rows = 0
        self._waiting: list[EmbeddedImage] = []
        self._value_type = pa.float16() if stored == "float16" else pa.float32()
        self._dtype = np.float16 if stored == "float16" else np.float32
        self.schema = pa.schema(
            [
                pa.field("image_id", pa.int64(), nullable=False),
                pa.field("image_key", pa.string(), nullable=False),
                pa.field("url", pa.string(), nullable=False),
                pa.field(
                    "embedding",
                    pa.list_(pa.field("element", self._value_type, nullable=False), dim),
                    nullable=False,
                ),
                pa.field("content_sha256", pa.binary(32), nullable=False),
                pa.field("width", pa.int32(), nullable=False),
                pa.field("height", pa.int32(), nullable=False),
            ],
            metadata={
                "vsearch.version": __version__,
                "vsearch.pyarrow_version": pa.__version__,
                "vsearch.model": model,
                "vsearch.model_id": model_id,
                "vsearch.spec": json.dumps(spec, sort_keys=True),
                **({} if runtime is None else {"vsearch.runtime": runtime}),
                "vsearch.run_id": str(run_id),
                "vsearch.shard_id": str(shard_id),
            },
        )
        self._copied = self.schema.empty_table()
        self._writer: pq.ParquetWriter | None = None
        self._new: NewFile | None = None
        self._facts: dict[str, str] = {}

    def write(self, image: EmbeddedImage) -> int:
        """Append one row.

        Returns:
            Its position in the shard, from 0.

        Raises:
            StorageError: The disk does not take it.
        """
        self._waiting.append(image)
        position = self.rows
        self.rows += 1
        if len(self._waiting) >= _ROW_GROUP_ROWS:
            self._flush()
        return position

    def append(self, rows: pa.Table) -> None:
        """Append rows as other shards have them, to the bit; such a shard takes no images.

        Args:
            rows: Of the same columns.

        Raises:
            StorageError: The disk does not take it.
        """
        self.rows += rows.num_rows
        self._copied = pa.concat_tables(
            [self._copied, rows.replace_schema_metadata(self.schema.metadata)]
        )
        while self._copied.num_rows >= _ROW_GROUP_ROWS:
            self._write_group(self._copied.slice(0, _ROW_GROUP_ROWS))
            self._copied = self._copied.slice(_ROW_GROUP_ROWS)

    def add_metadata(self, facts: Mapping[str, str]) -> None:
        """Let the file say more of itself than was known when it was begun."""
        self._facts |= facts

    def finish(self) -> WrittenShard:
        """Make the file durable, then visible.

        Raises:
            StorageError: Some step failed; the partial file is gone, the name is not used again.
        """
        self._flush()
        try:
            assert self._new is not None and self._writer is not None  # noqa: S101, PT018 - rows > 0
            self._writer.add_key_value_metadata(self._facts)
            self._writer.close()
            self._writer = None
            file = self._new.file
            file.flush()
            os.fsync(file.fileno())
            size = file.seek(0, os.SEEK_END)
            digest = sha256_of(file)
            self._new.publish()
        except (OSError, pa.ArrowException, StorageError) as error:
            self.discard()
            raise StorageError(f"cannot finish {shown(self.uri)}: {words_of(error)}") from error
        return WrittenShard(
            shard_id=self.shard_id, uri=self.uri, rows=self.rows, bytes=size, sha256=digest
        )

    def discard(self) -> None:
        """Drop the file. One that is visible already is only gc's to delete."""
        self._waiting.clear()
        self._copied = self.schema.empty_table()
        # The disk may be full or gone, which is why the shard is dropped.
        with suppress(OSError, pa.ArrowException):
            if self._writer is not None:
                self._writer.close()
        if self._new is not None:
            self._new.discard()
        self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    def _flush(self) -> None:
        if self._waiting:
            self._write_group(self._table())
            self._waiting.clear()
        if self._copied.num_rows > 0:
            self._write_group(self._copied)
            self._copied = self.schema.empty_table()

    def _write_group(self, rows: pa.Table) -> None:
        try:
            if self._writer is None:
                self._open()
            self._writer.write_table(rows, row_group_size=_ROW_GROUP_ROWS)  # type: ignore[union-attr]  # just opened
        except (OSError, pa.ArrowException) as error:
            self.discard()
            raise StorageError(f"cannot write {shown(self.uri)}: {words_of(error)}") from error

    def _open(self) -> None:
        self._new = self._storage.begin(self._name)
        # Vectors do not repeat: a dictionary would only cost time.
        self._writer = pq.ParquetWriter(
            self._new.file, self.schema, compression="zstd", use_dictionary=False
        )

    def _table(self) -> pa.Table:
        rows = self._waiting
        values = np.concatenate([row.vector for row in rows]).astype(self._dtype, copy=False)
        list_type = self.schema.field("embedding").type
        columns = [
            pa.array([row.image.image_id for row in rows], pa.int64()),
            pa.array([row.image.image_key for row in rows], pa.string()),
            pa.array([row.image.url for row in rows], pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(values, self._value_type), type=list_type),
            pa.array([row.content_sha256 for row in rows], pa.binary(32)),
            pa.array([row.width for row in rows], pa.int32()),
            pa.array([row.height for row in rows], pa.int32()),
        ]
        return pa.Table.from_arrays(columns, schema=self.schema)
