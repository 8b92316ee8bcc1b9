"""`decode = "draft"`: another model, whose vectors of large photos are nearly those of `exact`."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests import pictures
from tests.catalogue import add_urls
from tests.end_to_end.workplace import TINY, Workplace
from tests.server import ImageServer
from tests.shards import local_path, vectors_of
from visual_search.database.connection import Database


@pytest.fixture
def place(
    tmp_path: Path, database: Database, database_url: str, image_server: ImageServer
) -> Workplace:
    return Workplace(tmp_path, database, database_url, image_server)


def test_a_draft_model_stands_beside_the_exact_one(place: Workplace) -> None:
    place.models["quick"] = TINY | {"decode": "draft"}
    place.server.serve("/large.jpg", pictures.photo_bytes(1600, 1200))
    add_urls(place.database, [place.server.url("/large.jpg")])
    exact, draft = place.extract("tiny", "quick")
    assert exact.figures.done == draft.figures.done == 1
    vectors = {}
    for model_id, uri in place.rows(
        "SELECT model_id, uri FROM shards JOIN models USING (model_key)"
    ):
        vectors[model_id] = vectors_of(uri)[1][0]
        row = pq.read_table(local_path(uri), columns=["width", "height"]).to_pylist()
        assert row == [{"width": 1600, "height": 1200}]
    a, b = vectors[exact.model_id or ""], vectors[draft.model_id or ""]
    assert not np.array_equal(a, b), "decoded at full size after all"
    assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) > 0.999
