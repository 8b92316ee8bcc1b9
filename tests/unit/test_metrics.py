"""What Prometheus is told: values, names and labels, by the real client's parser."""

import re
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.exposition import read, series
from tests.gateway import Gateway
from tests.unit.test_report_showcase import status
from visual_search.errors import ExitCode, FailureReason
from visual_search.metrics.exporter import Exporter
from visual_search.metrics.families import run_families, status_text, success_families
from visual_search.metrics.sample import ModelMetrics, RunSample
from visual_search.metrics.worker_number import WorkerNumber
from visual_search.models.spec import ModelSpec, Preprocessing
from visual_search.runs import STAGES, RunFigures
from visual_search.settings import MetricsSettings

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
FIGURES = RunFigures(
    claimed=12,
    done=7,
    failed=3,
    failed_by_reason={"not_found": 2, "timeout": 1},
    in_flight=2,
    shards=1,
    downloaded_bytes=1_500_000.5,
    core_seconds_per_stage=dict(zip(STAGES, (1.0, 2.0, 6.0, 0.5, 0.25), strict=True)),
)
SPEC = ModelSpec(
    name="tiny",
    builder="tests.tiny_model:build",
    revision="1",
    weights="builder",
    weights_sha256=None,
    layer=None,
    dim=8,
    preprocessing=Preprocessing(
        resize="squash",
        size=32,
        shortest_edge=None,
        interpolation="bilinear",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    ),
    decode="exact",
    normalize=False,
    precision="fp32",
    stored="float32",
)


def sample(**changed: Any) -> RunSample:
    values: dict[str, Any] = {
        "model": "tiny",
        "worker": 1,
        "model_id": "tiny-00000000",
        "precision": "bf16",
        "started_at": 1000.5,
        "updated_at": 1030.0,
        "exit_code": None,
        "figures": FIGURES,
    }
    return RunSample(**(values | changed))


def text_of(run: RunSample) -> str:
    return generate_latest(run_families(run)).decode()


def every_text() -> str:
    """Each metric that is exported, at least once."""
    ended = text_of(sample(exit_code=ExitCode.OK))
    success = generate_latest(success_families("tiny", 1.0)).decode()
    return ended + success + status_text([status(last_success_at=NOW)], NOW)


# A run


def test_a_run_says_what_it_has_done() -> None:
    values = read(text_of(sample()))
    own = {"model": "tiny", "worker": "1"}

    def value(name: str, **labels: str) -> float:
        return values[series(name, **own, **labels)]

    assert value("vsearch_images_claimed_total") == 12
    assert value("vsearch_images_total", outcome="done") == 7
    assert value("vsearch_images_total", outcome="failed") == 3
    assert value("vsearch_image_failures_total", reason="not_found") == 2
    assert value("vsearch_image_failures_total", reason="timeout") == 1
    assert value("vsearch_image_failures_total", reason="gone") == 0
    assert value("vsearch_images_in_flight") == 2
    assert value("vsearch_shards_recorded_total") == 1
    assert value("vsearch_downloaded_bytes_total") == 1_500_000.5
    stages = {stage: value("vsearch_stage_core_seconds_total", stage=stage) for stage in STAGES}
    assert stages == FIGURES.core_seconds_per_stage
    assert value("vsearch_run_start_timestamp_seconds") == 1000.5
    assert value("vsearch_run_update_timestamp_seconds") == 1030
    info = [(name, dict(labels)) for name, labels in values if name == "vsearch_run_info"]
    assert [(labels["model_id"], labels["precision"]) for _, labels in info] == [
        ("tiny-00000000", "bf16")
    ]


def test_a_run_is_active_until_it_has_an_exit_code() -> None:
    own = {"model": "tiny", "worker": "1"}
    running = read(text_of(sample()))
    assert running[series("vsearch_run_active", **own)] == 1
    assert series("vsearch_run_exit_code", **own) not in running
    ended = read(text_of(sample(exit_code=ExitCode.TEMPORARY)))
    assert ended[series("vsearch_run_active", **own)] == 0
    assert ended[series("vsearch_run_exit_code", **own)] == 75


def test_a_model_that_no_run_began_for_has_an_exit_code_and_no_info() -> None:
    values = read(
        text_of(
            sample(model_id=None, precision=None, exit_code=ExitCode.USAGE, figures=RunFigures())
        )
    )
    assert values[series("vsearch_run_exit_code", model="tiny", worker="1")] == 2
    assert not [name for name, _ in values if name == "vsearch_run_info"]


def test_a_counter_never_falls() -> None:
    """What no other stage claims is for embedding, and may be claimed a little later."""
    seconds = iter([5.0, 4.9, 5.2])
    model = ModelMetrics(
        "tiny", SPEC, lambda: RunFigures(core_seconds_per_stage={"embed": next(seconds)}), 0.0
    )
    told = [model.sample(0).figures.core_seconds_per_stage["embed"] for _ in range(3)]
    assert told == [5.0, 5.0, 5.2]


