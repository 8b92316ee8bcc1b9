"""Runtimes in whole runs: what shards say of them, and the int8 models that a catalogue makes."""

import asyncio
import json
import threading
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from aiohttp import web

from tests.end_to_end.workplace import Workplace
from tests.server import ImageServer
from tests.shards import local_path, vectors_of
from tests.unit.test_embed import cosines
from visual_search import pipeline
from visual_search.database import connection
from visual_search.database.connection import Database
from visual_search.embed import quantisation
from visual_search.errors import ExitCode
from visual_search.models import registry, runtimes

INT8: dict[str, Any] = {"embed": {"device": "cpu", "runtime": "auto", "precision": "int8"}}

AUTO = {"VSEARCH_EMBED__RUNTIME": "auto"}


@pytest.fixture
def place(
    tmp_path: Path, database: Database, database_url: str, image_server: ImageServer
) -> Workplace:
    place = Workplace(tmp_path, database, database_url, image_server)
    place.models["tiny"] = {k: v for k, v in place.models["tiny"].items() if k != "precision"}
    return place


def shard_metadata(place: Workplace) -> list[dict[bytes, bytes]]:
    uris = place.rows("SELECT uri FROM shards ORDER BY created_at")
    return [pq.read_metadata(local_path(uri)).metadata for (uri,) in uris]


def vectors(place: Workplace, model_id: str | None) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Of one shard's model, in the order of image ids."""
    ((uri,),) = place.rows(
        "SELECT uri FROM shards JOIN models USING (model_key) WHERE model_id = :id", id=model_id
    )
    ids, found = vectors_of(uri)
    return found[np.argsort(ids)]


def artefacts(place: Workplace) -> list[Path]:
    return list((place.home / "vectors" / "artefacts").iterdir())


def test_a_shard_says_what_computed_it(place: Workplace) -> None:
    place.publish(3)
    place.extract(embed={"runtime": "torch", "precision": "fp32"})
    place.publish(3, start=3)
    (result,) = place.extract(embed={"runtime": "openvino", "precision": "fp32"})
    assert (result.figures.done, result.error) == (3, None)
    first, second = (metadata[b"vsearch.runtime"].decode() for metadata in shard_metadata(place))
    assert first.startswith("torch ")
    assert first.endswith(" cpu fp32")
    assert second == f"openvino {runtimes.openvino_release()} fp32"
    assert place.rows("SELECT count(*) FROM models") == [(1,)]


def test_an_int8_model_lives_beside_the_one_it_was_made_of(place: Workplace) -> None:
    place.publish(70)
    (exact,) = place.extract(embed={"precision": "fp32"})
    settings = place.settings(**INT8)
    assert pipeline.plan(place.database, settings, "tiny").model_id is None
    assert place.rows("SELECT count(*) FROM models") == [(1,)]
    (int8,) = place.extract(**INT8)
    assert (int8.figures.done, int8.error) == (70, None)
    assert pipeline.plan(place.database, settings, "tiny").model_id == int8.model_id
    near = cosines(vectors(place, int8.model_id), vectors(place, exact.model_id))
    assert near.min() >= 0.98
    with place.database.transaction() as connection:
        active = registry.active(connection, "tiny")
    assert active is not None
    assert active.model_id == exact.model_id
    # The next run needs neither images nor the lock.
    hits = dict(place.server.hits)
    (again,) = place.extract(**INT8)
    assert (again.run_id, again.model_id) == (None, int8.model_id)
    assert place.server.hits == hits


def test_commands_know_int8_models(place: Workplace) -> None:
    place.publish(64)
    refused = place.vsearch("models", "activate", "tiny", "--precision", "int8")
    assert refused.code == ExitCode.USAGE
    assert "tiny has not been quantised in this catalogue" in refused.err
    assert listed_as_int8(place) == [None]
    (result,) = place.extract(**INT8)
    assert listed_as_int8(place) == [result.model_id]
    shown = place.vsearch("models", "show", "tiny", "--precision", "int8").out
    assert f'# model_id = "{result.model_id}"' in shown
    assert set(tomllib.loads(shown)["models"]["tiny"]).isdisjoint({"precision", "model_id"})
    activated = place.vsearch("models", "activate", "tiny", "--precision", "int8")
    assert (activated.out, activated.err) == (f"tiny stands for {result.model_id} already\n", "")


def listed_as_int8(place: Workplace) -> list[str | None]:
    """The ids of `tiny`."""
    printed = place.vsearch("models", "list", "--precision", "int8", "--json").out
    return [
        model["model_id"]
        for model in json.loads(printed)["models"]
        if (model["name"], model["precision"]) == ("tiny", "int8")
    ]


