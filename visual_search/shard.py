"""Parquet shards: write one under a name that is never used again, read it, verify it."""

import hashlib
import json
import os
import re
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit
from uuid import UUID, uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from visual_search import __version__
from visual_search.errors import StorageError, UsageError
from visual_search.images import EmbeddedImage, RunId, ShardId, ShardRecord, WrittenShard

FOLDER_MARKER: Final = "_vsearch.json"
_ROW_GROUP_ROWS: Final = 1_000
_OUR_NAME: Final = re.compile(
    r"(?:\.(?=.*\.partial$))?(?P<shard_id>[0-9a-f-]{36})\.parquet(?:\.partial)?"
)


def output_folder(output: str) -> Path:
    """The folder an output setting names: a path or a `file://` URI.

    Raises:
        UsageError: It is the address of an object store.
    """
    parts = urlsplit(output)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts.scheme and "://" in output:
        raise UsageError(
            f"output {parts.scheme}://… is not supported by this version; name a folder"
        )
    return Path(output).absolute()


def prepare_output(folder: Path, catalogue_id: UUID) -> None:
    """Make the folder, prove that it can be written, and mark it as this catalogue's.

    Raises:
        StorageError: It cannot be written.
        UsageError: It holds the vectors of another catalogue; image ids would be mixed up.
    """
    marker = folder / FOLDER_MARKER
    content = json.dumps({"catalogue_id": str(catalogue_id)}).encode() + b"\n"
    # Workers in containers have one folder and the same process number.
    partial = folder / f".{FOLDER_MARKER}.{uuid4()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if marker.exists():
            # A file without a name, of which nothing is left if this process is killed.
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(content)
        else:
            partial.write_bytes(content)
            partial.replace(marker)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise StorageError(
            f"cannot write vectors to {folder}: {_words(error)}; --output names another folder"
        ) from error
    check_owner(folder, catalogue_id)


