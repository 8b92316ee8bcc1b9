"""Workers on a Ray cluster, which finds room for them and starts them again."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import urlsplit

from visual_search import __version__
from visual_search.errors import ExitCode, SettingsError, TemporaryError
from visual_search.settings import RaySettings, Settings
from visual_search.workers.actor import WorkerActor
from visual_search.workers.keeper import End, Worker
from visual_search.workers.placement import check_requests, share_requests, split
from visual_search.workers.report import Report
from visual_search.workers.supervisor import Hire
from visual_search.workers.task import Task, pack_settings

_POLL_S: Final = 0.5
_KNOCK_TIMEOUT_S: Final = 5.0
# Work, and to be asked and told things meanwhile.
_THREADS: Final = 3
# What keep_freed_memory says to a C library that has begun already, as Ray's processes have. There
# is nothing else in an actor's environment; settings travel with its task.
_ENVIRONMENT: Final = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str((1 << 64) - 1),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "OMP_WAIT_POLICY": "PASSIVE",
}
_CODES: Final = {
    signal.SIGINT: ExitCode.INTERRUPTED,
    signal.SIGTERM: ExitCode.TERMINATED,
}


@contextmanager
def ray_cluster(
    settings: Settings, *, limit: int | None, prepare: Callable[[], None]
) -> Iterator[Hire]:
    """Connected to the cluster of `ray.address`, or to a Ray of this machine's own.

    Meanwhile `sys.stdout` is standard error.

    Args:
        settings: Of the command.
        limit: As of `extract`.
        prepare: Sets up an actor's process.

    Yields:
        Where workers come from.

    Raises:
        SettingsError: Ray is not installed, or what all nodes must reach is on this machine.
        TemporaryError: No cluster answers.
    """
    if find_spec("ray") is None:
        raise SettingsError(
            "--engine ray needs Ray, which is not installed here; "
            "`pip install 'visual-search[ray]'`"
        )
    # A Ray that is started here would tell its makers of it.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray  # noqa: PLC0415 - an extra

    # Ray prints to standard output what it has to say, and what actors do.
    with redirect_stdout(sys.stderr):
        _connect(settings.ray.address)
        try:
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            if settings.database_url is None and len(nodes) > 1:
                raise SettingsError(
                    "the embedded database is of this machine, and the Ray cluster has "
                    f"{len(nodes)} nodes; set VSEARCH_DATABASE_URL to a Postgres that all of them "
                    "reach"
                )
            yield partial(_hire, settings, nodes, limit, prepare)
        finally:
            ray.shutdown()


def _connect(address: str | None) -> None:
    import ray  # noqa: PLC0415 - an extra

    try:
        if address is not None:
            _knock(address)
        ray.init(address=address, logging_level=logging.WARNING)
    except (OSError, RuntimeError, ValueError) as error:
        raise TemporaryError(
            f"no Ray cluster answers at {address or 'RAY_ADDRESS'} ({type(error).__name__}); "
            "`ray status --address` there says more"
        ) from error


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself would try for minutes."""
    place = urlsplit(address if "://" in address else f"//{address}")
    # Others are Ray's own words, such as `auto`.
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), _KNOCK_TIMEOUT_S).close()


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """What a worker asks Ray for."""

    cpus: int
    gpus: float


def rooms(nodes: Sequence[Mapping[str, float]], settings: Settings) -> list[Room]:
    """Room for workers: one for each GPU of the nodes, or for each `ray.cpus_per_worker` CPUs.

    `extract.workers`, where it is a number, takes as many of them, or asks for more, which an
    autoscaler may find.

    Raises:
        SettingsError: There is no room at all, and none is asked for.
    """
    asked, number = settings.ray, settings.extract.workers
    gpus = asked.gpus_per_worker
    if gpus is None:
        any_there = any(node.get("GPU", 0) >= 1 for node in nodes)
        gpus = 1.0 if any_there and settings.embed.device in ("auto", "cuda") else 0.0
    found = [room for node in nodes for room in _rooms_of(node, asked, gpus)]
    if isinstance(number, int):
        usual = found[0] if found else Room(cpus=asked.cpus_per_worker or 1, gpus=gpus)
        found = (found + [usual] * number)[:number]
    if not found:
        raise SettingsError(
            "no node of the Ray cluster has room for a worker; set ray.cpus_per_worker to fewer "
            "CPUs, or --workers to what its autoscaler shall find room for"
        )
    return found


