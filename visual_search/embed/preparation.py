"""An image of any size to one of the model's."""

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as pixel_functions

from visual_search.images import Pixels
from visual_search.models.spec import Preprocessing

# Times as long as wide, where only the middle is used.
_LONGEST_STRIP: Final = 32


def prepare(pixels: Pixels, preprocessing: Preprocessing) -> Tensor:
    """Bring an image to the model's size. Any number of threads may do so at once.

    Args:
        pixels: `(H, W, 3)` uint8 RGB. The result shares no memory with it.
        preprocessing: The model's.

    Returns:
        `(3, S, S)` uint8 RGB, in main memory.
    """
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
    # A copy: resizing to the size it has returns the image itself, and cropping a part of it.
    # NumPy's, since torch would wake a thread on each core for it, and those spin for longer than
    # all the rest takes: 5 ms of processor time an image instead of 0.7.
    return torch.from_numpy(np.array(cut.numpy(), order="C"))


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
