"""Files of weights that want more than to be weights: refused, and nothing of them runs.

`test_weights.py` has the two plain ones, a pickle and torch's own archive of one; here are the
disguises. Each is shown to work on a reader that trusts it.
"""

import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from tests import tiny_model
from tests.server import ImageServer
from visual_search import models
from visual_search.embed import Embedder
from visual_search.errors import WeightsError
from visual_search.models import weights as weights_of
from visual_search.models.fetch import fetch
from visual_search.models.spec import ModelSpec
from visual_search.settings import ModelTable, WeightsSettings

OWN: dict[str, Any] = {"builder": "tests.tiny_model:build", "revision": "1", "dim": 8, "size": 32}
POSITIONS = 20


class Evil:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


class EvilScript(nn.Module):
    """A network whose archive writes a file as soon as TorchScript reads it."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = str(mark)
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        return images

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return (self.mark, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.mark = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), state[0])


def state() -> dict[str, Tensor]:
    return dict(tiny_model.build().state_dict())


def saved(content: object, *, archive: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=archive)
    return file.getvalue()


def nested_zip(mark: Path) -> bytes:
    """An archive that holds its code as torch expects it, and another such archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Evil(mark)))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/inner.pth", saved({"0.weight": Evil(mark)}))
    return file.getvalue()


def legacy_tar(mark: Path) -> bytes:
    """The format before 2017."""
    members = {
        "sys_info": pickle.dumps({}),
        "storages": pickle.dumps(0) + pickle.dumps([]),
        "tensors": pickle.dumps(0),
        "pickle": pickle.dumps(Evil(mark)),
    }
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def torch_script(mark: Path) -> bytes:
    file = io.BytesIO()
    with ignored_warnings():
        torch.jit.save(torch.jit.script(EvilScript(mark)), file)
    return file.getvalue()


@contextmanager
def ignored_warnings() -> Iterator[None]:
    """TorchScript is deprecated; files of it are not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trusting(path: Path) -> None:
    # Some fail over what they find, after they have run it.
    with path.open("rb") as file, ignored_warnings(), suppress(RuntimeError):
        torch.load(file, weights_only=False)


def reading_on(path: Path) -> None:
    """As one who takes what follows the tensors for an object of its own."""
    body = path.read_bytes()
    (length,) = struct.unpack("<Q", body[:8])
    tensors = json.loads(body[8 : 8 + length]).values()
    end = 8 + length + max(tensor["data_offsets"][1] for tensor in tensors)
    pickle.loads(body[end:])


# File name, what is in it, and who would run it.
DISGUISES: dict[str, tuple[str, Callable[[Path], bytes], Callable[[Path], None]]] = {
    "nested zip": ("m.pth", nested_zip, trusting),
    "legacy tar": ("m.pth", legacy_tar, trusting),
    "legacy pickles": ("m.pth", lambda mark: saved(Evil(mark), archive=False), trusting),
    "TorchScript": ("m.pth", torch_script, trusting),
    "wrong suffix": ("m.safetensors", lambda mark: saved({"0.weight": Evil(mark)}), trusting),
    "no suffix": ("m", lambda mark: saved({"0.weight": Evil(mark)}), trusting),
    "appended pickle": (
        "m.safetensors",
        lambda mark: save(state()) + pickle.dumps(Evil(mark)),
        reading_on,
    ),
    "pickle before an archive": (
        "m.pth",
        lambda mark: pickle.dumps(Evil(mark)) + saved(state()),
        trusting,
    ),
}


def spec_of(file: Path, *, home: Path, **table: Any) -> ModelSpec:
    tables = {"mine": ModelTable.model_validate(OWN | {"weights": str(file)} | table)}
    return models.resolve("mine", tables, precision="fp32", home=home)


def load(file: Path, *, home: Path, **table: Any) -> None:
    """All that a run does with a file of weights."""
    spec = spec_of(file, home=home, **table)
    Embedder(spec, weights_of.obtain(spec, WeightsSettings(), home=home), torch.device("cpu"))


def refusal(work: Callable[..., object], *arguments: Any, **named: Any) -> str:
    with pytest.raises(WeightsError) as refused:
        work(*arguments, **named)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("disguise", DISGUISES)
def test_code_in_disguise_is_refused_and_does_not_run(tmp_path: Path, disguise: str) -> None:
    name, make, trust = DISGUISES[disguise]
    mark, file = tmp_path / "mark", tmp_path / name
    file.write_bytes(make(mark))
    mark.unlink(missing_ok=True)
    trust(file)
    assert mark.exists(), "it is a working exploit"
    mark.unlink()
    assert str(file) in refusal(load, file, home=tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("archive", [True, False], ids=["archive", "legacy"])
def test_what_follows_a_checkpoint_is_never_read(tmp_path: Path, archive: bool) -> None:
    """torch does not look beyond its own end. Where a digest is stated, the file is refused."""
    mark, file = tmp_path / "mark", tmp_path / "m.pth"
    file.write_bytes(saved(state(), archive=archive))
    clean = spec_of(file, home=tmp_path).digest_begins
    file.write_bytes(file.read_bytes() + pickle.dumps(Evil(mark)))
    load(file, home=tmp_path)
    assert f"not {clean[:16]}" in refusal(load, file, home=tmp_path, weights_sha256=clean)
    assert not mark.exists()


def positions(body: bytes) -> list[int]:
    """First, last, and evenly between."""
    return [round(n * (len(body) - 1) / (POSITIONS - 1)) for n in range(POSITIONS)]


def with_other_byte(body: bytes, position: int) -> bytes:
    changed = bytearray(body)
    changed[position] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_one_changed_byte_anywhere_is_noticed(
    tmp_path: Path, image_server: ImageServer, suffix: str
) -> None:
    """In a file of one's own, in one downloaded earlier, and on the way here."""
    body = saved(state()) if suffix == ".pth" else save(state())
    good = tmp_path / f"good{suffix}"
    good.write_bytes(body)
    load(good, home=tmp_path)
    digest = spec_of(good, home=tmp_path).digest_begins
    url = image_server.url(f"/m{suffix}")
    for position in positions(body):
        changed = with_other_byte(body, position)
        file = tmp_path / f"{position}{suffix}"
        file.write_bytes(changed)
        assert f"not {digest[:16]}" in refusal(load, file, home=tmp_path, weights_sha256=digest)

        home = tmp_path / str(position)
        kept = home / "weights" / f"m-{digest[:16]}{suffix}"
        kept.parent.mkdir(parents=True)
        kept.write_bytes(changed)
        table = {"weights": url, "weights_sha256": digest}
        assert f"not {digest[:16]}" in refusal(load, kept, home=home, **table)

        image_server.serve(f"/m{suffix}", changed)
        kept.unlink()
        said = refusal(fetch, url, kept, sha256_begins=digest, timeout_s=5)
        assert digest[:16] in said
        assert list(kept.parent.glob(f"*{suffix}*")) == []
    assert image_server.hits.total() == POSITIONS
