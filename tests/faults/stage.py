"""A workplace whose workers are hurt, and what must hold afterwards."""

import asyncio
import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import torch
from aiohttp import web
from PIL import Image

from tests.catalogue import add_urls
from tests.end_to_end.workplace import Workplace, jpeg
from tests.faults.workers import Nursery, Worker, wait_until
from tests.server import ImageServer
from tests.shards import local_path, paths_in
from visual_search import models, record, upkeep
from visual_search.claim import DEATHS_TO_FAIL
from visual_search.database.connection import Database
from visual_search.embed import Embedder
from visual_search.settings import StorageSettings
from visual_search.status import ModelStatus
from visual_search.storage import Folder

# Leases that end soon, small shards and few images in flight, so that there is much to interrupt.
HASTE = {
    "VSEARCH_DATABASE__OUTAGE_S": "60",
    "VSEARCH_DOWNLOAD__CONCURRENCY": "4",
    "VSEARCH_DOWNLOAD__DEADLINE_S": "20",
    "VSEARCH_DOWNLOAD__PER_HOST": "4",
    "VSEARCH_EMBED__BATCH_SIZE": "8",
    "VSEARCH_EXTRACT__LEASE_S": "1",
    "VSEARCH_EXTRACT__SHARD_ROWS": "20",
    "VSEARCH_EXTRACT__WAIT_S": "30",
    "OMP_NUM_THREADS": "1",
}
_HASTEN = {"function": "tests.faults.points:hasten", "with": {}}


