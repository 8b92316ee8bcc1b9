"""A model small enough to run in every test: eight numbers from a 32 × 32 picture."""

import torch
from torch import Tensor, nn


def build() -> nn.Module:
    """Averages of eight fixed colour filters; no weights to load."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, kernel_size=4, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


class Hungry(nn.Module):
    """The same for at most five pictures at once."""

    def __init__(self) -> None:
        super().__init__()
        self.network = build()

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        vectors: Tensor = self.network(images)
        return vectors


def build_hungry() -> nn.Module:
    return Hungry()


def build_broken() -> nn.Module:
    """A model that cannot be made."""
    raise RuntimeError("no such network")