def test_two_workers_at_once_quantise_once(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the second, with a home of its own, computes with what the first has made."""
    place.publish(80)
    made, quantise = [], quantisation.quantise
    both_wait = threading.Barrier(2)

    def counted(*args: Any) -> bytes:
        made.append(args)
        return quantise(*args)

    monkeypatch.setattr(quantisation, "quantise", counted)
    find = pipeline.quantise.make_quantised

    def together(*args: Any) -> Any:
        both_wait.wait(60)
        return find(*args)

    monkeypatch.setattr(pipeline.quantise, "make_quantised", together)
    other = Workplace(tmp_path / "other", place.database, place.database_url, place.server)
    other.models = place.models
    output = str(place.home / "vectors")
    results = []

    def work(at: Workplace) -> None:
        results.extend(at.extract(limit=40, output=output, **INT8))

    threads = [threading.Thread(target=work, args=(at,)) for at in (place, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert [result.error for result in results] == [None, None]
    assert len(made) == 1
    assert len({result.model_id for result in results}) == 1
    assert sum(result.figures.done for result in results) == 80
    assert len(artefacts(place)) == 1


def test_the_lock_outlives_the_servers_patience_with_idle_transactions(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_MAX_IDLE_S", 1)
    monkeypatch.setattr(pipeline.quantise, "_SIGN_OF_LIFE_S", 0.2)

    def slow() -> bytes:
        time.sleep(3)
        return b"done"

    with place.database.transaction() as locked:
        assert registry.try_quantisation_lock(locked, "tiny")
        assert pipeline.quantise._beside(locked, slow) == b"done"
        with place.database.transaction() as other:
            assert not registry.try_quantisation_lock(other, "tiny")


def test_a_signal_ends_quantising_at_once(place: Workplace) -> None:
    """Nothing is lost by it, and nothing is left of it."""

    async def never(_request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    place.publish(64)
    for number in range(64):
        place.server.route(f"/{number}.jpg", never)
    with place.start("extract", "--model", "tiny", "--precision", "int8", **AUTO) as process:
        deadline = time.monotonic() + 60
        while not place.server.hits and time.monotonic() < deadline:
            time.sleep(0.05)
        process.terminate()
        process.communicate(timeout=15)
    assert process.returncode == ExitCode.TERMINATED
    assert place.rows("SELECT count(*) FROM models") == [(0,)]
    assert not list(place.home.glob("vectors/artefacts/*"))


def test_a_damaged_artefact_stops_a_run_before_it_records_anything(place: Workplace) -> None:
    place.publish(64)
    (first,) = place.extract(**INT8)
    assert first.error is None
    (artefact,) = artefacts(place)
    artefact.write_bytes(artefact.read_bytes()[:-1])
    place.publish(1, start=64)
    (result,) = place.extract(**INT8)
    assert result.exit_code is ExitCode.USAGE
    assert f"{artefact}, which {first.model_id} computes with, is damaged" in str(result.error)
    assert place.rows("SELECT count(*) FROM extractions WHERE status = 'done'") == [(64,)]


def test_too_few_images_make_no_int8_model(place: Workplace) -> None:
    """Not all that the catalogue names can be had."""
    place.publish(70)
    for number in range(10):
        place.server.serve(f"/{number}.jpg", b"no picture")
    (result,) = place.extract(**INT8)
    assert result.exit_code is ExitCode.USAGE
    assert "takes 64 images of the catalogue, and 60 can be had" in str(result.error)
    assert place.rows("SELECT count(*) FROM models") == [(0,)]


def test_int8_without_openvino_is_an_error_and_no_fallback(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.publish(64)
    place.extract(**INT8)
    place.publish(1, start=64)
    monkeypatch.setattr(runtimes, "openvino_release", lambda: None)
    (known,) = place.extract(**INT8)
    place.models["other"] = place.models["tiny"]
    (unknown,) = place.extract("other", **INT8)
    for result in (known, unknown):
        assert result.exit_code is ExitCode.USAGE
        assert "precision int8 needs OpenVINO" in str(result.error)
    assert place.rows("SELECT count(*) FROM models") == [(1,)]


@pytest.mark.parametrize(
    "asked",
    [
        {"runtime": "openvino", "compile": True},
        {"runtime": "openvino", "device": "cuda"},
        {"runtime": "torch", "precision": "int8"},
    ],
)
def test_demands_that_contradict_each_other_begin_no_run(
    place: Workplace, asked: dict[str, Any]
) -> None:
    place.publish(1)
    (result,) = place.extract(embed=asked)
    assert result.exit_code is ExitCode.USAGE
    assert place.rows("SELECT count(*) FROM models") == [(0,)]
    assert place.rows("SELECT count(*) FROM runs") == [(0,)]


def test_a_table_that_says_another_precision_is_not_overruled(place: Workplace) -> None:
    place.models["tiny"]["precision"] = "fp32"
    place.publish(1)
    (result,) = place.extract(**INT8)
    assert result.exit_code is ExitCode.USAGE
    assert "says precision = 'fp32'" in str(result.error)


def test_an_active_int8_model_is_what_its_name_stands_for(place: Workplace) -> None:
    place.publish(64)
    (first,) = place.extract(**INT8)
    place.publish(6, start=64)
    (second,) = place.extract(embed={"runtime": "auto"})
    assert (second.model_id, second.figures.done) == (first.model_id, 6)
    place.models["tiny"]["normalize"] = True
    (refused,) = place.extract(embed={"runtime": "auto"})
    assert refused.exit_code is ExitCode.USAGE
    assert f"stands for {first.model_id}" in str(refused.error)
    assert len(artefacts(place)) == 1


def test_no_image_is_lost_where_batches_do_not_fit(place: Workplace) -> None:
    place.models["hungry"] = place.models["tiny"] | {"builder": "tests.tiny_model:build_hungry"}
    place.publish(50)
    (result,) = place.extract("hungry", embed={"precision": "fp32"})
    assert (result.figures.done, result.figures.failed, result.error) == (50, 0, None)
    (plain,) = place.extract("tiny", embed={"precision": "fp32"})
    np.testing.assert_array_equal(vectors(place, result.model_id), vectors(place, plain.model_id))
