"""What an overview may have to show, from nothing to far too much."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from visual_search.hosts import Traffic
from visual_search.report.failure_groups import FailureGroup
from visual_search.report.overview.content import (
    FailingHost,
    FailingHosts,
    Growth,
    ModelFacts,
    Overview,
    Progress,
    ShardSizes,
    SizeBin,
)
from visual_search.runs import STAGES, RunRecord
from visual_search.status import ModelStatus

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
BEGAN = NOW - timedelta(days=20)
IMAGES = 1_000_000
NO_HOSTS = FailingHosts(hosts=(), host_count=0, looked_at=0)


def run(model: str = "resnet18", hours_ago: float = 2.0, **changed: Any) -> RunRecord:
    started = NOW - timedelta(hours=hours_ago)
    values: dict[str, Any] = {
        "run_id": UUID(int=int(hours_ago * 3600)),
        "model": model,
        "model_id": f"{model}-0123456789",
        "host": "worker-1",
        "pid": 1,
        "started_at": started,
        "heartbeat_at": started + timedelta(minutes=50),
        "finished_at": started + timedelta(minutes=50),
        "outcome": "completed",
        "message": None,
        "claimed": 41_000,
        "done": 40_000,
        "failed": 1_000,
        "images_per_second": 60.0 + 23 * (hours_ago * 7 % 5),
        "core_seconds_per_stage": dict(zip(STAGES, (70, 160, 610, 21, 9), strict=True)),
    }
    return RunRecord(**(values | changed))


def status(model: str = "resnet18", **changed: Any) -> ModelStatus:
    values: dict[str, Any] = {
        "model": model,
        "model_id": f"{model}-0123456789",
        "total": IMAGES,
        "done": 880_000,
        "pending": 90_000,
        "waiting": 20_000,
        "claimed": 10_000,
        "failed": 20_000,
        "failed_by_reason": {"not_found": 20_000},
        "waiting_by_reason": {"timeout": 20_000},
        "images_per_second": 125.5,
        "eta_seconds": 637.0,
        "workers": 2,
        "last_success_at": NOW,
        "last_run": run(model),
    }
    return ModelStatus(**(values | changed))


def done(model: str) -> ModelStatus:
    """All of it."""
    nothing = {"pending": 0, "waiting": 0, "claimed": 0, "failed": 0, "workers": 0}
    unknown = {"images_per_second": None, "eta_seconds": None}
    return status(
        model, done=IMAGES, failed_by_reason={}, waiting_by_reason={}, **nothing, **unknown
    )


def facts(of: ModelStatus) -> ModelFacts:
    return ModelFacts(status=of, dim=512, precision="fp32", shards=103, bytes=2_400_000_000)


def growth(model: str, reached: int, *, begins_day: float = 0.0) -> Growth:
    """Every day from `begins_day` on a little more, in two hours each night."""
    days = [day for day in range(20) if day >= begins_day]
    points = [
        (BEGAN + timedelta(days=day, hours=hour), int(reached * (n + hour / 2) / len(days)))
        for n, day in enumerate(days)
        for hour in (1, 2)
    ]
    return Growth(model=model, points=points)


def progress(*models: Growth) -> Progress:
    return Progress(begins_at=BEGAN, ends_at=NOW, models=models)


def group(reason: str, images: int, *, waiting: bool = False, **changed: Any) -> FailureGroup:
    values: dict[str, Any] = {
        "next_attempt_at": NOW + timedelta(hours=2) if waiting else None,
        "example": f"http://cdn.shop.test/pictures/{reason}/4711.jpg",
        "detail": "answered as nobody should",
    }
    return FailureGroup(reason=reason, images=images, waiting=waiting, **(values | changed))


def sizes(step: float, *shards: int) -> ShardSizes:
    bins = [SizeBin(begins=step * n, ends=step * (n + 1), shards=m) for n, m in enumerate(shards)]
    return ShardSizes(bins=bins, median=step * len(bins) * 0.9, largest=step * (len(bins) - 0.5))


def overview(**changed: Any) -> Overview:
    """Two models, much done, some of it failed."""
    hosts = [
        FailingHost(
            host=f"cdn{n}.shop-number-{n}.test",
            failed=9000 // (n + 1),
            waiting=6000 // (2 * n + 1),
            by_reason={"not_found": 9000 // (n + 1), "timeout": 6000 // (2 * n + 1)},
        )
        for n in range(12)
    ]
    values: dict[str, Any] = {
        "made_at": NOW,
        "place": "db.internal:5432/shop",
        "images": IMAGES,
        "models": (facts(status()), facts(done("efficientnet_lite0"))),
        "progress": progress(
            growth("resnet18", 880_000, begins_day=6), growth("efficientnet_lite0", IMAGES)
        ),
        "runs": tuple(
            run(("resnet18", "efficientnet_lite0")[n % 2], 24 * n / 2 + 1) for n in range(24)
        ),
        "failures": (
            group("not_found", 16_000),
            group("undecodable", 3_400),
            group("blocked_address", 600),
            group("timeout", 14_000, waiting=True),
            group("server_error", 6_000, waiting=True),
        ),
        "failing_hosts": FailingHosts(hosts=hosts, host_count=40, looked_at=40_000),
        "slowest_hosts": tuple(
            (
                f"img{n}.shop-number-{n}.test:8443",
                Traffic(
                    requests=90_000 // (n + 1),
                    failed=300 * n,
                    bytes=4_000_000_000 // (n + 1),
                    seconds=(14 - n) * 20_000 / (n + 1),
                ),
            )
            for n in range(10)
        ),
        "shard_rows": sizes(1000, 12, 3, 1, 0, 2, 0, 1, 3, 1, 2, 178),
        "shard_bytes": sizes(5_000_000, 14, 2, 3, 4, 170, 10),
    }
    return Overview(**(values | changed))


def nothing(**changed: Any) -> Overview:
    """A catalogue on which nothing ever ran."""
    values: dict[str, Any] = {
        "models": (),
        "progress": None,
        "runs": (),
        "failures": (),
        "failing_hosts": NO_HOSTS,
        "slowest_hosts": (),
        "shard_rows": None,
        "shard_bytes": None,
    }
    return overview(**(values | changed))


def one_run() -> Overview:
    """A minute's work, all of it done."""
    only = run(finished_at=NOW, hours_ago=1 / 60, done=40, failed=0, images_per_second=12.25)
    ended = Progress(
        begins_at=only.started_at,
        ends_at=NOW,
        models=(Growth(model="resnet18", points=[(NOW - timedelta(seconds=20), 40)]),),
    )
    return nothing(
        images=40,
        models=(facts(replace(done("resnet18"), total=40, done=40)),),
        progress=ended,
        runs=(only,),
        slowest_hosts=(("h.test", Traffic(requests=40, bytes=900_000, seconds=3.5)),),
        shard_rows=sizes(4, *[0] * 10, 1),
        shard_bytes=sizes(10_000, *[0] * 8, 1),
    )


