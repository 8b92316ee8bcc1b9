"""What `deploy/` says, read as those who act on it do: `python -m tests.manifests` checks schemas.

`rendered` stands for `kubectl kustomize`, of which it knows what our kustomizations use and refuses
the rest. `Pod` is what a kubelet makes of a template: arguments, environment, files.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
ARGO = DEPLOY / "argo" / "workflow.yaml"
KUSTOMIZATIONS = sorted(file.parent for file in KUBERNETES.rglob("kustomization.yaml"))

# The first with backoffLimitPerIndex switched on.
OLDEST_KUBERNETES = "1.29"

# Lists that a patch goes into, by what names their entries; it replaces all others.
_MERGED_BY = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}
_KNOWN = {"apiVersion", "kind", "resources", "patches", "images"}

Document = dict[str, Any]


def documents(file: Path) -> list[Document]:
    """All documents of a YAML file."""
    return [document for document in yaml.safe_load_all(file.read_text()) if document is not None]


def rendered(folder: Path) -> list[Document]:
    """What a kustomization makes: its resources, with its patches and images.

    Raises:
        FileNotFoundError: It names a file or a folder that is not there.
        ValueError: A patch or an image is for nothing, or there is what this cannot do.
    """
    (kustomization,) = documents(folder / "kustomization.yaml")
    if unknown := kustomization.keys() - _KNOWN:
        raise ValueError(f"{folder}: {unknown} is more than is rendered here")
    found: list[Document] = []
    for name in kustomization.get("resources", ()):
        path = folder / name
        found += rendered(path.resolve()) if path.is_dir() else documents(path)
    for patch in kustomization.get("patches", ()):
        if patch.keys() != {"path"}:
            raise ValueError(f"{folder}: {patch} is more than is rendered here")
        for changes in documents(folder / patch["path"]):
            _patch(found, changes)
    for image in kustomization.get("images", ()):
        _rename(found, image)
    if len({_identity(document) for document in found}) < len(found):
        raise ValueError(f"{folder}: one name twice")
    return found


def jobs(found: list[Document]) -> Iterator[tuple[str, Document]]:
    """Names and specs of Jobs, those of CronJobs among them."""
    for document in found:
        if document["kind"] == "Job":
            yield document["metadata"]["name"], document["spec"]
        elif document["kind"] == "CronJob":
            yield document["metadata"]["name"], document["spec"]["jobTemplate"]["spec"]


def action(policy: Document, code: int, *conditions: str) -> str:
    """What a `podFailurePolicy` says to a pod that failed: its first rule that matches.

    Args:
        code: Exit code of its container.
        conditions: That are true of the pod.
    """
    for rule in policy["rules"]:
        by_code = rule.get("onExitCodes")
        if by_code:
            assert by_code["operator"] == "In"
            if code in by_code["values"]:
                return str(rule["action"])
        patterns = rule.get("onPodConditions", ())
        if any(p["type"] in conditions and p["status"] == "True" for p in patterns):
            return str(rule["action"])
    return "Count"


@dataclass(frozen=True, kw_only=True)
class Pod:
    """What a pod's container is started with, its paths moved below a folder.

    Attributes:
        arguments: What follows `vsearch`.
        environment: The image's variables and the manifest's.
        mounts: Where each folder it sees lies here.
    """

    arguments: list[str]
    environment: dict[str, str]
    mounts: dict[str, Path]


def start_of(
    spec: Document, found: list[Document], secrets: Mapping[tuple[str, str], str], folder: Path
) -> Pod:
    """Resolve a pod's spec; writes the files of its ConfigMaps.

    Args:
        spec: Of the pod.
        found: Where its ConfigMaps are.
        secrets: Values by name and key.
        folder: Takes the place of the pod's root.

    Raises:
        KeyError: A name leads nowhere.
    """
    (container,) = spec["containers"]
    maps = {d["metadata"]["name"]: d["data"] for d in found if d["kind"] == "ConfigMap"}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts: dict[str, Path] = {}
    for mount in container["volumeMounts"]:
        place = mounts[mount["mountPath"]] = folder / mount["mountPath"].lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        config = volumes[mount["name"]].get("configMap")
        for name, content in maps[config["name"]].items() if config else ():
            (place / name).write_text(content)
    variables = image_variables()
    for variable in container["env"]:
        if "value" in variable:
            variables[variable["name"]] = variable["value"]
        else:
            reference = variable["valueFrom"]["secretKeyRef"]
            variables[variable["name"]] = secrets[reference["name"], reference["key"]]
    return Pod(
        arguments=container["args"],
        environment={name: _moved(value, mounts) for name, value in variables.items()},
        mounts=mounts,
    )


def image_variables() -> dict[str, str]:
    """What the Dockerfile sets; its entry point is `vsearch`, whose arguments manifests have."""
    text = (ROOT / "Dockerfile.cpu").read_text().replace("\\\n", " ")
    assert re.search(r'^ENTRYPOINT \["vsearch"\]$', text, re.MULTILINE)
    (line,) = re.findall(r"^ENV (.+)$", text, re.MULTILINE)
    return dict(word.split("=", 1) for word in line.split())


def _moved(value: str, mounts: Mapping[str, Path]) -> str:
    for seen, place in mounts.items():
        if value == seen or value.startswith(f"{seen}/"):
            return f"{place}{value.removeprefix(seen)}"
    return value


def _identity(document: Document) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def _patch(found: list[Document], changes: Document) -> None:
    for number, document in enumerate(found):
        if _identity(document) == _identity(changes):
            found[number] = _merged(document, changes)
            return
    raise ValueError(f"a patch for {_identity(changes)}, which is not there")


def _merged(document: Document, changes: Document) -> Document:
    result = copy.deepcopy(document)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            result[key] = _merged(old, value)
        elif key in _MERGED_BY and old is not None:
            by = _MERGED_BY[key]
            entries = {entry[by]: entry for entry in old}
            for entry in value:
                entries[entry[by]] = _merged(entries.get(entry[by], {}), entry)
            result[key] = list(entries.values())
        else:
            result[key] = copy.deepcopy(value)
    return result


def _rename(found: list[Document], image: Mapping[str, str]) -> None:
    containers = [
        container
        for _, spec in jobs(found)
        for container in spec["template"]["spec"]["containers"]
        if container["image"] == image["name"]
    ]
    if not containers:
        raise ValueError(f"no container has the image {image['name']}")
    for container in containers:
        container["image"] = f"{image['newName']}:{image['newTag']}"


def check_workflow(document: Document) -> None:
    """Check an Argo workflow against the models that Hera generates from Argo's schema.

    Raises:
        ValueError: A field is unknown or has a wrong type.
    """
    from hera.workflows.models import Workflow

    # A field they do not know they would leave out, without a word.
    read = Workflow.model_validate(document).model_dump_json(by_alias=True, exclude_unset=True)
    if json.loads(read) != document:
        raise ValueError(f"of {document} Argo would see only {read}")


def main() -> None:
    import kubernetes_validate

    versions = (OLDEST_KUBERNETES, kubernetes_validate.latest_version())
    for folder in KUSTOMIZATIONS:
        for document in rendered(folder):
            for version in versions:
                kubernetes_validate.validate(document, version, strict=True)
            print(f"{folder.relative_to(ROOT)}: {'/'.join(_identity(document))} is valid")
    for document in documents(ARGO):
        check_workflow(document)
        print(f"{ARGO.relative_to(ROOT)}: valid")


if __name__ == "__main__":
    main()
