"""What a model's name stands for: built-in models, tables of one's own, the id that follows."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.regnet import BlockParams

from visual_search import models
from visual_search.embed import Embedder
from visual_search.errors import ExitCode, ModelError, WeightsError
from visual_search.models.loading import VectorNetwork
from visual_search.models.spec import ModelSpec, Preprocessing, WeightsKind
from visual_search.settings import ModelTable

PROJECT = Path(__file__).parent.parent.parent
NOWHERE = Path("/nonexistent/home")
TORCHVISION = torchvision.models.list_models(module=torchvision.models)
OWN: dict[str, Any] = {
    "builder": "tests.tiny_model:build",
    "revision": "1",
    "weights": "builder",
    "dim": 8,
}


def resolve(name: str, home: Path = NOWHERE, **table: Any) -> ModelSpec:
    """What `name` stands for, at fp32; with a table of the user's if one is given."""
    tables = {name: ModelTable.model_validate(table)} if table else {}
    return models.resolve(name, tables, precision="fp32", home=home)


def refusal(name: str, error: type[ModelError | WeightsError] = ModelError, **table: Any) -> str:
    """The one sentence with which `name` is refused."""
    with pytest.raises(error) as refused:
        resolve(name, **table)
    assert refused.value.exit_code is ExitCode.USAGE
    assert "\n" not in str(refused.value)
    return str(refused.value)


# --- built in ---


def test_every_classification_model_of_torchvision_is_built_in_by_its_name() -> None:
    assert len(TORCHVISION) >= 80
    for name in TORCHVISION:
        spec = resolve(name)
        assert spec.torchvision_name == name
        assert spec.weights_kind is WeightsKind.PUBLISHED
        assert spec.model_id.startswith(f"{name}-")
    assert set(models.built_ins()) == {*TORCHVISION, "efficientnet_lite0"}


@pytest.mark.parametrize("name", TORCHVISION)
def test_weights_are_the_first_that_torchvision_published(name: str) -> None:
    published = torchvision.models.get_model_weights(name)
    members = published.__members__
    # Two models were only ever published as trained by SWAG.
    first = members.get("IMAGENET1K_V1") or members["IMAGENET1K_SWAG_LINEAR_V1"]
    spec = resolve(name)
    assert first.url.rpartition("/")[2] == spec.weights
    assert re.fullmatch(r"[0-9a-f]{8,64}", spec.digest_begins)
    assert spec.digest_begins in spec.weights


def test_preprocessing_squashes_to_what_the_reference_extractor_uses() -> None:
    imagenet = Preprocessing(
        resize="squash",
        size=224,
        shortest_edge=None,
        interpolation="bilinear",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    for name in TORCHVISION:
        size = 299 if name == "inception_v3" else 224
        assert resolve(name).preprocessing == replace(imagenet, size=size)
        assert not resolve(name).normalize


def test_efficientnet_lite0_is_preprocessed_as_it_was_trained() -> None:
    spec = resolve("efficientnet_lite0")
    assert spec.dim == 1280
    assert spec.preprocessing == Preprocessing(
        resize="shortest_edge+center_crop",
        size=224,
        shortest_edge=256,
        interpolation="bilinear",
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    )


@pytest.fixture
def without_weights(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], nn.Module]:
    """Makes torchvision's networks on the meta device: shapes, no numbers."""
    for name in dir(nn.init):
        if name.endswith("_") and not name.startswith("_"):
            monkeypatch.setattr(nn.init, name, lambda tensor, *_args, **_options: tensor)
    reads_numbers = BlockParams.from_init_params

    def on_cpu(*args: Any, **options: Any) -> BlockParams:
        with torch.device("cpu"):
            return reads_numbers(*args, **options)

    monkeypatch.setattr(BlockParams, "from_init_params", on_cpu)

    def build(name: str) -> nn.Module:
        options = {}
        if name in ("inception_v3", "googlenet"):
            options = {"aux_logits": False, "init_weights": False}
        with torch.device("meta"):
            network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
        return network.eval()

    return build


@pytest.mark.parametrize("name", TORCHVISION)
def test_vector_is_the_input_of_the_last_fully_connected_layer(
    name: str, without_weights: Callable[[str], nn.Module]
) -> None:
    network = without_weights(name)
    linear = [(path, part) for path, part in network.named_modules() if type(part) is nn.Linear]
    spec = resolve(name)
    if linear:
        path, last = linear[-1]
        assert (spec.layer, spec.dim) == (f"input:{path}", last.in_features)
        assert last.out_features == 1000
    else:
        assert name.startswith("squeezenet")
        assert (spec.layer, spec.dim) == ("input:classifier", 512)


