"""Pixels to vectors, on any device that torch knows."""

import os
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as pixel_functions

from visual_search.errors import EmbedError, ModelError, UsageError
from visual_search.images import Pixels
from visual_search.models.loading import load_network
from visual_search.models.spec import ModelSpec, Preprocessing
from visual_search.settings import Device

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_BATCH_SIZES: Final = {"cpu": 32, "cuda": 256, "mps": 64}
# What a failed allocation says on mps and on the CPU.
_OUT_OF_MEMORY: Final = ("out of memory", "can't allocate memory")
# Times as long as wide, where only the middle is used.
_LONGEST_STRIP: Final = 32
_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")


def choose_device(name: Device) -> torch.device:
    """The device of this name; `auto` is the first there is of cuda, mps and cpu.

    Raises:
        UsageError: There is no such device here.
    """
    # Not torch.accelerator: it names cuda where torch was built for it, with or without a GPU.
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, is_there in there.items() if is_there))
    if name not in there:
        raise UsageError(f"unknown device {name!r}; use auto, cpu, cuda or mps")
    if not there[name]:
        raise UsageError(
            f"no {name} device that torch {torch.__version__} can use here; use --device auto or "
            "--device cpu"
        )
    return torch.device(name)


def does_bf16_fast(device: torch.device) -> bool:
    """Whether bf16 is worth its loss of precision on this device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def usable_cores() -> int:
    """How many cores this process may use, by its affinity and by its container's limit."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_LIMIT.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        # Not in a control group, or one with the quota "max".
        return cores


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
        batch_size: int | None = None,
    ) -> None:
        """Load the model; takes seconds.

        Args:
            spec: The model. A bf16 model is computed in fp32 where bf16 is not fast.
            weights: Its file, already checked; `None` where the spec needs none.
            device: As chosen by `choose_device`.
            batch_size: Instead of the device's usual one.

        Raises:
            ModelError: The network cannot be built, or its vectors are not as the spec says.
            WeightsError: The file holds other weights.
        """
        self.device = device
        self.batch_size = batch_size or _BATCH_SIZES[device.type]
        self._spec = spec
        if device.type == "cpu":
            # In a container torch counts the cores of the whole machine.
            torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
        # fp32 is a promise about the vectors; TF32 would break it silently.
        torch.backends.cudnn.allow_tf32 = False
        half = spec.precision == "bf16" and does_bf16_fast(device)
        self._dtype = torch.bfloat16 if half else torch.float32
        network: nn.Module = load_network(spec, weights)
        self._network = network.to(device, self._dtype).to(memory_format=torch.channels_last)
        std = torch.tensor(spec.preprocessing.std).view(3, 1, 1)
        mean = torch.tensor(spec.preprocessing.mean).view(3, 1, 1)
        self._scale = (1 / (255 * std)).to(device)
        self._shift = (mean / std).to(device)
        self._try_out()

    def prepare(self, pixels: Pixels) -> Tensor:
        """Bring an image to the model's size. Any number of threads may do so at once.

        Args:
            pixels: `(H, W, 3)` uint8 RGB. The result shares no memory with it.

        Returns:
            `(3, S, S)` uint8 RGB, in main memory.
        """
        return prepare(pixels, self._spec.preprocessing)

    def embed(self, batch: Tensor) -> npt.NDArray[np.float32]:
        """Embed one batch. One thread at a time.

        Args:
            batch: `(B, 3, S, S)` uint8 RGB, in main memory.

        Returns:
            `(B, D)` float32 in main memory, in input order.

        Raises:
            EmbedError: A row is not finite, or would not be in the type it is stored as. Such a
                row would be stored, match nothing, and nobody would notice.
            UsageError: Not even one image fits into the device's memory.
        """
        vectors = self._fitted(batch)
        stored = vectors.half() if self._spec.stored == "float16" else vectors
        bad = (~torch.isfinite(stored).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            raise EmbedError(f"{len(bad)} of {len(batch)} vectors are not finite", tuple(bad))
        return vectors.numpy()

    def _fitted(self, batch: Tensor) -> Tensor:
        """The vectors of a batch, in as many parts as it takes to fit into the device's memory."""
        while True:
            try:
                return torch.cat([self._forward(part) for part in batch.split(self.batch_size)])
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
            # Outside the block above, whose error holds on to what the pass had allocated.
            self._halve(min(len(batch), self.batch_size))

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

    @torch.inference_mode()
    def _forward(self, batch: Tensor) -> Tensor:
        pixels = batch.to(self.device, memory_format=torch.channels_last)
        normalised = pixels.float().mul_(self._scale).sub_(self._shift).to(self._dtype)
        vectors: Tensor = self._network(normalised)
        if self._spec.normalize:
            vectors = nn.functional.normalize(vectors)
        return vectors.cpu()

    def _try_out(self) -> None:
        """Embed one black image, so that a network that does not fit its spec fails here."""
        size = self._spec.preprocessing.size
        name = self._spec.name
        try:
            vectors = self._fitted(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        except UsageError:
            raise
        except Exception as error:
            # A network of the user's own may raise anything.
            said = str(error).strip().partition("\n")[0][:200]
            raise ModelError(
                f"model {name!r} cannot embed an image of {size} x {size} pixels in "
                f"{self._spec.precision}: {type(error).__name__}: {said}"
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


def prepare(pixels: Pixels, preprocessing: Preprocessing) -> Tensor:
    """`Embedder.prepare`, without a model."""
    # Read-only pixels are copied, since torch has no read-only tensors.
    writable = np.require(pixels, requirements=["C", "W"])
    image = torch.from_numpy(writable).permute(2, 0, 1)
    size = [preprocessing.size, preprocessing.size]
    squash = preprocessing.shortest_edge is None
    resized = pixel_functions.resize(
        image if squash else _without_ends(image),
        size if squash else [preprocessing.shortest_edge],
        interpolation=InterpolationMode(preprocessing.interpolation),
        antialias=True,
    )
    cut = resized if squash else pixel_functions.center_crop(resized, size)
    # Resizing to the size it has returns the image itself, and cropping a part of it.
    return torch.empty(cut.shape, dtype=torch.uint8).copy_(cut)


def _without_ends(image: Tensor) -> Tensor:
    """An extreme strip without its ends, which no crop of the middle shows.

    Scaled whole, a strip of 1 x 65,535 pixels would take 13 GB.
    """
    height, width = image.shape[-2:]
    longest = _LONGEST_STRIP * min(height, width)
    # As much at one end as at the other, or the middle would move.
    kept = [min(side, longest + (side - longest) % 2) for side in (height, width)]
    middle: Tensor = pixel_functions.center_crop(image, kept)
    return middle
