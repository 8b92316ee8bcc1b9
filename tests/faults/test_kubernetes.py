"""What the manifests run, run here: the same arguments, environment, files and exit codes."""

import json
import os
import random
import signal
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests import manifests
from tests.catalogue import add_urls
from tests.database.test_embedded import has_name
from tests.end_to_end.workplace import PROJECT, TINY
from tests.faults.proxy import Fate, Proxy
from tests.faults.stage import HASTE, Stage
from tests.faults.workers import Worker
from visual_search.errors import ExitCode

CPU = manifests.KUBERNETES / "overlays" / "cpu"
MIGRATE = manifests.KUBERNETES / "migrate"
# The model that the manifests name. In its place a tiny one, which a table of that name makes.
MODEL = "efficientnet_lite0"
# For the test, on top of what the manifest says.
SURROUNDINGS = HASTE | {
    "VSEARCH_DATABASE__OUTAGE_S": "2",
    "PYTHONPATH": str(PROJECT),
    "VSEARCH_DECODE__WORKERS": "1",
    "VSEARCH_DOWNLOAD__ALLOW_NETWORKS": '["127.0.0.1/32"]',
    "VSEARCH_DOWNLOAD__DEADLINE_S": "300",
    "VSEARCH_EMBED__RUNTIME": "torch",
    "VSEARCH_EMBED__WORKERS": "1",
}


def become(*, user: int) -> None:
    """Called in a worker: go on as this user."""
    os.setgroups([])
    os.setgid(0)
    os.setuid(user)


class Cluster:
    """Starts the pods of a Job as workers, in the folder `root` instead of a container.

    Attributes:
        job: Its spec.
    """

    def __init__(self, stage: Stage, root: Path, kustomization: Path, name: str) -> None:
        self._stage = stage
        self._root = root
        self._found = manifests.rendered(kustomization)
        self.job = dict(manifests.jobs(self._found))[name]
        (settings,) = [each for each in self._found if each["kind"] == "ConfigMap"]
        table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in TINY.items())
        settings["data"]["vsearch.toml"] += f"\n[models.{MODEL}]\n{table}\n"

    def start_pod(self, *more: str, user: int | None = None) -> Worker:
        """Start one.

        Args:
            more: Further arguments.
            user: Its number, with the group 0; without it, who runs the tests.
        """
        pod = manifests.start_of(
            self.job["template"]["spec"],
            self._found,
            {("vsearch-database", "url"): self._stage.database_url},
            self._root,
        )
        return self._stage.nursery.bear(
            *pod.arguments,
            *more,
            environment=pod.environment | SURROUNDINGS,
            patches=[
                {"function": "tests.faults.points:hasten", "with": {}},
                *([{"function": f"{__name__}:become", "with": {"user": user}}] if user else []),
            ],
        )

    def action(self, code: int, *conditions: str) -> str:
        return manifests.action(self.job["podFailurePolicy"], code, *conditions)


@pytest.fixture
def root(stage: Stage) -> Path:
    """Stands for `/`; the stage's home is then the volume of data."""
    root = stage.home
    stage.home = root / "data"
    stage.home.mkdir()
    stage.models = {MODEL: TINY}
    return root


@pytest.fixture
def extraction(stage: Stage, root: Path) -> Cluster:
    return Cluster(stage, root, CPU, "vsearch-extract")


def test_workers_of_a_job_finish_the_work_when_some_are_stopped(
    stage: Stage, extraction: Cluster
) -> None:
    """Two of four get SIGTERM, as on a drained node, and are replaced as the policy says."""
    stage.publish_slowly(160, delay_s=0.02)
    stage.hold_back()
    pods = [extraction.start_pod() for _ in range(extraction.job["parallelism"])]
    assert len(pods) == 4
    for victim in random.sample(pods, 2):
        stage.wait_for_downloads(random.randint(5, 30))
        victim.send(signal.SIGTERM)
    stage.let_through()  # what is begun is to be finished
    codes = [pod.wait().code for pod in pods]
    assert sorted(codes) == [0, 0, 143, 143], [str(pod.wait()) for pod in pods]
    assert extraction.action(143, "DisruptionTarget") == "Ignore"
    assert extraction.action(143) == "Count"
    for _ in range(2):
        extraction.start_pod().ends(ExitCode.OK)
    stage.assert_whole(model=MODEL)


def test_a_job_before_the_migration_fails_for_good_and_works_after_it(
    stage: Stage, root: Path, extraction: Cluster
) -> None:
    stage.rows("DROP SCHEMA vsearch CASCADE")
    refused = extraction.start_pod().ends(ExitCode.USAGE)
    assert "vsearch db upgrade" in refused.err
    assert extraction.action(refused.code) == "FailJob"
    Cluster(stage, root, MIGRATE, "vsearch-migrate").start_pod().ends(ExitCode.OK)
    add_urls(stage.database, [stage.serve(0)])
    extraction.start_pod().ends(ExitCode.OK)
    stage.assert_whole(model=MODEL)


def test_a_job_without_its_database_is_tried_again(stage: Stage, extraction: Cluster) -> None:
    stage.database_url = "postgresql://vsearch@127.0.0.1:1/shop"
    ended = extraction.start_pod().ends(ExitCode.TEMPORARY)
    assert extraction.action(ended.code) == "Count"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
def test_a_pod_may_have_any_number_for_its_user(stage: Stage) -> None:
    """OpenShift gives each namespace its own; no name belongs to it.

    It migrates, and plans an extraction; to run one, it would have to reach this interpreter,
    which may lie in a folder of root's.
    """
    add_urls(stage.database, [stage.serve(0)])
    number = next(uid for uid in count(12345) if not has_name(uid))
    with (
        TemporaryDirectory(prefix="vsearch-test-") as folder,
        Proxy(stage.database_url, lambda _statements: Fate.PASSES) as proxy,
    ):
        stage.database_url = proxy.url  # the socket is closed to others
        root = Path(folder)
        root.chmod(0o755)
        (root / "data").mkdir()
        (root / "data").chmod(0o775)
        migration = Cluster(stage, root, MIGRATE, "vsearch-migrate")
        migration.start_pod(user=number).ends(ExitCode.OK)
        extraction = Cluster(stage, root, CPU, "vsearch-extract")
        (plan,) = json.loads(
            extraction.start_pod("--dry-run", "--json", user=number).ends(ExitCode.OK).out
        )["plans"]
    assert (plan["model"], plan["claimable"]) == (MODEL, 1)
