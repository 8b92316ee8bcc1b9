"""What runs tell Prometheus, by file and by push; and that no trouble with it costs them more."""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from tests.catalogue import add_urls
from tests.end_to_end.workplace import Workplace, jpeg
from tests.exposition import Series, read, series
from tests.gateway import Gateway
from visual_search.errors import ExitCode
from visual_search.runs import STAGES

SECRET = "Kanarienvogel"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "textfiles"
    folder.mkdir()
    return folder


def files(folder: Path) -> dict[Series, float]:
    """All that node_exporter would find."""
    return read("".join(file.read_text() for file in sorted(folder.glob("*.prom"))))


def test_a_run_leaves_files_that_say_what_it_did(place: Workplace, folder: Path) -> None:
    place.publish(20)
    place.server.serve("/page.jpg", b"<html>" * 100)
    add_urls(place.database, [place.server.url("/page.jpg"), place.server.url("/missing.jpg")])
    began = time.time()
    (result,) = place.extract(metrics={"textfile_folder": folder})
    values = files(folder)
    own = {"model": "tiny", "worker": "0"}

    def value(name: str, **labels: str) -> float:
        return values[series(name, **own, **labels)]

    assert value("vsearch_images_claimed_total") == 22
    assert value("vsearch_images_total", outcome="done") == 20
    assert value("vsearch_images_total", outcome="failed") == 2
    assert value("vsearch_image_failures_total", reason="not_found") == 1
    assert value("vsearch_image_failures_total", reason="not_an_image") == 1
    assert value("vsearch_images_in_flight") == 0
    assert value("vsearch_shards_recorded_total") == 1
    bodies = sum(len(jpeg(number)) for number in range(20)) + 600
    assert value("vsearch_downloaded_bytes_total") == bodies
    for stage in STAGES:
        assert value("vsearch_stage_core_seconds_total", stage=stage) > 0
    assert value("vsearch_run_active") == 0
    assert value("vsearch_run_exit_code") == result.exit_code == ExitCode.OK
    start = value("vsearch_run_start_timestamp_seconds")
    success = values[series("vsearch_last_success_timestamp_seconds", model="tiny")]
    assert began < start < success < time.time()
    info = [dict(labels) for name, labels in values if name == "vsearch_run_info"]
    assert [labels["model_id"] for labels in info] == [result.model_id]


def test_metrics_show_a_run_while_it_lasts(place: Workplace, folder: Path) -> None:
    """The last image is not served before a file says that it alone is in flight."""
    place.publish(4)
    in_flight = series("vsearch_images_in_flight", model="tiny", worker="0")
    seen: list[dict[Series, float]] = []

    async def last(_request: web.BaseRequest) -> web.StreamResponse:
        while not seen:
            values = files(folder)
            if values.get(in_flight) == 1:
                seen.append(values)
            await asyncio.sleep(0.01)
        return web.Response(body=jpeg(9))

    place.server.route("/last.jpg", last)
    add_urls(place.database, [place.server.url("/last.jpg")])
    place.extract(metrics={"textfile_folder": folder, "interval_s": 0.02})
    assert seen[0][series("vsearch_run_active", model="tiny", worker="0")] == 1
    assert seen[0][series("vsearch_images_claimed_total", model="tiny", worker="0")] == 5
    assert series("vsearch_last_success_timestamp_seconds", model="tiny") not in seen[0]
    assert files(folder)[in_flight] == 0


def test_several_models_count_their_own_images_and_share_what_arrived(
    place: Workplace, folder: Path
) -> None:
    place.publish(6)
    place.extract()
    place.publish(4, start=6)
    place.models["other"] = place.models["tiny"] | {"revision": "2"}
    place.extract("tiny", "other", metrics={"textfile_folder": folder})
    values = files(folder)

    def value(model: str, name: str, **labels: str) -> float:
        return values[series(name, model=model, worker="0", **labels)]

    assert value("tiny", "vsearch_images_total", outcome="done") == 4
    assert value("other", "vsearch_images_total", outcome="done") == 10
    old = sum(len(jpeg(number)) for number in range(6))
    new = sum(len(jpeg(number)) for number in range(6, 10))
    assert value("tiny", "vsearch_downloaded_bytes_total") == new / 2
    assert value("other", "vsearch_downloaded_bytes_total") == new / 2 + old


