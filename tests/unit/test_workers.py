"""Several workers: what each may take, when one is started again, what they come to together."""

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest

from tests.faults.workers import wait_until
from visual_search import __version__
from visual_search.database.connection import Database
from visual_search.errors import ExitCode, SettingsError, TemporaryError
from visual_search.images import RunId
from visual_search.pipeline import ModelResult
from visual_search.runs import RunFigures
from visual_search.settings import Settings, load_settings
from visual_search.workers import keeper
from visual_search.workers.actor import WorkerActor
from visual_search.workers.keeper import End, Keeper
from visual_search.workers.placement import (
    check_requests,
    places,
    share_machine,
    share_requests,
    split,
)
from visual_search.workers.ray_cluster import Room, ray_cluster, rooms
from visual_search.workers.report import Report
from visual_search.workers.results import merge_results
from visual_search.workers.task import Task, pack_settings

CANARY = "s3cret-canary"


def test_what_is_split_stays_whole() -> None:
    assert split(8, 3) == [3, 3, 2]
    assert split(2, 3) == [1, 1, 0]
    assert split(0, 2) == [0, 0]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_all_workers_together_keep_to_the_limits(workers: int) -> None:
    settings = load_settings(
        download={"concurrency": 64, "per_host": 8, "requests_per_second": 5},
        extract={"memory_budget": "1GiB"},
    )
    parts = [
        share_machine(share_requests(settings, n, workers), n, workers, cores=16)
        for n in range(workers)
    ]
    assert sum(p.download.per_host for p in parts) == 8
    assert sum(p.download.concurrency for p in parts) == 64
    assert sum(p.download.requests_per_second or 0 for p in parts) == pytest.approx(5)
    assert sum(p.extract.memory_budget for p in parts) == 1 << 30
    assert sum(p.decode.workers or 0 for p in parts) == 16
    assert sum(p.embed.threads or 0 for p in parts) == 16


def test_a_worker_has_at_least_one_of_everything_on_a_small_machine() -> None:
    small = share_machine(load_settings(embed={"workers": 2}), 3, 4, cores=2)
    assert (small.decode.workers, small.embed.threads, small.embed.workers) == (1, 1, 1)


def test_more_workers_than_requests_are_refused() -> None:
    settings = load_settings(download={"per_host": 2})
    check_requests(settings.download, 2, option="--workers 2")
    with pytest.raises(SettingsError, match=r"download\.per_host = 2 .* 3 or more"):
        check_requests(settings.download, 3, option="--workers 3")


def on_cpu(**extract: Any) -> Settings:
    return load_settings(embed={"device": "cpu"}, extract=extract)


def test_a_limit_is_divided_and_nobody_begins_for_nothing() -> None:
    assert [p.limit for p in places(on_cpu(workers=3), {}, limit=7)] == [3, 2, 2]
    assert [p.limit for p in places(on_cpu(workers=3), {}, limit=2)] == [1, 1]
    assert [p.limit for p in places(on_cpu(workers=2), {}, limit=None)] == [None, None]


def test_auto_without_a_gpu_is_one_worker() -> None:
    assert len(places(on_cpu(workers="auto"), {}, limit=None)) == 1


@pytest.mark.parametrize(
    ("visible", "workers", "expected"),
    [
        (None, "auto", ["0", "1", "2"]),
        ("4,6,7", "auto", ["4", "6", "7"]),
        ("GPU-a,MIG-b,GPU-c", 4, ["GPU-a", "MIG-b", "GPU-c", "GPU-a"]),
    ],
)
def test_each_worker_has_a_device(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, workers: int | str, expected: list[str]
) -> None:
    monkeypatch.setattr("visual_search.workers.placement._count_devices", lambda _environment: 3)
    environment = {"PATH": "/bin"} | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
    found = places(load_settings(extract={"workers": workers}), environment, limit=None)
    assert [p.environment["CUDA_VISIBLE_DEVICES"] for p in found] == expected
    assert {p.environment["PATH"] for p in found} == {"/bin"}


def test_settings_arrive_as_they_were_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = load_settings(
        database_url=f"postgresql://u:{CANARY}@db/shop",
        database={"schema": "other"},
        download={
            "headers": {"cdn.test": {"Authorization": CANARY}},
            "allow_networks": ["10.0.0.0/8"],
            "proxy": f"http://u:{CANARY}@proxy:3128",
        },
        models={"mine": {"builder": "a:b", "mean": [0.1, 0.2, 0.3]}},
    )
    monkeypatch.setenv("VSEARCH_DOWNLOAD__PER_HOST", "3")
    monkeypatch.setenv("VSEARCH_DOWNLOAD__HEADERS", '{"else.test": {"X": "y"}}')
    packed = pack_settings(settings)
    task = Task(worker=1, models=("mine",), limit=None, packed_settings=packed)
    assert CANARY not in repr(task)
    arrived = Task.from_line(task.as_line()).settings()
    assert arrived.database_url == settings.database_url
    for group in ("database", "download", "decode", "embed", "extract", "storage", "models"):
        assert getattr(arrived, group) == getattr(settings, group), group
    assert arrived.home == settings.home.absolute()
    assert arrived.output == settings.output_uri


