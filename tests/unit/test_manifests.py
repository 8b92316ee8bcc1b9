"""What `deploy/` says is so: names lead somewhere, commands exist, exit codes are as told."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from tests import manifests
from tests.manifests import DEPLOY, KUBERNETES, KUSTOMIZATIONS, Document
from visual_search.cli import app
from visual_search.errors import ExitCode
from visual_search.settings import load_settings, unknown_variables

CPU, GPU = KUBERNETES / "overlays" / "cpu", KUBERNETES / "overlays" / "gpu"
# What nobody but the cluster's owner makes, by kubectl.
SECRETS = {("vsearch-database", "url"): "postgresql://vsearch:password@database/shop"}
# To end after its drain: the last shard is written and recorded.
MARGIN_S = 20


class Failed(Exception):  # noqa: N818 - stands for Airflow's
    """To be tried again."""


class FailedForGood(Exception):  # noqa: N818 - stands for Airflow's
    """Not to be tried again."""


def is_applied(folder: Path) -> bool:
    """Whether it names its image; `base` and `settings` are only parts of others."""
    (kustomization,) = manifests.documents(folder / "kustomization.yaml")
    return "images" in kustomization


APPLIED = [folder for folder in KUSTOMIZATIONS if is_applied(folder)]
JOBS = [
    pytest.param(folder, name, spec, id=f"{folder.name}-{name}")
    for folder in APPLIED
    for name, spec in manifests.jobs(manifests.rendered(folder))
]
each_job = pytest.mark.parametrize(("folder", "name", "spec"), JOBS)


def parse(arguments: list[str]) -> None:
    """Fail unless `vsearch` has this command and these options; runs nothing."""
    # Help is shown once the whole line is parsed.
    shown = CliRunner().invoke(app, [*arguments, "--help"])
    assert shown.exit_code == 0, shown.output
    assert f"Usage: vsearch {arguments[0]}" in shown.output


def test_every_manifest_belongs_to_something_that_is_applied() -> None:
    used = set()
    for folder in KUSTOMIZATIONS:
        (kustomization,) = manifests.documents(folder / "kustomization.yaml")
        used.add(folder / "kustomization.yaml")
        used |= {(folder / name).resolve() for name in kustomization.get("resources", ())}
        used |= {folder / patch["path"] for patch in kustomization.get("patches", ())}
    assert {file for file in KUBERNETES.rglob("*") if file.is_file()} <= used
    assert {folder.name for folder in APPLIED} == {"cpu", "gpu", "import", "migrate", "upkeep"}


def test_a_patch_or_an_image_for_nothing_is_noticed(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "overlays" / "cpu"
    patch, kustomization = folder / "job.yaml", folder / "kustomization.yaml"
    patch.write_text(patch.read_text().replace("vsearch-extract", "vsearch-extrakt"))
    with pytest.raises(ValueError, match="'Job', 'vsearch-extrakt'"):
        manifests.rendered(folder)
    shutil.copy(CPU / "job.yaml", patch)
    kustomization.write_text(kustomization.read_text().replace("- name: vsearch", "- name: search"))
    with pytest.raises(ValueError, match="the image search"):
        manifests.rendered(folder)
    patch.unlink()
    with pytest.raises(FileNotFoundError, match=r"job\.yaml"):
        manifests.rendered(folder)


@each_job
def test_names_in_a_pod_lead_somewhere(
    folder: Path, name: str, spec: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = manifests.rendered(folder)
    template = spec["template"]["spec"]
    pod = manifests.start_of(template, found, SECRETS, tmp_path)
    claims = {d["metadata"]["name"] for d in found if d["kind"] == "PersistentVolumeClaim"}
    claimed = {v["persistentVolumeClaim"]["claimName"]
               for v in template["volumes"] if "persistentVolumeClaim" in v}  # fmt: skip
    assert claimed <= claims
    assert {v["name"] for v in template["volumes"]} == {
        mount["name"] for mount in template["containers"][0]["volumeMounts"]
    }
    parse(pod.arguments)
    for variable in [each for each in os.environ if each.startswith("VSEARCH_")]:
        monkeypatch.delenv(variable)
    for variable, value in pod.environment.items():
        monkeypatch.setenv(variable, value)
    assert unknown_variables() == []
    settings = load_settings()
    assert settings.home == tmp_path / "data"
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == SECRETS["vsearch-database", "url"]
    grace_s = template["terminationGracePeriodSeconds"]
    assert grace_s >= settings.extract.drain_s + MARGIN_S


@each_job
def test_pods_are_closed(folder: Path, name: str, spec: Document) -> None:
    template = spec["template"]["spec"]
    (container,) = template["containers"]
    assert template["securityContext"]["runAsNonRoot"] is True
    assert template["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert template["automountServiceAccountToken"] is False
    assert template["enableServiceLinks"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    # All that is written: the volume of data, and /tmp.
    written = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    assert written == {"/data", "/tmp"}
    assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
    assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
    assert re.fullmatch(r"registry\.example/vsearch:\d+\.\d+\.\d+-(cpu|gpu)", container["image"])


@each_job
def test_the_policy_says_of_each_exit_code_what_it_means(
    folder: Path, name: str, spec: Document
) -> None:
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # a policy demands it
    policy = spec["podFailurePolicy"]
    failures = {code for code in ExitCode if code is not ExitCode.OK}
    actions = {code: manifests.action(policy, code) for code in failures}
    assert {code for code, action in actions.items() if action == "FailJob"} == {ExitCode.USAGE}
    assert set(actions.values()) == {"FailJob", "Count"}
    for code in (ExitCode.TERMINATED, 137):  # 137: killed at the end of the grace period
        assert manifests.action(policy, code, "DisruptionTarget") == "Ignore"
    (container,) = spec["template"]["spec"]["containers"]
    named = [rule["onExitCodes"] for rule in policy["rules"] if "onExitCodes" in rule]
    assert {rule["containerName"] for rule in named} == {container["name"]}
    assert all(rule["values"] == sorted(rule["values"]) for rule in named)
    told = {code for rule in named for code in rule["values"]}
    may_end_with = {2, 75, 130, 143} | ({3} if "extract" in container["args"] else set())
    assert told == may_end_with


def test_a_nightly_run_is_alone_and_ends_before_the_next() -> None:
    (nightly,) = [d for d in manifests.rendered(CPU) if d["kind"] == "CronJob"]
    spec = nightly["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert 0 < spec["startingDeadlineSeconds"] < 86_400
    assert 0 < spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 86_400
    assert {"successfulJobsHistoryLimit", "failedJobsHistoryLimit"} <= spec.keys()


def test_workers_of_a_job_are_its_indices() -> None:
    for folder in (CPU, GPU):
        for _, spec in manifests.jobs(manifests.rendered(folder)):
            assert spec["completionMode"] == "Indexed"
            assert spec["completions"] == spec["parallelism"]
            assert spec["backoffLimitPerIndex"] > 0


def test_the_job_and_the_nightly_run_have_the_same_pod() -> None:
    for folder in (CPU, GPU):
        (_, once), (_, nightly) = manifests.jobs(manifests.rendered(folder))
        assert once["template"] == nightly["template"]


def test_the_gpu_variant_has_a_gpu_and_what_the_config_file_for_gpus_says() -> None:
    file = load_settings(manifests.ROOT / "configs" / "gpu.toml")
    for _, spec in manifests.jobs(manifests.rendered(GPU)):
        (container,) = spec["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert container["image"].endswith("-gpu")
        variables = {each["name"]: each.get("value") for each in container["env"]}
        assert variables["VSEARCH_EMBED__DEVICE"] == file.embed.device == "cuda"
        assert variables["VSEARCH_DOWNLOAD__CONCURRENCY"] == str(file.download.concurrency)
        assert variables["VSEARCH_EXTRACT__MEMORY_BUDGET"] == "4GiB"
        assert file.extract.memory_budget == 4 << 30
    for _, spec in manifests.jobs(manifests.rendered(CPU)):
        (container,) = spec["template"]["spec"]["containers"]
        assert "nvidia.com/gpu" not in container["resources"]["limits"]
        assert container["image"].endswith("-cpu")


def strings(value: Any) -> Iterator[str]:
    match value:
        case dict():
            for each in value.values():
                yield from strings(each)
        case list():
            for each in value:
                yield from strings(each)
        case str():
            yield value


class TestArgo:
    @pytest.fixture
    def spec(self) -> Document:
        (workflow,) = manifests.documents(manifests.ARGO)
        spec: Document = workflow["spec"]
        return spec

    def test_names_lead_somewhere(self, spec: Document) -> None:
        templates = {template["name"]: template for template in spec["templates"]}
        (dag,) = [template["dag"] for template in spec["templates"] if "dag" in template]
        tasks = {task["name"]: task for task in dag["tasks"]}
        assert templates[spec["entrypoint"]]["dag"] == dag
        for task in tasks.values():
            assert "container" in templates[task["template"]]
            assert set(task.get("dependencies", ())) <= tasks.keys()
        given = {each["name"] for each in spec["arguments"]["parameters"]}
        used = re.findall(r"\{\{workflow\.parameters\.(\w+)\}\}", " ".join(strings(spec)))
        assert set(used) == given

    def test_containers_run_what_the_jobs_run(self, spec: Document) -> None:
        pods = {}
        for folder in (CPU, KUBERNETES / "migrate", KUBERNETES / "import"):
            for name, job in manifests.jobs(manifests.rendered(folder)):
                pods[name] = job["template"]["spec"]
        values = {each["name"]: each["value"] for each in spec["arguments"]["parameters"]}
        resolved = json.loads(
            re.sub(
                r"\{\{workflow\.parameters\.(\w+)\}\}",
                lambda name: values[name[1]],
                json.dumps(spec),
            )
        )
        containers = {t["name"]: t for t in resolved["templates"] if "container" in t}
        assert len(containers) == 3
        for name, template in containers.items():
            (theirs,) = pods[name]["containers"]
            ours = template["container"]
            assert ours.pop("command") == ["vsearch"]
            env = [each for each in theirs["env"] if each["name"] != "VSEARCH_EMBED__DEVICE"]
            assert ours == {k: v for k, v in theirs.items() if k != "name"} | {"env": env}
            assert pods[name]["volumes"] == spec["volumes"]
        patch = json.loads(spec["podSpecPatch"])
        for pod in pods.values():
            assert patch == {key: pod[key] for key in patch}

    def test_what_is_tried_again_is_what_jobs_count(self, spec: Document) -> None:
        ((_, job), _) = manifests.jobs(manifests.rendered(CPU))
        for template in spec["templates"]:
            if "container" not in template:
                continue
            retry = template["retryStrategy"]
            (codes,) = re.findall(r"asInt\(lastRetry\.exitCode\) in (\[.+?\])", retry["expression"])
            counted = [r["onExitCodes"]["values"] for r in job["podFailurePolicy"]["rules"]
                       if r["action"] == "Count"]  # fmt: skip
            assert [json.loads(codes)] == counted


class TestCompose:
    @pytest.fixture
    def services(self) -> dict[str, Document]:
        (compose,) = manifests.documents(DEPLOY / "compose.yaml")
        services: dict[str, Document] = compose["services"]
        for service in services.values():
            volumes = {volume.partition(":")[0] for volume in service["volumes"]}
            assert volumes <= compose["volumes"].keys()
        return services

    def test_commands_exist_and_wait_for_what_is_there(self, services: dict[str, Document]) -> None:
        for name in ("migrate", "extract", "vsearch"):
            parse(services[name]["command"])
            for other, how in services[name]["depends_on"].items():
                wanted = "service_healthy" if other == "database" else (
                    "service_completed_successfully"
                )  # fmt: skip
                assert how["condition"] == wanted
                assert other == "migrate" or "healthcheck" in services[other]

    def test_the_image_is_built_from_a_dockerfile_of_ours_and_closed(
        self, services: dict[str, Document]
    ) -> None:
        for name in ("migrate", "extract", "vsearch"):
            build = services[name]["build"]
            assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
            assert services[name]["read_only"] is True
            assert services[name]["cap_drop"] == ["ALL"]
            assert int(services[name]["stop_grace_period"].removesuffix("s")) >= 20 + MARGIN_S

    def test_workers_reach_the_database_as_it_is_set_up(
        self, services: dict[str, Document]
    ) -> None:
        database = services["database"]["environment"]
        url = services["extract"]["environment"]["VSEARCH_DATABASE_URL"]
        scheme, _, rest = url.partition("://")
        assert scheme == "postgresql"
        assert rest == "{POSTGRES_USER}:{POSTGRES_PASSWORD}@database/{POSTGRES_DB}".format(
            **database
        )
        assert "ports" not in services["database"]


class TestSystemd:
    @pytest.fixture
    def service(self) -> str:
        return (DEPLOY / "systemd" / "vsearch.service").read_text()

    @pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
    def test_units_are_valid(self, service: str, tmp_path: Path) -> None:
        program = tmp_path / "vsearch"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        units = [tmp_path / "vsearch.service", tmp_path / "vsearch.timer"]
        units[0].write_text(service.replace("/opt/vsearch/bin/vsearch", str(program)))
        shutil.copy(DEPLOY / "systemd" / "vsearch.timer", units[1])
        verify = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
        said = subprocess.run(verify, capture_output=True, text=True, check=False)
        assert (said.returncode, said.stderr) == (0, "")

    def test_it_runs_commands_of_ours_and_knows_their_exit_codes(self, service: str) -> None:
        commands = re.findall(r"^ExecStart=/opt/vsearch/bin/vsearch (.+)$", service, re.MULTILINE)
        assert len(commands) == 2
        for command in commands:
            parse(command.split())
        (never,) = re.findall(r"^RestartPreventExitStatus=(.+)$", service, re.MULTILINE)
        assert never.split() == [str(int(c)) for c in (ExitCode.FAILED, ExitCode.USAGE)]
        (stopped,) = re.findall(r"^SuccessExitStatus=(.+)$", service, re.MULTILINE)
        assert stopped.split() == [str(int(c)) for c in (ExitCode.INTERRUPTED, ExitCode.TERMINATED)]
        (grace,) = re.findall(r"^TimeoutStopSec=(\d+)$", service, re.MULTILINE)
        assert int(grace) >= 20 + MARGIN_S


@pytest.mark.skipif(not shutil.which("flock"), reason="needs flock, of util-linux")
class TestCron:
    SCRIPT = DEPLOY / "cron" / "nightly"

    @pytest.fixture
    def environment(self, tmp_path: Path) -> dict[str, str]:
        """A `vsearch` that tells what it was given, and a file of secrets."""
        told = tmp_path / "told"
        program = tmp_path / "vsearch"
        program.write_text(
            f'#!/bin/sh\necho "$VSEARCH_DATABASE_URL $*" >> {told}\n'
            '[ "$1" != "${ENDING:-}" ] || exit "$CODE"\n'
        )
        program.chmod(0o755)
        (tmp_path / "environment").write_text("VSEARCH_DATABASE_URL=postgresql://secret\n")
        return {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "VSEARCH_HOME": str(tmp_path),
            "ENVIRONMENT": str(tmp_path / "environment"),
        }

    def run(self, environment: dict[str, str], **more: str) -> int:
        return subprocess.run([self.SCRIPT], env=environment | more, check=False).returncode

    def test_it_imports_and_embeds(self, environment: dict[str, str], tmp_path: Path) -> None:
        assert self.run(environment) == 0
        lines = (tmp_path / "told").read_text().splitlines()
        assert [line.split()[:2] for line in lines] == [
            ["postgresql://secret", "catalog"],
            ["postgresql://secret", "extract"],
        ]
        for line in lines:
            parse(line.split()[1:])

    @pytest.mark.parametrize(("step", "steps"), [("catalog", 1), ("extract", 2)])
    def test_it_ends_as_the_step_that_ended_it(
        self, environment: dict[str, str], tmp_path: Path, step: str, steps: int
    ) -> None:
        assert self.run(environment, ENDING=step, CODE="75") == 75
        assert len((tmp_path / "told").read_text().splitlines()) == steps

    def test_one_at_a_time(self, environment: dict[str, str], tmp_path: Path) -> None:
        lock = ["flock", "--nonblock", str(tmp_path / "nightly.lock"), str(self.SCRIPT)]
        assert subprocess.run(lock, env=environment, check=False).returncode == 0
        assert not (tmp_path / "told").exists()

    def test_the_crontab_names_a_user_and_the_script(self) -> None:
        *_, line = (DEPLOY / "cron" / "vsearch").read_text().splitlines()
        assert re.fullmatch(r"\d+ \d+ \* \* \* vsearch /opt/vsearch/nightly", line)
        assert os.access(self.SCRIPT, os.X_OK)


class TestAirflow:
    """The task in the guide, with stand-ins for what Airflow brings."""

    @pytest.fixture
    def run(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
        program = tmp_path / "vsearch"
        program.write_text('#!/bin/sh\nexit "$1"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        tasks: dict[str, Any] = {}

        def task(**_options: Any) -> Callable[[Any], Any]:
            return lambda function: tasks.setdefault(function.__name__, function)

        airflow = ModuleType("airflow")
        sdk, exceptions = ModuleType("airflow.sdk"), ModuleType("airflow.exceptions")
        vars(sdk).update(task=task, dag=lambda **_options: lambda _function: lambda: None)
        vars(exceptions).update(AirflowException=Failed, AirflowFailException=FailedForGood)
        for module in (airflow, sdk, exceptions):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        guide = (manifests.ROOT / "docs" / "kubernetes.md").read_text()
        (code,) = re.findall(r"```python\n(import subprocess\n.+?)```", guide, re.DOTALL)
        exec(compile(code, "the guide", "exec"), {})
        for line in re.findall(r"vsearch\((\".+?)\)", code):
            parse(json.loads(f"[{line}]"))
        run: Callable[..., None] = tasks["vsearch"]
        return run

    def test_it_tries_again_what_a_retry_can_mend(self, run: Callable[..., None]) -> None:
        run("0")
        with pytest.raises(FailedForGood):
            run(str(int(ExitCode.USAGE)))
        for code in (ExitCode.FAILURE_RATE, ExitCode.TEMPORARY, ExitCode.TERMINATED):
            with pytest.raises(Failed, match=str(int(code))):
                run(str(int(code)))
