"""A few images and what the vectors say is like them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from visual_search.decode import DecoderProcess
from visual_search.decode import Picture as DecodedPicture
from visual_search.errors import ImageError, StorageError
from visual_search.redaction import printable, redact_url
from visual_search.report.showcase.content import Match, Picture, Query
from visual_search.settings import StorageSettings
from visual_search.shard import read_vectors

_QUERIES: Final = 8
_MATCHES: Final = 8
_THUMBNAIL_PX: Final = 160
_QUALITY: Final = 80
_MAX_PIXELS: Final = 50_000_000
_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Vectors to compare.

    Attributes:
        vectors: `(N, D)` float32.
        details: For each row, the image's URL and its product's attributes.
    """

    vectors: npt.NDArray[np.float32] = field(repr=False)
    details: Sequence[tuple[str, Mapping[str, Any]]] = field(repr=False)


def read_sample(
    uris: Sequence[str], limit: int, storage: StorageSettings
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Ids and vectors of the first shards, `limit` at most.

    Returns:
        `(N,)` int64 and `(N, D)` float32, in the order of the images' ids.

    Raises:
        StorageError: A shard is gone, damaged or cannot be reached.
    """
    ids: list[npt.NDArray[np.int64]] = []
    vectors: list[npt.NDArray[np.float32]] = []
    missing = limit
    for uri in uris:
        if missing <= 0:
            break
        try:
            shard_ids, shard_vectors = read_vectors(uri, storage)
        except (OSError, pa.ArrowException) as error:
            words = printable(str(error), 200)
            raise StorageError(
                f"cannot read the shard {uri}: {words}; see `vsearch shards verify`"
            ) from error
        ids.append(shard_ids[:missing])
        vectors.append(shard_vectors[:missing])
        missing -= len(shard_ids)
    if not ids:
        return np.empty(0, np.int64), np.empty((0, 0), np.float32)
    all_ids = np.concatenate(ids)
    order = np.argsort(all_ids)
    return all_ids[order], np.concatenate(vectors)[order]


def draw_contact_sheet(
    sample: Sample, pictures: Callable[[str], bytes | None]
) -> tuple[Query, ...]:
    """Queries spread over the catalogue's categories, each with its nearest neighbours."""
    if len(sample.details) < 2:
        return ()
    rows = _spread([_category(attributes) for _, attributes in sample.details])
    nearest, similarities = _nearest(sample.vectors, rows)
    with DecoderProcess(max_pixels=_MAX_PIXELS, timeout_s=_TIMEOUT_S) as decoder:

        def picture(row: int) -> Picture:
            url, attributes = sample.details[row]
            body = pictures(url)
            return Picture(
                title=printable(str(attributes.get("title") or redact_url(url)), 80),
                price=_price(attributes),
                category=_category(attributes),
                thumbnail=None if body is None else _thumbnail(decoder, body),
            )

        return tuple(
            Query(
                picture=picture(row),
                matches=tuple(
                    Match(picture=picture(other), similarity=float(similarity))
                    for other, similarity in zip(others, found, strict=True)
                ),
            )
            for row, others, found in zip(
                rows, nearest.tolist(), similarities.tolist(), strict=True
            )
        )


def _spread(categories: Sequence[str | None]) -> list[int]:
    """Rows for queries: of as many categories as possible, and not each the first of its kind."""
    members: dict[str | None, list[int]] = {}
    for row, category in enumerate(categories):
        members.setdefault(category, []).append(row)
    # A category of a few has nothing to find.
    full = [rows for rows in members.values() if len(rows) > _MATCHES] or list(members.values())
    chosen: list[int] = []
    for turn in range(_QUERIES):
        rows = full[turn * len(full) // _QUERIES if len(full) > _QUERIES else turn % len(full)]
        row = rows[(2 * turn + 1) * len(rows) // (2 * _QUERIES)]
        if row not in chosen:
            chosen.append(row)
    return chosen


def _nearest(
    vectors: npt.NDArray[np.float32], rows: list[int]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """The nearest other rows by cosine, the nearest first: `(Q, K)` rows and similarities."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    # A vector of zeros is like nothing.
    units = vectors / np.where(lengths == 0, np.float32(1), lengths)
    similarities: npt.NDArray[np.float32] = (units[rows] @ units.T).astype(np.float32, copy=False)
    similarities[np.arange(len(rows)), rows] = -np.inf
    count = min(_MATCHES, len(vectors) - 1)
    nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :count]
    return nearest, np.take_along_axis(similarities, nearest, axis=1)


def _thumbnail(decoder: DecoderProcess, body: bytes) -> bytes | None:
    """A small JPEG; `None` where the picture is not what it was when it was embedded."""

    def shrunk(picture: DecodedPicture) -> bytes:
        image = Image.fromarray(picture.pixels)
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        file = BytesIO()
        image.save(file, "JPEG", quality=_QUALITY, optimize=True)
        return file.getvalue()

    try:
        return decoder.decode(body, shrunk)
    except ImageError:
        return None


def _category(attributes: Mapping[str, Any]) -> str | None:
    category = attributes.get("category")
    return str(category) if category else None


def _price(attributes: Mapping[str, Any]) -> str | None:
    price, currency = attributes.get("price"), attributes.get("currency")
    if price is None or isinstance(price, list | dict):
        return None
    try:
        amount = f"{float(price):,.2f}"
    except ValueError:
        amount = printable(str(price), 20)
    return f"{amount} {printable(str(currency), 8)}" if currency else amount