def test_a_report_arrives_as_it_was() -> None:
    figures = RunFigures(claimed=3, done=2)
    ended = ModelResult(
        model="b", run_id=RunId(uuid4()), exit_code=ExitCode.TEMPORARY, error="gone", due_in_s=1.5
    )
    report = Report(shown=(2, 1), figures={"a": figures}, results=(ended,))
    assert Report.from_line(report.as_line()) == report
    assert report.as_line().count(b"\n") == 1


def result(
    code: ExitCode = ExitCode.OK, *, done: int = 0, failed: int = 0, rate: float | None = None
) -> ModelResult:
    return ModelResult(
        model="tiny",
        run_id=RunId(uuid4()),
        figures=RunFigures(
            claimed=done + failed,
            done=done,
            failed=failed,
            images_per_second=rate,
            core_seconds_per_stage={"decode": 1.5},
        ),
        shards=1,
        exit_code=code,
        error=None if code is ExitCode.OK else f"ended with {int(code)}",
    )


def test_results_add_up() -> None:
    dead, again = result(done=10, rate=50), result(done=2, failed=1, rate=4)
    merged = merge_results("tiny", [[dead, again], [result(done=20, rate=30.5)]])
    figures = merged.figures
    assert (figures.claimed, figures.done, figures.failed, merged.shards) == (33, 32, 1, 3)
    assert figures.images_per_second == 80.5, (
        "a worker has the rate of the life in which it did most"
    )
    assert figures.core_seconds_per_stage == {"decode": 4.5}
    assert (merged.exit_code, merged.error) == (ExitCode.OK, None)
    assert merged.run_id == dead.run_id


def test_the_gravest_result_stands() -> None:
    codes = [ExitCode.OK, ExitCode.FAILURE_RATE, ExitCode.TEMPORARY]
    merged = merge_results("tiny", [[result(code)] for code in codes])
    assert (merged.exit_code, merged.error) == (ExitCode.TEMPORARY, "ended with 75")


def test_workers_that_came_too_late_change_nothing() -> None:
    idle = ModelResult(model="tiny")
    merged = merge_results("tiny", [[idle], [result(done=3)]])
    assert merged.run_id is not None
    assert merge_results("tiny", [[idle], [idle]]).run_id is None


class Scripted:
    """A worker whose lives are written down: what it reports, then how it ends."""

    def __init__(self, *lives: tuple[Sequence[ModelResult], End]) -> None:
        self._lives: Iterator[tuple[Sequence[ModelResult], End]] = iter(lives)
        self.tasks: list[Task] = []
        self.is_waiting = False
        self.closed = False

    def run(self, task: Task, on_report: Callable[[Report], None]) -> End:
        self.tasks.append(task)
        results, end = next(self._lives)
        on_report(Report(shown=(sum(r.figures.done for r in results), 0), results=tuple(results)))
        return end

    def drain(self, number: signal.Signals) -> None:
        """Its lives are short."""

    def close(self) -> None:
        self.closed = True


KILLED = End(code=ExitCode.FAILED, how="its process died of SIGKILL")
DONE = End(code=ExitCode.OK, how="its process ended with exit code 0")


def keep(worker: Scripted, monkeypatch: pytest.MonkeyPatch, *, limit: int | None = None) -> Keeper:
    monkeypatch.setattr(keeper, "_FIRST_PAUSE_S", 0.001)
    task = Task(worker=1, models=("tiny",), limit=limit, packed_settings="{}")
    # No run is lost without a word in these lives, so nobody asks the database.
    kept = Keeper(
        worker, task, Database("postgresql://nobody@127.0.0.1:1/none", schema="s", outage_s=0)
    )
    kept.start()
    wait_until(lambda: not kept.is_at_work, "its last end", patience_s=20)
    assert kept.bug is None
    assert worker.closed
    return kept


def test_a_worker_that_dies_is_started_again_for_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = Scripted(
        ([result(ExitCode.FAILED, done=3, failed=1)], KILLED),
        ([result(ExitCode.FAILED, done=2)], KILLED),
        ([result(done=4)], DONE),
    )
    kept = keep(worker, monkeypatch, limit=10)
    assert [task.limit for task in worker.tasks] == [10, 6, 4]
    assert [life[0].exit_code for life in kept.lives] == [ExitCode.OK] * 3
    assert kept.shown == (9, 0)


