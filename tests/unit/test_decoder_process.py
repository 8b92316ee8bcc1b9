"""Decoding in child processes: what a bad image can cost, and what it cannot."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import pictures, poison
from visual_search.decode import DecoderProcess, Picture, decode
from visual_search.decode.pipe import _Patience
from visual_search.errors import FailureReason, ImageError, InternalError, TemporaryError
from visual_search.images import Pixels

MAX_PIXELS = 50_000_000
GOOD = pictures.photo_bytes(60, 40, "PNG")

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")


@pytest.fixture
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=10) as decoder:
        yield decoder


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[DecoderProcess]:
    """A decoder that marked bodies kill."""
    poison.poison(monkeypatch, tmp_path)
    with DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=1) as decoder:
        yield decoder


def pid(decoder: DecoderProcess) -> int:
    return decoder._child._process.pid


def status(process: int, name: str) -> str:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))


def peak_mib(decoder: DecoderProcess) -> float:
    return int(status(pid(decoder), "VmHWM")) / 1024


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def is_good(decoder: DecoderProcess) -> bool:
    return decoder.decode(GOOD, lambda picture: bool((picture.pixels == pictures.drawn()).all()))


def copied(picture: Picture) -> Pixels:
    return picture.pixels.copy()


def refusal(decoder: DecoderProcess, body: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decoder.decode(body, copied)
    assert caught.value.detail.isprintable()
    return caught.value


# Results


def test_pixels_are_those_of_decode(decoder: DecoderProcess) -> None:
    for file_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        body = pictures.photo_bytes(200, 133, file_format)
        expected = decode(body, max_pixels=MAX_PIXELS).pixels
        np.testing.assert_array_equal(decoder.decode(body, copied), expected)


def test_a_decoder_may_be_told_to_take_a_picture_smaller(decoder: DecoderProcess) -> None:
    body = pictures.photo_bytes(1600, 1200, "JPEG")

    def sizes(least_px: int | None) -> object:
        return decoder.decode(
            body, lambda p: (p.pixels.shape, (p.width, p.height)), least_px=least_px
        )

    assert sizes(500) == ((600, 800, 3), (1600, 1200))
    assert sizes(None) == ((1200, 1600, 3), (1600, 1200))


def test_what_consume_returns_or_raises_comes_through(decoder: DecoderProcess) -> None:
    assert decoder.decode(GOOD, lambda picture: picture.pixels.shape) == (40, 60, 3)

    def raises(_picture: Picture) -> None:
        raise KeyError("consume's own")

    with pytest.raises(KeyError):
        decoder.decode(GOOD, raises)
    assert is_good(decoder)


def test_pixels_can_be_changed_and_are_not_copied(decoder: DecoderProcess) -> None:
    """torch takes them without a copy, and warns about memory that it may not write."""
    addresses = [decoder.decode(GOOD, lambda picture: picture.pixels.ctypes.data) for _ in range(2)]
    assert addresses[0] == addresses[1]
    assert decoder.decode(GOOD, lambda picture: picture.pixels.flags.writeable)


def test_a_refusal_comes_through_with_its_reason_and_detail(decoder: DecoderProcess) -> None:
    for body in (b"", b"<html>", pictures.webp_header_bomb(), GOOD[:-60]):
        with pytest.raises(ImageError) as in_process:
            decode(body, max_pixels=MAX_PIXELS)
        error = refusal(decoder, body)
        assert error.reason is in_process.value.reason
        assert error.detail == in_process.value.detail
    assert is_good(decoder)


def test_a_body_larger_than_any_pipe_goes_through(decoder: DecoderProcess) -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (1500, 1500, 3), np.uint8)
    body = pictures.encoded(Image.fromarray(noise), "BMP")
    assert len(body) > 6_000_000
    np.testing.assert_array_equal(decoder.decode(body, copied), noise)


def test_cpu_time_is_counted_across_children(poisoned: DecoderProcess) -> None:
    assert is_good(poisoned)
    first = poisoned.cpu_seconds
    assert first > 0
    refusal(poisoned, poison.KILLS)
    assert is_good(poisoned)
    assert poisoned.cpu_seconds > first


# Bad images


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (poison.KILLS, "died of SIGKILL"),
        (poison.ABORTS, "died of SIGABRT"),
        (poison.RAISES, "ended with code 1"),
        (poison.BABBLES, "raves"),
        (poison.LIES, "raves"),
    ],
)
def test_an_image_that_kills_its_decoder_costs_only_itself(
    poisoned: DecoderProcess, body: bytes, says: str
) -> None:
    assert is_good(poisoned)
    error = refusal(poisoned, body)
    assert error.reason is FailureReason.KILLS_DECODER
    assert says in error.detail
    assert is_good(poisoned)


def test_an_image_that_hangs_is_cut_and_costs_only_itself(poisoned: DecoderProcess) -> None:
    assert is_good(poisoned)
    error = refusal(poisoned, poison.HANGS)
    assert error.reason is FailureReason.DECODE_TIMEOUT
    assert error.detail == "not decoded after 1 s"
    assert is_good(poisoned)


def test_a_time_limit_is_the_limit_of_all_waits_together() -> None:
    reader, writer = os.pipe()
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        _Patience(1.5).wait(reader, select.POLLIN)
    assert 1.5 <= time.monotonic() - started < 2.8
    os.close(reader)
    os.close(writer)


def test_a_small_file_with_endless_work_is_cut() -> None:
    """No test double: 100 kB of JPEG that take Pillow half a minute."""
    with DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=1) as decoder:
        error = refusal(decoder, pictures.jpeg_of_scans(4096, 4096, 2000))
        assert error.reason is FailureReason.DECODE_TIMEOUT
        assert is_good(decoder)


def test_poison_among_good_images_costs_exactly_the_poison(poisoned: DecoderProcess) -> None:
    outcomes: Counter[str] = Counter()
    for number in range(60):
        body = poison.KILLS if number % 10 == 5 else GOOD
        try:
            outcomes[str(poisoned.decode(body, lambda picture: picture.pixels.shape))] += 1
        except ImageError as error:
            outcomes[error.reason.value] += 1
    assert outcomes == {"(40, 60, 3)": 54, "kills_decoder": 6}


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_decoder_killed_or_stopped_while_idle_costs_at_most_one_image(
    signal_number: signal.Signals,
) -> None:
    """A dead one is noticed before it gets an image; a stopped one cannot be told from a slow."""
    with DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=1) as decoder:
        for _ in range(3):
            assert is_good(decoder)
            process = pid(decoder)
            os.kill(process, signal_number)
            if signal_number == signal.SIGKILL:
                os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
            else:
                os.waitid(os.P_PID, process, os.WSTOPPED | os.WNOWAIT)
                assert refusal(decoder, GOOD).reason is FailureReason.DECODE_TIMEOUT
            assert is_good(decoder)


def test_a_body_that_a_stopped_child_does_not_take_is_cut_too() -> None:
    with DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=1) as decoder:
        assert is_good(decoder)
        os.kill(pid(decoder), signal.SIGSTOP)
        error = refusal(decoder, bytes(8 << 20))
        assert error.reason is FailureReason.DECODE_TIMEOUT


# Limits


@needs_proc
@pytest.mark.parametrize("colour", [2, 6], ids=["RGB", "RGBA"])
def test_the_largest_legal_picture_stays_within_half_a_gigabyte(
    decoder: DecoderProcess, colour: int
) -> None:
    body = pictures.black_png(7_000, 7_000, colour=colour)
    assert decoder.decode(body, lambda picture: picture.pixels.shape) == (7_000, 7_000, 3)
    assert peak_mib(decoder) < 512
    assert is_good(decoder)


@needs_proc
def test_memory_of_a_large_picture_is_given_back(decoder: DecoderProcess) -> None:
    size = 3 * 7_000 * 7_000

    def held() -> int:
        return 512 * os.fstat(decoder._fd).st_blocks

    assert decoder.decode(pictures.black_png(7_000, 7_000), lambda _picture: held()) >= size
    assert held() <= 3 * (16 << 20)
    assert is_good(decoder)


def test_a_pixel_limit_above_pillows_own_holds() -> None:
    """196 MP are allowed here; the file then fails for the pixels that it does not have."""
    with DecoderProcess(max_pixels=200_000_000, timeout_s=10) as decoder:
        error = refusal(decoder, pictures.gif_header((1, 1), (13_999, 13_999)))
        assert error.reason is FailureReason.TRUNCATED_IMAGE


BOMBS: dict[str, tuple[Callable[[], bytes], FailureReason | None]] = {
    "PNG of 900 MP": (
        lambda: pictures.black_png(30_000, 30_000, depth=1, colour=0),
        FailureReason.TOO_MANY_PIXELS,
    ),
    "WebP of 34 bytes": (pictures.webp_header_bomb, FailureReason.TOO_MANY_PIXELS),
    "PNG of 88 MP, 16 bits a sample": (
        lambda: pictures.png(9_400, 9_400, depth=16, colour=6, data=b""),
        FailureReason.TOO_MANY_PIXELS,
    ),
    "GIF of 4,295 MP": (
        lambda: pictures.gif_header((65_535, 65_535), (0, 0)),
        FailureReason.TOO_MANY_PIXELS,
    ),
    "nothing": (lambda: b"", FailureReason.EMPTY_BODY),
    "JPEG of 65.5 MP": (
        lambda: pictures.jpeg_bytes(65_500, 1_000),
        FailureReason.TOO_MANY_PIXELS,
    ),
    "zTXt": (lambda: pictures.with_text(b"zTXt", size=100 << 20), FailureReason.UNDECODABLE),
    "iTXt": (lambda: pictures.with_text(b"iTXt", size=100 << 20), FailureReason.UNDECODABLE),
    "iCCP": (lambda: pictures.with_text(b"iCCP", size=100 << 20), FailureReason.UNDECODABLE),
    "80 texts": (
        lambda: pictures.with_text(b"zTXt", size=1 << 20, times=80),
        FailureReason.UNDECODABLE,
    ),
    "GIF of 200 frames": (lambda: pictures.gif_of_frames(2_000, 200), None),
    "APNG of 10,000 frames": (lambda: pictures.apng_of_frames(10_000), None),
}


@needs_proc
def test_bombs_cost_no_memory(decoder: DecoderProcess) -> None:
    assert is_good(decoder)
    before = peak_mib(decoder)
    for name, (make, reason) in BOMBS.items():
        if reason is None:
            assert decoder.decode(make(), lambda picture: picture.pixels.shape[2]) == 3, name
        else:
            assert refusal(decoder, make()).reason is reason, name
    assert peak_mib(decoder) < before + 64


@needs_proc
def test_a_childs_memory_is_limited(decoder: DecoderProcess) -> None:
    assert is_good(decoder)
    limits = Path(f"/proc/{pid(decoder)}/limits").read_text().splitlines()
    soft = {line[:26].strip(): line[26:].split()[0] for line in limits}
    assert int(soft["Max address space"]) == (2 << 30) + 8 * MAX_PIXELS
    assert soft["Max core file size"] == "0"
    assert int(soft["Max cpu time"]) < 60


SCARCE = """
import resource, sys
from pathlib import Path
from visual_search.decode import decode
from visual_search.errors import ImageError
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (60 << 20),) * 2)
try:
    decode(sys.stdin.buffer.read(), max_pixels=50_000_000)
