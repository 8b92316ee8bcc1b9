"""Metrics by name: of a model's run, of its success, and of the status of all models."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from prometheus_client import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from visual_search import __version__
from visual_search.errors import FailureReason
from visual_search.metrics.sample import RunSample
from visual_search.runs import STAGES
from visual_search.status import ModelStatus


class Families(Collector):
    """Metrics as prometheus-client takes them."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> Iterator[Metric]:
        """The metrics, in their order."""
        return iter(self._families)


def run_families(run: RunSample) -> Families:
    """What a worker says of one model, during its run and after it.

    All counters begin at nought with each run. Neither a run's id nor anything of an image is a
    label: there is no end of them.
    """
    labels = {"model": run.model, "worker": str(run.worker)}
    figures = run.figures
    return Families(
        [
            *_run_info(run, labels),
            _gauge(
                "vsearch_run_active",
                "1 while the run lasts, then 0.",
                labels,
                run.exit_code is None,
            ),
            _gauge(
                "vsearch_run_start_timestamp_seconds", "When the run began.", labels, run.started_at
            ),
            _gauge(
                "vsearch_run_update_timestamp_seconds",
                "When the worker last brought these metrics up to date.",
                labels,
                run.updated_at,
            ),
            *_exit_code(run, labels),
            _counter("vsearch_images_claimed", "Images claimed.", labels, [((), figures.claimed)]),
            _counter(
                "vsearch_images",
                "Images by recorded outcome: done, unchanged if only checked, or failed, for good "
                "or until another attempt.",
                labels,
                [
                    (("done",), figures.done),
                    (("unchanged",), figures.unchanged),
                    (("failed",), figures.failed),
                ],
                more=["outcome"],
            ),
            _counter(
                "vsearch_image_failures",
                "Recorded failures by reason, for good or until another attempt.",
                labels,
                [
                    ((reason.value,), figures.failed_by_reason.get(reason.value, 0))
                    for reason in FailureReason
                ],
                more=["reason"],
            ),
            _gauge(
                "vsearch_images_in_flight",
                "Images claimed of which no outcome is known yet.",
                labels,
                figures.in_flight,
            ),
            _counter(
                "vsearch_downloaded_bytes",
                "Bytes of bodies that arrived, whatever became of them.",
                labels,
                [((), figures.downloaded_bytes)],
            ),
            _counter("vsearch_shards_recorded", "Shards recorded.", labels, [((), figures.shards)]),
            _counter(
                "vsearch_stage_core_seconds",
                "Processor time by stage.",
                labels,
                [((stage,), figures.core_seconds_per_stage.get(stage, 0.0)) for stage in STAGES],
                more=["stage"],
            ),
        ]
    )


def success_families(model: str, at: float) -> Families:
    """What outlasts all runs: when one last ended with exit code 0, or found nothing to do."""
    return Families(
        [
            _gauge(
                "vsearch_last_success_timestamp_seconds",
                "When vsearch extract last ended well for the model, nothing to do included.",
                {"model": model},
                at,
            )
        ]
    )


def status_text(statuses: Sequence[ModelStatus], now: datetime) -> str:
    """The statuses in Prometheus' text format."""
    return generate_latest(Families(_status_families(statuses, now))).decode()


def _status_families(statuses: Sequence[ModelStatus], now: datetime) -> Iterator[Metric]:
    yield _gauge(
        "vsearch_status_timestamp_seconds", "When the status was read.", {}, now.timestamp()
    )
    info = GaugeMetricFamily(
        "vsearch_status_model_info", "The active model of a name.", labels=["model", "model_id"]
    )
    failed = GaugeMetricFamily(
        "vsearch_status_failed_images",
        "Images failed for good, by reason.",
        labels=["model", "reason"],
    )
    for status in statuses:
        info.add_metric([status.model, status.model_id], 1)
        for reason in FailureReason:
            images = status.failed_by_reason.get(reason.value, 0)
            failed.add_metric([status.model, reason.value], images)
    yield info
    yield _by_model("images", "Images of the catalogue.", statuses, [s.total for s in statuses])
    yield _by_model(
        "done_images", "Images with a recorded vector.", statuses, [s.done for s in statuses]
    )
    yield _by_model(
        "pending_images",
        "Images that are neither done nor claimed nor failed.",
        statuses,
        [s.pending for s in statuses],
    )
    yield _by_model(
        "waiting_images",
        "Those pending images that were tried before and are not due yet.",
        statuses,
        [s.waiting for s in statuses],
    )
    yield _by_model(
        "claimed_images", "Images that workers hold.", statuses, [s.claimed for s in statuses]
    )
    yield failed
    yield _by_model(
        "images_per_second",
        "Sum of the steady rates of the workers alive.",
        statuses,
        [s.images_per_second or 0 for s in statuses],
    )
    yield _by_model("workers", "Workers alive.", statuses, [s.workers for s in statuses])
    yield _by_model(
        "last_success_timestamp_seconds",
        "When a run that had something to do last completed.",
        statuses,
        [s.last_success_at.timestamp() if s.last_success_at else None for s in statuses],
    )


def _run_info(run: RunSample, labels: dict[str, str]) -> Iterator[Metric]:
    if run.model_id is not None:
        more = {
            "model_id": run.model_id,
            "precision": run.precision or "",
            "version": __version__,
        }
        yield _gauge("vsearch_run_info", "What the run computes with.", labels | more, 1)


def _exit_code(run: RunSample, labels: dict[str, str]) -> Iterator[Metric]:
    if run.exit_code is not None:
        yield _gauge("vsearch_run_exit_code", "How the run ended.", labels, int(run.exit_code))


def _gauge(name: str, help_: str, labels: dict[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(name, help_, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _counter(
    name: str,
    help_: str,
    labels: dict[str, str],
    values: Iterable[tuple[tuple[str, ...], float]],
    *,
    more: Sequence[str] = (),
) -> Metric:
    """A counter, with `_total` at the end of its name, and its values by `more` labels."""
    family = CounterMetricFamily(name, help_, labels=[*labels, *more])
    for own, value in values:
        family.add_metric([*labels.values(), *own], value)
    return family


def _by_model(
    name: str, help_: str, statuses: Sequence[ModelStatus], values: Sequence[float | None]
) -> Metric:
    """A gauge with a value for each model that has one."""
    family = GaugeMetricFamily(f"vsearch_status_{name}", help_, labels=["model"])
    for status, value in zip(statuses, values, strict=True):
        if value is not None:
            family.add_metric([status.model], value)
    return family
