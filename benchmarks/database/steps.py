"""The steps of a run in a large catalogue, one by one."""

import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from benchmarks.database import tables
from benchmarks.database.build import MODELS, SHARD_IMAGES, Progressed, register, seed_all
from benchmarks.database.figures import Calibration, Figure, p95
from benchmarks.database.worker import Worker, old_snapshot
from visual_search import status
from visual_search.database.connection import Database
from visual_search.images import ModelKey
from visual_search.settings import Settings

_CLAIM_ROWS: Final = 1_000
_RECORDED: Final = 4 * SHARD_IMAGES
# What a run at 80 images/s does in an hour, as far as the catalogue has so much left.
_ROWS_UNDER_SNAPSHOT: Final = 300_000
_SEEDED_CHUNKS: Final = 20
_STATUSES: Final = 7
_GIVEN_BACK: Final = 50_000


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where it is measured."""

    database: Database
    url: str
    settings: Settings
    keys: dict[str, ModelKey]
    images: int


def claims_and_records(place: Place) -> Iterator[Figure]:
    """At any progress; with fresh statistics and with those from before the first claim."""
    untouched = place.keys[MODELS[0].name]
    tables.sweep(place.url, f"extractions_{untouched}")
    for model in MODELS:
        table = f"extractions_{place.keys[model.name]}"
        tables.sweep(place.url, table)
        yield from _claim_and_record(place, model, "fresh statistics")
        if model.percent:
            tables.take_statistics(place.database, table, of=f"extractions_{untouched}")
            yield from _claim_and_record(place, model, "statistics of an untouched model")
        tables.clear_statistics(place.database, table)
        yield from _claim_and_record(place, model, "no statistics")


def claims_under_a_snapshot(place: Place) -> Iterator[Figure]:
    """While a reader holds a snapshot, and what the run has done since cannot be swept."""
    calibration = Calibration(place.database)
    for model in MODELS:
        model_key = place.keys[model.name]
        tables.sweep(place.url, f"extractions_{model_key}")
        shards = _shards(place, model, _ROWS_UNDER_SNAPSHOT)
        worker, other = (Worker(database=place.database, model_key=model_key) for _ in range(2))
        with old_snapshot(place.url):
            took, _, calibrated = _work(worker, calibration, shards)
            first = other.claim(_CLAIM_ROWS)
        worker.undo()
        other.undo()
        rows = shards * SHARD_IMAGES
        yield _in_ms(
            f"claim 1,000, {model.name}, {rows:,} rows done under a snapshot, p95",
            p95(took),
            100,
            "UPDATE of 1,000 rows, p95",
            p95(calibrated),
        )
        print(
            f"{model.name}: a new worker's first claim then {1000 * first:.1f} ms", file=sys.stderr
        )


def seeding(place: Place) -> Iterator[Figure]:
    """A model that is new to the catalogue."""
    calibration = Calibration(place.database)
    with _new_model(place) as model_key:
        spent, seeded, inserted = 0.0, 0, []
        for _ in range(_SEEDED_CHUNKS):
            inserted.append(calibration.insert())
            begun = time.monotonic()
            seeded += seed_all(place.database, model_key, chunks=1)
            spent += time.monotonic() - begun
    yield Figure(
        name=f"seeding a new model, {seeded:,} rows",
        unit="rows/s",
        reached=seeded / spent,
        wanted=150_000,
        at_least=True,
        calibration="INSERT of 100,000 rows, median",
        calibrated=statistics.median(inserted),
    )


def progress(place: Place) -> Iterator[Figure]:
    """What `status` asks, of all three models."""
    calibration = Calibration(place.database)
    tables.sweep(place.url, "images")
    for model_key in place.keys.values():
        tables.sweep(place.url, f"extractions_{model_key}")
    yield _status(place, calibration, "swept, fresh statistics")
    untouched = f"extractions_{place.keys[MODELS[0].name]}"
    for model_key in place.keys.values():
        tables.clear_statistics(place.database, f"extractions_{model_key}")
        # What these claims leave in the indexes is there until the next sweep.
        worker = Worker(database=place.database, model_key=model_key)
        for _ in range(_GIVEN_BACK // _CLAIM_ROWS):
            worker.claim(_CLAIM_ROWS)
        worker.undo()
    tables.clear_statistics(place.database, "images")
    yield _status(place, calibration, "no statistics, claims given back")
    tables.analyze(place.database, "images")
    tables.analyze(place.database, untouched)


def _status(place: Place, calibration: Calibration, state: str) -> Figure:
    took, counted = [], []
    for _ in range(_STATUSES):
        counted.append(calibration.count())
        begun = time.monotonic()
        status.model_statuses(place.database)
        took.append(time.monotonic() - begun)
    return _in_ms(
        f"status of {len(place.keys)} models, {state}, slowest",
        max(took),
        1_000,
        "count of 100,000 rows, slowest",
        max(counted),
    )


def _claim_and_record(place: Place, model: Progressed, state: str) -> Iterator[Figure]:
    calibration = Calibration(place.database)
    worker = Worker(database=place.database, model_key=place.keys[model.name])
    # What was settled since the last sweep is stepped over once, and told apart.
    first = worker.claim(_CLAIM_ROWS)
    worker.record()
    shards = _shards(place, model, _RECORDED)
    claims, records, updates = _work(worker, calibration, shards)
    many = [calibration.update(SHARD_IMAGES) for _ in range(shards)]
    worker.undo()
    print(f"{model.name}, {state}: the first claim {1000 * first:.1f} ms", file=sys.stderr)
    yield _in_ms(
        f"claim 1,000, {model.name}, {state}, p95",
        p95(claims),
        30,
        "UPDATE of 1,000 rows, p95",
        p95(updates),
    )
    yield _in_ms(
        f"record 10,000, {model.name}, {state}, slowest",
        max(records),
        500,
        "UPDATE of 10,000 rows, slowest",
        max(many),
    )


def _shards(place: Place, model: Progressed, rows: int) -> int:
    """How many shards make so many rows, or what the model has left but for a claim or two."""
    left = place.images * (100 - model.percent) // 100 - 2 * _CLAIM_ROWS
    return max(0, min(rows, left) // SHARD_IMAGES)


def _work(
    worker: Worker, calibration: Calibration, shards: int
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each claim, of each record, and of calibrations in turn with the claims."""
    claims, records, updates = [], [], []
    for _ in range(shards):
        for _ in range(SHARD_IMAGES // _CLAIM_ROWS):
            updates.append(calibration.update(_CLAIM_ROWS))
            claims.append(worker.claim(_CLAIM_ROWS))
        records.append(worker.record())
    return claims, records, updates


@contextmanager
def _new_model(place: Place) -> Iterator[ModelKey]:
    model_key = register(place.database, place.settings, "passing", seed=time.time_ns() // 1000)
    yield model_key
    tables.drop_model(place.database, model_key)


def _in_ms(
    name: str, reached_s: float, wanted: float, calibration: str, calibrated_s: float
) -> Figure:
    return Figure(
        name=name,
        unit="ms",
        reached=1000 * reached_s,
        wanted=wanted,
        calibration=calibration,
        calibrated=1000 * calibrated_s,
    )