except ImageError as error:
    print(error)
"""


@needs_proc
def test_a_picture_that_exceeds_the_memory_limit_is_refused() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCARCE],
        input=pictures.black_png(7_000, 7_000),
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout.startswith(b"undecodable: PNG: needs more memory")


@needs_proc
def test_a_child_sees_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VSEARCH_DATABASE_URL", "postgresql://user:canary@host/database")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    with DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=10) as decoder:
        assert is_good(decoder)
        assert b"canary" not in Path(f"/proc/{pid(decoder)}/environ").read_bytes()
        assert b"canary" not in Path(f"/proc/{pid(decoder)}/cmdline").read_bytes()


def test_a_child_imports_neither_torch_nor_the_database() -> None:
    code = "import sys, visual_search.decode.child; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {name.partition(".")[0] for name in ran.stdout.split()}
    assert not loaded & {"torch", "sqlalchemy", "psycopg2", "pydantic", "aiohttp", "structlog"}
    assert "visual_search.settings" not in ran.stdout


def test_a_child_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An audit hook in the child ends it at the first attempt; EPS would run Ghostscript."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "sys.addaudithook(lambda event, _: event in "
        "('subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'os.fork')"
        " and os._exit(9))\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=10) as decoder:
        assert is_good(decoder)
        eps = pictures.encoded(Image.new("RGB", (9, 9)), "EPS")
        assert refusal(decoder, eps).reason is FailureReason.NOT_AN_IMAGE
        preview = b"\xc5\xd0\xd3\xc6" + bytes(26) + eps
        assert refusal(decoder, preview).reason is FailureReason.NOT_AN_IMAGE


# Life


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_child_goes_on_through_signals_to_stop(
    decoder: DecoderProcess, number: signal.Signals
) -> None:
    assert is_good(decoder)
    child = pid(decoder)
    os.kill(child, number)
    assert is_good(decoder)
    assert pid(decoder) == child


def test_a_terminals_interrupt_does_not_reach_a_child(decoder: DecoderProcess) -> None:
    assert os.getpgid(pid(decoder)) != os.getpgid(0)


def test_a_slow_start_holds_up_nobody_and_is_no_images_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child waits for a file that only comes once the parent has gone on."""
    go = tmp_path / "go"
    (tmp_path / "sitecustomize.py").write_text(
        "import pathlib, time\n"
        f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
        "time.sleep(1.2)\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=1) as decoder:
        go.touch()
        assert is_good(decoder)


def test_closing_ends_the_child_and_may_be_repeated() -> None:
    decoder = DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=10)
    assert is_good(decoder)
    decoder.close()
    decoder.close()
    assert decoder._child._process.returncode == 0
    assert decoder.cpu_seconds > 0


