"""Which of the runtimes computes a model here."""

from typing import Literal, Protocol

import torch
from torch import Tensor

from visual_search.embed.device import openvino_release
from visual_search.errors import SettingsError
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
        SettingsError: What the user or the model asks for cannot be had here.
    """
    int8 = spec.precision == "int8"
    if compiled and (asked == "openvino" or int8):
        what = "precision int8" if int8 else "runtime openvino"
        raise SettingsError(f"--compile is for runtime torch; {what} has a compiler of its own")
    if int8 and asked == "torch":
        raise SettingsError("precision int8 needs runtime openvino; leave out --runtime torch")
    if compiled:
        return "compiled"
    if asked == "openvino" or int8:
        check_openvino(device, "precision int8" if int8 else "runtime openvino")
        return "openvino"
    if asked == "auto" and device.type == "cpu" and openvino_release() is not None:
        return "openvino"
    return "eager"


def check_openvino(device: torch.device, what: str) -> None:
    """Raise `SettingsError` unless OpenVINO can compute `what` on this device."""
    if device.type != "cpu":
        raise SettingsError(f"{what} is computed on the CPU, not on {device.type}; --device cpu")
    if openvino_release() is None:
        raise SettingsError(
            f"{what} needs OpenVINO, which is not installed here; "
            '`pip install "visual-search[openvino]"`'
        )
