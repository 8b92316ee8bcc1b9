"""Each stage of vsearch alone, with its own parts: core-seconds an image.

The network is measured by `inference_alone`. Their sum is what an image costs; a machine that
never waits and wastes nothing makes `cores / sum` images a second.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self
from uuid import UUID, uuid4

import numpy as np
from sqlalchemy import Connection, text
from torch import Tensor

from benchmarks.throughput.job import Job
from benchmarks.throughput.network import spec_and_weights
from visual_search import claim, record, runs
from visual_search.catalog.readers import open_file
from visual_search.catalog.store import import_images
from visual_search.claim import Suspicion
from visual_search.database.connection import Database, open_database
from visual_search.decode import DecoderProcess, Picture
from visual_search.download import Downloader
from visual_search.embed import prepare
from visual_search.images import ClaimedImage, Download, EmbeddedImage, LeaseToken, RunId, ShardId
from visual_search.models import registry
from visual_search.models.registry import RegisteredModel
from visual_search.settings import Settings, load_settings
from visual_search.shard import ShardWriter
from visual_search.storage import Folder

_CLAIM_ROWS = 256


def main() -> None:
    job = Job.of_command_line()
    bodies, download_s = download(job)
    _, decode_s = prepared(job, bodies)
    write_s, database_s = _written_and_recorded(job)
    images = len(job.urls)
    job.write_notes(
        core_seconds_per_stage={
            "download": download_s / images,
            "decode": decode_s / images,
            "write": write_s / images,
            "database": database_s / images,
        }
    )


def download(job: Job) -> tuple[list[Download], float]:
    """All images of the job, in its order, and the core-seconds that took."""

    async def fetch_all() -> list[Download]:
        async with Downloader(load_settings(job.config).download) as downloader:
            return await asyncio.gather(*map(downloader.fetch, job.urls))

    started = time.process_time()
    bodies = asyncio.run(fetch_all())
    return bodies, time.process_time() - started


def prepared(job: Job, bodies: Sequence[Download]) -> tuple[list[Tensor], float]:
    """The images in the network's size, and the core-seconds that took, the child's included."""
    limits = load_settings(job.config).decode
    spec, _ = spec_and_weights(job)

    def to_tensor(picture: Picture) -> Tensor:
        return prepare(picture.pixels, spec.preprocessing)

    with DecoderProcess(max_pixels=limits.max_pixels, timeout_s=limits.timeout_s) as decoder:
        # The child has started once it has answered.
        decoder.decode(bodies[0].body, to_tensor, least_px=spec.least_px)
        started = time.process_time() + decoder.cpu_seconds
        pixels = [decoder.decode(body.body, to_tensor, least_px=spec.least_px) for body in bodies]
        return pixels, time.process_time() + decoder.cpu_seconds - started


def _written_and_recorded(job: Job) -> tuple[float, float]:
    """Core-seconds of the shard's file, and of the database: its client and its server."""
    settings = load_settings(job.config, home=job.folder / "home")
    spec, _ = spec_and_weights(job)
    urls = job.folder / "urls.txt"
    urls.write_text("\n".join(job.urls))
    with open_database(settings, create=True) as database:
        with open_file(str(urls)) as source:
            import_images(database, source)
        model = database.run(lambda connection: registry.register(connection, spec, asked=True))
        run_id = RunId(uuid4())
        database.run(lambda c: runs.start_run(c, run_id=run_id, model_key=model.model_key))
        started = time.process_time() + _server_core_seconds(database)
        write_s = _record_all(database, settings, model, run_id, job.folder)
        spent = time.process_time() + _server_core_seconds(database) - started
        return write_s, spent - write_s


def _record_all(
    database: Database, settings: Settings, model: RegisteredModel, run_id: RunId, folder: Path
) -> float:
    """Claim all images and record them in one shard, as the pipeline does.

    Returns:
        Core-seconds of writing the file.
    """
    token = LeaseToken(uuid4())

    def claim_next(connection: Connection) -> list[ClaimedImage]:
        return claim.claim_images(
            connection,
            token=token,
            model_key=model.model_key,
            rows=_CLAIM_ROWS,
            suspicion=Suspicion.NONE,
        )

    database.run(
        lambda connection: claim.open_lease(
            connection,
            token=token,
            model_key=model.model_key,
            run_id=run_id,
            lease_s=settings.extract.lease_s,
        )
    )
    database.run(lambda connection: claim.seed_images(connection, model.model_key))
    images: list[ClaimedImage] = []
    while claimed := database.run(claim_next):
        images += claimed
    writer = ShardWriter(
        Folder(folder),
        shard_id=ShardId(UUID(int=1)),
        run_id=run_id,
        model=model.name,
        model_id=model.model_id,
        dim=model.dim,
        stored=model.spec.stored,
        spec=model.spec.to_json(),
        runtime="torch",
    )
    database.run(
        lambda connection: record.begin_shard(
            connection,
            shard_id=writer.shard_id,
            model_key=model.model_key,
            uri=writer.uri,
            run_id=run_id,
        )
    )
    vectors = np.random.default_rng(0).random((len(images), model.dim), np.float32)
    started = time.process_time()
    rows = [
        record.RecordedRow(
            image_id=image.image_id,
            row_in_shard=writer.write(
                EmbeddedImage(
                    image=image, vector=vector, content_sha256=bytes(32), width=1, height=1
                )
            ),
            content_sha256=bytes(32),
        )
        for image, vector in zip(images, vectors, strict=True)
    ]
    shard = writer.finish()
    write_s = time.process_time() - started

    def commit(connection: Connection) -> None:
        claim.lock_lease(connection, token)
        record.commit_shard(
            connection, token=token, model_key=model.model_key, shard=shard, rows=rows
        )
        claim.close_lease(connection, token)

    database.run(commit)
    return write_s


def _server_core_seconds(database: Database) -> float:
    """Of all processes of the Postgres server so far; 0 where there is no /proc to tell it."""
    backend = database.run(lambda c: c.execute(text("SELECT pg_backend_pid()")).scalar_one())
    processes = {
        int(path.parent.name): _Process.of(path.read_text())
        for path in Path("/proc").glob("[0-9]*/stat")
    }
    if backend not in processes:
        return 0.0
    postmaster = processes[backend].parent
    ticks = processes[postmaster].ticks_with_ended_children + sum(
        process.ticks for process in processes.values() if process.parent == postmaster
    )
    return ticks / os.sysconf("SC_CLK_TCK")


class _Process(NamedTuple):
    """What `/proc/PID/stat` tells of a process."""

    parent: int
    ticks: int
    ticks_with_ended_children: int

    @classmethod
    def of(cls, stat: str) -> Self:
        # The name, in parentheses, may hold anything.
        fields = stat.rpartition(")")[2].split()
        user, system, ended_user, ended_system = map(int, fields[11:15])
        return cls(int(fields[1]), user + system, user + system + ended_user + ended_system)


if __name__ == "__main__":
    main()
