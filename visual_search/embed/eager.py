"""The runtime that takes every model: torch, on any device, one operation after another."""

from copy import deepcopy
from itertools import chain
from typing import Self

import torch
from torch import Tensor

from visual_search.embed.device import torch_release
from visual_search.embed.network import PixelNetwork


class Eager:
    """A network as it is."""

    takes_any_batch = True

    def __init__(self, network: PixelNetwork, device: torch.device) -> None:
        self._network = network
        self._device = device
        self.name = torch_name(network, device)

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> Tensor:
        pixels = batch.to(self._device, memory_format=torch.channels_last)
        vectors: Tensor = self._network(pixels)
        return vectors.cpu()

    def another(self) -> Self:
        """Only weights are shared: a network may keep other things from layer to layer."""
        tensors = chain(self._network.parameters(), self._network.buffers())
        shared = {id(tensor): tensor for tensor in tensors}
        return type(self)(deepcopy(self._network, shared), self._device)


def torch_name(network: PixelNetwork, device: torch.device) -> str:
    """`torch 2.14.1 cpu fp32`."""
    return f"torch {torch_release()} {device.type} {network.precision}"
