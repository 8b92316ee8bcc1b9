"""Bytes → pixels: what is decoded comes out right, what is not is refused for a named reason."""

import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin

from tests import pictures, png_reference
from visual_search.decode import decode, pixels
from visual_search.errors import FailureReason, ImageError
from visual_search.images import Pixels

MAX_PIXELS = 50_000_000


def decoded(body: bytes) -> Pixels:
    return decode(body, max_pixels=MAX_PIXELS).pixels


def refusal(body: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decoded(body)
    detail = caught.value.detail
    assert detail.isprintable()
    assert len(detail) < 200
    return caught.value


def attempt(body: bytes) -> Pixels | ImageError:
    try:
        return decoded(body)
    except ImageError as error:
        return error


def one_colour(mode: str, colour: int | tuple[int, ...], file_format: str) -> list[int]:
    """What the middle of a picture of one colour comes out as."""
    pixels = decoded(pictures.encoded(Image.new(mode, (9, 7), colour), file_format))
    assert pixels.shape == (7, 9, 3)
    return [int(value) for value in pixels[3, 4]]


# What comes out


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "WEBP", "JPEG"])
def test_every_format_gives_the_picture(file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {"quality": 100, "subsampling": 0}
    drawn = pictures.drawn()
    pixels = decoded(pictures.encoded(Image.fromarray(drawn), file_format, **options))
    assert pixels.shape == drawn.shape
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    tolerance = 6 if file_format == "JPEG" else 0
    assert np.abs(pixels.astype(int) - drawn).max() <= tolerance


def test_gif_gives_its_palette_colours() -> None:
    palette_image = Image.fromarray(pictures.drawn()).quantize(64)
    pixels = decoded(pictures.encoded(palette_image, "GIF"))
    np.testing.assert_array_equal(pixels, np.asarray(palette_image.convert("RGB")))


@pytest.mark.parametrize("size", [(1, 1), (1, 65_535), (65_535, 1), (1500, 1100)])
def test_any_shape_comes_out_whole(size: tuple[int, int]) -> None:
    """The last is larger than one band of the conversion, and no multiple of it."""
    width, height = size
    drawn = pictures.drawn(width, height)
    pixels = decoded(pictures.encoded(Image.fromarray(drawn), "PNG", compress_level=1))
    np.testing.assert_array_equal(pixels, drawn)


def test_pixels_go_into_the_room_that_is_given() -> None:
    room = np.zeros(10_000, np.uint8)
    pixels = decode(pictures.photo_bytes(60, 40, "PNG"), max_pixels=MAX_PIXELS, room=room).pixels
    assert np.shares_memory(pixels, room)
    np.testing.assert_array_equal(room[: 60 * 40 * 3].reshape(40, 60, 3), pictures.drawn())


@pytest.mark.parametrize(
    ("mode", "colour", "file_format", "expected"),
    [
        ("1", 1, "PNG", [255, 255, 255]),
        ("L", 100, "PNG", [100, 100, 100]),
        ("L", 100, "BMP", [100, 100, 100]),
        ("RGBA", (200, 0, 0, 255), "PNG", [200, 0, 0]),
        ("RGBA", (200, 0, 0, 0), "PNG", [255, 255, 255]),
        ("RGBA", (200, 0, 0, 51), "PNG", [244, 204, 204]),
        ("RGBA", (0, 0, 0, 0), "WEBP", [255, 255, 255]),
        ("LA", (100, 255), "PNG", [100, 100, 100]),
        ("LA", (0, 51), "PNG", [204, 204, 204]),
        # Neither the low byte nor, clipped to white, the whole value.
        ("I;16", 0x64FF, "PNG", [0x64, 0x64, 0x64]),
    ],
)
def test_every_mode_becomes_rgb_over_white(
    mode: str, colour: int | tuple[int, ...], file_format: str, expected: list[int]
) -> None:
    assert one_colour(mode, colour, file_format) == expected


def test_cmyk_has_its_inks_the_right_way_round() -> None:
    red, green, blue = one_colour("CMYK", (0, 255, 255, 0), "JPEG")
    assert red > 250
    assert max(green, blue) < 5


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_a_transparent_palette_colour_is_white(file_format: str) -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    image.putpixel((0, 0), 2)
    pixels = decoded(pictures.encoded(image, file_format, transparency=1))
    assert pixels[0, 0].tolist() == [0, 200, 0]
    assert pixels[1, 3].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("depth", "colour", "row", "key"),
    [
        (1, 0, b"\x0f", b"\0\0"),
        (2, 0, b"\x1b", b"\0\1"),
        (4, 0, b"\x7f", b"\0\7"),
        (8, 0, b"\x12\x34", b"\0\x12"),
        (16, 0, b"\x12\x34\x12\x35", b"\x12\x34"),
        (8, 2, b"\x12\x34\x56" * 2, b"\0\x12\0\x34\0\x56"),
        (16, 2, b"\x12\x34" * 3 + b"\x56\x78" * 3, b"\x12\x34" * 3),
    ],
)
def test_a_transparent_colour_is_white_at_any_depth(
    depth: int, colour: int, row: bytes, key: bytes
) -> None:
    width = len(row) * 8 // (depth * {0: 1, 2: 3}[colour])
    body = pictures.png(
        width,
        1,
        depth=depth,
        colour=colour,
        data=zlib.compress(b"\0" + row),
        extra=[(b"tRNS", key)],
    )
    np.testing.assert_array_equal(decoded(body), png_reference.over_white(body))