def check_owner(folder: Path, catalogue_id: UUID) -> None:
    """Raise `UsageError` unless the folder is marked as this catalogue's."""
    try:
        owner = json.loads((folder / FOLDER_MARKER).read_text())["catalogue_id"]
    except FileNotFoundError:
        raise UsageError(f"{folder} is no folder of vectors: it has no {FOLDER_MARKER}") from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UsageError(f"cannot read {folder / FOLDER_MARKER}: {_words(error)}") from error
    if owner != str(catalogue_id):
        raise UsageError(
            f"{folder} holds the vectors of another catalogue ({owner}); "
            "--output names another folder"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardFile:
    """A file that a writer of shards made, finished or not.

    Attributes:
        modified_at: Seconds since 1970 by the file system's clock.
    """

    path: Path
    shard_id: ShardId
    bytes: int
    modified_at: float


def list_files(folder: Path) -> list[ShardFile]:
    """All files under `folder` that have a name of ours; no others."""
    found = []
    for path in sorted(folder.glob("model_id=*/date=*/*.parquet*")):
        named = _OUR_NAME.fullmatch(path.name)
        if named is None:
            continue
        with suppress(FileNotFoundError):  # renamed or deleted since it was listed
            facts = path.stat()
            found.append(
                ShardFile(
                    path=path,
                    shard_id=ShardId(UUID(named["shard_id"])),
                    bytes=facts.st_size,
                    modified_at=facts.st_mtime,
                )
            )
    return found


class ShardWriter:
    """One shard: rows go to a hidden partial file in row groups; `finish` makes it visible.

    Not thread-safe. Nothing is kept in memory but the rows of the next row group.
    """

    def __init__(
        self,
        folder: Path,
        *,
        shard_id: ShardId,
        run_id: RunId,
        model: str,
        model_id: str,
        dim: int,
        stored: str,
        spec: dict[str, Any],
        runtime: str,
    ) -> None:
        day = datetime.now(UTC).date()
        self.shard_id = shard_id
        self.path = folder / f"model_id={model_id}" / f"date={day}" / f"{shard_id}.parquet"
        self.rows = 0
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self._waiting: list[EmbeddedImage] = []
        self._value_type = pa.float16() if stored == "float16" else pa.float32()
        self._dtype = np.float16 if stored == "float16" else np.float32
        self._schema = pa.schema(
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
                "vsearch.runtime": runtime,
                "vsearch.run_id": str(run_id),
                "vsearch.shard_id": str(shard_id),
            },
        )
        self._writer: pq.ParquetWriter | None = None
        self._file: Any = None

    @property
    def uri(self) -> str:
        """`file:///absolute/path`."""
        return self.path.as_uri()

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

    def finish(self) -> WrittenShard:
        """Make the file durable, then visible.

        Raises:
            StorageError: Some step failed; the partial file is gone, the name is not used again.
        """
        self._flush()
        try:
            self._writer.close()  # type: ignore[union-attr]  # rows > 0, so it is open
            self._writer = None
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            digest = file_sha256(self._partial)
            size = self._partial.stat().st_size
            self._partial.replace(self.path)
            # The rename lasts only once the folder is synced. Without this, a power cut after
            # the database commit leaves a recorded shard that is not there.
            _sync_folder(self.path.parent)
        except (OSError, pa.ArrowException) as error:
            self.discard()
            raise StorageError(f"cannot finish {self.path}: {_words(error)}") from error
        return WrittenShard(
            shard_id=self.shard_id, uri=self.uri, rows=self.rows, bytes=size, sha256=digest
        )

    def discard(self) -> None:
        """Drop the partial file. A file that is already visible is only gc's to delete."""
        self._waiting.clear()
        # The disk may be full or gone, which is why the shard is dropped.
        with suppress(OSError, pa.ArrowException):
            if self._writer is not None:
                self._writer.close()
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
        with suppress(OSError):
            self._partial.unlink()
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
        if not self._waiting:
            return
        try:
            if self._writer is None:
                self._open()
            self._writer.write_table(self._table(), row_group_size=_ROW_GROUP_ROWS)  # type: ignore[union-attr]  # just opened
        except (OSError, pa.ArrowException) as error:
            self.discard()
            raise StorageError(f"cannot write {self.path}: {_words(error)}") from error
        self._waiting.clear()

    def _open(self) -> None:
        made = [
            folder for folder in (self.path.parent, self.path.parent.parent) if not folder.exists()
        ]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for folder in made:
            _sync_folder(folder.parent)
        self._file = self._partial.open("wb")
        # Vectors do not repeat: a dictionary would only cost time.
        self._writer = pq.ParquetWriter(
            self._file, self._schema, compression="zstd", use_dictionary=False
        )

    def _table(self) -> pa.Table:
        rows = self._waiting
        values = np.concatenate([row.vector for row in rows]).astype(self._dtype, copy=False)
        list_type = self._schema.field("embedding").type
        columns = [
            pa.array([row.image.image_id for row in rows], pa.int64()),
            pa.array([row.image.image_key for row in rows], pa.string()),
            pa.array([row.image.url for row in rows], pa.string()),
            pa.FixedSizeListArray.from_arrays(pa.array(values, self._value_type), type=list_type),
            pa.array([row.content_sha256 for row in rows], pa.binary(32)),
            pa.array([row.width for row in rows], pa.int32()),
            pa.array([row.height for row in rows], pa.int32()),
        ]
        return pa.Table.from_arrays(columns, schema=self._schema)


def read_vectors(uri: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """The ids and vectors of one shard.

    Returns:
        `(N,)` int64 image ids and `(N, D)` float32 vectors, in the shard's order.
    """
    table = pq.read_table(local_path(uri), columns=["image_id", "embedding"])
    embedding = table.column("embedding").combine_chunks()
    vectors = embedding.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    ids = table.column("image_id").to_numpy()
    return ids, vectors.reshape(len(ids), -1)


def find_damage(record: ShardRecord) -> str | None:
    """What is wrong with a committed shard's file, `None` if it is as recorded."""
    path = local_path(record.uri)
    try:
        size = path.stat().st_size
        if size != record.bytes:
            return f"{size} bytes, recorded {record.bytes}"
        digest = file_sha256(path)
        if digest != record.sha256:
            return f"sha256 {digest[:12]}…, recorded {record.sha256[:12]}…"
        rows = pq.read_metadata(path).num_rows
    except FileNotFoundError:
        return "the file is missing"
    except (OSError, pa.ArrowException) as error:
        return f"cannot be read: {_words(error)}"
    return None if rows == record.rows else f"{rows} rows, recorded {record.rows}"


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_path(uri: str) -> Path:
    """The path of a `file://` URI."""
    return Path(unquote(urlsplit(uri).path))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _words(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