def test_closing_before_the_child_is_ready_ends_it() -> None:
    decoder = DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=10)
    decoder.close()
    assert decoder._child._process.returncode is not None


PARENT = """
import sys, time
from visual_search.decode import DecoderProcess
from visual_search.errors import ImageError
decoder = DecoderProcess(max_pixels=1_000_000, timeout_s=2)
decoder.decode(bytes.fromhex(sys.argv[1]), lambda _picture: None)
print(decoder._child._process.pid, flush=True)
try:
    decoder.decode(b"BURN", lambda _picture: None)
except ImageError as error:
    print(error.reason.value, flush=True)
time.sleep(60)
"""


def cpu_ticks(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11])


@needs_proc
def test_time_in_which_everything_stands_still_does_not_count(tmp_path: Path) -> None:
    """Ctrl-Z, and `fg` after the time limit: the image still gets the time that it needs."""
    path = os.pathsep.join((str(poison.poison_folder(tmp_path)), *sys.path))
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, GOOD.hex()],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        ticks = cpu_ticks(child)
        wait_until(lambda: cpu_ticks(child) > ticks + 2)
        for process in (child, parent.pid):
            os.kill(process, signal.SIGSTOP)
        time.sleep(2.2)  # longer than the time limit, which is what this test is about
        for process in (parent.pid, child):
            os.kill(process, signal.SIGCONT)
        assert parent.stdout.readline() == "not_an_image\n"
        parent.kill()