def test_one_that_has_done_its_part_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Scripted(([result(ExitCode.FAILED, done=10)], KILLED))
    kept = keep(worker, monkeypatch, limit=10)
    assert [life[0].exit_code for life in kept.lives] == [ExitCode.OK]


def test_deaths_without_progress_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, none = ([result(ExitCode.FAILED, done=1)], KILLED), ((), KILLED)
    worker = Scripted(none, none, progress, *[none] * 6)
    kept = keep(worker, monkeypatch)
    assert len(worker.tasks) == 9
    (last,) = kept.lives[-1]
    assert last.exit_code is ExitCode.FAILED
    assert last.error == "worker 1 ended too early: its process died of SIGKILL"


@pytest.mark.parametrize(
    "code",
    [ExitCode.USAGE, ExitCode.FAILURE_RATE, ExitCode.TEMPORARY, ExitCode.TERMINATED],
)
def test_ends_that_a_second_try_would_not_change_stand(
    monkeypatch: pytest.MonkeyPatch, code: ExitCode
) -> None:
    worker = Scripted(([result(code)], End(code=code, how="as it may end")))
    kept = keep(worker, monkeypatch)
    assert len(worker.tasks) == 1
    assert kept.lives[-1][0].exit_code is code


def test_a_worker_is_placed_for_each_gpu_or_for_so_many_cpus() -> None:
    two = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}]
    any_device, on_one = load_settings(), on_cpu()
    assert rooms(two, any_device) == [Room(cpus=8, gpus=1)] * 2
    assert rooms(two, on_one) == [Room(cpus=16, gpus=0), Room(cpus=8, gpus=0)]
    halves = load_settings(ray={"gpus_per_worker": 0.5, "cpus_per_worker": 3})
    assert rooms(two, halves) == [Room(cpus=3, gpus=0.5)] * 4
    small = load_settings(ray={"cpus_per_worker": 5}, embed={"device": "cpu"})
    assert rooms(two, small) == [Room(cpus=5, gpus=0)] * 4


def test_workers_may_be_asked_for_that_there_is_no_room_for_yet() -> None:
    assert rooms([{"CPU": 2.0}], on_cpu(workers=1)) == [Room(cpus=2, gpus=0)]
    assert rooms([{"CPU": 2.0}], on_cpu(workers=3)) == [Room(cpus=2, gpus=0)] * 3
    assert rooms([{"CPU": 0.0}], on_cpu(workers=1)) == [Room(cpus=1, gpus=0)]
    with pytest.raises(SettingsError, match="no node of the Ray cluster has room"):
        rooms([{"CPU": 0.0}], on_cpu())


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visual_search.workers.ray_cluster.find_spec", lambda _name: None)
    with (
        pytest.raises(SettingsError, match=r"pip install 'visual-search\[ray\]'"),
        ray_cluster(on_cpu(), limit=None, prepare=lambda: None),
    ):
        pass


def test_what_ray_has_to_say_goes_where_logs_go(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Talkative(ModuleType):
        def init(self, **_settings: object) -> None:
            print("(raylet) a worker died")

        def nodes(self) -> list[dict[str, object]]:
            return [{"Alive": True, "Resources": {"CPU": 1.0}}]

        def shutdown(self) -> None:
            print("good bye")

    ray = Talkative("ray")
    ray.__spec__ = ModuleSpec("ray", None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    with ray_cluster(on_cpu(), limit=None, prepare=lambda: None):
        pass
    assert capsys.readouterr() == ("", "(raylet) a worker died\ngood bye\n")


def test_a_ray_cluster_that_is_not_there_is_told_at_once() -> None:
    pytest.importorskip("ray")
    settings = load_settings(ray={"address": "127.0.0.1:1"})
    with (
        pytest.raises(TemporaryError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"),
        ray_cluster(settings, limit=None, prepare=lambda: None),
    ):
        pass


def task_for(settings: Settings) -> Task:
    return Task(worker=1, models=("tiny",), limit=None, packed_settings=pack_settings(settings))


def test_an_actor_refuses_another_version_of_the_package() -> None:
    code, report = WorkerActor("0.0.0", prepare=lambda: None).work(task_for(Settings()))
    assert code is ExitCode.USAGE
    assert "install the same version on all" in str(report.results[0].error)


def test_an_actor_refuses_a_folder_that_only_its_machine_has(
    tmp_path: Path, database_url: str
) -> None:
    """Of the same name as the command's, but not marked by the command."""
    settings = load_settings(
        home=tmp_path / "home", database_url=database_url, output=str(tmp_path / "vectors")
    )
    actor = WorkerActor(__version__, prepare=lambda: None)
    code, report = actor.work(task_for(settings))
    assert code is ExitCode.USAGE
    assert "is no folder of vectors" in str(report.results[0].error)
    assert actor.report() == report
    assert not (tmp_path / "vectors").exists()
