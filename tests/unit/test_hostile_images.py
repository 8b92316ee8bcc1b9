"""Hostile images by the thousand: pixels or a named reason, in one child that lives through all.

What single images may cost is in `test_decode.py` and `test_decoder_process.py`.
"""

import random
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, WebPImagePlugin

from tests import pictures
from tests.unit.test_decoder_process import BOMBS, GOOD, is_good, needs_proc, peak_mib, pid
from visual_search.decode import DecoderProcess, decode
from visual_search.errors import FailureReason, ImageError

MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
VERDICTS = {
    FailureReason.EMPTY_BODY,
    FailureReason.NOT_AN_IMAGE,
    FailureReason.TOO_MANY_PIXELS,
    FailureReason.TRUNCATED_IMAGE,
    FailureReason.UNDECODABLE,
}
# What a child must not do, as Python's audit events call it.
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")


@pytest.fixture
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=10) as decoder:
        yield decoder


def outcome(decoder: DecoderProcess, body: bytes) -> FailureReason | None:
    """Why there are no pixels; `None` if there are."""
    try:
        said: ImageError | tuple[int, ...] = decoder.decode(body, lambda p: p.pixels.shape)
    except ImageError as error:
        said = error
    if isinstance(said, ImageError):
        assert said.detail.isprintable()
        assert len(said.detail) < 300
        return said.reason
    assert said[2] == 3
    return None


def good_files() -> list[bytes]:
    """Fifty of all formats, modes and kinds."""
    files = []
    for width, height in ((24, 16), (7, 33)):
        drawn = Image.fromarray(pictures.drawn(width, height))
        clear = drawn.convert("RGBA")
        clear.putalpha(drawn.convert("L"))
        palette = drawn.quantize(16)
        exif = Image.Exif()
        exif[0x010F], exif[0x0112] = "a camera", 6
        profile = b"a colour profile" * 8
        kinds: list[tuple[Image.Image, str, dict[str, object]]] = [
            (drawn, "JPEG", {}),
            (drawn, "JPEG", {"progressive": True}),
            (drawn, "JPEG", {"subsampling": 0, "exif": exif.tobytes()}),
            (drawn, "JPEG", {"icc_profile": profile, "comment": b"a comment"}),
            (drawn.convert("L"), "JPEG", {"optimize": True}),
            (drawn.convert("CMYK"), "JPEG", {"restart_marker_blocks": 2}),
            *((drawn.convert(mode), "PNG", {}) for mode in ("1", "L", "LA", "RGB", "I;16")),
            (clear, "PNG", {"exif": exif.tobytes(), "icc_profile": profile}),
            (palette, "PNG", {"transparency": 3}),
            (drawn, "PNG", {"save_all": True, "append_images": [drawn.rotate(180)]}),
            (palette, "GIF", {}),
            (palette, "GIF", {"interlace": True, "transparency": 3}),
            (drawn, "GIF", {"save_all": True, "append_images": [drawn.rotate(180)]}),
            *((drawn.convert(mode), "BMP", {}) for mode in ("1", "L", "P", "RGB")),
            (drawn, "WEBP", {}),
            (clear, "WEBP", {"lossless": True, "exif": exif.tobytes()}),
            (clear, "WEBP", {"quality": 10}),
            (drawn, "WEBP", {"save_all": True, "append_images": [drawn.rotate(180)]}),
        ]
        files += [pictures.encoded(image, name, **options) for image, name, options in kinds]
    return files