@needs_proc
def test_a_killed_parent_leaves_no_child() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, GOOD.hex()], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        assert status(child, "State") in "SR"
        parent.kill()
    gone = Path(f"/proc/{child}")
    wait_until(lambda: not gone.exists() or status(child, "State") == "Z")


def test_decoders_of_several_threads_do_not_disturb_each_other() -> None:
    """Nor does a child hold the pipes of another: each ends when its own parent's side closes."""
    wrong: list[int] = []

    def work(number: int) -> None:
        body = pictures.png(1, 1, depth=8, colour=0, data=zlib.compress(bytes((0, number))))
        with DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=10) as decoder:
            seen = {
                decoder.decode(body, lambda picture: int(picture.pixels[0, 0, 0]))
                for _ in range(50)
            }
            wrong.extend(seen - {number})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_child_that_cannot_start_is_no_images_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('numpy is broken here')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with (
        DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=10) as decoder,
        pytest.raises(InternalError, match="numpy is broken here"),
    ):
        decoder.decode(GOOD, copied)


def test_no_process_to_be_had_is_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TemporaryError, match="cannot start a decoder process"):
        DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=10)


# Public collections


def test_hostile_files_end_in_pixels_or_a_named_reason(shared_data: Path) -> None:
    """One child lives through them all, and none takes long."""
    files = sorted(file for file in (shared_data / "hostile").rglob("*") if file.is_file())
    assert len(files) > 300
    outcomes: Counter[FailureReason | str] = Counter()
    unprintable: list[str] = []
    with DecoderProcess(max_pixels=MAX_PIXELS, timeout_s=5) as decoder:
        is_good(decoder)
        child = pid(decoder)
        for file in files:
            try:
                outcomes[decoder.decode(file.read_bytes(), lambda _picture: "decoded")] += 1
            except ImageError as error:
                outcomes[error.reason] += 1
                unprintable += [] if error.detail.isprintable() else [file.name]
        assert unprintable == []
        assert pid(decoder) == child
        if Path("/proc/self/status").exists():
            assert peak_mib(decoder) < 512
    assert set(outcomes) <= {
        "decoded",
        FailureReason.NOT_AN_IMAGE,
        FailureReason.TOO_MANY_PIXELS,
        FailureReason.TRUNCATED_IMAGE,
        FailureReason.UNDECODABLE,
    }
    assert outcomes["decoded"] > 190
