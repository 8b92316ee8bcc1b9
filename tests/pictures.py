"""Image files made on the spot: plain pictures, and files that are meant to hurt a decoder."""

import struct
import zlib
from collections.abc import Iterable
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

Colour = tuple[int, int, int] | str
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    """`image` as a file of `file_format`; `options` are Pillow's for saving."""
    file = BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def jpeg_bytes(width: int, height: int, colour: Colour = "teal") -> bytes:
    """A JPEG of one colour."""
    return encoded(Image.new("RGB", (width, height), colour), "JPEG", quality=90)


def drawn(width: int = 60, height: int = 40) -> npt.NDArray[np.uint8]:
    """`(H, W, 3)` uint8: a smooth picture in which no two pixels or orientations are alike."""
    y, x = np.mgrid[:height, :width]
    return np.stack(
        (255 * x // max(1, width - 1), 255 * y // max(1, height - 1), (3 * x + 5 * y) % 256), axis=2
    ).astype(np.uint8)


def photo_bytes(width: int = 60, height: int = 40, file_format: str = "JPEG") -> bytes:
    """`drawn` as a file."""
    return encoded(Image.fromarray(drawn(width, height)), file_format)


def png(
    width: int,
    height: int,
    *,
    depth: int,
    colour: int,
    data: bytes,
    extra: Iterable[tuple[bytes, bytes]] = (),
    after: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG chunk by chunk: `data` is the compressed image data, `extra` stands before it."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), *extra, (b"IDAT", data), *after, (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(_chunk(name, content) for name, content in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content), name) + content + _crc(name + content)


def _crc(content: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(content))


def _compressed_zeros(size: int) -> bytes:
    compress = zlib.compressobj(1)
    block = bytes(1 << 20)
    parts = [
        compress.compress(block[: min(len(block), size - at)]) for at in range(0, size, 1 << 20)
    ]
    return b"".join(parts) + compress.flush()


def black_png(width: int, height: int, *, depth: int = 8, colour: int = 2) -> bytes:
    """A complete PNG of zeros; colour 0 is grey, 2 RGB, 6 RGBA."""
    row = 1 + (width * depth * {0: 1, 2: 3, 6: 4}[colour] + 7) // 8
    return png(width, height, depth=depth, colour=colour, data=_compressed_zeros(row * height))


def with_text(name: bytes, *, size: int, times: int = 1) -> bytes:
    """A small PNG with chunks of metadata that unpack to `size` bytes each.

    Args:
        name: `zTXt`, `iTXt` or `iCCP`.
    """
    packed = _compressed_zeros(size)
    head = {b"zTXt": b"Comment\0\0", b"iTXt": b"Comment\0\1\0\0\0", b"iCCP": b"profile\0\0"}[name]
    return png(
        1,
        1,
        depth=8,
        colour=2,
        data=zlib.compress(bytes(4)),
        extra=[(name, head + packed)] * times,
    )


def webp_header_bomb(side: int = 16_383) -> bytes:
    """A lossless WebP of one colour in 34 bytes."""
    size = (side - 1) | (side - 1) << 14
    # No transforms, then five prefix codes of one symbol each: a pixel takes no bits at all.
    content = struct.pack("<BI", 0x2F, size) + b"\x88\x88\x08" + bytes(6)
    chunk = b"VP8L" + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def gif_of_frames(side: int, frames: int) -> bytes:
    """An animated GIF that repeats one frame."""
    one = encoded(Image.new("P", (side, side), 1), "GIF")
    start = one.index(b",", 13 + 3 * 2 ** ((one[10] & 7) + 1) if one[10] & 128 else 13)
    return one[:start] + one[start:-1] * frames + b";"


def gif_header(screen: tuple[int, int], frame_corner: tuple[int, int]) -> bytes:
    """A GIF without pixels: the size it states, and where its frame of one pixel would stand."""
    return (
        struct.pack("<6sHHBBB", b"GIF89a", *screen, 0, 0, 0)
        + struct.pack("<cHHHHBB", b",", *frame_corner, 1, 1, 0, 8)
        + b"\1\0;"
    )


def apng_of_frames(frames: int) -> bytes:
    """An animated PNG, 8 x 8 pixels, as long as one likes."""
    data = zlib.compress(bytes(8 * (1 + 8 * 3)))

    def control(number: int) -> tuple[bytes, bytes]:
        return b"fcTL", struct.pack(">IIIIIHHBB", number, 8, 8, 0, 0, 1, 10, 0, 0)

    after = []
    for frame in range(1, frames):
        after += [control(2 * frame - 1), (b"fdAT", struct.pack(">I", 2 * frame) + data)]
    animation = (b"acTL", struct.pack(">II", frames, 0))
    return png(8, 8, depth=8, colour=2, data=data, extra=[animation, control(0)], after=after)


def jpeg_of_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG whose scans say nothing, each of which walks over the whole picture.

    About 30 bytes a scan: a small file that keeps a decoder busy for as long as one likes, 15 ms
    a scan at 4,096 x 4,096.
    """
    blocks = -(-width // 8) * -(-height // 8)

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    def one_code(table: int, symbol: int) -> bytes:
        return segment(0xC4, bytes((table, 1, *[0] * 15, symbol)))

    def scan(first: int, last: int, approximation: int, bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        data = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")
        return segment(0xDA, bytes((1, 1, 0, first, last, approximation))) + data

    # Code "0" is the only one of each table: "no difference" for DC; for AC, with 14 more bits,
    # "nothing in this block and the 32,766 after it".
    refinement = scan(1, 63, 0x10, ("0" + "1" * 14) * -(-blocks // 32_767))
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xDB, bytes(1) + bytes([1]) * 64),
            segment(0xC2, struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0)),
            one_code(0x00, 0x00),
            one_code(0x10, 0xE0),
            scan(0, 0, 0x01, "0" * blocks),
            refinement * scans,
            b"\xff\xd9",
        )
    )