@pytest.mark.long
@pytest.mark.parametrize("name", TORCHVISION)
def test_vector_has_the_stated_dim(name: str, without_weights: Callable[[str], nn.Module]) -> None:
    spec, network = resolve(name), without_weights(name)
    assert spec.layer is not None
    layer = spec.layer.removeprefix("input:")
    network.set_submodule(layer, nn.Identity())
    size = spec.preprocessing.size
    shape = VectorNetwork(network, layer)(torch.empty(1, 3, size, size, device="meta")).shape
    assert shape == (1, spec.dim)


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("resnet18", 512),
        ("resnet50", 2048),
        ("vgg16", 4096),
        ("inception_v3", 2048),
        ("mobilenet_v3_small", 1024),
        ("squeezenet1_1", 512),
        ("vit_b_16", 768),
    ],
)
def test_network_runs_and_gives_one_vector_an_image(name: str, dim: int) -> None:
    spec = resolve(name, builder=f"torchvision:{name}", weights="random:0")
    embedder = Embedder(spec, None, torch.device("cpu"))
    size = spec.preprocessing.size
    noise = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    vectors = embedder.embed(noise)
    assert vectors.shape == (2, dim)
    assert spec.dim == dim
    assert not (vectors[0] == vectors[1]).all()


# --- the id ---


def test_ids_do_not_change_from_release_to_release() -> None:
    """Whoever changes one of these has every image of every user embedded again."""
    assert resolve("resnet18").model_id == "resnet18-dfba082d4b"
    half = models.resolve("resnet18", {}, precision="bf16", home=NOWHERE)
    assert half.model_id == "resnet18-b5b7a4b519"
    assert resolve("inception_v3").model_id == "inception_v3-e6bd2819e8"
    assert resolve("efficientnet_lite0").model_id == "efficientnet_lite0-4831824659"
    assert resolve("tiny", **OWN).model_id == "tiny-e9b301ee3c"
    noise = resolve("noise", builder="torchvision:resnet18", weights="random:7")
    assert noise.model_id == "noise-random7-64492bde4c"


def test_the_guide_shows_true_ids_and_tables() -> None:
    guide = (PROJECT / "docs" / "models.md").read_text()
    shown = re.findall(r"^(\w+) +(\1-[0-9a-f]{10}) +(\d+) +fp32 +built in", guide, re.MULTILINE)
    assert len(shown) == 3
    for name, model_id, dim in shown:
        spec = resolve(name)
        assert (spec.model_id, spec.dim) == (model_id, int(dim))
    blocks = [*re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)]
    blocks += re.findall(r"^# built in.*?(?=```)", guide, re.DOTALL | re.MULTILINE)
    tables = [item for block in blocks for item in tomllib.loads(block)["models"].items()]
    assert [name for name, _ in tables] == ["shoes", "sneakers", "resnet18"]
    for name, table in tables:
        assert ModelTable.model_validate(table)
        if "model_id" in table:
            assert resolve(name, **table).model_id == table["model_id"]


def test_ids_are_made_of_few_characters() -> None:
    for name in models.built_ins():
        assert re.fullmatch(r"[a-z0-9._-]+", resolve(name).model_id)


OTHER: dict[str, Any] = {
    "builder": "tests.tiny_model:build_broken",
    "revision": "2",
    "weights": "/srv/other.pth",
    "weights_sha256": "b" * 64,
    "layer": "body",
    "dim": 9,
    "decode": "draft",
    "normalize": True,
    "precision": "bf16",
    "artefact_sha256": "c" * 64,
    "stored": "float16",
    "resize": "shortest_edge+center_crop",
    "size": 33,
    "shortest_edge": 34,
    "interpolation": "bicubic",
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "version": 2,
}
OF_SPEC = {field.name for field in dataclasses.fields(ModelSpec)} - {"name", "preprocessing"}
OF_PREPROCESSING = {field.name for field in dataclasses.fields(Preprocessing)}


@pytest.mark.parametrize("field", sorted(OF_SPEC | OF_PREPROCESSING))
def test_every_field_changes_the_id(field: str) -> None:
    spec = resolve("tiny", **OWN)
    if field in OF_PREPROCESSING:
        preprocessing = replace(spec.preprocessing, **{field: OTHER[field]})
        changed = replace(spec, preprocessing=preprocessing)
    else:
        changed = replace(spec, **{field: OTHER[field]})
    assert changed.model_id != spec.model_id
    assert changed.model_id.startswith("tiny-")


def test_id_follows_the_content_of_a_file_not_its_place(tmp_path: Path) -> None:
    def model_id(path: Path, content: bytes) -> str:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return resolve("mine", home=tmp_path, **OWN | {"weights": str(path)}).model_id

    first = model_id(tmp_path / "a" / "one.pth", b"weights")
    assert model_id(tmp_path / "b" / "two.safetensors", b"weights") == first
    assert model_id(tmp_path / "a" / "one.pth", b"WEIGHTS") != first


def test_a_stated_digest_makes_the_id_before_the_file_is_there() -> None:
    table = OWN | {"weights": "https://models.test/m.pth?key=1", "weights_sha256": "a" * 64}
    moved = table | {"weights": "https://elsewhere.test/m.pth"}
    assert resolve("mine", **table).model_id == resolve("mine", **moved).model_id
    other = table | {"weights_sha256": "b" * 64}
    assert resolve("mine", **other).model_id != resolve("mine", **table).model_id


