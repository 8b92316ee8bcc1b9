"""The contact sheet: the true neighbours of well-spread queries, with what pictures there are."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tests.pictures import jpeg_bytes, photo_bytes
from tests.shards import local_path
from tests.unit.test_shard import write
from visual_search.errors import StorageError
from visual_search.report.showcase.contact_sheet import Sample, draw_contact_sheet, read_sample
from visual_search.settings import StorageSettings

CATEGORIES = ("hat", "mug", "lamp")


def sample(
    rows: int, dim: int = 16, categories: tuple[str | None, ...] = CATEGORIES, **attributes: Any
) -> Sample:
    vectors = np.random.default_rng(rows).normal(size=(rows, dim)).astype(np.float32)
    details: list[tuple[str, Mapping[str, Any]]] = []
    for row in range(rows):
        category = categories[row * len(categories) // rows]
        known = {"title": f"product {row}"} | ({"category": category} if category else {})
        details.append((f"http://h.test/{row}.jpg", known | attributes))
    return Sample(vectors=vectors, details=details)


def no_picture(_url: str) -> bytes | None:
    return None


def cosines(vectors: npt.NDArray[np.float32], row: int) -> list[float]:
    """One at a time, in double precision."""
    exact = vectors.astype(np.float64)
    return [
        float(exact[row] @ other / (np.linalg.norm(exact[row]) * np.linalg.norm(other)))
        for other in exact
    ]


def row_of(title: str) -> int:
    return int(title.removeprefix("product "))


def test_neighbours_are_those_of_a_brute_force_search() -> None:
    given = sample(100)
    given.vectors[:] *= np.random.default_rng(1).uniform(0.1, 50, (100, 1)).astype(np.float32)
    queries = draw_contact_sheet(given, no_picture)
    assert len(queries) == 8
    for query in queries:
        row = row_of(query.picture.title)
        exact = cosines(given.vectors, row)
        best = sorted((other for other in range(100) if other != row), key=lambda o: -exact[o])
        assert [row_of(match.picture.title) for match in query.matches] == best[:8]
        for match in query.matches:
            assert match.similarity == pytest.approx(exact[row_of(match.picture.title)], abs=1e-5)


def test_queries_are_spread_over_the_categories() -> None:
    names = tuple(f"c{n}" for n in range(12))
    queries = draw_contact_sheet(sample(240, categories=names), no_picture)
    assert len({query.picture.category for query in queries}) == 8


def test_a_category_of_a_few_is_no_query_where_there_are_full_ones() -> None:
    rare = draw_contact_sheet(sample(44, categories=("hat",) * 10 + ("rare",)), no_picture)
    assert {query.picture.category for query in rare} == {"hat"}


def test_without_categories_queries_are_spread_over_all_images() -> None:
    queries = draw_contact_sheet(sample(80, categories=(None,)), no_picture)
    rows = [row_of(query.picture.title) for query in queries]
    assert len(set(rows)) == 8
    assert max(rows) - min(rows) > 50


@pytest.mark.parametrize(("rows", "matches"), [(0, []), (1, []), (2, [1, 1]), (4, [3] * 4)])
def test_a_small_catalogue_has_as_many_neighbours_as_there_are(
    rows: int, matches: list[int]
) -> None:
    queries = draw_contact_sheet(sample(rows, categories=(None,)), no_picture)
    assert [len(query.matches) for query in queries] == matches


def test_a_query_is_not_its_own_neighbour_even_if_all_others_are_its_opposites() -> None:
    given = sample(3, dim=3, categories=(None,))
    given.vectors[:] = np.eye(3) - 0.5
    for query in draw_contact_sheet(given, no_picture):
        assert len(query.matches) == 2
        assert query.picture.title not in {match.picture.title for match in query.matches}


def test_a_vector_of_zeros_is_like_nothing() -> None:
    given = sample(10, categories=(None,))
    given.vectors[0] = 0
    for query in draw_contact_sheet(given, no_picture):
        assert all(np.isfinite(match.similarity) for match in query.matches)


def test_thumbnails_are_small_jpegs_whatever_the_picture_was() -> None:
    wide, small = photo_bytes(600, 300, "PNG"), jpeg_bytes(20, 30)
    queries = draw_contact_sheet(sample(2), lambda url: wide if url.endswith("0.jpg") else small)
    sizes = []
    for query in queries:
        assert query.picture.thumbnail is not None
        with Image.open(BytesIO(query.picture.thumbnail)) as image:
            assert image.format == "JPEG"
            sizes.append(image.size)
    assert sorted(sizes) == [(20, 30), (160, 80)]


def test_a_picture_that_is_gone_or_broken_by_now_has_no_thumbnail() -> None:
    whole = photo_bytes(300, 300)
    now = {"0": whole, "1": None, "2": whole[:4000], "3": b"<html>"}
    queries = draw_contact_sheet(sample(4, categories=(None,)), lambda url: now[Path(url).stem])
    shown = {row_of(query.picture.title): query.picture.thumbnail for query in queries}
    assert [shown[row] is not None for row in range(4)] == [True, False, False, False]


@pytest.mark.parametrize(
    ("attributes", "shown"),
    [
        ({}, None),
        ({"price": 1234.5, "currency": "EUR"}, "1,234.50 EUR"),
        ({"price": "19.9"}, "19.90"),
        ({"price": "from 5", "currency": "USD"}, "from 5 USD"),
        ({"price": {"amount": 5}}, None),
        ({"price": 0}, "0.00"),
    ],
)
def test_prices_are_shown_as_far_as_they_are_known(
    attributes: dict[str, Any], shown: str | None
) -> None:
    query, _ = draw_contact_sheet(sample(2, **attributes), no_picture)
    assert query.picture.price == shown


def test_a_product_without_a_title_is_named_by_its_redacted_url() -> None:
    vectors = np.eye(2, dtype=np.float32)
    details: list[tuple[str, dict[str, Any]]] = [
        ("https://me:pw@h.test/a.jpg?token=secret", {}),
        ("http://h.test/b.jpg", {}),
    ]
    queries = draw_contact_sheet(Sample(vectors=vectors, details=details), no_picture)
    titles = {query.picture.title for query in queries}
    assert titles == {"https://h.test/a.jpg?…", "http://h.test/b.jpg"}


def test_a_sample_is_read_from_the_first_shards_in_the_order_of_ids(tmp_path: Path) -> None:
    uris = [write(tmp_path, rows).uri for rows in (5, 3, 4)]
    ids, vectors = read_sample(uris, 7, StorageSettings())
    assert ids.tolist() == [0, 0, 1, 1, 2, 3, 4]
    assert vectors[:, 0].tolist() == ids.tolist()
    assert read_sample(uris, 100, StorageSettings())[1].shape == (12, 8)
    assert read_sample([], 100, StorageSettings())[0].size == 0


def test_a_shard_that_is_gone_or_damaged_is_a_storage_error(tmp_path: Path) -> None:
    shard = write(tmp_path, 3)
    path = local_path(shard.uri)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StorageError, match="vsearch shards verify"):
        read_sample([shard.uri], 10, StorageSettings())
    path.unlink()
    with pytest.raises(StorageError, match="cannot read the shard"):
        read_sample([shard.uri], 10, StorageSettings())