class Stage(Workplace):
    """A catalogue on a server of its own, and workers from the nursery.

    Attributes:
        bodies: What the server sends for each URL.
    """

    def __init__(
        self, home: Path, database: Database, url: str, server: ImageServer, nursery: Nursery
    ) -> None:
        super().__init__(home, database, url, server)
        self.nursery = nursery
        self.bodies: dict[str, bytes] = {}
        self._allowed = math.inf

    def publish_slowly(self, count: int, *, delay_s: float, start: int = 0) -> list[str]:
        """Put pictures on the server, which takes its time, and into the catalogue."""
        urls = [self.serve(number, delay_s=delay_s) for number in range(start, start + count)]
        add_urls(self.database, urls)
        return urls

    def serve(self, number: int, *, delay_s: float = 0, body: bytes | None = None) -> str:
        """Put one picture on the server only; another one for each number."""
        sent = jpeg(number) if body is None else body
        path = f"/{number}.jpg"

        async def answer(_request: web.BaseRequest) -> web.StreamResponse:
            number = self.server.hits.total()
            await asyncio.sleep(delay_s)
            while number > self._allowed:  # noqa: ASYNC110 - the test's thread decides
                await asyncio.sleep(0.01)
            return web.Response(body=sent, content_type="image/jpeg")

        self.server.route(path, answer)
        self.bodies[self.server.url(path)] = sent
        return self.server.url(path)

    def import_urls(self, urls: Sequence[str]) -> None:
        """Into the catalogue as users do it, so that it knows each image's host."""
        file = self.home / "urls.txt"
        file.write_text("\n".join(urls))
        self.work("catalog", "import", str(file)).ends(0)

    @cached_property
    def variables(self) -> dict[str, str]:
        """The environment of all workers; made once, since they read the file it names."""
        return self.environment() | HASTE

    def work(
        self,
        *arguments: str,
        patches: Sequence[Mapping[str, Any]] = (),
        **variables: str,
    ) -> Worker:
        """Start `vsearch extract` on the model `tiny`, or another command."""
        return self.nursery.bear(
            *(arguments or ("extract", "--model", "tiny")),
            environment=self.variables | variables,
            patches=[_HASTEN, *patches],
        )

    def call(
        self, function: str, *, patches: Sequence[Mapping[str, Any]] = (), **given: Any
    ) -> Worker:
        """Start a process that calls `module:name` with what is given."""
        return self.nursery.bear(
            environment=self.variables,
            patches=patches,
            call={"function": function, "with": given},
        )

    @property
    def folder(self) -> Path:
        """Where shards are written."""
        return self.home / "vectors"

    def done(self, model: str = "tiny") -> int:
        return self.status(model).done

    def recorded(self) -> int:
        """Rows of committed shards."""
        ((rows,),) = self.rows(
            "SELECT coalesce(sum(rows), 0) FROM shards WHERE state = 'committed'"
        )
        return int(rows)

    def claims(self) -> int:
        ((claimed,),) = self.rows("SELECT count(*) FROM extractions WHERE status = 'claimed'")
        return int(claimed)

    def hold_back(self) -> None:
        """Before workers start: answer no download but those that the test lets through.

        However slow this machine is at the moment, the work is then not over before its time.
        """
        self._allowed = 0
        self.variables["VSEARCH_DOWNLOAD__DEADLINE_S"] = "300"

    def let_through(self, count: float = math.inf) -> None:
        """Let the server answer so many downloads more than it was asked for until now."""
        self._allowed = max(self._allowed, self.server.hits.total() + count)

    def wait_for_downloads(self, count: int) -> None:
        """Until so many more were asked for: a moment that progress decides, not a clock."""
        moment = self.server.hits.total() + count
        self.let_through(count)
        wait_until(lambda: self.server.hits.total() >= moment, f"{count} more downloads")

    def freeze_one(self, workers: Sequence[Worker], *, within: int) -> Worker:
        """Freeze one of them at a moment that their progress decides, to be killed.

        Args:
            workers: All that are at work.
            within: How many downloads from now it happens at the latest.
        """
        while True:
            self.wait_for_downloads(random.randint(1, within))
            victim = random.choice([worker for worker in workers if not worker.has_ended])
            if not victim.freeze():
                continue
            if not self._is_on_the_brink(victim):
                return victim
            victim.thaw()

    def _is_on_the_brink(self, worker: Worker) -> bool:
        """Whether another death of this worker would condemn an image.

        An image whose worker died four times, alone with it both last times, is given up; by
        design, and chance must not choose that one.
        """
        ((brink,),) = self.rows(
            """
            SELECT EXISTS (
                SELECT FROM extractions e JOIN leases USING (lease_token) JOIN runs USING (run_id)
                WHERE runs.pid = :pid AND e.status = 'claimed' AND e.crashes >= :deaths - 1
            )
            """,
            pid=worker.pid,
            deaths=DEATHS_TO_FAIL,
        )
        return bool(brink)

    def assert_whole(
        self,
        *,
        failed: Mapping[str, str] | None = None,
        model: str = "tiny",
    ) -> None:
        """Every image is embedded exactly once, nothing is left over, and all agree about it.

        Args:
            failed: Reasons of the images that cannot be embedded, by URL.
            model: Of which model.
        """
        failed = failed or {}
        self._assert_settled(self.status(model), len(failed))
        assert self.rows("SELECT count(*) FROM leases") == [(0,)]
        history = self._history(model)
        reasons = {url: why for url, why, *_ in history if why is not None}
        assert reasons == dict(failed), set(reasons.items()) ^ set(failed.items())
        self._assert_shards_hold(model, [row[2:] for row in history if row[1] is None])
        self._assert_garbage_is_what_the_table_does_not_list()

    def _assert_settled(self, status: ModelStatus, failed: int) -> None:
        found = (status.done, status.pending, status.claimed, status.failed)
        assert found == (status.total - failed, 0, 0, failed), (found, status)

    def _history(self, model: str) -> list[tuple[Any, ...]]:
        history = self.rows(
            """
            SELECT i.url, e.failure_reason, i.image_id, e.shard_id, e.row_in_shard,
                   e.content_sha256, i.url
            FROM images i
            JOIN extractions e USING (image_id) JOIN models m USING (model_key)
            WHERE m.name = :model AND m.active
            """,
            model=model,
        )
        ((images,),) = self.rows("SELECT count(*) FROM images")
        assert len(history) == images
        return history

    def _assert_shards_hold(self, model: str, done: list[tuple[Any, ...]]) -> None:
        with self.database.transaction() as connection:
            shards = record.list_shards(connection, model=model)
        assert upkeep.find_damaged(shards, StorageSettings()) == []
        assert sum(shard.rows for shard in shards) == len(done)
        if not shards:
            return
        paths = [str(local_path(shard.uri)) for shard in shards]
        held = duckdb.execute(f"""
            SELECT image_id, regexp_extract(filename, '([0-9a-f-]{{36}})\\.parquet$', 1),
                   file_row_number, content_sha256, url, embedding
            FROM read_parquet({paths}, filename = true, file_row_number = true)
        """).fetchall()
        assert sorted(row[:5] for row in held) == sorted(
            (image_id, str(shard_id), row, bytes(digest), url)
            for image_id, shard_id, row, digest, url in done
        )
        for row in held:
            body = self.bodies.get(row[4])
            if body is not None:
                assert row[3] == hashlib.sha256(body).digest()
        self._assert_vectors(model, {row[4]: row[5] for row in held})

    def _assert_vectors(self, model: str, vectors: Mapping[str, Sequence[float]]) -> None:
        known = [url for url in vectors if url in self.bodies]
        if not known:
            return
        computed = self.embed(model, [self.bodies[url] for url in known])
        np.testing.assert_allclose([vectors[url] for url in known], computed, atol=1e-4)

    def embed(self, model: str, bodies: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """`(N, D)` vectors of encoded images, made without the pipeline."""
        spec = models.resolve(model, self.settings().models, precision="fp32", home=self.home)
        embedder = Embedder(spec, None, torch.device("cpu"))
        pictures = [np.asarray(Image.open(BytesIO(body)).convert("RGB")) for body in bodies]
        return embedder.embed(torch.stack([embedder.prepare(picture) for picture in pictures]))

    def _assert_garbage_is_what_the_table_does_not_list(self) -> None:
        with self.database.transaction() as connection:
            listed = {local_path(s.uri) for s in record.list_shards(connection)}
        there = paths_in(self.folder)
        assert listed <= there
        assert self.collect_garbage(delete=False) == there - listed
        assert paths_in(self.folder) == there
        assert self.collect_garbage(delete=True) == there - listed
        assert paths_in(self.folder) == listed
        self._assert_only_ours_lies_there(listed)

    def _assert_only_ours_lies_there(self, listed: set[Path]) -> None:
        files = {path for path in self.folder.rglob("*") if path.is_file()}
        assert files - listed == {self.folder / "_vsearch.json"}

    def collect_garbage(self, *, delete: bool) -> set[Path]:
        """What `shards gc` finds, however young."""
        found = upkeep.collect_garbage(
            self.database, Folder(self.folder), grace_s=0, superseded_grace_s=0, delete=delete
        )
        return {Path(garbage.path) for garbage in found}