def test_a_stated_id_is_held_against_all_the_rest() -> None:
    model_id = resolve("tiny", **OWN).model_id
    assert resolve("tiny", **OWN, model_id=model_id).model_id == model_id
    changed = OWN | {"normalize": True}
    said = refusal("tiny", **changed, model_id=model_id)
    assert model_id in said
    assert resolve("tiny", **changed).model_id in said


def test_an_id_leads_back_to_its_spec() -> None:
    tables = {"tiny": ModelTable.model_validate(OWN), "tiny-two": ModelTable.model_validate(OWN)}
    for name in ("tiny", "tiny-two", "resnet18"):
        for precision in ("fp32", "bf16"):
            spec = models.resolve(name, tables, precision=precision, home=NOWHERE)
            assert models.resolve_id(spec.model_id, tables, home=NOWHERE) == spec
    assert models.resolve_id("tiny-0123456789", tables, home=NOWHERE) is None
    assert models.resolve_id("resnet18", tables, home=NOWHERE) is None


def test_a_spec_survives_json_but_for_secrets() -> None:
    for spec in (resolve("efficientnet_lite0"), resolve("tiny", **OWN)):
        assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    signed = {"weights": "https://me:hunter2@m.test/m.pth?key=hunter2", "weights_sha256": "a" * 64}
    spec = resolve("mine", **OWN | signed)
    stored = json.dumps(spec.to_json())
    assert "hunter2" not in stored
    assert ModelSpec.from_json(json.loads(stored)).model_id == spec.model_id


# --- tables of one's own ---


def test_a_table_takes_from_the_built_in_model_what_it_does_not_say(tmp_path: Path) -> None:
    file = tmp_path / "mine.pth"
    file.write_bytes(b"weights")
    spec = resolve(
        "mine", home=tmp_path, builder="torchvision:inception_v3", weights=str(file), normalize=True
    )
    assert (spec.layer, spec.dim, spec.preprocessing.size) == ("input:fc", 2048, 299)
    assert (spec.normalize, spec.weights_kind) == (True, WeightsKind.FILE)


def test_a_table_goes_before_the_built_in_model_of_its_name() -> None:
    spec = resolve("resnet18", builder="torchvision:resnet18", resize="squash", size=160)
    assert spec.preprocessing.size == 160
    assert spec.weights == resolve("resnet18").weights
    assert spec.model_id != resolve("resnet18").model_id


def test_weights_of_ones_own_do_not_keep_the_digest_of_the_built_in_ones(tmp_path: Path) -> None:
    file = tmp_path / "lite0.pth"
    file.write_bytes(b"weights")
    builder = models.built_ins()["efficientnet_lite0"].builder
    spec = resolve("mine", home=tmp_path, builder=builder, weights=str(file))
    assert spec.weights_sha256 != resolve("efficientnet_lite0").weights_sha256
    squashed = resolve("mine", builder=builder, resize="squash")
    assert squashed.preprocessing.shortest_edge is None


def test_precision_is_the_tables_if_it_states_one() -> None:
    tables = {
        "open": ModelTable.model_validate(OWN),
        "fixed": ModelTable.model_validate(OWN | {"precision": "fp32"}),
    }
    for name, precision in (("open", "bf16"), ("fixed", "fp32")):
        spec = models.resolve(name, tables, precision="bf16", home=NOWHERE)
        assert spec.precision == precision


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"builder": "torchvision:resnet81"}, ["'torchvision:resnet81'", "torchvision:resnet18"]),
        ({"builder": "tests/tiny_model.py"}, ["'tests/tiny_model.py'", "package.module:function"]),
        ({"revision": None}, ["revision", '"1"']),
        ({"weights": None}, ["weights", "weights_sha256"]),
        ({"weights": "s3://bucket/m.pth"}, ["s3:", "https"]),
        ({"weights": "random:now"}, ["'random:now'", "random:0"]),
        ({"weights": "https://m.test/m.pth"}, ["weights_sha256"]),
        ({"dim": None}, ["dim = 512"]),
        ({"shortest_edge": 256}, ["shortest_edge", "center_crop"]),
        ({"std": (0.5, 0.0, 0.5)}, ["std"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_table_that_does_not_add_up_is_refused(table: dict[str, Any], words: list[str]) -> None:
    said = refusal("mine", **OWN | table)
    for word in ["'mine'", *words]:
        assert word in said


def test_a_name_that_cannot_be_part_of_an_id_is_refused() -> None:
    assert "'My Model'" in refusal("My Model", **OWN)


def test_an_unknown_name_is_answered_with_the_nearest_known_ones() -> None:
    said = refusal("ResNet_18")
    assert "'ResNet_18'" in said
    assert "resnet18" in said
    assert "`vsearch models list`" in said


def test_names_are_resolved_without_torch(tmp_path: Path) -> None:
    """A run that finds nothing to do must not wait for it."""
    script = (
        "import sys; from pathlib import Path\n"
        "from visual_search import models\n"
        "models.resolve('resnet18', {}, precision='fp32', home=Path('.'))\n"
        "models.resolve('efficientnet_lite0', {}, precision='fp32', home=Path('.'))\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        cwd=tmp_path,
        check=False,
    )
    assert ended.returncode == 0
    assert not list(tmp_path.iterdir())