# The status


def test_status_says_how_far_each_model_is() -> None:
    text = status_text(
        [
            status(images_per_second=12.5, workers=2, last_success_at=NOW),
            status(model="other", model_id="other-1", failed_by_reason={}),
        ],
        NOW,
    )
    values = read(text)

    def value(name: str, **labels: str) -> float:
        return values[series(f"vsearch_status_{name}", **labels)]

    of_tiny = {
        name: value(name, model="tiny")
        for name in (
            "images",
            "done_images",
            "pending_images",
            "waiting_images",
            "claimed_images",
            "images_per_second",
            "workers",
            "last_success_timestamp_seconds",
        )
    }
    assert of_tiny == {
        "images": 10,
        "done_images": 8,
        "pending_images": 1,
        "waiting_images": 1,
        "claimed_images": 0,
        "images_per_second": 12.5,
        "workers": 2,
        "last_success_timestamp_seconds": NOW.timestamp(),
    }
    assert value("failed_images", model="tiny", reason="not_found") == 1
    assert value("failed_images", model="other", reason="not_found") == 0
    assert value("model_info", model="other", model_id="other-1") == 1
    assert value("timestamp_seconds") == NOW.timestamp()
    never = series("vsearch_status_last_success_timestamp_seconds", model="other")
    assert never not in values


def test_a_catalogue_without_a_model_has_a_status_too() -> None:
    assert read(status_text([], NOW)) == {
        series("vsearch_status_timestamp_seconds"): NOW.timestamp()
    }


# Names and labels


def test_names_follow_prometheus_conventions() -> None:
    for family in text_string_to_metric_families(every_text()):
        for name in {one.name for one in family.samples}:
            assert re.fullmatch(r"vsearch_[a-z_]+", name)
            assert name.endswith("_total") == (family.type == "counter")
            assert not re.search(r"_(ms|millis|minutes|kb|mb|percent)(_|$)", name)


def test_no_label_has_more_values_than_models_workers_and_kinds() -> None:
    labels = {name for _, found in read(every_text()) for name, _ in found}
    assert labels == {
        "model", "worker", "model_id", "precision", "version", "outcome", "reason", "stage",
    }  # fmt: skip
    reasons = {dict(found)["reason"] for _, found in read(every_text()) if "reason" in dict(found)}
    assert reasons == {reason.value for reason in FailureReason}


# Workers


def test_workers_have_the_lowest_free_numbers(tmp_path: Path) -> None:
    first, second = WorkerNumber(tmp_path), WorkerNumber(tmp_path)
    assert (first.number, second.number) == (0, 1)
    first.close()
    with closing(WorkerNumber(tmp_path)) as next_:
        assert next_.number == 0
    second.close()
    assert not list(tmp_path.glob("*.prom"))


# Sending


def exported(settings: MetricsSettings, home: Path, code: ExitCode = ExitCode.OK) -> float:
    """Tell of one run from beginning to end; how long the end took."""
    with Exporter(settings, home) as exporter:
        exporter.begin(SPEC, lambda: FIGURES)
        exporter.end("tiny", code)
        ending = time.monotonic()
    return time.monotonic() - ending


def test_a_success_outlasts_a_failure(tmp_path: Path) -> None:
    settings = MetricsSettings(textfile_folder=tmp_path)
    exported(settings, tmp_path)
    success = tmp_path / "vsearch_tiny_success.prom"
    before = success.read_text()
    exported(settings, tmp_path, ExitCode.FAILED)
    assert success.read_text() == before
    values = read((tmp_path / "vsearch_tiny_0.prom").read_text())
    assert values[series("vsearch_run_exit_code", model="tiny", worker="0")] == 1


def test_files_appear_while_the_run_lasts(tmp_path: Path) -> None:
    settings = MetricsSettings(textfile_folder=tmp_path, interval_s=3600)
    file = tmp_path / "vsearch_tiny_0.prom"
    with Exporter(settings, tmp_path) as exporter:
        exporter.begin(SPEC, lambda: FIGURES)
        wait_until(file.exists)
        assert read(file.read_text())[series("vsearch_run_active", model="tiny", worker="0")] == 1
        exporter.end("tiny", ExitCode.OK)


def test_files_are_brought_up_to_date_at_every_interval(tmp_path: Path) -> None:
    done = iter(range(10**9))
    settings = MetricsSettings(textfile_folder=tmp_path, interval_s=0.01)
    file = tmp_path / "vsearch_tiny_0.prom"
    key = series("vsearch_images_total", model="tiny", worker="0", outcome="done")
    with Exporter(settings, tmp_path) as exporter:
        exporter.begin(SPEC, lambda: RunFigures(done=next(done)))
        wait_until(lambda: file.exists() and read(file.read_text())[key] >= 3)


