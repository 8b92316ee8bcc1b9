"""Whatever computes a model, its vectors are torch's, or torch computes it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor, nn
from torch._dynamo import config as dynamo

from tests.unit.test_embed import cosines, noise
from visual_search import models
from visual_search.embed import Embedder, embedder, openvino, runtime, threads_for_each
from visual_search.embed.compiled import Compiled
from visual_search.embed.openvino import OpenVino
from visual_search.embed.quantisation import quantise
from visual_search.errors import ExitCode, SettingsError, WeightsError
from visual_search.models import runtimes, weights
from visual_search.models.artefacts import artefact_name, read_artefact, write_artefact
from visual_search.models.spec import ModelPrecision, ModelSpec
from visual_search.settings import ModelTable
from visual_search.storage import Folder

CPU = torch.device("cpu")
NOWHERE = Path("/nonexistent/home")
TINY: dict[str, Any] = {
    "builder": "tests.tiny_model:build",
    "revision": "1",
    "weights": "builder",
    "dim": 8,
    "size": 32,
}


def spec_of(precision: ModelPrecision = "fp32", **table: Any) -> ModelSpec:
    tables = {"mine": ModelTable.model_validate(TINY | table)}
    return models.resolve("mine", tables, precision=precision, home=NOWHERE)


# --- OpenVINO ---


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"normalize": True, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)},
        {"layer": "0"},
        {"layer": "input:2"},
        {"builder": f"{__name__}:build_two_heads", "layer": "input:0", "dim": 3},
    ],
    ids=["output", "normalised", "inner output", "input", "input of the first layer"],
)
def test_openvino_gives_torchs_vectors(table: dict[str, Any]) -> None:
    spec = spec_of(**table)
    expected = Embedder(spec, None, CPU).embed(noise(7, 32))
    fast = Embedder(spec, None, CPU, runtime="openvino")
    assert fast.runtime == f"openvino {runtimes.openvino_release()} fp32"
    np.testing.assert_allclose(fast.embed(noise(7, 32)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(fast.embed(noise(7, 32)[2:3]), expected[2:3], rtol=1e-4, atol=1e-5)


def build_two_heads() -> nn.Module:
    """What follows the layer takes its input as well as its output."""
    return nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_openvino_gives_torchs_vectors_of_a_real_network(precision: ModelPrecision) -> None:
    spec = models.resolve("efficientnet_lite0", {}, precision=precision, home=NOWHERE)
    exact = models.resolve("efficientnet_lite0", {}, precision="fp32", home=NOWHERE)
    file = weights.find(spec, home=NOWHERE)
    expected = Embedder(exact, file, CPU).embed(noise(5, 224))
    fast = Embedder(spec, file, CPU, runtime="openvino")
    assert cosines(fast.embed(noise(5, 224)), expected).min() >= (
        0.99999 if fast.runtime.endswith("fp32") else 0.985
    )


class Choosy(nn.Module):
    """What it does depends on what it sees: no list of operations says that."""

    def forward(self, images: Tensor) -> Tensor:
        channels = images.mean(dim=(2, 3))
        return channels if float(channels.sum()) > 0 else -channels


def build_choosy() -> nn.Module:
    return Choosy()


@pytest.mark.parametrize("options", [{"runtime": "openvino"}, {"compiled": True}])
def test_what_a_runtime_cannot_take_is_left_to_torch(options: dict[str, Any]) -> None:
    spec = spec_of(builder=f"{__name__}:build_choosy", dim=3)
    with capture_logs() as logs:
        fast = Embedder(spec, None, CPU, **options)
    (entry,) = [entry for entry in logs if entry["event"] == "runtime_unsuitable"]
    assert entry["model_id"] == spec.model_id
    assert "cannot be exported" in entry["why"]
    assert fast.runtime.startswith("torch ")
    expected = Embedder(spec, None, CPU).embed(noise(3, 32))
    np.testing.assert_array_equal(fast.embed(noise(3, 32)), expected)


@pytest.mark.parametrize(
    "wrong", [lambda v: v.flip(0), lambda v: v * torch.nan, lambda v: v[:, 1:]]
)
def test_a_runtime_that_gives_other_vectors_is_not_used(
    monkeypatch: pytest.MonkeyPatch, wrong: Any
) -> None:
    right = OpenVino.__call__
    monkeypatch.setattr(OpenVino, "__call__", lambda self, batch: wrong(right(self, batch)))
    with capture_logs() as logs:
        fast = Embedder(spec_of(), None, CPU, runtime="openvino")
    assert "other vectors than torch" in next(
        entry["why"] for entry in logs if entry["event"] == "runtime_unsuitable"
    )
    assert fast.runtime.startswith("torch ")


def test_a_runtime_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_self: OpenVino, _batch: Tensor) -> Tensor:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(OpenVino, "__call__", fail)
    assert Embedder(spec_of(), None, CPU, runtime="openvino").runtime.startswith("torch ")


def test_auto_is_openvino_where_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Embedder(spec_of(), None, CPU, runtime="auto").runtime.startswith("openvino ")
    assert (
        runtime.choose_runtime(spec_of(), torch.device("cuda"), "auto", compiled=False) == "eager"
    )
    monkeypatch.setattr(runtime, "openvino_release", lambda: None)
    assert runtime.choose_runtime(spec_of(), CPU, "auto", compiled=False) == "eager"


@pytest.mark.parametrize(
    ("precision", "options", "words"),
    [
        ("fp32", {"runtime": "openvino"}, 'runtime openvino needs OpenVINO.*pip install "visual-s'),
        ("int8", {"runtime": "auto"}, "precision int8 needs OpenVINO"),
        ("int8", {"runtime": "torch"}, "leave out --runtime torch"),
        ("int8", {"runtime": "auto", "compiled": True}, "--compile is for runtime torch"),
        ("fp32", {"runtime": "openvino", "compiled": True}, "--compile is for runtime torch"),
    ],
)
def test_what_was_asked_for_and_is_not_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, precision: ModelPrecision, options: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(runtimes, "openvino_release", lambda: None)
    with pytest.raises(SettingsError, match=words) as refused:
        Embedder(spec_of(precision), None, CPU, **options)
    assert refused.value.exit_code is ExitCode.USAGE


def test_openvino_computes_on_the_cpu_only() -> None:
    with pytest.raises(SettingsError, match="precision int8 is computed on the CPU, not on cuda"):
        runtime.choose_runtime(spec_of("int8"), torch.device("cuda"), "auto", compiled=False)


def test_nobody_is_told_of_its_use(tmp_path: Path) -> None:
    """OpenVINO and NNCF would send an event at their import, and leave an id in the home folder."""
    code = (
        "import visual_search.embed.quantisation, nncf, openvino.tools.ovc as o; print(o.telemetry)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    ).stdout
    assert "telemetry_stub" in printed
    assert not list(tmp_path.iterdir())


def test_a_network_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Embedder(spec_of(), None, CPU, runtime="openvino", kept=tmp_path)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(embedder, "load_network", lambda *_: pytest.fail("torch's is not needed"))
    second = Embedder(spec_of(), None, CPU, runtime="openvino", kept=tmp_path)
    assert second.runtime == first.runtime
    np.testing.assert_array_equal(first.embed(noise(3, 32)), second.embed(noise(3, 32)))
    monkeypatch.undo()
    # Another model, and another release of either, has a file of its own.
    Embedder(spec_of(normalize=True), None, CPU, runtime="openvino", kept=tmp_path)
    monkeypatch.setattr(openvino, "torch_release", lambda: "2.99")
    Embedder(spec_of(), None, CPU, runtime="openvino", kept=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    assert file.name.startswith(f"{spec_of().model_id}-openvino{runtimes.openvino_release()}-torch")


def test_a_kept_network_that_is_damaged_is_converted_again(tmp_path: Path) -> None:
    Embedder(spec_of(), None, CPU, runtime="openvino", kept=tmp_path)
    (file,) = tmp_path.iterdir()
    sound = file.read_bytes()
    file.write_bytes(sound[: len(sound) // 2])
    again = Embedder(spec_of(), None, CPU, runtime="openvino", kept=tmp_path)
    assert again.runtime.startswith("openvino ")
    assert file.stat().st_size == len(sound)


def test_where_nothing_can_be_kept_a_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    spec = spec_of()
    fast = Embedder(spec, None, CPU, runtime="openvino", kept=tmp_path / "file" / "converted")
    assert fast.runtime.startswith("openvino ")


# --- torch's compiler ---


def test_a_compiled_network_gives_torchs_vectors_and_is_compiled_once() -> None:
    spec = spec_of(layer="input:2")
    expected = Embedder(spec, None, CPU).embed(noise(9, 32))
    fast = Embedder(spec, None, CPU, batch_size=4, compiled=True, workers=2)
    assert fast.runtime.endswith("fp32 compiled")

    def embed(images: int) -> npt.NDArray[np.float32]:
        # What is patched is each thread's own.
        with dynamo.patch(error_on_recompile=True):
            return fast.embed(noise(9, 32)[:images])

    # As a run does it, whose threads have a part of the cores each.
    threads = (threads_for_each(2),)
    with ThreadPoolExecutor(2, "embedder", torch.set_num_threads, threads) as pool:
        # 4, 4 and 1; then 3: the short ones are filled up.
        for images, found in zip((9, 3, 9, 3), pool.map(embed, (9, 3, 9, 3)), strict=True):
            np.testing.assert_allclose(found, expected[:images], rtol=1e-4, atol=1e-5)


def test_a_network_is_compiled_before_it_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def noted(_self: Compiled, batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return torch.zeros(len(batch), 8)

    monkeypatch.setattr(Compiled, "__call__", noted)
    Embedder(spec_of(), None, CPU, batch_size=6, compiled=True)
    assert sizes == [6]


def test_without_a_compiler_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("/nonexistent/g++",))
    with pytest.raises(SettingsError, match=r"needs a C\+\+ compiler.*install g") as refused:
        Embedder(spec_of(), None, CPU, compiled=True)
    assert refused.value.exit_code is ExitCode.USAGE


# --- int8 ---


def test_an_int8_model_is_near_its_fp32_model(tmp_path: Path) -> None:
    exact = Embedder(spec_of(), None, CPU).embed(noise(20, 32))
    spec, path = quantised(tmp_path)
    fast = Embedder(spec, path, CPU, runtime="auto")
    assert fast.runtime == f"openvino {runtimes.openvino_release()} int8"
    found = fast.embed(noise(20, 32))
    assert cosines(found, exact).min() >= 0.98
    assert not np.allclose(found, exact, rtol=1e-5)


def test_a_damaged_artefact_is_named(tmp_path: Path) -> None:
    spec, path = quantised(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{path.name}, .* is damaged: its sha256") as refused:
        Embedder(spec, path, CPU, runtime="auto")
    assert refused.value.exit_code is ExitCode.USAGE
    path.unlink()
    with pytest.raises(WeightsError, match=f"{path.name}, .* cannot be read: No such file"):
        Embedder(spec, path, CPU, runtime="auto")


def test_a_file_that_is_no_artefact_is_named(tmp_path: Path) -> None:
    spec = replace(spec_of("int8"), artefact_sha256=sha256(b"PK").hexdigest())
    write_artefact(Folder(tmp_path), artefact_name(spec), b"PK")
    path = tmp_path / artefact_name(spec)
    with pytest.raises(WeightsError, match=f"OpenVINO cannot read .*{path.name}"):
        Embedder(spec, path, CPU, runtime="auto")


def test_the_artefact_is_part_of_what_a_model_is() -> None:
    recipe = spec_of("int8")
    one, other = (replace(recipe, artefact_sha256=digit * 64) for digit in "ab")
    assert len({recipe.model_id, one.model_id, other.model_id, spec_of().model_id}) == 4
    assert (recipe.awaits_quantisation, one.awaits_quantisation) == (True, False)
    assert one.recipe == recipe
    assert ModelSpec.from_json(one.to_json()) == one
    assert "artefact_sha256" not in spec_of().to_json()


def quantised(folder: Path) -> tuple[ModelSpec, Path]:
    recipe = spec_of("int8")
    artefact = quantise(recipe, None, list(noise(64, 32)))
    spec = replace(recipe, artefact_sha256=sha256(artefact).hexdigest())
    write_artefact(Folder(folder), artefact_name(spec), artefact)
    path = folder / artefact_name(spec)
    assert read_artefact(path, spec) == artefact
    return spec, path
