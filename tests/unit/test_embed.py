"""Pixels to vectors: the same ones in any company, and never one that is no number."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from tests.pictures import drawn
from tests.reference import resnet18_vector, squashed_pixels
from visual_search import embed, models
from visual_search.cores import usable_cores
from visual_search.embed import Embedder, choose_device, prepare
from visual_search.embed.eager import Eager
from visual_search.embed.network import PixelNetwork
from visual_search.errors import EmbedError, ExitCode, ModelError, UsageError
from visual_search.images import Pixels
from visual_search.models import weights
from visual_search.models.loading import load_network
from visual_search.models.spec import ModelSpec, Preprocessing
from visual_search.settings import ModelTable

CPU = torch.device("cpu")
NOWHERE = Path("/nonexistent/home")
SQUASH = Preprocessing(
    resize="squash",
    size=224,
    shortest_edge=None,
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


class Channels(nn.Module):
    """The means of red, green and blue, times a million."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3)) * 1e6


def build_channels() -> nn.Module:
    return Channels()


def spec_of(**table: Any) -> ModelSpec:
    plain: dict[str, Any] = {
        "builder": f"{__name__}:build_channels",
        "revision": "1",
        "weights": "builder",
        "dim": 3,
        "size": 8,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
    }
    tables = {"mine": ModelTable.model_validate(plain | table)}
    return models.resolve("mine", tables, precision="fp32", home=NOWHERE)


def one_colour(*colours: tuple[int, int, int], size: int = 8) -> Tensor:
    """`(B, 3, size, size)`."""
    flat = torch.tensor(colours, dtype=torch.uint8).view(-1, 3, 1, 1)
    return flat.expand(-1, -1, size, size)


