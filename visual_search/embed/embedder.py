"""A model at work."""

from pathlib import Path
from queue import SimpleQueue
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor

from visual_search.cores import usable_cores
from visual_search.embed.compiled import Compiled
from visual_search.embed.device import threads_for_each
from visual_search.embed.eager import Eager
from visual_search.embed.network import PixelNetwork, UnsuitableError, fast_dtype, first_line
from visual_search.embed.preparation import prepare
from visual_search.embed.runtime import Runtime, choose_runtime
from visual_search.errors import EmbedError, ModelError, UsageError
from visual_search.images import Pixels
from visual_search.models.artefacts import read_artefact
from visual_search.models.loading import load_network
from visual_search.models.spec import ModelSpec
from visual_search.settings import RuntimeName

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_BATCH_SIZES: Final = {"cpu": 32, "cuda": 256, "mps": 64}
# What a failed allocation says on mps, in torch on the CPU, in OpenVINO, and in compiled code: it
# names only the call that failed.
_OUT_OF_MEMORY: Final = (
    "out of memory",
    "can't allocate memory",
    "bad_alloc",
    "aoti_torch_empty_strided(",
)
# How far, of its length, a vector may lie from torch's: enough for rounding, not for a network
# that was translated wrongly.
_ROUNDING: Final = {"fp32": 0.01, "bf16": 0.3}

Kind = Literal["eager", "compiled", "openvino"]


