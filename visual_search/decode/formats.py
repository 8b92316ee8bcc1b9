"""What a body is by its first bytes, and what can be told of it without decoding a pixel."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from PIL.ImageFile import ImageFile

from visual_search.errors import FailureReason, ImageError


class _Jpeg(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        # Pillow parses all of EXIF for the print resolution as soon as it opens a JPEG. That is
        # of no use here, and an EXIF block can be made to cost seconds and gigabytes.
        return


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One accepted file format.

    Attributes:
        reader: Pillow's class for exactly this format. Going through `Image.open` would import
            and try others, and refuse a bomb before its width and height could be told.
        ends_early: Whether the file is shorter than its own structure says. Asked only of files
            that did not decode.
        bytes_per_pixel: What decoding takes at most, in all processes: 4 as Pillow's image, 4 more
            to turn it upright, 3 as pixels in memory that two processes count.
    """

    name: str
    reader: Callable[..., ImageFile]
    ends_early: Callable[[bytes], bool]
    bytes_per_pixel: int = 14


def _jpeg_ends_early(body: bytes) -> bool:
    # An embedded thumbnail has an end marker of its own, before the picture's scans.
    return body.rfind(b"\xff\xd9") < max(body.rfind(b"\xff\xda"), 0)


def _declared_more(body: bytes, at: int, beside: int) -> bool:
    return len(body) < at + 4 or int.from_bytes(body[at : at + 4], "little") + beside > len(body)


JPEG = Format(name="JPEG", reader=_Jpeg, ends_early=_jpeg_ends_early)
PNG = Format(
    name="PNG", reader=PngImagePlugin.PngImageFile, ends_early=lambda body: b"IEND" not in body
)
GIF = Format(
    name="GIF", reader=GifImagePlugin.GifImageFile, ends_early=lambda body: body[-1:] != b";"
)
BMP = Format(
    name="BMP",
    reader=BmpImagePlugin.BmpImageFile,
    ends_early=lambda body: _declared_more(body, 2, 0),
)
WEBP = Format(
    name="WebP",
    reader=WebPImagePlugin.WebPImageFile,
    ends_early=lambda body: _declared_more(body, 4, 8),
    bytes_per_pixel=26,  # three canvases of its own
)


def recognise(body: bytes) -> Format:
    """The format of `body` by its magic bytes; what a server or a file name calls it is ignored.

    Raises:
        ImageError: `EMPTY_BODY`, or `NOT_AN_IMAGE` with a guess at what it is instead.
    """
    if not body:
        raise ImageError(FailureReason.EMPTY_BODY, "0 bytes")
    if body.startswith(b"\xff\xd8\xff"):
        return JPEG
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return PNG
    if body.startswith(b"RIFF") and body[8:12] == b"WEBP":
        return WEBP
    if body.startswith((b"GIF87a", b"GIF89a")):
        return GIF
    if body.startswith(b"BM"):
        return BMP
    raise ImageError(FailureReason.NOT_AN_IMAGE, f"{_guess(body)}, not JPEG, PNG, WebP, GIF or BMP")


_BINARY = (
    (b"%PDF", "a PDF"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"\0\0\0\x0cjP", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"\0\0\0\x0cJXL", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"8BPS", "a Photoshop file"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"\x1f\x8b", "gzip data"),
    (b"PK\3\4", "a ZIP archive"),
    (b"RIFF", "audio or video (RIFF)"),
)
_BRANDS = ((b"avi", "an AVIF"), (b"hei", "a HEIC"), (b"hev", "a HEIC"), (b"mif", "a HEIF"))


def _guess(body: bytes) -> str:
    name = _binary_name(body) or _text_name(body[:1024])
    return f"looks like {name}" if name else f"begins with {body[:8].hex(' ')}"


def _binary_name(body: bytes) -> str | None:
    if body[4:8] == b"ftyp":
        brand = body[8:12]
        return next((name for start, name in _BRANDS if brand.startswith(start)), "a video (MP4)")
    return next((name for magic, name in _BINARY if body.startswith(magic)), None)


def _text_name(start: bytes) -> str | None:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"<svg" in text:
        return "SVG"
    if b"<html" in text or text.startswith((b"<!doctype html", b"<head", b"<body")):
        return "HTML"
    if text.startswith(b"<"):
        return "XML"
    if text.startswith((b"{", b"[")):
        return "JSON"
    plain = text.isascii() and text.translate(None, b"\t\r\n").decode("ascii").isprintable()
    return "text" if plain else None


def webp_size(body: bytes) -> tuple[int, int] | None:
    """Width and height from the header; None if they are not where they belong.

    Needed before the file is opened: the decoder reserves two whole canvases when it is made.
    """
    kind, header = body[12:16], body[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        width, height = (int.from_bytes(header[at : at + 3], "little") + 1 for at in (4, 7))
    elif kind == b"VP8L":
        bits = int.from_bytes(header[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (word & 0x3FFF for word in struct.unpack_from("<HH", header, 6))
    else:
        return None
    return width, height


def check_png_data(body: bytes) -> None:
    """Check the checksums of the image data, which Pillow skips.

    Without this, 5 of 3,000 single flipped bits gave other pixels and no error: Pillow stops
    reading at the last row, before the check at the end of the compressed stream.

    Raises:
        ImageError: `UNDECODABLE` for a wrong checksum, `TRUNCATED_IMAGE` for data that ends early.
    """
    at = 8
    view = memoryview(body)
    while at + 8 <= len(body):
        length, name = struct.unpack_from(">I4s", body, at)
        end = at + 8 + length
        if name == b"IDAT":
            if end + 4 > len(body):
                raise ImageError(
                    FailureReason.TRUNCATED_IMAGE,
                    f"PNG: ends within its data, at {len(body)} bytes",
                )
            if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
                raise ImageError(
                    FailureReason.UNDECODABLE, f"PNG: wrong checksum of the data at byte {at}"
                )
        at = end + 4


def exif_orientation(exif: bytes) -> int:
    """The orientation that an EXIF block states; 1, upright, if it states none.

    Reads the one entry it is after. A full parse would build every entry, and each can claim
    the whole block as its value.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, directory)
        for at in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", exif, at)
            if tag == 0x0112:
                return value if (kind, count) == (3, 1) else 1
    except struct.error:  # it points outside the block
        pass
    return 1
