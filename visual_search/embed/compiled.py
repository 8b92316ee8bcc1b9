"""torch's own compiler: faster than eager, after minutes of compiling; off unless asked for."""

from typing import Self

import torch
from torch import Tensor

from visual_search.embed.eager import torch_name
from visual_search.embed.network import PixelNetwork, exported
from visual_search.errors import SettingsError
from visual_search.models.spec import ModelSpec


class Compiled:
    """A network compiled for one size of batch; another size is compiled when it comes."""

    takes_any_batch = False

    def __init__(self, network: PixelNetwork, spec: ModelSpec, device: torch.device) -> None:
        """Prepare to compile; the first batch takes the time.

        Raises:
            SettingsError: There is no compiler.
            UnsuitableError: The network cannot be exported.
        """
        if device.type == "cpu":
            _check_compiler()
        self._device = device
        self.name = f"{torch_name(network, device)} compiled"
        self._network = torch.compile(
            exported(network, spec).module(),
            dynamic=False,
            options={
                # Weights as constants: they are laid out as the processor likes them, once.
                "freezing": True,
                # One call into C++ for the whole network. Called one by one from Python, what is
                # compiled holds the interpreter's lock, and batches side by side wait for it.
                "cpp_wrapper": device.type == "cpu",
            },
        )

    def another(self) -> Self:
        """Itself: compiled code keeps nothing between batches."""
        return self

    def __call__(self, batch: Tensor) -> Tensor:
        pixels = batch.to(self._device, memory_format=torch.channels_last)
        with torch.no_grad():
            vectors: Tensor = self._network(pixels)
        return vectors.cpu()


def _check_compiler() -> None:
    # torch finds it by rules of its own, and says what is missing only deep in a traceback.
    from torch._inductor.cpp_builder import get_cpp_compiler  # noqa: PLC0415 - see above

    try:
        get_cpp_compiler()
    except Exception as error:
        raise SettingsError(
            "--compile needs a C++ compiler, and torch finds none here; install g++ (such as the "
            "package build-essential), or name another in the variable CXX"
        ) from error