class Embedder:
    """A model on a device.

    Attributes:
        device: Where it computes.
        batch_size: How many images it best gets at once; any number will do. Halved when so many
            turn out not to fit into the device's memory.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Path | None,
        device: torch.device,
        *,
        batch_size: int | None = None,
        runtime: RuntimeName = "torch",
        compiled: bool = False,
        kept: Path | None = None,
        workers: int = 1,
        threads: int | None = None,
    ) -> None:
        """Load the model; takes seconds, and minutes where it is compiled.

        Args:
            spec: The model. A bf16 model is computed in fp32 where bf16 is not fast.
            weights: Its file, already checked; `None` where the spec needs none. Of an int8 model,
                its artefact, which is checked here.
            device: As chosen by `choose_device`.
            batch_size: Instead of the device's usual one.
            runtime: `auto` is OpenVINO where that is installed and `device` the CPU, else torch.
                Torch computes what another runtime cannot.
            compiled: Let torch compile the network.
            kept: A folder where converted networks are kept, so that the next time is quicker.
            workers: How many threads embed at a time.
            threads: On how many cores, in all; on all of them unless given.

        Raises:
            ModelError: The network cannot be built, or its vectors are not as the spec says.
            SettingsError: The runtime, or a compiler, is not there.
            WeightsError: The file holds other weights, or the artefact is missing or damaged.
        """
        kind = choose_runtime(spec, device, runtime, compiled=compiled)
        self.device = device
        self.batch_size = batch_size or _BATCH_SIZES[device.type]
        self._spec = spec
        self._workers = workers
        self._threads = threads or usable_cores()
        self._runtime: Runtime
        self._load(kind, weights, kept)
        # Each thread has a runtime to itself for as long as it embeds.
        self._idle: SimpleQueue[Runtime] = SimpleQueue()
        self._idle.put(self._runtime)
        try:
            for _ in range(workers - 1):
                self._idle.put(self._runtime.another())
        except Exception as error:  # noqa: BLE001 - a user's network may hold what has no copy
            log.warning("one_batch_at_a_time", model_id=spec.model_id, why=first_line(error))

    @property
    def runtime(self) -> str:
        """What computes, with its release and its arithmetic: `torch 2.14.1 cpu bf16`."""
        return self._runtime.name

    def prepare(self, pixels: Pixels) -> Tensor:
        """Bring an image to the model's size. Any number of threads may do so at once.

        Args:
            pixels: `(H, W, 3)` uint8 RGB. The result shares no memory with it.

        Returns:
            `(3, S, S)` uint8 RGB, in main memory.
        """
        return prepare(pixels, self._spec.preprocessing)

    def embed(self, batch: Tensor) -> npt.NDArray[np.float32]:
        """Embed one batch. As many threads at a time as there are workers; others wait.

        Args:
            batch: `(B, 3, S, S)` uint8 RGB, in main memory.

        Returns:
            `(B, D)` float32 in main memory, in input order.

        Raises:
            EmbedError: A row is not finite, or would not be in the type it is stored as. Such a
                row would be stored, match nothing, and nobody would notice.
            UsageError: Not even one image fits into the device's memory.
        """
        runtime = self._idle.get()
        try:
            vectors = self._fitted(runtime, batch)
        finally:
            self._idle.put(runtime)
        stored = vectors.half() if self._spec.stored == "float16" else vectors
        bad = (~torch.isfinite(stored).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise EmbedError(f"{len(bad)} of {len(batch)} vectors are not finite", tuple(bad))
        return vectors.numpy()

    def _load(self, kind: Kind, weights: Path | None, kept: Path | None) -> None:
        spec, device = self._spec, self.device
        if device.type == "cpu":
            # As where it will be used: compiled code is made anew for another number.
            torch.set_num_threads(threads_for_each(self._workers, self._threads))
        # fp32 is a promise about the vectors; TF32 would break it silently.
        torch.backends.cudnn.allow_tf32 = False
        stored = self._stored(weights, kept) if kind == "openvino" else None
        if stored is not None:
            self._runtime = stored
            self._try_out()
            return
        network = load_network(spec, weights)
        dtype = fast_dtype(spec, device)
        # OpenVINO takes all digits of the weights, which a network in bf16 has no more.
        pixels = PixelNetwork(spec, network, device, torch.float32 if kind == "openvino" else dtype)
        self._runtime = Eager(pixels, device)
        self._try_out()
        if kind == "eager":
            return
        try:
            self._runtime = self._faster(kind, pixels, kept)
        except UnsuitableError as error:
            log.warning("runtime_unsuitable", model_id=spec.model_id, runtime=kind, why=str(error))
            self._runtime = Eager(PixelNetwork(spec, network, device, dtype), device)

    def _fitted(self, runtime: Runtime, batch: Tensor) -> Tensor:
        """The vectors of a batch, in as many parts as it takes to fit into the device's memory."""
        while True:
            try:
                parts = torch.split(batch, self.batch_size)
                return torch.cat([self._run(runtime, part) for part in parts])
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
            # Outside the block above, whose error holds on to what the pass had allocated.
            self._halve(min(len(batch), self.batch_size))

    def _run(self, runtime: Runtime, part: Tensor) -> Tensor:
        missing = 0 if runtime.takes_any_batch else self.batch_size - len(part)
        filled = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)]) if missing else part
        return runtime(filled)[: len(part)]

    def _halve(self, too_many: int) -> None:
        size_px = self._spec.preprocessing.size
        if too_many == 1:
            raise UsageError(
                f"model {self._spec.name!r} needs more memory than {self.device.type} has, even "
                f"for one image of {size_px} x {size_px} pixels; use a smaller model or another "
                "--device"
            )
        self.batch_size = too_many // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        log.warning(
            "batch_halved",
            why=f"{too_many} images do not fit into the memory of {self.device.type}",
            batch_size=self.batch_size,
        )

    def _stored(self, weights: Path | None, kept: Path | None) -> Runtime | None:
        """OpenVINO with a network that lies ready: an int8 model's, or one of an earlier run."""
        from visual_search.embed.openvino import OpenVino, find_converted, unpack  # noqa: PLC0415 - an extra

        if self._spec.precision == "int8":
            # Never another runtime instead: its vectors would be another model's.
            assert weights is not None  # noqa: S101 - an int8 model has an artefact
            model = unpack(read_artefact(weights, self._spec), weights)
        else:
            model = None if kept is None else find_converted(kept, self._spec)
        return (
            None
            if model is None
            else OpenVino(model, self._spec.precision, self._workers, self._threads)
        )

    def _faster(self, kind: Kind, network: PixelNetwork, kept: Path | None) -> Runtime:
        """A runtime that gives the same vectors as torch does.

        Raises:
            UnsuitableError: It cannot take this network, or gives other vectors.
        """
        if kind == "compiled":
            compiled = Compiled(network, self._spec, self.device)
            self._compare(compiled)
            return compiled
        from visual_search.embed.openvino import OpenVino, converted, keep_converted  # noqa: PLC0415 - an extra

        model = converted(network, self._spec)
        runtime = OpenVino(model, self._spec.precision, self._workers, self._threads)
        self._compare(runtime)
        if kept is not None:
            keep_converted(kept, self._spec, model)
        return runtime

    def _compare(self, runtime: Runtime) -> None:
        """Raise `UnsuitableError` unless it gives the vectors of the runtime in use."""
        side = self._spec.preprocessing.size
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=generator)
        try:
            vectors = self._fitted(runtime, noise)
        except UsageError:
            raise
        except Exception as error:
            # Compilers raise anything.
            raise UnsuitableError(f"it fails: {first_line(error)}") from error
        if not _alike(vectors, self._fitted(self._runtime, noise), self._spec.precision):
            raise UnsuitableError("it gives other vectors than torch")

    def _try_out(self) -> None:
        """Embed one black image, so that a network that does not fit its spec fails here."""
        size = self._spec.preprocessing.size
        name = self._spec.name
        try:
            black = torch.zeros(1, 3, size, size, dtype=torch.uint8)
            vectors = self._fitted(self._runtime, black)
        except UsageError:
            raise
        except Exception as error:
            # A network of the user's own may raise anything.
            raise ModelError(
                f"model {name!r} cannot embed an image of {size} x {size} pixels in "
                f"{self._spec.precision}: {first_line(error)}"
            ) from error
        if vectors.shape != (1, self._spec.dim):
            raise ModelError(
                f"model {name!r} gives vectors of {vectors.shape[1]} numbers, its table says "
                f"dim = {self._spec.dim}"
            )


def _is_out_of_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether a smaller batch can help: torch has a class of its own for cuda only."""
    said = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in said for words in _OUT_OF_MEMORY
    )


def _alike(vectors: Tensor, expected: Tensor, precision: str) -> bool:
    if vectors.shape != expected.shape:
        return False
    finite = torch.isfinite(expected)
    away = torch.where(finite, vectors - expected, 0).norm(dim=1)
    near = away <= _ROUNDING[precision] * torch.where(finite, expected, 0).norm(dim=1)
    return torch.equal(torch.isfinite(vectors), finite) and bool(near.all())
