"""A PNG decoder written from the specification alone, as slow as it is plain.

The product decodes with Pillow; this shares no line with it, so that the two can be compared.
It serves the good files of PngSuite: every colour type, depth and filter, interlaced or not.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7: first column, first row, column step, row step.
PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)

Samples = npt.NDArray[np.int64]


def over_white(body: bytes) -> npt.NDArray[np.uint8]:
    """`(H, W, 3)` uint8 RGB; 16-bit samples keep their high byte; transparency over white."""
    rgb, alpha = _rgb_and_alpha(body)
    # Rounded half up: (2·v + 255) // 510 is v / 255 to the nearest whole number.
    blended = (2 * (rgb * alpha + 255 * (255 - alpha)) + 255) // 510
    return blended.astype(np.uint8)


def _rgb_and_alpha(body: bytes) -> tuple[Samples, Samples]:
    chunks = list(_chunks(body))
    width, height, depth, colour, _, _, interlaced = struct.unpack(
        ">IIBBBBB", dict(chunks)[b"IHDR"]
    )
    data = zlib.decompress(b"".join(content for name, content in chunks if name == b"IDAT"))
    samples = _samples(data, width, height, depth, CHANNELS[colour], bool(interlaced))
    key = next((content for name, content in chunks if name == b"tRNS"), None)
    opaque = np.full((height, width, 1), 255)
    if colour == 3:
        palette = np.frombuffer(dict(chunks)[b"PLTE"], np.uint8).reshape(-1, 3).astype(np.int64)
        alphas = np.full(256, 255)
        alphas[: len(key or b"")] = np.frombuffer(key or b"", np.uint8)
        return palette[samples[..., 0]], alphas[samples]
    eight_bits = samples >> 8 if depth == 16 else samples * (255 // ((1 << depth) - 1))
    if colour in (4, 6):
        return np.broadcast_to(eight_bits[..., :-1], (height, width, 3)), eight_bits[..., -1:]
    if key is not None:
        hidden = (samples == np.frombuffer(key, ">u2")).all(axis=2, keepdims=True)
        opaque = np.where(hidden, 0, 255)
    return np.broadcast_to(eight_bits, (height, width, 3)), opaque


def _chunks(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(body):
        (length,) = struct.unpack_from(">I", body, at)
        yield body[at + 4 : at + 8], body[at + 8 : at + 8 + length]
        at += 12 + length


def _samples(
    data: bytes, width: int, height: int, depth: int, channels: int, interlaced: bool
) -> Samples:
    image = np.zeros((height, width, channels), np.int64)
    at = 0
    for x, y, step_x, step_y in PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = len(range(x, width, step_x)), len(range(y, height, step_y))
        if not columns or not rows:
            continue
        row_bytes = (columns * channels * depth + 7) // 8
        lines = _unfiltered(data[at:], rows, row_bytes, max(1, channels * depth // 8))
        at += rows * (row_bytes + 1)
        image[y::step_y, x::step_x] = _unpacked(lines, depth, columns * channels).reshape(
            rows, columns, channels
        )
    return image


def _unfiltered(data: bytes, rows: int, row_bytes: int, pixel_bytes: int) -> npt.NDArray[np.uint8]:
    lines = np.zeros((rows, row_bytes), np.uint8)
    above = [0] * row_bytes
    for row in range(rows):
        start = row * (row_bytes + 1)
        kind, line = data[start], list(data[start + 1 : start + 1 + row_bytes])
        for i in range(row_bytes):
            left = line[i - pixel_bytes] if i >= pixel_bytes else 0
            corner = above[i - pixel_bytes] if i >= pixel_bytes else 0
            guess = (0, left, above[i], (left + above[i]) // 2, _paeth(left, above[i], corner))
            line[i] = (line[i] + guess[kind]) & 255
        lines[row] = above = line
    return lines


def _paeth(left: int, above: int, corner: int) -> int:
    estimate = left + above - corner
    return min((left, above, corner), key=lambda value: abs(estimate - value))


def _unpacked(lines: npt.NDArray[np.uint8], depth: int, count: int) -> Samples:
    if depth == 16:
        return lines.view(">u2").astype(np.int64)
    bits = np.unpackbits(lines, axis=1).reshape(len(lines), -1, depth)
    return (bits @ (1 << np.arange(depth)[::-1]))[:, :count]
