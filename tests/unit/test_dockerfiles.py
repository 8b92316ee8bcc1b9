"""The two images: built alike, but for where PyTorch comes from."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CPU, GPU = ROOT / "Dockerfile.cpu", ROOT / "Dockerfile.gpu"


def instructions(dockerfile: Path) -> list[str]:
    """One string per instruction, without comments and line breaks."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [" ".join(line.split()) for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("dockerfile", [CPU, GPU], ids=lambda path: str(path.name))
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
    final = instructions(CPU)[instructions(CPU).index("USER 10001:10001") :]
    assert 'ENTRYPOINT ["vsearch"]' in final
    assert not any(line.startswith(("USER root", "RUN", "COPY")) for line in final)


def test_bases_and_torch_are_pinned() -> None:
    bases = [line for line in instructions(CPU) if line.startswith("FROM")]
    assert len(bases) == 2
    assert all(re.match(r"FROM python:3\.\d+\.\d+-slim-bookworm\b", base) for base in bases)
    torch = next(line for line in instructions(CPU) if "torch==" in line)
    assert re.search(r" torch==\d+\.\d+\.\d+ torchvision==\d+\.\d+\.\d+$", torch)