TURNED: dict[int, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    0: lambda upright: upright,
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
    9: lambda upright: upright,
}


@pytest.mark.parametrize(
    ("least_px", "shape"),
    [(None, (1200, 1600)), (1000, (1200, 1600)), (448, (600, 800)), (300, (300, 400))],
)
def test_a_large_jpeg_may_come_smaller(least_px: int | None, shape: tuple[int, int]) -> None:
    body = pictures.photo_bytes(1600, 1200, "JPEG")
    picture = decode(body, max_pixels=MAX_PIXELS, least_px=least_px)
    assert picture.pixels.shape == (*shape, 3)
    assert (picture.width, picture.height) == (1600, 1200)
    whole = np.asarray(Image.fromarray(decoded(body)).resize(shape[::-1], Image.Resampling.BOX))
    assert np.abs(whole.astype(int) - picture.pixels).mean() < 4


def test_only_jpegs_come_smaller() -> None:
    body = pictures.photo_bytes(1600, 1200, "PNG")
    assert decode(body, max_pixels=MAX_PIXELS, least_px=100).pixels.shape == (1200, 1600, 3)


def test_a_turned_picture_that_comes_smaller_has_its_upright_size() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(pictures.drawn(1600, 1200))
    body = pictures.encoded(stored, "JPEG", exif=exif.tobytes())
    picture = decode(body, max_pixels=MAX_PIXELS, least_px=300)
    assert picture.pixels.shape == (400, 300, 3)
    assert (picture.width, picture.height) == (1200, 1600)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", TURNED)
def test_a_turned_picture_comes_out_upright(orientation: int, file_format: str) -> None:
    """Each stored picture is the upright one, turned as its EXIF orientation says."""
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation](pictures.drawn())))
    options = {"lossless": True} if file_format == "WEBP" else {"quality": 100, "subsampling": 0}
    pixels = decoded(pictures.encoded(stored, file_format, exif=exif.tobytes(), **options))
    assert pixels.shape == (40, 60, 3)
    assert np.abs(pixels.astype(int) - pictures.drawn()).max() <= 6


