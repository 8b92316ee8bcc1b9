"""Every log line of a run says of which run and model it is; of a shard, of which shard."""

import asyncio
import json
from typing import Any

from aiohttp import web

from tests.catalogue import add_urls
from tests.end_to_end.workplace import Finished, Workplace, ids, jpeg
from visual_search.errors import ExitCode


def records(ended: Finished) -> list[dict[str, Any]]:
    """Every line that was logged; each is one JSON object."""
    return [json.loads(line) for line in ended.err.splitlines()]


def test_every_line_carries_run_model_and_shard(place: Workplace) -> None:
    """Of a run with retries, failures and several shards, at its most talkative."""
    place.publish(7)

    async def troubled(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=503)

    place.server.route("/troubled.jpg", troubled)
    urls = [place.server.url(path) for path in ("/troubled.jpg", "/missing.jpg")]
    add_urls(place.database, urls)
    ended = place.vsearch(
        "--debug",
        "extract",
        "--model",
        "tiny",
        VSEARCH_DOWNLOAD__TRIES="2",
        VSEARCH_EXTRACT__SHARD_ROWS="4",
    )
    assert ended.code == ExitCode.OK, ended
    lines = records(ended)
    assert {line["event"] for line in lines} == {
        "run_started", "model_loaded", "retry_scheduled", "shard_recorded",
    }  # fmt: skip
    run_ids = ids(place.rows("SELECT CAST(run_id AS text) FROM runs"))
    assert len(run_ids) == 1
    for line in lines:
        assert line["model"] == "tiny", line
        assert line["run_id"] in run_ids, line
    of_shards = [line for line in lines if "shard" in line["event"]]
    recorded = ids(place.rows("SELECT CAST(shard_id AS text) FROM shards"))
    assert {line["shard"] for line in of_shards} == recorded
    assert len(of_shards) == len(recorded) > 1


def test_lines_of_several_models_name_the_one_or_all_that_they_are_about(
    place: Workplace,
) -> None:
    place.publish(5)
    place.models["other"] = place.models["tiny"] | {"revision": "2"}
    place.models["broken"] = place.models["tiny"] | {"builder": "tests.tiny_model:build_broken"}
    models = ("tiny", "other", "broken")
    ended = place.vsearch(
        "extract",
        *(argument for name in models for argument in ("--model", name)),
        VSEARCH_METRICS__TEXTFILE_FOLDER=str(place.home / "missing"),
    )
    lines = [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]
    run_of = dict(
        place.rows("SELECT name, CAST(run_id AS text) FROM runs JOIN models USING (model_key)")
    )
    about = {(line["event"], line["model"], line["run_id"]) for line in lines}
    all_models, all_runs = ", ".join(models), ", ".join(run_of[name] for name in models)
    assert about == {
        ("metrics_not_sent", all_models, all_runs),
        *(("run_started", name, run_of[name]) for name in models),
        *(("model_loaded", name, run_of[name]) for name in models[:2]),
        *(("shard_recorded", name, run_of[name]) for name in models[:2]),
        ("model_stopped", "broken", run_of["broken"]),
    }


def test_lines_of_a_shard_that_is_taken_away_carry_it_too(place: Workplace) -> None:
    """Before the last image is there, the run's lease is gone."""
    place.publish(3)
    taken = False

    async def last(_request: web.BaseRequest) -> web.StreamResponse:
        nonlocal taken
        while not taken:
            if place.rows("SELECT FROM shards WHERE state = 'writing'"):
                place.rows("DELETE FROM leases")
                taken = True
            await asyncio.sleep(0.02)
        return web.Response(body=jpeg(9))

    place.server.route("/last.jpg", last)
    add_urls(place.database, [place.server.url("/last.jpg")])
    ended = place.vsearch("extract", "--model", "tiny")
    (given_up,) = [line for line in records(ended) if line["event"] == "shard_given_up"]
    (abandoned,) = ids(
        place.rows("SELECT CAST(shard_id AS text) FROM shards WHERE state = 'abandoned'")
    )
    (run_id,) = ids(place.rows("SELECT CAST(run_id AS text) FROM runs"))
    assert (given_up["shard"], given_up["run_id"], given_up["model"]) == (
        abandoned,
        run_id,
        "tiny",
    )