def crowd(models: int) -> Overview:
    """So many models, at least 70, and names as long as names may be."""
    names = [f"model_{n:03}_" + "of_the_night_" * 8 for n in range(models)]
    host = "a" * 63 + "." + "b" * 63 + "." + "c" * 63 + ".test:65535"
    return overview(
        place="/home/somebody/" + "folder/" * 40 + "postgres/vsearch",
        models=tuple(facts(status(name)) for name in names),
        progress=progress(*(growth(name, 150_000 * (n + 1)) for n, name in enumerate(names[:6]))),
        runs=tuple(run(names[n * 3], n + 1, host=host, message="why " * 49) for n in range(24)),
        failing_hosts=FailingHosts(
            hosts=[FailingHost(host=host, failed=3, waiting=9, by_reason={"dns": 12})] * 15,
            host_count=1_000_000,
            looked_at=12,
        ),
        slowest_hosts=[(host, Traffic(requests=1, failed=1, seconds=31.0))] * 15,
    )


def hostile(attack: str) -> Overview:
    """What comes from others says something else than it should."""
    of = status(attack, model_id=attack, last_run=run(attack, outcome=attack))
    return overview(
        place=attack,
        models=(replace(facts(of), precision=attack),),
        progress=progress(growth(attack, 100)),
        runs=(run(attack, model_id=attack, host=attack, outcome=attack, message=attack),),
        failures=(
            group(attack, 3, example=attack, detail=attack),
            group(attack, 2, waiting=True, example=attack, detail=attack),
        ),
        failing_hosts=FailingHosts(
            hosts=[FailingHost(host=attack, failed=3, waiting=2, by_reason={attack: 5})],
            host_count=1,
            looked_at=5,
        ),
        slowest_hosts=[(attack, Traffic(requests=1, bytes=1, seconds=1.0))],
    )
