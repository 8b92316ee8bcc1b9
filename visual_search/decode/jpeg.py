"""JPEG by way of simplejpeg: the pixels that Pillow decodes, in less time.

Both it and Pillow have libjpeg-turbo decode. Pillow then has four bytes a pixel, packs them into
three, and hands them on in pieces; simplejpeg has the three written where they belong.
"""

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL.ImageFile import ImageFile

from visual_search.images import Pixels

# Pillow has its own idea of CMYK.
_MODES = ("RGB", "L")


def decode_jpeg(body: bytes, opened: ImageFile, room: npt.NDArray[np.uint8]) -> Pixels | None:
    """The pixels that Pillow would decode.

    Args:
        body: The encoded file.
        opened: The same by Pillow, not loaded; its size is the one to decode at.
        room: Memory to decode into, of exactly the pixels' size.

    Returns:
        `None` where it is for Pillow to decode or to refuse: files that are
        damaged in any way, and those of other modes than RGB and grey.
    """
    if opened.mode not in _MODES:
        return None
    width, height = opened.size
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            body, "RGB", min_width=width, min_height=height, buffer=room
        )
    except ValueError:
        return None
    return pixels