def noise(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (count, 3, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def cosines(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    return np.asarray((a64 * b64).sum(axis=1) / norms)


# --- vectors ---


def test_pixels_are_normalised_channel_by_channel() -> None:
    embedder = Embedder(spec_of(mean=(0.5, 0.4, 0.0), std=(0.5, 0.25, 1.0)), None, CPU)
    found = embedder.embed(one_colour((255, 102, 51), (0, 0, 0)))
    np.testing.assert_allclose(found, [[1e6, 0, 0.2e6], [-1e6, -1.6e6, 0]], atol=1)
    assert found.dtype == np.float32


def test_vectors_do_not_depend_on_who_is_in_the_batch() -> None:
    spec = models.resolve("efficientnet_lite0", {}, precision="fp32", home=NOWHERE)
    lite0 = Embedder(spec, weights.find(spec, home=NOWHERE), CPU)
    images = noise(6, 224)
    together = lite0.embed(images)
    alone = np.concatenate([lite0.embed(images[n : n + 1]) for n in range(6)])
    assert cosines(together, alone).min() >= 0.99999
    turned = lite0.embed(images[2:].flip(0))[::-1]
    assert cosines(together[2:], turned).min() >= 0.99999


def test_vectors_have_length_1_where_the_table_says_so() -> None:
    embedder = Embedder(spec_of(normalize=True), None, CPU)
    np.testing.assert_allclose(embedder.embed(one_colour((30, 0, 40))), [[0.6, 0, 0.8]], atol=1e-6)


@pytest.mark.parametrize(
    ("table", "bad"),
    [
        # sqrt(negative), and what is too large for the type it is stored in.
        ({"builder": f"{__name__}:build_roots"}, (1, 2)),
        ({"stored": "float16"}, (0, 2)),
    ],
    ids=["nan", "float16"],
)
def test_rows_that_are_not_finite_are_named(table: dict[str, Any], bad: tuple[int, ...]) -> None:
    embedder = Embedder(spec_of(**table), None, CPU)
    images = {
        "nan": one_colour((255, 255, 255), (0, 0, 9), (0, 0, 0)),
        "float16": one_colour((255, 255, 255), (0, 0, 9), (0, 128, 0)),
    }["float16" if table.get("stored") else "nan"]
    with pytest.raises(EmbedError) as refused:
        embedder.embed(images)
    assert refused.value.rows == bad
    assert "2 of 3" in str(refused.value)


class Roots(nn.Module):
    """Real numbers for bright pictures only."""

    def forward(self, images: Tensor) -> Tensor:
        return (images.mean(dim=(2, 3)) - 0.5).sqrt()


def build_roots() -> nn.Module:
    return Roots()


def test_a_network_that_gives_other_vectors_than_its_table_says_is_refused() -> None:
    with pytest.raises(ModelError, match="vectors of 3 numbers, its table says dim = 4"):
        Embedder(spec_of(dim=4), None, CPU)


def test_a_network_that_cannot_take_the_stated_size_is_refused() -> None:
    with pytest.raises(ModelError, match="8 x 8 pixels in fp32"):
        Embedder(spec_of(builder=f"{__name__}:build_for_16"), None, CPU)


def build_for_16() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))


# --- devices and precision ---


@pytest.mark.parametrize("fast", [True, False])
def test_a_bf16_model_computes_in_fp32_where_bf16_is_not_fast(
    monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    builder = {"builder": "torchvision:resnet18", "revision": None, "weights": "random:0"}
    table: dict[str, Any] = builder | {"layer": "input:fc", "dim": 512, "size": 64}
    images = noise(4, 64)
    exact = Embedder(spec_of(**table), None, CPU).embed(images)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": fast})
    half = Embedder(spec_of(**table, precision="bf16"), None, CPU).embed(images)
    assert half.dtype == np.float32
    assert np.array_equal(half, exact) is not fast
    assert cosines(half, exact).min() >= 0.985


def test_bf16_is_fast_where_the_processor_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    able = {"avx512_bf16": False, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert not embed.does_bf16_fast(CPU)
    able["amx_bf16"] = True
    assert embed.does_bf16_fast(CPU)
    assert not embed.does_bf16_fast(torch.device("mps"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a cuda device here")
def test_a_device_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(UsageError) as refused:
        choose_device("cuda")
    assert refused.value.exit_code is ExitCode.USAGE
    assert "no cuda device" in str(refused.value)
    assert "--device cpu" in str(refused.value)


def test_auto_takes_the_first_device_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"cuda": False, "mps": False}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there["cuda"])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there["mps"])
    assert choose_device("auto") == CPU
    there["mps"] = True
    assert choose_device("auto") == torch.device("mps")
    there["cuda"] = True
    assert choose_device("auto") == torch.device("cuda")
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("150000 100000", 1), ("200000 100000", 2), ("10000 100000", 1), ("max 100000", 8), (None, 8)],
)
def test_a_container_uses_as_many_cores_as_it_may(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str | None, cores: int
) -> None:
    file = tmp_path / "cpu.max"
    if limit is not None:
        file.write_text(limit)
    monkeypatch.setattr("visual_search.cores._CGROUP_LIMIT", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    assert usable_cores() == cores


def test_batch_size_is_the_devices_unless_it_is_stated() -> None:
    assert Embedder(spec_of(), None, CPU).batch_size == 32
    assert Embedder(spec_of(), None, CPU, batch_size=7).batch_size == 7


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("aoti_torch_empty_strided(4, sizes, ...) API call failed at x.h, line 12"),
        MemoryError(),
    ],
    ids=["cuda", "mps", "cpu", "compiled", "python"],
)
def test_a_batch_that_does_not_fit_is_embedded_in_parts(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    embedder, images = Embedder(spec_of(), None, CPU), noise(21, 8)
    expected = embedder.embed(images)
    tried = limit_memory(monkeypatch, 5, error)
    np.testing.assert_array_equal(embedder.embed(images), expected)
    # 21 is halved to 10, to 5; what follows begins with what fitted.
    assert tried == [21, 10, 5, 5, 5, 5, 1]
    assert embedder.batch_size == 5
    np.testing.assert_array_equal(embedder.embed(images[:7]), expected[:7])
    assert tried[7:] == [5, 2]


def test_an_image_that_does_not_fit_alone_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(spec_of(), None, CPU)
    limit_memory(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(UsageError, match="'mine' needs more memory than cpu has, even for one"):
        embedder.embed(noise(8, 8))
    with pytest.raises(UsageError, match="8 x 8 pixels"):
        Embedder(spec_of(), None, CPU)


def limit_memory(monkeypatch: pytest.MonkeyPatch, most_images: int, error: Exception) -> list[int]:
    """Let no larger batch pass; returns the sizes of all that were tried."""
    forward, tried = Channels.forward, []

    def limited(self: Channels, images: Tensor) -> Tensor:
        tried.append(len(images))
        if len(images) > most_images:
            raise error
        return forward(self, images)

    monkeypatch.setattr(Channels, "forward", limited)
    return tried


# --- preparation ---


@pytest.mark.parametrize(
    "preprocessing",
    [
        SQUASH,
        Preprocessing(
            resize="shortest_edge+center_crop",
            size=224,
            shortest_edge=256,
            interpolation="bicubic",
            mean=SQUASH.mean,
            std=SQUASH.std,
        ),
    ],
    ids=["squash", "crop"],
)
@pytest.mark.parametrize(
    "size", [(400, 533), (533, 400), (100, 90), (224, 224), (256, 256), (1, 7)]
)
def test_preparation_is_torchvisions_on_tensors(
    preprocessing: Preprocessing, size: tuple[int, int]
) -> None:
    pixels = drawn(*size)
    way = v2.InterpolationMode(preprocessing.interpolation)
    if preprocessing.resize == "squash":
        reference = v2.Compose([v2.Resize((224, 224), way, antialias=True)])
    else:
        reference = v2.Compose([v2.Resize(256, way, antialias=True), v2.CenterCrop(224)])
    expected = reference(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    prepared = prepare(pixels, preprocessing)
    assert prepared.shape == (3, 224, 224)
    assert prepared.dtype == torch.uint8
    assert prepared.is_contiguous()
    assert torch.equal(prepared, expected)


CROP = Preprocessing(
    resize="shortest_edge+center_crop",
    size=28,
    shortest_edge=32,
    interpolation="bilinear",
    mean=SQUASH.mean,
    std=SQUASH.std,
)


@pytest.mark.parametrize("size", [(1, 200), (1, 201), (200, 1), (99, 2)])
def test_a_strip_is_cropped_to_its_middle(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    whole = v2.Compose([v2.Resize(32, antialias=True), v2.CenterCrop(28)])
    expected = whole(torch.from_numpy(pixels).permute(2, 0, 1))
    assert (prepare(pixels, CROP).int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(1, 65_535), (65_535, 1)])
def test_of_an_endless_strip_only_the_middle_is_scaled(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    """Scaled whole, it would take 13 GB at the usual size."""
    resize, sides = functional.resize, []

    def watched(*args: Any, **options: Any) -> Tensor:
        resized: Tensor = resize(*args, **options)
        sides.append(max(resized.shape))
        return resized

    monkeypatch.setattr(functional, "resize", watched)
    assert prepare(np.full((*size, 3), 7, np.uint8), CROP).eq(7).all()
    assert max(sides) <= 32 * 33


def test_prepared_pixels_share_no_memory_with_the_image() -> None:
    pixels = drawn(224, 224)
    prepared = prepare(pixels, SQUASH)
    before = prepared.clone()
    pixels[:] = 0
    assert torch.equal(prepared, before)


def test_pixels_that_must_not_be_written_are_taken_too() -> None:
    pixels = drawn(60, 40)
    pixels.flags.writeable = False
    assert torch.equal(prepare(pixels, SQUASH), prepare(drawn(60, 40), SQUASH))


def dress(shared_data: Path) -> Pixels:
    with Image.open(shared_data / "dress.jpeg") as file:
        return np.asarray(file.convert("RGB"))


def test_preparation_differs_from_pillows_by_one_step_at_most(shared_data: Path) -> None:
    """The reference extractor resizes with Pillow."""
    prepared = prepare(dress(shared_data), SQUASH).int()
    reference = (squashed_pixels(shared_data / "dress.jpeg") * 255).round().int()
    steps = (prepared - reference).abs()
    assert steps.max() <= 1
    assert (steps == 0).double().mean() >= 0.999


# --- the published extractor ---


def test_resnet18_gives_the_published_vector(shared_data: Path) -> None:
    """Published to ±0.005 for this picture, with the weights that torchvision published first."""
    spec = models.resolve("resnet18", {}, precision="fp32", home=NOWHERE)
    home = Path(os.environ.get("VSEARCH_HOME", "vsearch-data"))
    path = weights.find(spec, home=home)
    if path is None:
        pytest.skip(f"no {spec.weights} on this machine; `vsearch models pull resnet18`")
    embedder = Embedder(spec, path, CPU)
    vector = embedder.embed(embedder.prepare(dress(shared_data)).unsqueeze(0))
    assert vector.shape == (1, 512)
    published = [0.2784, 1.6626, 0.7944, 2.875, 1.906, 0.7018]
    np.testing.assert_allclose(vector[0, :6], published, atol=0.005)
    reference = resnet18_vector(shared_data / "dress.jpeg", path)
    assert cosines(vector, reference[None]).min() >= 0.9995


def test_resnet18_equals_the_reference_whatever_its_weights(
    shared_data: Path, tmp_path: Path
) -> None:
    """Where the published weights cannot be had: the same way of the data, with others."""
    from torchvision.models import resnet18

    file = tmp_path / "random.pth"
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), file)
    table = ModelTable(builder="torchvision:resnet18", weights=str(file))
    spec = models.resolve("mine", {"mine": table}, precision="fp32", home=tmp_path)
    embedder = Embedder(spec, file, CPU)
    vector = embedder.embed(embedder.prepare(dress(shared_data)).unsqueeze(0))
    reference = resnet18_vector(shared_data / "dress.jpeg", file)
    assert cosines(vector, reference[None]).min() >= 0.9999


# Several threads at once


def build_forgetful() -> nn.Module:
    return _Keeps()


class _Keeps(nn.Module):
    """Keeps something between its layers, as networks of users may."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = torch.zeros(0)

    def forward(self, images: Tensor) -> Tensor:
        self.kept = images.mean(dim=(2, 3))
        time.sleep(0.01)
        return self.kept


def test_batches_at_the_same_time_do_not_mix() -> None:
    table = ModelTable(
        builder=f"{__name__}:build_forgetful", revision="1", weights="builder", dim=3
    )
    spec = models.resolve("keeps", {"keeps": table}, precision="fp32", home=Path("nowhere"))
    embedder = Embedder(spec, None, torch.device("cpu"), workers=4)
    batches = [torch.full((2, 3, 224, 224), value, dtype=torch.uint8) for value in range(40)]
    alone = [embedder.embed(batch) for batch in batches]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(embedder.embed, batches))
    np.testing.assert_array_equal(together, alone)


def test_a_network_that_cannot_be_copied_embeds_one_batch_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_self: _Keeps, _memo: object) -> None:
        raise TypeError("no copies")

    monkeypatch.setattr(_Keeps, "__deepcopy__", refuse, raising=False)
    test_batches_at_the_same_time_do_not_mix()


def test_workers_share_their_weights() -> None:
    table = ModelTable(builder="torchvision:resnet18", weights="random:0")
    spec = models.resolve("r", {"r": table}, precision="fp32", home=Path("nowhere"))
    first = Eager(
        PixelNetwork(spec, load_network(spec, None), torch.device("cpu"), torch.float32),
        torch.device("cpu"),
    )
    second = first.another()
    pairs = zip(first._network.parameters(), second._network.parameters(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in pairs)
    assert first._network is not second._network
