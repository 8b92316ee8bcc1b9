"""The runtime for processors: OpenVINO, which fits a network's operations to the instructions."""

import io
import sys
import zipfile
from copy import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Self

import structlog
import torch
from torch import Tensor

from visual_search.embed.device import torch_release
from visual_search.embed.network import PixelNetwork, UnsuitableError, exported, first_line
from visual_search.errors import StorageError, WeightsError
from visual_search.models.artefacts import write_artefact
from visual_search.models.runtimes import openvino_release
from visual_search.models.spec import ModelSpec
from visual_search.storage import Folder

# OpenVINO and NNCF tell their makers of every use, unless this package is missing. Who runs
# vsearch was not asked, and the images may be nobody else's business.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # how an import is refused

import openvino as ov  # noqa: E402 - only after the line above

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_STRUCTURE: Final = "model.xml"
_WEIGHTS: Final = "model.bin"
_OPTIONS: Final = {
    # Decoders run beside it: threads that stay on their core would wait for them there.
    "ENABLE_CPU_PINNING": False,
}


class OpenVino:
    """A converted network."""

    takes_any_batch = True

    def __init__(self, model: ov.Model, precision: str, workers: int, threads: int) -> None:
        """Compile a model for this processor.

        Args:
            model: As of `converted`.
            precision: The spec's. A bf16 model is computed in fp32 where bf16 is not fast.
            workers: How many batches are to be computed at a time.
            threads: By how many threads in all.
        """
        core = ov.Core()
        able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        half = precision == "bf16" and "BF16" in able
        computed = precision if half or precision == "int8" else "fp32"
        self.name = f"openvino {openvino_release()} {computed}"
        self._model: ov.CompiledModel = core.compile_model(
            model,
            "CPU",
            {
                **_OPTIONS,
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": workers,
                # Without it some processors compute fp32 models in half precision.
                "INFERENCE_PRECISION_HINT": "bf16" if half else "f32",
            },
        )
        self._request = self._model.create_infer_request()

    def __call__(self, batch: Tensor) -> Tensor:
        (vectors,) = self._request.infer(batch.numpy(), share_inputs=True).values()
        return torch.from_numpy(vectors)

    def another(self) -> Self:
        """Another request to the same compiled model."""
        other = copy(self)
        other._request = self._model.create_infer_request()  # noqa: SLF001 - its own class
        return other


def converted(network: PixelNetwork, spec: ModelSpec) -> ov.Model:
    """A network in OpenVINO's form, in fp32.

    Raises:
        UnsuitableError: It cannot be exported, or OpenVINO lacks one of its operations.
    """
    program = exported(network, spec)
    try:
        # Of its own memory: torch's network is let go of.
        return ov.convert_model(program, share_weights=False)
    except Exception as error:
        raise UnsuitableError(f"OpenVINO cannot convert it: {first_line(error)}") from error


def find_converted(kept: Path, spec: ModelSpec) -> ov.Model | None:
    """What `keep_converted` kept, by these releases of OpenVINO and torch."""
    path = kept / _kept_name(spec)
    try:
        return unpack(path.read_bytes(), path)
    except FileNotFoundError:
        return None
    except (OSError, WeightsError) as error:
        log.warning("converted_again", why=str(error))
        return None


def keep_converted(kept: Path, spec: ModelSpec, model: ov.Model) -> None:
    """Keep a converted network for the next run, which then starts in a tenth of the time."""
    try:
        write_artefact(Folder(kept), _kept_name(spec), pack(model))
    except StorageError as error:
        log.warning("not_kept", model_id=spec.model_id, why=str(error))


def _kept_name(spec: ModelSpec) -> str:
    releases = f"openvino{openvino_release()}-torch{torch_release()}"
    return f"{spec.model_id}-{releases}.zip"


def pack(model: ov.Model) -> bytes:
    """A converted network as one file: OpenVINO's two, in a zip archive."""
    packed = io.BytesIO()
    with TemporaryDirectory() as folder:
        ov.save_model(model, f"{folder}/{_STRUCTURE}", compress_to_fp16=False)
        with zipfile.ZipFile(packed, "w") as archive:
            for name in (_STRUCTURE, _WEIGHTS):
                archive.write(Path(folder) / name, name)
    return packed.getvalue()


def unpack(packed: bytes, path: Path) -> ov.Model:
    """The network of such a file.

    Args:
        packed: As of `pack`.
        path: Where it came from, for the message.

    Raises:
        WeightsError: It is no such file, or not of a release that this one can read.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            structure, weights = archive.read(_STRUCTURE), archive.read(_WEIGHTS)
        return ov.Core().read_model(structure, weights)
    except (RuntimeError, LookupError, zipfile.BadZipFile) as error:
        raise WeightsError(f"OpenVINO cannot read {path}: {first_line(error)}") from error
