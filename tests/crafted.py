"""A catalogue whose vectors no network computed: shards of any size in a moment."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tests.catalogue import add_images
from tests.end_to_end.workplace import TINY
from tests.shards import local_path
from visual_search import claim, models, record
from visual_search.claim import Suspicion
from visual_search.compaction import GroupResult, compact
from visual_search.database.connection import Database
from visual_search.images import EmbeddedImage, LeaseToken, RunId, ShardId, ShardRecord
from visual_search.models import registry
from visual_search.settings import ModelTable, StorageSettings
from visual_search.shard import ShardWriter, prepare_output
from visual_search.storage import Folder, Storage

RUN = RunId(uuid4())


def random_bits(image_id: int, dim: int) -> npt.NDArray[np.float32]:
    """`(dim,)` float32 of any kind: numbers, subnormal ones, infinities, NaNs with a payload."""
    return np.random.default_rng(image_id).integers(0, 1 << 32, dim, np.uint32).view(np.float32)


def random_half_bits(image_id: int, dim: int) -> npt.NDArray[np.float32]:
    """The same for what is stored in half the bits."""
    bits = np.random.default_rng(image_id).integers(0, 1 << 16, dim, np.uint16)
    return bits.view(np.float16).astype(np.float32)


class Crafted:
    """Runs of a model that never ran, in a folder or another storage.

    Attributes:
        model: As the table has it.
    """

    def __init__(
        self,
        database: Database,
        storage: Storage | Path,
        *,
        settings: StorageSettings | None = None,
        **table: Any,
    ) -> None:
        self.database = database
        self.storage: Storage = Folder(storage) if isinstance(storage, Path) else storage
        self.settings = settings or StorageSettings()
        tables = {"tiny": ModelTable(**(TINY | table))}
        spec = models.resolve("tiny", tables, precision="fp32", home=Path("/nowhere"))
        with database.transaction() as connection:
            self.model = registry.add(connection, spec)
            prepare_output(self.storage, record.catalogue_id(connection))
            ((self._images,),) = connection.exec_driver_sql("SELECT images FROM catalogue").all()

    def add(
        self,
        *sizes: int,
        vector: Callable[[int, int], npt.NDArray[np.float32]] = random_bits,
        runtime: str = "torch",
    ) -> list[ShardId]:
        """A committed shard for each size, of new images, as a run writes it."""
        return [self._add(rows, vector, runtime) for rows in sizes]

    def compact(
        self, *, below: int = 50, max_rows: int = 100, dry_run: bool = False
    ) -> list[GroupResult]:
        """As the command does it."""
        return list(
            compact(
                self.database,
                self.storage,
                [self.model],
                below=below,
                max_rows=max_rows,
                hold_s=60,
                settings=self.settings,
                dry_run=dry_run,
                tell=lambda _rows: None,
            )
        )

    def listed(self) -> list[ShardRecord]:
        with self.database.transaction() as connection:
            return record.list_shards(connection, model=self.model.model_id)

    def history(self) -> set[tuple[int, str, int, bytes]]:
        """Image, shard, row and content of what is done."""
        with self.database.transaction() as connection:
            rows = connection.exec_driver_sql(
                "SELECT image_id, shard_id, row_in_shard, content_sha256 FROM extractions "
                f"WHERE model_key = {self.model.model_key} AND status = 'done'"
            )
            return {(row[0], str(row[1]), row[2], bytes(row[3])) for row in rows}

    def _add(
        self, rows: int, vector: Callable[[int, int], npt.NDArray[np.float32]], runtime: str
    ) -> ShardId:
        add_images(self.database, rows, start=self._images)
        self._images += rows
        token, shard_id = LeaseToken(uuid4()), ShardId(uuid4())
        with self.database.transaction() as connection:
            claim.open_lease(
                connection,
                token=token,
                model_key=self.model.model_key,
                run_id=RUN,
                lease_s=60,
            )
            while claim.seed_images(connection, self.model.model_key):
                pass
            images = claim.claim_images(
                connection,
                token=token,
                model_key=self.model.model_key,
                rows=rows,
                suspicion=Suspicion.NONE,
            )
        assert len(images) == rows
        spec = self.model.spec
        writer = ShardWriter(
            self.storage,
            shard_id=shard_id,
            run_id=RUN,
            model=spec.name,
            model_id=spec.model_id,
            dim=spec.dim,
            stored=spec.stored,
            spec=spec.to_json(),
            runtime=runtime,
        )
        written = []
        for image in images:
            content = image.image_id.to_bytes(32, "big")
            embedded = EmbeddedImage(
                image=image,
                vector=vector(image.image_id, spec.dim),
                content_sha256=content,
                width=image.image_id,
                height=2,
            )
            written.append(
                record.RecordedRow(
                    image_id=image.image_id,
                    row_in_shard=writer.write(embedded),
                    content_sha256=content,
                )
            )
        with self.database.transaction() as connection:
            record.begin_shard(
                connection,
                shard_id=shard_id,
                model_key=self.model.model_key,
                uri=writer.uri,
                run_id=RUN,
            )
            record.commit_shard(
                connection,
                token=token,
                model_key=self.model.model_key,
                shard=writer.finish(),
                rows=written,
            )
            claim.close_lease(connection, token)
        return shard_id


def rows_of(shards: Sequence[ShardRecord]) -> list[tuple[Any, ...]]:
    """Every row of these shards, in their order; vectors as bytes."""
    found: list[tuple[Any, ...]] = []
    for shard in shards:
        table = pq.read_table(local_path(shard.uri), partitioning=None)
        vectors = _bytes_of(table.column("embedding").combine_chunks())
        others = table.drop_columns(["embedding"]).to_pylist()
        found += [(*row.values(), vector) for row, vector in zip(others, vectors, strict=True)]
    return found


def _bytes_of(vectors: pa.FixedSizeListArray) -> list[bytes]:
    values = vectors.flatten().to_numpy(zero_copy_only=False)
    return [row.tobytes() for row in values.reshape(len(vectors), -1)]
