"""Several models in one run: each image is fetched once, and nothing else is shared."""

from datetime import timedelta
from typing import Any

import pytest
import torch
from aiohttp import web
from torch import Tensor, nn

from tests.catalogue import add_urls
from tests.end_to_end.workplace import TINY, Workplace, jpeg
from tests.pictures import photo_bytes
from tests.shards import vectors_of
from visual_search.errors import ExitCode, StorageError
from visual_search.images import WrittenShard
from visual_search.shard import ShardWriter
from visual_search.storage import shown

_SMALL: dict[str, Any] = TINY | {"size": 16}
_CROPPED: dict[str, Any] = TINY | {"resize": "shortest_edge+center_crop", "shortest_edge": 40}


class _TiresNetwork(nn.Module):
    """Embeds one batch, then fails."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 2:  # the first is the trial after loading
            raise ArithmeticError("tired")
        return torch.ones(len(images), 8)


def build_tiring() -> nn.Module:
    return _TiresNetwork()


@pytest.fixture
def three(place: Workplace) -> Workplace:
    place.models |= {"small": _SMALL, "cropped": _CROPPED}
    return place


def test_each_image_is_downloaded_once_for_all_models(three: Workplace) -> None:
    three.publish(70)
    results = three.extract("tiny", "small", "cropped", extract={"shard_rows": 30})
    assert [(r.model, r.exit_code, r.figures.done) for r in results] == [
        (name, ExitCode.OK, 70) for name in ("tiny", "small", "cropped")
    ]
    assert three.server.hits.total() == 70
    for result in results:
        assert result.shards == 3
        assert result.figures.core_seconds_per_stage["decode"] > 0
        assert result.figures.core_seconds_per_stage["embed"] > 0
    shards = three.rows("SELECT model_key, sum(rows) FROM shards GROUP BY 1 ORDER BY 1")
    assert shards == [(1, 70), (2, 70), (3, 70)]
    runs = three.rows("SELECT model_key, done, outcome FROM runs ORDER BY 1")
    assert runs == [(key, 70, "completed") for key in (1, 2, 3)]
    assert three.rows("SELECT count(*) FROM leases") == [(0,)]


def test_the_vectors_are_those_of_each_model_alone(three: Workplace) -> None:
    three.publish(20)
    for name in ("tiny", "small", "cropped"):
        three.extract(name)
    alone = _vectors(three)
    three.rows("UPDATE shards SET state = 'discarded'")
    three.rows("DELETE FROM extractions")
    three.rows("UPDATE models SET seeded_to = 0")
    three.extract("tiny", "small", "cropped")
    assert _vectors(three) == alone


def test_only_what_a_model_lacks_is_made_for_it(three: Workplace) -> None:
    three.publish(20)
    three.extract("tiny")
    three.publish(10, start=20)
    three.server.hits.clear()
    tiny, small = three.extract("tiny", "small")
    assert (tiny.figures.done, small.figures.done) == (10, 30)
    # The ten new ones are wanted by both, and by the newer model all others, too.
    assert three.server.hits.total() == 30


def test_the_limit_holds_for_each_model(three: Workplace) -> None:
    three.publish(20)
    three.extract("tiny", limit=5)
    three.server.hits.clear()
    tiny, small = three.extract("tiny", "small", limit=8)
    assert (tiny.figures.claimed, small.figures.claimed) == (8, 8)


def test_a_model_with_nothing_to_do_says_so_and_the_others_run(three: Workplace) -> None:
    three.publish(5)
    three.extract("tiny")
    tiny, small = three.extract("tiny", "small")
    assert (tiny.run_id, small.figures.done) == (None, 5)


def test_a_model_that_cannot_be_loaded_stops_no_other(three: Workplace) -> None:
    three.publish(40)
    three.models["wrong"] = TINY | {"dim": 9}
    wrong, tiny = three.extract("wrong", "tiny")
    assert (wrong.exit_code, wrong.figures.done) == (ExitCode.USAGE, 0)
    assert "dim = 9" in (wrong.error or "")
    assert (tiny.exit_code, tiny.figures.done) == (ExitCode.OK, 40)
    assert three.server.hits.total() == 40
    assert (three.status("wrong").pending, three.status("wrong").claimed) == (40, 0)
    assert three.rows("SELECT outcome FROM runs ORDER BY model_key") == [
        ("failed",),
        ("completed",),
    ]


def test_a_model_that_breaks_in_the_middle_stops_no_other(three: Workplace) -> None:
    three.publish(60)
    three.models["tiring"] = TINY | {"builder": f"{__name__}:build_tiring"}
    with pytest.raises(ArithmeticError, match="tired"):
        three.extract("tiring", "tiny", embed={"batch_size": 10})
    assert three.status("tiny").done == 60
    tiring = three.status("tiring")
    assert (tiring.done, tiring.pending, tiring.claimed) == (10, 50, 0)
    assert three.server.hits.total() == 60


def test_a_model_whose_shards_cannot_be_written_stops_no_other(
    three: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = ShardWriter.finish

    def full_for_small(writer: ShardWriter) -> WrittenShard:
        if "model_id=small" in shown(writer.uri):
            writer.discard()
            raise StorageError("disk full")
        return finish(writer)

    monkeypatch.setattr(ShardWriter, "finish", full_for_small)
    three.publish(60)
    # Few slots: what the broken model has in hand must not keep the other waiting for ever.
    tiny, small = three.extract(
        "tiny", "small", download={"concurrency": 1}, extract={"shard_rows": 5}
    )
    assert (tiny.exit_code, tiny.figures.done) == (ExitCode.OK, 60)
    assert (small.exit_code, small.error) == (ExitCode.TEMPORARY, "disk full")
    assert (three.status("small").pending, three.status("small").claimed) == (60, 0)


def test_failures_stay_apart_and_are_tried_again_together(three: Workplace) -> None:
    three.publish(3)
    answers = iter([503])

    async def busy_once(_request: web.BaseRequest) -> web.Response:
        status = next(answers, 200)
        return web.Response(status=status, body=jpeg(9) if status == 200 else b"")

    three.server.route("/busy.jpg", busy_once)
    add_urls(three.database, [three.server.url("/busy.jpg"), three.server.url("/missing.jpg")])
    tiny, small = three.extract("tiny", "small", extract={"backoff_s": 1000})
    assert (tiny.waiting, small.waiting) == (1, 1)
    (earliest, latest), *_ = three.rows(
        "SELECT min(next_attempt_at), max(next_attempt_at) FROM extractions WHERE status='pending'"
    )
    assert latest - earliest < timedelta(seconds=3)
    assert three.rows("SELECT count(*) FROM extractions WHERE status = 'failed'") == [(2,)]
    three.rows("UPDATE extractions SET next_attempt_at = now() WHERE status = 'pending'")
    tiny, small = three.extract("tiny", "small")
    assert (tiny.figures.done, small.figures.done) == (1, 1)
    assert three.server.hits["/busy.jpg"] == 2
    assert three.server.hits["/missing.jpg"] == 1


def test_whole_and_reduced_pictures_come_of_one_download(three: Workplace) -> None:
    three.models["draft"] = TINY | {"decode": "draft"}
    three.server.serve("/large.jpg", photo_bytes(800, 600, "JPEG"))
    add_urls(three.database, [three.server.url("/large.jpg")])
    three.extract("tiny", "draft")
    assert three.server.hits.total() == 1
    tiny, draft = (next(iter(vectors.values())) for vectors in _vectors(three).values())
    assert tiny != draft
    assert tiny == pytest.approx(draft, abs=0.05)


def _vectors(place: Workplace) -> dict[int, dict[int, list[float]]]:
    """By model key and image id."""
    found: dict[int, dict[int, list[float]]] = {}
    rows = place.rows("SELECT model_key, uri FROM shards WHERE state = 'committed' ORDER BY 1")
    for model_key, uri in rows:
        ids, vectors = vectors_of(uri)
        found.setdefault(model_key, {}).update(zip(ids.tolist(), vectors.tolist(), strict=True))
    return found