def changed(body: bytes, rng: random.Random) -> bytes:
    """Damaged as transfers, disks and people damage files; often where sizes and lengths are."""
    file = bytearray(body)
    for _ in range(rng.randint(1, 4)):
        # Everything that says how large something is stands near the beginning.
        at = rng.randrange(min(len(file), rng.choice((64, 64, 1 << 30))) or 1)
        length = rng.randint(1, 8)
        match rng.randrange(6):
            case 0:
                file[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                file[at : at + length] = rng.choice((b"\xff", b"\0", b"\x7f\xff")) * length
            case 2:
                file[at : at + length] = rng.randbytes(length)
            case 3:
                del file[at : at + length * 8]
            case 4:
                file[at:at] = file[at : at + length * 8] * rng.randint(1, 9)
            case 5:
                file = file[: max(1, rng.randrange(len(file)))] if len(file) > 1 else file
    return bytes(file)


def plain_pillow(body: bytes) -> Exception | None:
    """What Pillow raises by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(BytesIO(body), formats=FORMATS) as image:
                image.load()
        except Exception as error:  # noqa: BLE001 - which ones there are is the question
            return error
    return None


# Damage


@pytest.mark.parametrize("number", [500, pytest.param(20_000, marks=pytest.mark.long)])
def test_damaged_files_give_pixels_or_a_verdict(decoder: DecoderProcess, number: int) -> None:
    files = good_files()
    assert len(files) == 50
    assert [outcome(decoder, body) for body in files] == [None] * 50
    child = pid(decoder)
    rng = random.Random(number)
    outcomes = Counter(outcome(decoder, changed(files[n % len(files)], rng)) for n in range(number))
    assert set(outcomes) <= VERDICTS | {None}
    assert outcomes[FailureReason.UNDECODABLE] > number / 10
    assert outcomes[None] > number / 20
    assert pid(decoder) == child
    assert is_good(decoder)
    if Path("/proc/self/status").exists():
        # A few bytes can state any size up to the limit, and WebP's decoder keeps four canvases.
        assert peak_mib(decoder) < 4 * 4 * MAX_PIXELS / (1 << 20) + 128


@pytest.mark.parametrize("number", [25, pytest.param(479, marks=pytest.mark.long)])
def test_what_pillow_raises_beside_oserror_costs_only_its_image(
    decoder: DecoderProcess, number: int
) -> None:
    """ValueError, SyntaxError, bombs, struct's: whoever catches OSError alone loses the batch."""
    files = good_files()
    rng = random.Random(3)
    seen: Counter[str] = Counter()
    while seen.total() < number:
        body = changed(rng.choice(files), rng)
        error = plain_pillow(body)
        if error is not None and not isinstance(error, OSError):
            seen[type(error).__name__] += 1
            assert outcome(decoder, body) in VERDICTS, error
            assert is_good(decoder)
    assert len(seen) >= 3


def test_hostile_files_that_raise_beside_oserror_cost_only_themselves(
    shared_data: Path, decoder: DecoderProcess
) -> None:
    bodies = [f.read_bytes() for f in sorted((shared_data / "hostile").rglob("*")) if f.is_file()]
    raising = [
        body
        for body in bodies
        if (error := plain_pillow(body)) is not None and not isinstance(error, OSError)
    ]
    assert len(raising) >= 5
    for body in raising:
        outcome(decoder, body)
        assert is_good(decoder)


# Bombs


@pytest.mark.parametrize("name", [name for name, (_, reason) in BOMBS.items() if reason])
def test_a_bomb_is_refused_before_any_pixel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(image: ImageFile.ImageFile) -> None:
        pytest.fail("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    monkeypatch.setattr(WebPImagePlugin, "_webp", None)
    make, reason = BOMBS[name]
    with pytest.raises(ImageError) as refused:
        decode(make(), max_pixels=MAX_PIXELS)
    assert refused.value.reason is reason


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, (_, reason) in BOMBS.items() if reason])
def test_a_bomb_takes_a_quarter_of_a_second_of_a_processor_at_most(
    decoder: DecoderProcess, name: str
) -> None:
    """Its child's own processor time, which depends little on what else this machine does."""
    body = BOMBS[name][0]()
    assert is_good(decoder)
    before = decoder.cpu_seconds
    assert outcome(decoder, body) is BOMBS[name][1]
    assert decoder.cpu_seconds - before < 0.25


# What a child has set, and what it never does


WATCHED = f"""
import os, sys

if any(name.startswith("visual_search.decode") for name in sys.orig_argv):
    def watch(event, _arguments):
        if event in {PROGRAMS!r}:
            os._exit(9)

    sys.addaudithook(watch)

    from PIL import Image, ImageFile
    from visual_search.decode import pixels
    from visual_search.errors import FailureReason, ImageError

    honest = pixels.decode

    def decode(body, **limits):
        if body == b"WHAT IS SET":
            said = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
            raise ImageError(FailureReason.UNDECODABLE, repr(said))
        if body == b"WHO IS HERE":
            readers = [n[4:-11] for n in sys.modules if n.endswith("ImagePlugin") and n[4:-11]]
            raise ImageError(FailureReason.UNDECODABLE, " ".join(sorted(readers)))
        return honest(body, **limits)

    pixels.decode = decode
"""


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DecoderProcess]:
    """A decoder whose child ends at its first attempt to start a program, and answers questions."""
    (tmp_path / "sitecustomize.py").write_text(WATCHED)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=10) as decoder:
        yield decoder


