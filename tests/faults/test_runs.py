"""Whole runs that must do exactly so much: nothing, so many requests, two models, no leak."""

import itertools
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from aiohttp import web
from sqlalchemy import text

from tests.catalogue import add_urls
from tests.end_to_end.workplace import TINY, jpeg
from tests.faults.big import add_many_images
from tests.faults.stage import Stage
from tests.faults.watching import Watch
from tests.server import ImageServer


@pytest.mark.parametrize("images", [2_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_a_run_over_what_is_done_does_nothing(stage: Stage, images: int) -> None:
    stage.publish_slowly(1, delay_s=0)
    stage.work().ends(0)
    stage.server.forget()
    _pretend_to_be_done(stage, images)
    before = stage.rows("SELECT count(*) FROM shards")
    begun = time.monotonic()
    end = stage.work().ends(0)
    print(f"nothing to do for {images:,} images: {time.monotonic() - begun:.2f} s")
    assert "nothing to do" in end.out
    assert stage.server.hits.total() == stage.server.connections == 0
    assert stage.rows("SELECT count(*) FROM shards") == before
    assert stage.rows("SELECT count(*) FROM runs") == [(1,)]


def _pretend_to_be_done(stage: Stage, images: int) -> None:
    add_many_images(stage.database, images)
    with stage.database.transaction() as connection:
        connection.execute(
            text("""
                WITH shard AS (
                    INSERT INTO shards
                        (shard_id, model_key, uri, rows, bytes, sha256, run_id, state)
                    SELECT gen_random_uuid(), model_key, 'file:///x', :images, 1, '',
                           gen_random_uuid(), 'committed'
                    FROM models RETURNING shard_id, model_key
                ), history AS (
                    INSERT INTO extractions (model_key, image_id, status, shard_id)
                    SELECT model_key, image_id, 'done', shard_id
                    FROM shard, images WHERE image_id > 1
                )
                UPDATE models SET seeded_to = (SELECT max(image_id) FROM images)
            """),
            {"images": images},
        )


def test_tries_and_attempts_are_counted_exactly(stage: Stage) -> None:
    """Three tries a claim, two claims, then never again; a verdict after one."""
    tries, attempts = 3, 2
    asked = itertools.count(1)

    async def at_the_last(_request: web.BaseRequest) -> web.Response:
        last = next(asked) == tries * attempts
        return web.Response(body=jpeg(7)) if last else web.Response(status=503)

    # Two hosts, since one that fails ten times in a row would be left alone.
    with ImageServer() as second:
        stage.server.serve("/busy.jpg", b"", status=503)
        second.route("/late.jpg", at_the_last)
        busy, late = stage.server.url("/busy.jpg"), second.url("/late.jpg")
        missing = second.url("/missing.jpg")
        stage.bodies[late] = jpeg(7)
        stage.publish_slowly(5, delay_s=0)
        add_urls(stage.database, [busy, missing, late])
        for _ in range(3):
            stage.work(
                VSEARCH_DOWNLOAD__TRIES=str(tries),
                VSEARCH_EXTRACT__MAX_ATTEMPTS=str(attempts),
                VSEARCH_EXTRACT__BACKOFF_S="0.1",
            ).ends(0)
    assert stage.server.hits["/busy.jpg"] == tries * attempts
    assert second.hits == {"/late.jpg": tries * attempts, "/missing.jpg": 1}
    stage.assert_whole(failed={busy: "server_error", missing: "not_found"})


@pytest.mark.parametrize("images", [150, pytest.param(2_000, marks=pytest.mark.long)])
def test_two_models_at_once_mix_nothing_up(stage: Stage, images: int) -> None:
    stage.models["other"] = TINY | {"builder": "tests.faults.models:build_other"}
    stage.publish_slowly(images, delay_s=0)
    workers = [
        stage.work("extract", "--model", model, VSEARCH_EXTRACT__LEASE_S="30")
        for model in ("tiny", "other", "tiny", "other")
    ]
    for worker in workers:
        worker.ends(0, patience_s=300)
    assert set(stage.server.hits.values()) == {2}
    for model in ("tiny", "other"):
        stage.assert_whole(model=model)
    vectors = stage.embed("tiny", [jpeg(0)]), stage.embed("other", [jpeg(0)])
    assert not np.allclose(*vectors, atol=1e-3), "a mix-up would be seen"


class Size(NamedTuple):
    images: int
    memory_kb: int
    files: int


@pytest.mark.long
def test_memory_and_files_do_not_grow_with_the_images(stage: Stage) -> None:
    images = 20_000
    for n in range(10):
        stage.serve(n)
    add_urls(stage.database, [stage.server.url(f"/{n % 10}.jpg?{n}") for n in range(images)])
    worker = stage.work(
        VSEARCH_DOWNLOAD__CONCURRENCY="64",
        VSEARCH_DOWNLOAD__PER_HOST="64",
        VSEARCH_EXTRACT__LEASE_S="30",
        VSEARCH_EXTRACT__SHARD_ROWS="500",
    )
    process = Path(f"/proc/{worker.pid}")

    def look() -> Size | None:
        try:
            status = (process / "status").read_text()
            files = len(list((process / "fd").iterdir()))
        except (FileNotFoundError, ProcessLookupError):
            return None
        if "VmRSS" not in status:
            return None
        memory_kb = int(status.split("VmRSS:")[1].split()[0])
        return Size(stage.server.hits.total(), memory_kb, files)

    with Watch(look) as watch:
        worker.ends(0, patience_s=1200)
    warm = [size for size in watch.seen if size is not None and size.images > images // 4]
    slope, start = np.polyfit([s.images for s in warm], [s.memory_kb for s in warm], 1)
    growth = slope * 10_000 / (start + slope * images / 4)
    half = len(warm) // 2
    files = [max(size.files for size in part) for part in (warm[:half], warm[half:])]
    print(
        f"{images:,} images: {warm[-1].memory_kb / 1024:.0f} MB, growth {100 * growth:.2f} % for "
        f"10,000 images, at most {files[0]} then {files[1]} files"
    )
    assert growth <= 0.01
    assert files[1] <= files[0] + 2
