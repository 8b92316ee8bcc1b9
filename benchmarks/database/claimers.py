"""Many processes that only claim, as fast as they can."""

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from typing import Final

from sqlalchemy import text

from benchmarks.database import tables
from benchmarks.database.figures import Figure
from benchmarks.database.worker import Worker
from visual_search.database.connection import Database
from visual_search.images import ModelKey

CLAIMERS: Final = 32
# As the pipeline claims.
_CLAIM_ROWS: Final = 256


def claimers(database: Database, url: str, model_key: ModelKey, images: int) -> Iterator[Figure]:
    """Their rate in sum, beside that of one alone; and how many images two of them got."""
    tables.sweep(url, f"extractions_{model_key}")
    rows = min(100_000, images)
    alone, _ = _claim_together(url, model_key, 1, rows // 4)
    _give_back(database, model_key)
    tables.sweep(url, f"extractions_{model_key}")
    together, twice = _claim_together(url, model_key, CLAIMERS, rows)
    _give_back(database, model_key)
    yield Figure(
        name=f"{CLAIMERS} claimers in sum",
        unit="rows/s",
        reached=together,
        wanted=5_000,
        at_least=True,
        calibration="one claimer alone",
        calibrated=alone,
    )
    yield Figure(
        name=f"images that two of {CLAIMERS} claimers got",
        unit="images",
        reached=twice,
        wanted=0,
        calibration="",
        calibrated=0,
    )


def _claim_together(url: str, model_key: ModelKey, count: int, rows: int) -> tuple[float, int]:
    """Rows/s in sum, and how many rows were claimed more than once."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(count)
    answers: multiprocessing.SimpleQueue[tuple[float, float, list[int]]] = context.SimpleQueue()
    claims = max(1, rows // count // _CLAIM_ROWS)
    workers = [
        context.Process(target=_claim, args=(url, model_key, claims, ready, answers))
        for _ in range(count)
    ]
    for worker in workers:
        worker.start()
    found = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    images = [image for _, _, claimed in found for image in claimed]
    seconds = max(end for _, end, _ in found) - min(begin for begin, _, _ in found)
    return len(images) / seconds, len(images) - len(set(images))


def _claim(
    url: str,
    model_key: ModelKey,
    claims: int,
    ready: Barrier,
    answers: "multiprocessing.SimpleQueue[tuple[float, float, list[int]]]",
) -> None:
    database = Database(url, schema="vsearch", outage_s=0)
    worker = Worker(database=database, model_key=model_key)
    with database.transaction():
        pass  # connected
    ready.wait()
    begin = time.monotonic()
    for _ in range(claims):
        worker.claim(_CLAIM_ROWS)
    answers.put((begin, time.monotonic(), [image.image_id for image in worker.images]))
    database.close()


def _give_back(database: Database, model_key: ModelKey) -> None:
    with database.transaction() as connection:
        connection.execute(
            text("""
                UPDATE extractions SET status = 'pending', lease_token = NULL
                WHERE status = 'claimed' AND lease_token IN (
                    SELECT lease_token FROM leases WHERE model_key = :model_key);
                DELETE FROM leases WHERE model_key = :model_key
            """),
            {"model_key": model_key},
        )