def _rooms_of(node: Mapping[str, float], asked: RaySettings, gpus: float) -> list[Room]:
    cpus = int(node.get("CPU", 0))
    if cpus == 0:
        return []
    by_gpus = int(node.get("GPU", 0) / gpus + 1e-6) if gpus else None
    each = asked.cpus_per_worker or max(1, cpus // (by_gpus or 1))
    by_cpus = cpus // each
    number = by_cpus if by_gpus is None else min(by_cpus, by_gpus)
    return [Room(cpus=each, gpus=gpus)] * number


def _hire(
    settings: Settings,
    nodes: Sequence[Mapping[str, float]],
    limit: int | None,
    prepare: Callable[[], None],
    models: tuple[str, ...],
) -> list[tuple[Worker, Task]]:
    places = rooms(nodes, settings)
    workers = len(places)
    check_requests(settings.download, workers, option="--engine ray")
    limits = [None] * workers if limit is None else split(limit, workers)
    return [
        (
            RayWorker(room, prepare),
            Task(
                worker=number + 1,
                models=models,
                limit=limits[number],
                packed_settings=pack_settings(
                    _within(room, share_requests(settings, number, workers))
                ),
            ),
        )
        for number, room in enumerate(places)
        if limits[number] != 0
    ]


def _within(room: Room, settings: Settings) -> Settings:
    """The settings of a worker that has a room, and all of `extract.memory_budget`, to itself."""
    decode, embed = settings.decode, settings.embed
    return settings.model_copy(
        update={
            "decode": decode.model_copy(update={"workers": decode.workers or room.cpus}),
            "embed": embed.model_copy(update={"threads": embed.threads or room.cpus}),
        }
    )


class RayWorker:
    """An actor, as the supervisor sees it.

    When it dies Ray starts it again, wherever there is room, and only its questions wait for that
    (`max_task_retries`). Its task is given to it anew by its keeper: what it held is given back
    before, and what it had done is taken off its limit.
    """

    def __init__(self, room: Room, prepare: Callable[[], None]) -> None:
        import ray  # noqa: PLC0415 - an extra

        self._ray = ray
        self._actor: Any = (
            ray.remote(WorkerActor)
            .options(
                num_cpus=room.cpus,
                num_gpus=room.gpus,
                max_restarts=-1,
                max_task_retries=-1,
                max_concurrency=_THREADS,
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": _ENVIRONMENT},
            )
            .remote(__version__, prepare)
        )
        self._drained = threading.Event()
        self.is_waiting = True

    def run(self, task: Task, on_report: Callable[[Report], None]) -> End:
        """Have the actor do a task, once Ray has found room for it."""
        try:
            if not self._finds_room():
                return End(code=ExitCode.OK, how="there was no room for it")
            done = self._actor.work.options(max_task_retries=0).remote(task)
            asked = self._actor.report.remote()
            while True:
                ready, _ = self._ray.wait([done, asked], timeout=_POLL_S)
                if done in ready:
                    break
                if asked in ready:
                    on_report(self._ray.get(asked))
                    time.sleep(_POLL_S)
                    asked = self._actor.report.remote()
            code, report = self._ray.get(done)
        except self._ray.exceptions.RayError as error:
            # Its words may quote what the worker knows.
            self._restart()
            return End(code=ExitCode.FAILED, how=f"its actor is gone ({type(error).__name__})")
        on_report(report)
        if code is ExitCode.FAILED:
            self._restart()
        return End.of(code, f"its task ended with exit code {code}")

    def drain(self, number: signal.Signals) -> None:
        """Pass a signal on; an actor that has no room yet is wanted no more."""
        self._drained.set()
        if not self.is_waiting:
            self._actor.drain.options(max_task_retries=0).remote(_CODES[number])

    def close(self) -> None:
        """Give its room to others."""
        self._ray.kill(self._actor)

    def _finds_room(self) -> bool:
        """Wait until the actor runs somewhere. False: it need not any more."""
        self.is_waiting = True
        here = self._actor.report.remote()
        while not self._drained.is_set():
            ready, _ = self._ray.wait([here], timeout=_POLL_S)
            if ready:
                self._ray.get(here)
                self.is_waiting = False
                return True
        return False

    def _restart(self) -> None:
        """See that no task of an actor that only seems to be gone goes on."""
        self._ray.kill(self._actor, no_restart=False)
