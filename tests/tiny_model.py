"""A model small enough to run in every test: eight numbers from a 32 × 32 picture."""

import torch
from torch import nn


def build() -> nn.Module:
    """Averages of eight fixed colour filters; no weights to load."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, kernel_size=4, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def build_broken() -> nn.Module:
    """A model that cannot be made."""
    raise RuntimeError("no such network")