def test_a_run_with_nothing_to_do_is_a_success(place: Workplace, folder: Path) -> None:
    place.publish(2)
    success = series("vsearch_last_success_timestamp_seconds", model="tiny")
    place.extract(metrics={"textfile_folder": folder})
    before = files(folder)[success]
    (result,) = place.extract(metrics={"textfile_folder": folder})
    assert result.run_id is None
    assert files(folder)[success] > before


def test_a_model_that_cannot_run_is_no_success(place: Workplace, folder: Path) -> None:
    place.publish(2)
    place.models["broken"] = place.models["tiny"] | {"builder": "tests.tiny_model:build_broken"}
    place.extract("tiny", "broken", "unknown", metrics={"textfile_folder": folder})
    values = files(folder)
    codes = {
        model: values[series("vsearch_run_exit_code", model=model, worker="0")]
        for model in ("tiny", "broken", "unknown")
    }
    assert codes == {"tiny": 0, "broken": ExitCode.USAGE, "unknown": ExitCode.USAGE}
    succeeded = {
        dict(labels)["model"]
        for name, labels in values
        if name == "vsearch_last_success_timestamp_seconds"
    }
    assert succeeded == {"tiny"}


def test_a_run_pushes_while_it_lasts_and_when_it_ends(place: Workplace) -> None:
    place.publish(5)
    with Gateway() as gateway:
        address = f"http://me:{SECRET}@{gateway.address}"
        done = place.vsearch(
            "extract",
            "--model",
            "tiny",
            VSEARCH_METRICS__PUSHGATEWAY=address,
            VSEARCH_METRICS__INSTANCE="machine",
        )
        assert done.code == ExitCode.OK, done
        group = "/metrics/job/vsearch/instance/machine/model/tiny/worker/0"
        assert {push.path for push in gateway.pushes} == {
            group,
            "/metrics/job/vsearch/model/tiny",
        }
        own = {"model": "tiny", "worker": "0"}
        first = read(next(push.body for push in gateway.pushes if push.path == group))
        assert first[series("vsearch_run_active", **own)] == 1
        ended = read(gateway.last(group))
        assert ended[series("vsearch_run_active", **own)] == 0
        assert ended[series("vsearch_images_total", **own, outcome="done")] == 5
        assert SECRET not in done.out + done.err + "".join(push.body for push in gateway.pushes)
    shown = place.vsearch("config", "show", VSEARCH_METRICS__PUSHGATEWAY=address)
    assert gateway.address in shown.out
    assert SECRET not in shown.out + shown.err


@pytest.mark.parametrize(
    ("gateway", "why"),
    [(lambda: Gateway(status=500), "HTTP 500"), (lambda: Gateway(silent=True), "TimeoutError")],
    ids=["500", "silent"],
)
def test_a_gateway_in_trouble_costs_a_run_one_warning(
    place: Workplace, gateway: Callable[[], Gateway], why: str
) -> None:
    place.publish(5)
    with gateway() as troubled:
        done = place.vsearch(
            "extract",
            "--model",
            "tiny",
            VSEARCH_METRICS__PUSHGATEWAY=f"http://me:{SECRET}@{troubled.address}",
            VSEARCH_METRICS__INTERVAL_S="0.05",
        )
        assert troubled.pushes
    assert done.code == ExitCode.OK, done
    assert place.status().done == 5
    warnings = [line for line in map(json.loads, done.err.splitlines()) if line["level"] != "info"]
    assert [(line["event"], line["why"]) for line in warnings] == [("metrics_not_sent", why)]
    assert SECRET not in done.out + done.err


def test_status_in_prometheus_format_says_what_its_json_says(place: Workplace) -> None:
    place.publish(6)
    add_urls(place.database, [place.server.url("/missing.jpg")])
    place.extract()
    place.publish(3, start=6)
    (model,) = json.loads(place.vsearch("status", "--json").out)["models"]
    told = place.vsearch("status", "--prometheus")
    assert told.code == ExitCode.OK, told
    values = read(told.out)
    for name in ("done", "pending", "waiting", "claimed"):
        assert values[series(f"vsearch_status_{name}_images", model="tiny")] == model[name]
    assert values[series("vsearch_status_images", model="tiny")] == model["total"] == 10
    failed = series("vsearch_status_failed_images", model="tiny", reason="not_found")
    assert values[failed] == model["failed"] == 1
    last = values[series("vsearch_status_last_success_timestamp_seconds", model="tiny")]
    assert time.time() - 60 < last < time.time()
    refused = place.vsearch("status", "--prometheus", "--json")
    assert refused.code == ExitCode.USAGE
    assert "--json and --prometheus exclude each other" in refused.err
