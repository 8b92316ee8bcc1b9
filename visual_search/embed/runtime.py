"""Which of the runtimes computes a model here."""

from typing import Literal, Protocol

import torch
from torch import Tensor

from visual_search.models.runtimes import check_runtime, openvino_release
from visual_search.models.spec import ModelSpec
from visual_search.settings import RuntimeName


class Runtime(Protocol):
    """Computes vectors. One thread at a time.

    Attributes:
        name: With its release and what it computes in, as shards record it.
        takes_any_batch: Whether a batch of a new size costs nothing more than its images.
    """

    name: str
    takes_any_batch: bool

    def __call__(self, batch: Tensor) -> Tensor:
        """`(B, 3, S, S)` uint8 to `(B, D)` float32, both in main memory."""

    def another(self) -> "Runtime":
        """One of the same weights that computes at the same time, in another thread."""


def choose_runtime(
    spec: ModelSpec, device: torch.device, asked: RuntimeName, *, compiled: bool
) -> Literal["eager", "compiled", "openvino"]:
    """The runtime to try for a model.

    Raises:
        SettingsError: As of `check_runtime`.
    """
    check_runtime(spec.precision, asked, device.type, compiled=compiled)  # type: ignore[arg-type]
    if compiled:
        return "compiled"
    if asked == "openvino" or spec.precision == "int8":
        return "openvino"
    if asked == "auto" and device.type == "cpu" and openvino_release() is not None:
        return "openvino"
    return "eager"
