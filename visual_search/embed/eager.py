"""The runtime that takes every model: torch, on any device, one operation after another."""

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


def torch_name(network: PixelNetwork, device: torch.device) -> str:
    """`torch 2.14.1 cpu fp32`."""
    return f"torch {torch_release()} {device.type} {network.precision}"