def answer(decoder: DecoderProcess, question: bytes) -> str:
    with pytest.raises(ImageError) as said:
        decoder.decode(question, lambda _picture: None)
    return said.value.detail


def test_no_image_starts_a_program(watched: DecoderProcess, shared_data: Path) -> None:
    eps = pictures.encoded(Image.new("RGB", (9, 9)), "EPS")
    bodies = [f.read_bytes() for f in sorted((shared_data / "hostile").rglob("*")) if f.is_file()]
    bodies += [
        eps,
        b"\xc5\xd0\xd3\xc6" + bytes(26) + eps,  # with a preview, as design programs write it
        b"%!PS-Adobe-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (r) file\n",
        b"push graphic-context\nfill 'url(https://h.test/\"|id\")'\npop graphic-context\n",
    ]
    assert is_good(watched)
    child = pid(watched)
    for body in bodies:
        assert outcome(watched, body) in VERDICTS | {None}
    assert pid(watched) == child


def test_the_watch_on_programs_sees_what_plain_pillow_does() -> None:
    """Without a list of formats Pillow looks for Ghostscript as soon as it meets an EPS file."""
    code = (
        "import io, os, sys; from PIL import Image\n"
        f"sys.addaudithook(lambda event, _: event in {PROGRAMS!r} and os._exit(9))\n"
        "Image.open(io.BytesIO(sys.stdin.buffer.read())).load()\n"
    )
    eps = pictures.encoded(Image.new("RGB", (9, 9)), "EPS")
    ran = subprocess.run([sys.executable, "-c", code], input=eps, check=False, timeout=60)
    assert ran.returncode == 9


def test_a_child_has_pillows_limits_set(watched: DecoderProcess) -> None:
    assert answer(watched, b"WHAT IS SET") == f"({MAX_PIXELS}, False)"


def test_a_child_knows_no_other_readers_whatever_it_was_sent(watched: DecoderProcess) -> None:
    """What is not imported cannot have a hole. TIFF's is where Pillow keeps EXIF."""
    for body in every_format().values():
        outcome(watched, body)
    readers = set(answer(watched, b"WHO IS HERE").split())
    assert readers <= {"Bmp", "Gif", "Jpeg", "Mpo", "Png", "Tiff", "WebP"}
    assert {"Bmp", "Gif", "Jpeg", "Png", "WebP"} <= readers


def test_five_formats_are_decoded_and_no_others(decoder: DecoderProcess) -> None:
    """A camera's MPO is a JPEG with more of them behind it."""
    outcomes = {name: outcome(decoder, body) for name, body in every_format().items()}
    assert len(outcomes) > 15
    decoded = {name for name, reason in outcomes.items() if reason is None}
    assert decoded == {*FORMATS, "MPO"}
    others = {reason for reason in outcomes.values() if reason is not None}
    assert others == {FailureReason.NOT_AN_IMAGE}


def every_format() -> dict[str, bytes]:
    """A picture in each format that this Pillow can write."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some formats are going to leave Pillow
        Image.init()
        for name in sorted(Image.SAVE):
            for mode in ("RGB", "1"):
                with suppress(OSError, ValueError, KeyError):
                    found[name] = pictures.encoded(Image.new(mode, (32, 32)), name)
    return found


@needs_proc
def test_a_good_picture_between_hostile_ones_is_itself(decoder: DecoderProcess) -> None:
    """Nothing of one image is left in the memory that the next one comes through."""
    expected = pictures.drawn()
    rng = random.Random(5)
    files = good_files()
    for _ in range(100):
        outcome(decoder, changed(rng.choice(files), rng))
        pixels = decoder.decode(GOOD, lambda picture: picture.pixels.copy())
        np.testing.assert_array_equal(pixels, expected)
