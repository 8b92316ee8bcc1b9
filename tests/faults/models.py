"""Models beside `tests.tiny_model`."""

import torch
from torch import nn


def build_other() -> nn.Module:
    """As the tiny one, with other numbers."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, kernel_size=4, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