TIFF_OF_ONE_ENTRY = b"MM\0*\0\0\0\x08\0\1"


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"MM\0*",
        b"MM\0*\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40,
        TIFF_OF_ONE_ENTRY,
        # The orientation as text, as a list, and out of range.
        TIFF_OF_ONE_ENTRY + struct.pack(">HHIHH", 0x0112, 2, 1, 6, 0),
        TIFF_OF_ONE_ENTRY + struct.pack(">HHIHH", 0x0112, 3, 2, 6, 6),
        TIFF_OF_ONE_ENTRY + struct.pack(">HHIHH", 0x0112, 3, 1, 600, 0),
        bytes(range(256)) * 100,
    ],
)
def test_a_nonsensical_exif_block_turns_nothing(exif: bytes) -> None:
    photo = pictures.photo_bytes()
    np.testing.assert_array_equal(decoded(with_exif(photo, exif)), decoded(photo))


def with_exif(photo: bytes, exif: bytes) -> bytes:
    content = b"Exif\0\0" + exif
    return photo[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + photo[2:]


def test_only_the_orientation_is_read_of_exif(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each entry can claim the whole block as its value: a full parse is a bomb's fuse."""

    def parse(image: Image.Image) -> Image.Exif:
        raise RuntimeError("parsed")

    monkeypatch.setattr(Image.Image, "getexif", parse)
    orientation = TIFF_OF_ONE_ENTRY + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    assert decoded(with_exif(pictures.photo_bytes(60, 40), orientation)).shape == (60, 40, 3)


@pytest.mark.parametrize(
    "body", [pictures.gif_of_frames(20, 3), pictures.apng_of_frames(3)], ids=["GIF", "APNG"]
)
def test_an_animation_gives_its_first_frame(body: bytes) -> None:
    assert decoded(body).shape[2] == 3


def test_the_first_of_different_frames_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for file_format in ("GIF", "PNG", "WEBP"):
        body = pictures.encoded(
            frames[0], file_format, save_all=True, append_images=frames[1:], lossless=True
        )
        assert decoded(body)[4, 4].tolist() == [255, 0, 0], file_format


# What is refused


@pytest.mark.parametrize(
    ("body", "reason", "says"),
    [
        (b"", FailureReason.EMPTY_BODY, "0 bytes"),
        (b"\n<!DOCTYPE html><p>Not found", FailureReason.NOT_AN_IMAGE, "HTML"),
        (b"\xef\xbb\xbf<html>", FailureReason.NOT_AN_IMAGE, "HTML"),
        (b"<?xml version='1.0'?><svg width='1'/>", FailureReason.NOT_AN_IMAGE, "SVG"),
        (b"<?xml version='1.0'?><Error/>", FailureReason.NOT_AN_IMAGE, "XML"),
        (b'{"error": 404}', FailureReason.NOT_AN_IMAGE, "JSON"),
        (b"Forbidden", FailureReason.NOT_AN_IMAGE, "text"),
        (b"%PDF-1.7", FailureReason.NOT_AN_IMAGE, "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", FailureReason.NOT_AN_IMAGE, "PostScript"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", FailureReason.NOT_AN_IMAGE, "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", FailureReason.NOT_AN_IMAGE, "HEIC"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", FailureReason.NOT_AN_IMAGE, "video"),
        (b"II*\0\x08\0\0\0", FailureReason.NOT_AN_IMAGE, "TIFF"),
        (b"RIFF\x24\0\0\0WAVEfmt ", FailureReason.NOT_AN_IMAGE, "RIFF"),
        (b"\x07\x1b[31m\xff\xfe", FailureReason.NOT_AN_IMAGE, "07 1b 5b 33 31 6d ff fe"),
    ],
)
def test_what_is_no_image_is_named(body: bytes, reason: FailureReason, says: str) -> None:
    error = refusal(body)
    assert error.reason is reason
    assert says in error.detail


@pytest.mark.parametrize("mode", ["LAB", "CMYK"])
def test_a_tiff_is_refused_whatever_its_mode(mode: str) -> None:
    body = pictures.encoded(Image.new(mode, (4, 4)), "TIFF")
    assert refusal(body).reason is FailureReason.NOT_AN_IMAGE


def test_the_pixel_limit_is_exact_and_stated() -> None:
    body = pictures.photo_bytes(100, 50, "PNG")
    assert decode(body, max_pixels=5000).pixels.shape == (50, 100, 3)
    with pytest.raises(ImageError, match=r"^too_many_pixels: 100 x 50 = 5000 pixels, limit 4999$"):
        decode(body, max_pixels=4999)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "1-bit PNG": (
        lambda: pictures.black_png(30_000, 30_000, depth=1, colour=0),
        "30000 x 30000 = 900000000",
    ),
    "16-bit PNG": (
        lambda: pictures.png(9_400, 9_400, depth=16, colour=6, data=b""),
        "9400 x 9400 = 88360000",
    ),
    "WebP of 34 bytes": (pictures.webp_header_bomb, "16383 x 16383 = 268402689"),
    "JPEG": (lambda: pictures.jpeg_bytes(65_500, 1_000), "65500 x 1000 = 65500000"),
    "GIF": (lambda: pictures.gif_header((65_535, 65_535), (0, 0)), "65535 x 65535 = 4294836225"),
    "GIF whose frame outgrows it": (
        lambda: pictures.gif_header((1, 1), (60_000, 60_000)),
        "3600120001",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_by_its_size(name: str) -> None:
    make, size = BOMBS[name]
    error = refusal(make())
    assert error.reason is FailureReason.TOO_MANY_PIXELS
    assert error.detail == f"{size} pixels, limit {MAX_PIXELS}"


def test_data_that_stops_in_a_file_that_goes_on_is_truncated() -> None:
    rows = b"".join(b"\0" + random.Random(row).randbytes(30) for row in range(10))
    body = pictures.png(10, 10, depth=8, colour=2, data=zlib.compress(rows)[:200])
    assert refusal(body).reason is FailureReason.TRUNCATED_IMAGE


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_metadata_that_unpacks_without_end_is_refused(name: bytes) -> None:
    error = refusal(pictures.with_text(name, size=50 << 20))
    assert error.reason is FailureReason.UNDECODABLE
    assert "too large" in error.detail


def test_too_much_metadata_in_total_is_refused() -> None:
    error = refusal(pictures.with_text(b"zTXt", size=1 << 20, times=80))
    assert error.reason is FailureReason.UNDECODABLE


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_a_file_cut_anywhere_is_never_taken_for_whole(file_format: str) -> None:
    """Past the last pixel a few bytes may be missing; then the picture is the whole one."""
    body = pictures.photo_bytes(30, 20, file_format)
    whole = decoded(body)
    for length in range(12, len(body), 7):
        outcome = attempt(body[:length])
        if isinstance(outcome, ImageError):
            assert outcome.reason is FailureReason.TRUNCATED_IMAGE, (length, str(outcome))
        else:
            assert length > len(body) - 20
            np.testing.assert_array_equal(outcome, whole)


def test_a_flipped_bit_in_png_data_is_never_other_pixels() -> None:
    """Pillow alone lets about one in 600 pass as another picture."""
    body = pictures.photo_bytes(200, 200, "PNG")
    start = body.index(b"IDAT") + 4
    rng = random.Random(1)
    for _ in range(800):
        changed = bytearray(body)
        changed[rng.randrange(start, len(body) - 16)] ^= 1 << rng.randrange(8)
        assert refusal(bytes(changed)).reason is FailureReason.UNDECODABLE


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_changed_bytes_give_pixels_or_a_reason(file_format: str) -> None:
    body = pictures.photo_bytes(24, 16, file_format)
    rng = random.Random(file_format)
    for _ in range(300):
        changed = bytearray(body)
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        outcome = attempt(bytes(changed))
        if isinstance(outcome, ImageError):
            assert not outcome.reason.retryable
            assert outcome.detail.isprintable()
        else:
            assert outcome.shape[2] == 3


def test_metadata_never_shows_in_a_refusal() -> None:
    """A broken file whose text, profile name and chunk names are all hostile."""
    hostile = "\x1b[31mDROP TABLE\n\u202e".encode()
    for name, content in (
        (b"tEXt", hostile + b"\0x"),
        (b"iCCP", hostile + b"\0\7"),
        (b"q\n\x1b;", b""),
    ):
        body = pictures.png(4, 4, depth=8, colour=2, data=b"junk", extra=[(name, content)])
        assert "DROP" not in refusal(body).detail


def test_pillows_warnings_stay_inside() -> None:
    """Here they would be errors; in a run they would stand between the log lines."""
    body = pictures.png(
        2, 2, depth=8, colour=2, data=zlib.compress(bytes(14)), extra=[(b"acTL", bytes(8))]
    )
    assert decoded(body).shape == (2, 2, 3)


def test_a_refusal_is_one_short_line_whatever_pillow_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def complain(image: ImageFile.ImageFile) -> None:
        raise ValueError("\x1b[31m\n" + "x" * 1000)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "_open", complain)
    assert "ValueError" in refusal(pictures.photo_bytes(4, 4, "PNG")).detail


def test_decoding_leaves_pillows_settings_alone() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    decoded(pictures.photo_bytes())
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert limit == Image.MAX_IMAGE_PIXELS


# simplejpeg decodes what Pillow would


def check_against_pillow(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = attempt(body)
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "decode_jpeg", lambda *_: None)
        expected = attempt(body)
    if isinstance(outcome, ImageError) or isinstance(expected, ImageError):
        assert str(outcome) == str(expected)
    else:
        np.testing.assert_array_equal(outcome, expected)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": 0}),
        ("RGB", {"subsampling": 2}),
        ("RGB", {"progressive": True, "quality": 30}),
        ("RGB", {"keep_rgb": True}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (400, 533)])
@pytest.mark.parametrize("least_px", [None, 60])
def test_a_jpeg_has_the_pixels_that_pillow_sees(
    mode: str,
    options: dict[str, object],
    size: tuple[int, int],
    least_px: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = Image.fromarray(pictures.drawn(*size)).convert(mode)
    body = pictures.encoded(image, "JPEG", **options)
    picture = decode(body, max_pixels=MAX_PIXELS, least_px=least_px)
    monkeypatch.setattr(pixels, "decode_jpeg", lambda *_: None)
    expected = decode(body, max_pixels=MAX_PIXELS, least_px=least_px)
    np.testing.assert_array_equal(picture.pixels, expected.pixels)


def test_simplejpeg_does_the_work_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(image: Image.Image) -> None:
        raise AssertionError

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", refuse)
    assert decoded(pictures.photo_bytes()).shape == (40, 60, 3)


def test_a_damaged_jpeg_gets_pillows_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes some damage for none."""
    body = pictures.photo_bytes(80, 60)
    rng = random.Random(7)
    for _ in range(500):
        changed = bytearray(body)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(3, len(body))] ^= 1 << rng.randrange(8)
        check_against_pillow(bytes(changed), monkeypatch)


# Public collections


def test_photos_have_the_pixels_that_pillow_sees(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = sorted((shared_data / "clothing" / "images").glob("*.jpg"))
    hostile = sorted((shared_data / "hostile" / "pillow").glob("*.jpg"))
    assert len(photos) == 600
    assert len(hostile) >= 10
    for file in photos[::5] + hostile:
        check_against_pillow(file.read_bytes(), monkeypatch)


def test_good_pngsuite_files_match_a_decoder_written_from_the_specification(
    shared_data: Path,
) -> None:
    files = sorted((shared_data / "hostile" / "pngsuite").glob("[!x]*.png"))
    assert len(files) > 150
    for file in files:
        body = file.read_bytes()
        np.testing.assert_array_equal(decoded(body), png_reference.over_white(body), file.name)


def test_corrupt_pngsuite_files_are_refused(shared_data: Path) -> None:
    """Of `xcsn0g01` only the data's checksum is wrong; Pillow does not look at it."""
    files = sorted((shared_data / "hostile" / "pngsuite").glob("x*.png"))
    assert len(files) == 14
    for file in files:
        error = refusal(file.read_bytes())
        expected = {FailureReason.NOT_AN_IMAGE, FailureReason.UNDECODABLE}
        assert error.reason in expected, (file.name, str(error))
