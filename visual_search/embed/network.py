"""A model's whole arithmetic as one torch module, from pixels to vectors."""

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from visual_search.embed.device import does_bf16_fast
from visual_search.models.loading import VectorNetwork
from visual_search.models.spec import ModelSpec


class UnsuitableError(Exception):
    """A runtime cannot take a model that torch itself can run; the message says why."""


class PixelNetwork(nn.Module):
    """Maps `(B, 3, S, S)` uint8 RGB to `(B, D)` float32, both on its device.

    Attributes:
        precision: What it computes in; fp32 also for a bf16 model where bf16 is not fast.
    """

    def __init__(
        self, spec: ModelSpec, network: VectorNetwork, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.precision = "bf16" if dtype == torch.bfloat16 else "fp32"
        self._dtype = dtype
        self._normalize = spec.normalize
        self._network = network.to(device, dtype).to(memory_format=torch.channels_last)
        std = torch.tensor(spec.preprocessing.std).view(3, 1, 1)
        mean = torch.tensor(spec.preprocessing.mean).view(3, 1, 1)
        self._scale = nn.Buffer((1 / (255 * std)).to(device))
        self._shift = nn.Buffer((mean / std).to(device))

    def forward(self, pixels: Tensor) -> Tensor:
        normalised = pixels.float().mul_(self._scale).sub_(self._shift).to(self._dtype)
        vectors: Tensor = self._network(normalised)
        return nn.functional.normalize(vectors) if self._normalize else vectors


def fast_dtype(spec: ModelSpec, device: torch.device) -> torch.dtype:
    """What torch computes a model in: a bf16 model in fp32 where bf16 is not fast."""
    half = spec.precision == "bf16" and does_bf16_fast(device)
    return torch.bfloat16 if half else torch.float32


def exported(network: PixelNetwork, spec: ModelSpec) -> ExportedProgram:
    """The network as a plain list of operations, for batches of any size.

    Raises:
        UnsuitableError: It decides by the values of pixels what to do, or does what torch cannot
            write down.
    """
    size_px = spec.preprocessing.size
    device = next(network.buffers()).device
    # Not one image: what works for a batch of one may not for others.
    example = torch.zeros(2, 3, size_px, size_px, dtype=torch.uint8, device=device)
    try:
        with torch.no_grad():
            return torch.export.export(network, (example,), dynamic_shapes=({0: Dim.DYNAMIC},))
    except Exception as error:
        # A network of the user's own may raise anything, and so may the exporter over it.
        raise UnsuitableError(f"it cannot be exported: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an outside library says, short enough for a log."""
    said = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {said}"
