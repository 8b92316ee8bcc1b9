"""What an image costs the database in catalogues of all sizes, by the same work in each."""

import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from benchmarks.database import tables
from benchmarks.database.build import MODELS, SHARD_IMAGES, build
from benchmarks.database.figures import Figure
from benchmarks.database.steps import Place
from benchmarks.database.worker import Worker, cost
from visual_search.database import migrate
from visual_search.database.connection import Database, quoted

_SIZES: Final = (10_000, 100_000, 1_000_000)
_SMALL: Final = 100_000
_ROUNDS: Final = 5
_MODEL: Final = MODELS[0]
# As the pipeline claims.
_CLAIM_ROWS: Final = 250
_IMAGES_PER_SECOND: Final = 80
_CORES: Final = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One shard's claims and its record; all values for each image.

    Attributes:
        images: Of the catalogue.
        seconds: As the worker waits.
        core_s: Processor time of worker and server.
    """

    images: int
    seconds: float
    core_s: float
    buffers: float


def grow(place: Place) -> list[Point]:
    """The same work, in turn in catalogues of all sizes; medians of the rounds."""
    points: dict[int, list[Point]] = {}
    with _catalogues(place) as catalogues:
        workers = [_worker(catalogue) for catalogue in catalogues]
        for number in range(_ROUNDS + 1):
            for catalogue, worker in zip(catalogues, workers, strict=True):
                if catalogue.images <= _SMALL:
                    _tidy(catalogue, worker)
                point = _measure(catalogue, worker)
                if number:  # the first one finds nothing in memory
                    points.setdefault(point.images, []).append(point)
        for worker in workers:
            worker.undo()
    return [_median(found) for found in points.values()]


def _worker(place: Place) -> Worker:
    """In a large catalogue it begins somewhere, where no earlier measurement has moved rows."""
    worker = Worker(database=place.database, model_key=place.keys[_MODEL.name])
    if place.images > _SMALL:
        with place.database.transaction() as connection:
            worker.place.due_at, worker.place.image_id = connection.execute(
                text("""
                    SELECT next_attempt_at, image_id FROM extractions
                    WHERE model_key = :model_key AND image_id = :image_id
                """),
                {
                    "model_key": worker.model_key,
                    "image_id": random.randrange(place.images // 10, place.images // 2),
                },
            ).one()
    return worker


def _tidy(place: Place, worker: Worker) -> None:
    """Lay the rows as seeding laid them: elsewhere they are taken in that order, too."""
    worker.undo()
    table = f"extractions_{worker.model_key}"
    engine = create_engine(place.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CLUSTER vsearch.{quoted(table)} USING {quoted(table + '_pkey')}"))
    engine.dispose()
    tables.sweep(place.url, table)


def figures(points: Sequence[Point]) -> Iterator[Figure]:
    """How the cost grows, and which share of the machine it is."""
    least, most = points[0], points[-1]
    growth = f"for each image, {least.images:,} to {most.images:,} images"
    yield Figure(
        name=f"time {growth}",
        unit="×",
        reached=most.seconds / least.seconds,
        wanted=1.5,
        calibration=f"at {least.images:,} images",
        calibrated=1e6 * least.seconds,
        calibrated_in="µs",
    )
    yield Figure(
        name=f"buffers {growth}",
        unit="×",
        reached=most.buffers / least.buffers,
        wanted=1.2,
        calibration=f"at {least.images:,} images",
        calibrated=least.buffers,
        calibrated_in="buffers",
    )
    yield Figure(
        name=f"database at {_IMAGES_PER_SECOND} images/s on {_CORES} cores",
        unit="%",
        reached=100 * most.core_s * _IMAGES_PER_SECOND / _CORES,
        wanted=3,
        calibration=f"the same at {least.images:,} images",
        calibrated=100 * least.core_s * _IMAGES_PER_SECOND / _CORES,
    )


def plot(points: Sequence[Point], file: Path) -> None:
    """Time and buffers of an image over the size of the catalogue."""
    from matplotlib.figure import Figure as Drawing  # noqa: PLC0415 - only for this

    drawing = Drawing(figsize=(7, 3), layout="constrained")
    left, right = drawing.subplots(1, 2)
    images = [point.images for point in points]
    for axes, values, label, limit in (
        (left, [1e6 * point.seconds for point in points], "time for each image, µs", 1.5),
        (right, [point.buffers for point in points], "buffers for each image", 1.2),
    ):
        axes.semilogx(images, values, "o-", color="tab:blue")
        axes.axhline(limit * values[0], color="tab:red", linestyle="--", linewidth=1)
        axes.text(images[0], limit * values[0], f"{limit} ×", color="tab:red", va="bottom")
        axes.set_ylim(0, max(1.15 * limit * values[0], 1.1 * max(values)))
        axes.set_xlabel("images in the catalogue")
        axes.set_title(label, fontsize="medium")
        axes.grid(alpha=0.3)
    drawing.savefig(file, dpi=150)


def _measure(place: Place, worker: Worker) -> Point:
    seconds = 0.0

    def shard() -> None:
        nonlocal seconds
        for _ in range(SHARD_IMAGES // _CLAIM_ROWS):
            seconds += worker.claim(_CLAIM_ROWS)
        seconds += worker.record()

    spent = cost(place.database, shard)
    return Point(
        images=place.images,
        seconds=seconds / SHARD_IMAGES,
        core_s=(spent.client_s + spent.server_s) / SHARD_IMAGES,
        buffers=spent.buffers / SHARD_IMAGES,
    )


def _median(points: Sequence[Point]) -> Point:
    return Point(
        images=points[0].images,
        seconds=statistics.median(point.seconds for point in points),
        core_s=statistics.median(point.core_s for point in points),
        buffers=statistics.median(point.buffers for point in points),
    )


@contextmanager
def _catalogues(place: Place) -> Iterator[list[Place]]:
    """Of all sizes; the largest is the catalogue itself, the others are databases beside it."""
    beside = [_beside(place, size) for size in _SIZES if size < place.images]
    yield [*beside, place]
    for smaller in beside:
        smaller.database.close()


def _beside(place: Place, images: int) -> Place:
    name = f"images_{images}"
    engine = create_engine(place.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        there = connection.execute(
            text("SELECT EXISTS (SELECT FROM pg_database WHERE datname = :name)"), {"name": name}
        ).scalar_one()
        if not there:
            connection.execute(text(f"CREATE DATABASE {quoted(name)}"))
    engine.dispose()
    url = make_url(place.url).set(database=name)
    database = Database(url, schema="vsearch", outage_s=0)
    migrate.upgrade(database)
    return Place(
        database=database,
        url=url.render_as_string(hide_password=False),
        settings=place.settings,
        keys=build(database, place.settings, images, [_MODEL]),
        images=images,
    )