def test_two_workers_of_a_machine_have_files_of_their_own(tmp_path: Path) -> None:
    settings = MetricsSettings(textfile_folder=tmp_path)
    with Exporter(settings, tmp_path):
        exported(settings, tmp_path)
    exported(settings, tmp_path)
    files = sorted(file.name for file in tmp_path.glob("*.prom"))
    assert files == ["vsearch_tiny_0.prom", "vsearch_tiny_1.prom", "vsearch_tiny_success.prom"]
    # node_exporter refuses all files if one series is in two of them.
    read("".join(file.read_text() for file in tmp_path.glob("*.prom")))


def test_a_folder_that_is_not_there_is_a_warning(tmp_path: Path) -> None:
    settings = MetricsSettings(textfile_folder=tmp_path / "missing")
    with capture_logs() as logs:
        exported(settings, tmp_path)
    assert [(entry["event"], entry["why"]) for entry in logs] == [
        ("metrics_not_sent", "No such file or directory")
    ]


def test_a_group_is_a_model_of_a_worker_and_the_success_is_the_models(tmp_path: Path) -> None:
    with Gateway() as gateway:
        settings = MetricsSettings(
            pushgateway=SecretStr(f"http://{gateway.address}/prefix/"),
            job="shop/vectors",
            instance="machine",
        )
        exported(settings, tmp_path)
        paths = {push.path for push in gateway.pushes}
        job = "/prefix/metrics/job@base64/c2hvcC92ZWN0b3Jz"
        run, success = f"{job}/instance/machine/model/tiny/worker/0", f"{job}/model/tiny"
        assert paths == {run, success}
        assert {push.method for push in gateway.pushes} == {"PUT"}
        values = read(gateway.last(run))
        assert values[series("vsearch_run_exit_code", model="tiny", worker="0")] == 0
        (told,) = read(gateway.last(success)).values()
        assert time.time() - 60 < told <= time.time()


def test_a_failure_pushes_no_success(tmp_path: Path) -> None:
    with Gateway() as gateway:
        settings = MetricsSettings(pushgateway=SecretStr(f"http://{gateway.address}"))
        exported(settings, tmp_path, ExitCode.FAILURE_RATE)
        assert gateway.pushes
        assert not [push for push in gateway.pushes if "last_success" in push.body]


def test_credentials_reach_the_gateway_as_a_header_only(tmp_path: Path) -> None:
    with Gateway(status=401) as gateway, capture_logs() as logs:
        url = f"http://me:s%40cret@{gateway.address}"
        exported(MetricsSettings(pushgateway=SecretStr(url)), tmp_path)
        assert {push.headers["Authorization"] for push in gateway.pushes} == {
            "Basic bWU6c0BjcmV0"  # me:s@cret
        }
        (warning,) = logs
        assert (warning["to"], warning["why"]) == (f"http://{gateway.address}", "HTTP 401")
        assert "cret" not in str(logs) + "".join(push.path for push in gateway.pushes)


def test_a_gateway_that_says_nothing_is_left_within_seconds(tmp_path: Path) -> None:
    with Gateway(silent=True) as gateway, capture_logs() as logs:
        settings = MetricsSettings(
            pushgateway=SecretStr(f"http://{gateway.address}"), textfile_folder=tmp_path
        )
        assert exported(settings, tmp_path) < 4
        assert [entry["event"] for entry in logs] == ["metrics_not_sent"]
    values = read((tmp_path / "vsearch_tiny_0.prom").read_text())
    assert values[series("vsearch_run_active", model="tiny", worker="0")] == 0


def test_a_gateway_that_drips_is_left_within_seconds(tmp_path: Path) -> None:
    """No time-out of a socket ends such an answer."""
    with Gateway(dripping=True) as gateway, capture_logs() as logs:
        settings = MetricsSettings(pushgateway=SecretStr(f"http://{gateway.address}"))
        assert exported(settings, tmp_path) < 8
        assert [(entry["event"], entry["why"]) for entry in logs] == [
            ("metrics_not_sent", "it takes too long")
        ]


def test_a_gateway_that_is_away_is_warned_of_once(tmp_path: Path) -> None:
    with Gateway() as gone:
        address = gone.address
    settings = MetricsSettings(pushgateway=SecretStr(f"http://{address}"), interval_s=0.01)
    asked = iter(range(10**9))
    last = -1
    with capture_logs() as logs:
        with Exporter(settings, tmp_path) as exporter:

            def counted() -> RunFigures:
                nonlocal last
                last = next(asked)
                return FIGURES

            exporter.begin(SPEC, counted)
            wait_until(lambda: last >= 3)
        assert [(entry["event"], entry["why"]) for entry in logs] == [
            ("metrics_not_sent", "Connection refused")
        ]


def test_the_warning_is_about_the_run(tmp_path: Path) -> None:
    settings = MetricsSettings(pushgateway=SecretStr("http://127.0.0.1:1"))
    processors = [structlog.contextvars.merge_contextvars]
    with (
        capture_logs(processors=processors) as logs,
        structlog.contextvars.bound_contextvars(run_id="r"),
    ):
        exported(settings, tmp_path)
    assert [entry["run_id"] for entry in logs] == ["r"]


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)
