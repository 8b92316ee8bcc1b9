"""int8 models: found in the catalogue, or made of its own images, once for all workers."""

import asyncio
import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from sqlalchemy import Connection, text

from visual_search import record
from visual_search.database.connection import Database
from visual_search.errors import HostPausedError, ImageError, ModelError
from visual_search.images import Download
from visual_search.models import registry, weights
from visual_search.models.artefacts import artefact_name, write_artefact
from visual_search.models.spec import ModelSpec
from visual_search.settings import Settings
from visual_search.shard import prepare_output
from visual_search.storage import Storage

if TYPE_CHECKING:
    from torch import Tensor

    from visual_search.download import Downloader

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_IMAGES: Final = 256
# With fewer the ranges of the numbers in a network are guessed, for all images to come.
_LEAST_IMAGES: Final = 64
# Places in the catalogue to look at: some of the images there cannot be had.
_PLACES: Final = 4 * _IMAGES
_AT_ONCE: Final = 32
# More often than the server ends transactions that are idle.
_SIGN_OF_LIFE_S: Final = 5.0
_LOOK_AGAIN_S: Final = 1.0


def find_quantised(database: Database, recipe: ModelSpec) -> ModelSpec:
    """The int8 model that was made by a recipe in this catalogue; the recipe if none was."""
    model = registry.find_quantised(database.run(registry.registered), recipe)
    return recipe if model is None else _with_artefact(recipe, model.spec.artefact_sha256)


def make_quantised(
    database: Database, settings: Settings, recipe: ModelSpec, output: Storage
) -> ModelSpec:
    """Quantise and register a model, or wait for the worker that does.

    Args:
        database: With images.
        settings: As of a run.
        recipe: An int8 model that has no artefact yet.
        output: Of the vectors, where the artefact goes, too.

    Raises:
        ModelError: The model cannot be quantised, or too few images can be had.
        WeightsError, StorageError: Weights cannot be read, the artefact cannot be written.
    """
    file = weights.obtain(recipe, settings.weights, home=settings.home)
    prepare_output(output, database.run(record.catalogue_id))
    said = False
    while True:
        with database.transaction() as connection:
            if registry.try_quantisation_lock(connection, recipe.name):
                model = registry.find_quantised(registry.registered(connection), recipe)
                if model is not None:
                    return _with_artefact(recipe, model.spec.artefact_sha256)
                # Beside this transaction, since the lock lasts as long as it does.
                artefact = _beside(connection, lambda: _quantise(database, settings, recipe, file))
                spec = _with_artefact(recipe, hashlib.sha256(artefact).hexdigest())
                write_artefact(output, artefact_name(spec), artefact)
                registry.register(connection, spec, asked=True)
                log.info("quantised", model_id=spec.model_id)
                return spec
        if not said:
            log.info("waiting_for_quantisation", model=recipe.name)
            said = True
        time.sleep(_LOOK_AGAIN_S)


def _with_artefact(recipe: ModelSpec, sha256: str | None) -> ModelSpec:
    return replace(recipe, artefact_sha256=sha256)


def _quantise(
    database: Database, settings: Settings, recipe: ModelSpec, file: Path | None
) -> bytes:
    from visual_search.embed.quantisation import quantise  # noqa: PLC0415 - imports nncf

    pictures = asyncio.run(_pictures(settings, recipe, database.run(_spread_urls)))
    if len(pictures) < _LEAST_IMAGES:
        raise ModelError(
            f"to quantise {recipe.name} takes {_LEAST_IMAGES} images of the catalogue, and "
            f"{len(pictures)} can be had; add images, or use another --precision"
        )
    log.info("quantising", model=recipe.name, images=len(pictures))
    return quantise(recipe, file, pictures)


def _spread_urls(connection: Connection) -> list[str]:
    """URLs from all over the catalogue, in an order whose every beginning is spread, too.

    The same ones as long as the catalogue is the same.
    """
    urls = [
        row.url
        for row in connection.execute(
            text("""
                WITH ends AS (SELECT min(image_id) AS first, max(image_id) AS last FROM images)
                SELECT DISTINCT nearest.image_id, nearest.url
                FROM ends
                CROSS JOIN generate_series(0, :places - 1) AS place
                CROSS JOIN LATERAL (
                    SELECT image_id, url FROM images
                    WHERE image_id >= first + (last - first) * place / (:places - 1)
                    ORDER BY image_id LIMIT 1
                ) AS nearest
                ORDER BY nearest.image_id
            """),
            {"places": _PLACES},
        )
    ]
    step = -(-len(urls) // _IMAGES) or 1
    return [url for first in range(step) for url in urls[first::step]]


async def _pictures(settings: Settings, recipe: ModelSpec, urls: Sequence[str]) -> "list[Tensor]":
    """Up to 256 pictures in the model's size; images that cannot be had are passed over."""
    # What a run that finds nothing to do must not wait for.
    from visual_search.decode import DecoderProcess, Picture  # noqa: PLC0415
    from visual_search.download import Downloader  # noqa: PLC0415
    from visual_search.embed import prepare  # noqa: PLC0415

    def to_tensor(picture: Picture) -> "Tensor":
        return prepare(picture.pixels, recipe.preprocessing)

    pictures: list[Tensor] = []
    limits = settings.decode
    async with Downloader(settings.download) as downloader:
        with DecoderProcess(max_pixels=limits.max_pixels, timeout_s=limits.timeout_s) as decoder:
            left = list(urls)
            while left and len(pictures) < _IMAGES:
                count = min(_AT_ONCE, _IMAGES - len(pictures))
                now, left = left[:count], left[count:]
                for download in await _downloads(downloader, now):
                    try:
                        pictures.append(
                            decoder.decode(download.body, to_tensor, least_px=recipe.least_px)
                        )
                    except ImageError as error:
                        log.debug("image_passed_over", why=str(error))
    return pictures


async def _downloads(downloader: "Downloader", urls: Sequence[str]) -> list[Download]:
    """What can be downloaded, in the order of the URLs."""
    answers = await asyncio.gather(*map(downloader.fetch, urls), return_exceptions=True)
    found = []
    for answer in answers:
        if isinstance(answer, Download):
            found.append(answer)
        elif isinstance(answer, ImageError | HostPausedError):
            log.debug("image_passed_over", why=str(answer))
        else:
            raise answer
    return found


def _beside(connection: Connection, work: Callable[[], bytes]) -> bytes:
    """Do something that takes long, and keep a transaction alive meanwhile.

    In a thread of its own, which does not keep the program from ending upon a signal.
    """
    result: Future[bytes] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again by `result`
            result.set_exception(error)

    threading.Thread(target=run, name="quantisation", daemon=True).start()
    while not wait([result], timeout=_SIGN_OF_LIFE_S).done:
        connection.execute(text("SELECT 1"))
    return result.result()
