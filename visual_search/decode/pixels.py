"""One encoded image → RGB pixels. Knows nothing of processes."""

import re
import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.ImageFile import ImageFile

from visual_search.decode import formats
from visual_search.decode.formats import Format
from visual_search.decode.jpeg import decode_jpeg
from visual_search.errors import FailureReason, ImageError
from visual_search.images import Pixels
from visual_search.redaction import printable

CHANNELS = 3
_BAND_PIXELS = 1 << 20
# A progressive JPEG is kept as coefficients, at its full size, until its last scan is read.
_COEFFICIENT_BYTES_PER_PIXEL = 6

# What Pillow throws over hostile bytes, found by running malformed files; OSError alone misses
# a third. Whatever it is, it is a verdict about these bytes.
_PILLOW_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    Image.DecompressionBombError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

# EXIF orientation → what turns the picture upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)

# Pillow scales these samples to 8 bits but leaves the transparent colour as it stands in the file.
_KEY_TO_8_BITS = {"L;2": 85.0, "L;4": 17.0, "RGB;16B": 1 / 256}


class Picture(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: `(H, W, 3)` uint8 RGB, C-contiguous.
        width: Of the whole image, upright: more than W where it was decoded smaller.
        height: Likewise.
    """

    pixels: Pixels
    width: int
    height: int


def decode(
    body: bytes,
    *,
    max_pixels: int,
    least_px: int | None = None,
    room: npt.NDArray[np.uint8] | None = None,
    before_pixels: Callable[[int], None] = lambda _bytes: None,
) -> Picture:
    """Decode the first frame of a JPEG, PNG, WebP, GIF or BMP file.

    Upright by its EXIF orientation; transparency over white; 16-bit samples keep their high
    byte; CMYK as Pillow converts it. Colour profiles are ignored, as by the models' own training.

    Not for several threads at once: it silences Pillow's warnings, a setting of the process.

    Args:
        body: The encoded file.
        max_pixels: Width × height above which an image is refused, by its header.
        least_px: A JPEG may come at a half, a quarter or an eighth of its size, which takes a
            fraction of the time, as long as no side gets shorter than this. `None`: it may not.
        room: Flat uint8 memory to decode into, of at least 3 x `max_pixels`; without it, new.
        before_pixels: Told, by the header, how many bytes the picture will take at most.

    Raises:
        ImageError: `EMPTY_BODY`, `NOT_AN_IMAGE`, `TOO_MANY_PIXELS`, `TRUNCATED_IMAGE` or
            `UNDECODABLE`.
    """
    kind = formats.recognise(body)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image, (width, height) = _opened(body, kind, max_pixels, least_px, before_pixels)
            if kind is formats.JPEG and _turn_upright(image) is None:
                pixels = decode_jpeg(body, image, _room_for(image, room))
                if pixels is not None:
                    return Picture(pixels, width, height)
            image.load()
            turn = _turn_upright(image)
            upright = image if turn is None else image.transpose(turn)
            if turn in _SIDEWAYS:
                width, height = height, width
            return Picture(_rgb_pixels(upright, room), width, height)
        except _PILLOW_ERRORS as error:
            raise _verdict(body, kind, max_pixels, error) from error


def _opened(
    body: bytes,
    kind: Format,
    max_pixels: int,
    least_px: int | None,
    before_pixels: Callable[[int], None],
) -> tuple[ImageFile, tuple[int, int]]:
    """The image, of which nothing is decoded yet, and the size it has in the file."""
    if kind is formats.WEBP:
        _check_size(formats.webp_size(body) or (0, 0), max_pixels)
    image = kind.reader(BytesIO(body))
    _check_size(image.size, max_pixels)
    if kind is formats.PNG:
        formats.check_png_data(body)
        _scale_transparent_colour(image)
    size = image.size
    if kind is formats.JPEG and least_px is not None:
        image.draft(image.mode, (least_px, least_px))
    needed = image.width * image.height * kind.bytes_per_pixel
    if "progressive" in image.info:
        needed += size[0] * size[1] * _COEFFICIENT_BYTES_PER_PIXEL
    before_pixels(needed)
    return image, size


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            FailureReason.TOO_MANY_PIXELS,
            f"{width} x {height} = {width * height} pixels, limit {max_pixels}",
        )


def _scale_transparent_colour(image: ImageFile) -> None:
    scale = _KEY_TO_8_BITS.get(str(image.tile[0].args)) if image.tile else None
    key = image.info.get("transparency")
    if scale is None or key is None:
        return
    image.info["transparency"] = (
        tuple(int(v * scale) for v in key) if isinstance(key, tuple) else int(key * scale)
    )


def _turn_upright(image: Image.Image) -> Image.Transpose | None:
    exif = image.info.get("exif")
    return _UPRIGHT.get(formats.exif_orientation(exif)) if isinstance(exif, bytes) else None


def _room_for(image: Image.Image, room: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.uint8]:
    width, height = image.size
    size = width * height * CHANNELS
    return np.empty(size, np.uint8) if room is None else room[:size]


def _rgb_pixels(image: Image.Image, room: npt.NDArray[np.uint8] | None) -> Pixels:
    width, height = image.size
    pixels = _room_for(image, room).reshape(height, width, CHANNELS)
    # In bands, so that a big picture is in memory once as decoded and once as pixels, not also
    # in every mode and buffer between the two.
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        whole = bottom - top == height
        band = image if whole else image.crop((0, top, width, bottom))
        pixels[top:bottom] = np.asarray(_rgb(band))
    return pixels


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = _high_bytes(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    layer = image.convert("RGBA")
    canvas = Image.new("RGB", layer.size, "white")
    canvas.paste(layer, mask=layer)
    return canvas


def _high_bytes(image: Image.Image) -> Image.Image:
    # Pillow's own conversion clips everything above 255 to white.
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _verdict(body: bytes, kind: Format, max_pixels: int, error: Exception) -> ImageError:
    if isinstance(error, Image.DecompressionBombError):
        # A frame that outgrows what the header said. Pillow names the number, with its own limit.
        found = re.search(r"\d+ pixels", str(error))
        size = found.group() if found else "too many pixels"
        return ImageError(FailureReason.TOO_MANY_PIXELS, f"{size}, limit {max_pixels}")
    if isinstance(error, MemoryError):
        return ImageError(
            FailureReason.UNDECODABLE, f"{kind.name}: needs more memory than a decoder may take"
        )
    says_so = isinstance(error, OSError) and "truncated" in str(error).lower()
    if says_so or kind.ends_early(body):
        return ImageError(
            FailureReason.TRUNCATED_IMAGE, f"{kind.name}: ends too early, after {len(body)} bytes"
        )
    message = f"{type(error).__name__}: {error}"
    return ImageError(FailureReason.UNDECODABLE, f"{kind.name}: {printable(message, 120)}")
