"""A decoder in a process of its own: a hung or killed decode costs one image."""

import mmap
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from visual_search.decode.budget import PixelBudget
from visual_search.decode.pipe import Child
from visual_search.decode.pixels import Picture
from visual_search.errors import FailureReason, ImageError, InternalError, TemporaryError
from visual_search.redaction import printable

T = TypeVar("T")

_CHANNELS = 3
_STARTS = 3
# What stays allocated between images: enough for nearly all of them, so that their pages are
# not given back and zeroed anew each time.
_KEPT_BYTES = _CHANNELS * (16 << 20)


class DecoderProcess:
    """One child process that decodes one image at a time, for one thread of its parent.

    Pixels come back through memory that both map: a file without a name, as long as the largest
    allowed picture, in which only the part that pictures have reached takes any room.

    Making one does not wait until the child is ready; the first `decode` does.
    """

    def __init__(
        self, *, max_pixels: int, timeout_s: float, budget: PixelBudget | None = None
    ) -> None:
        """Start the child.

        Args:
            max_pixels: As of `pixels.decode`.
            timeout_s: How long one image may take.
            budget: Large pictures take of it while they are decoded and consumed. `None`: as much
                as there is.
        """
        self._max_pixels = max_pixels
        self._timeout_s = timeout_s
        self._budget = budget or PixelBudget()
        self._fd = _nameless_file(_CHANNELS * max_pixels)
        self._memory = np.frombuffer(mmap.mmap(self._fd, 0), np.uint8)
        self._former_cpu_s = 0.0
        self._child = self._start()

    def decode(
        self, body: bytes, consume: Callable[[Picture], T], *, least_px: int | None = None
    ) -> T:
        """Decode `body` and hand the picture to `consume`.

        Args:
            body: The encoded file.
            consume: Gets the picture. The next image uses the memory of its pixels: what is
                needed for longer has to be copied before `consume` returns.
            least_px: As of `pixels.decode`.

        Returns:
            What `consume` returned.

        Raises:
            ImageError: As of `pixels.decode`; or `DECODE_TIMEOUT`; or `KILLS_DECODER` if the
                child died over this image. After these two the next image gets a new child.
            TemporaryError, InternalError: No child can be started, or none gets ready. No image
                is to blame.
        """
        child = self._ready_child()
        with ExitStack() as room:
            picture = self._decoded(child, body, least_px or 0, room)
            try:
                return consume(picture)
            finally:
                if picture.pixels.size > _KEPT_BYTES:
                    self._give_back_memory()

    @property
    def cpu_seconds(self) -> float:
        """CPU time of this decoder's children, as of their last answers."""
        return self._former_cpu_s + self._child.cpu_s

    def close(self) -> None:
        """End the child. May be called more than once."""
        self._child.end()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _decoded(self, child: Child, body: bytes, least_px: int, room: ExitStack) -> Picture:
        try:
            answer = child.ask(body, least_px, self._timeout_s)
            if "needs_bytes" in answer:
                room.enter_context(self._budget.room(int(answer["needs_bytes"])))
                answer = child.go_on()
            if "reason" in answer:
                raise ImageError(FailureReason[answer["reason"]], printable(str(answer["detail"])))
            height, width = int(answer["height"]), int(answer["width"])
            if not 0 < height * width <= self._max_pixels:
                raise ValueError(f"{width} x {height} pixels")
            whole_width, whole_height = int(answer["whole_width"]), int(answer["whole_height"])
        except TimeoutError:
            child.kill()
            self._replace_child()
            detail = f"not decoded after {self._timeout_s:g} s"
            raise ImageError(FailureReason.DECODE_TIMEOUT, detail) from None
        except (EOFError, BrokenPipeError) as error:
            end = self._replace_child()
            raise ImageError(FailureReason.KILLS_DECODER, f"its decoder {end}") from error
        except (LookupError, TypeError, ValueError) as error:
            # The image has overwritten the child's memory, or worse.
            self._replace_child()
            raise ImageError(FailureReason.KILLS_DECODER, "its decoder raves") from error
        pixels = self._memory[: height * width * _CHANNELS].reshape(height, width, _CHANNELS)
        return Picture(pixels, whole_width, whole_height)

    def _start(self) -> Child:
        try:
            return Child(
                memory_fd=self._fd,
                max_pixels=self._max_pixels,
                timeout_s=self._timeout_s,
            )
        except OSError as error:
            raise TemporaryError(f"cannot start a decoder process: {error.strerror}") from error

    def _ready_child(self) -> Child:
        """A child that lives and is idle. One that died between two images is no image's fault."""
        end = ""
        for _ in range(_STARTS):
            if self._child.is_ready():
                return self._child
            end = self._replace_child()
        raise InternalError(f"the decoder process {end} at its start; run `vsearch doctor`")

    def _replace_child(self) -> str:
        """End the child if it still lives, start another; says how the old one ended."""
        end = self._child.end()
        self._former_cpu_s += self._child.cpu_s
        self._give_back_memory()
        self._child = self._start()
        return end

    def _give_back_memory(self) -> None:
        # Pages beyond the end are freed. Both mappings stay as they are and find zeroes there.
        os.ftruncate(self._fd, min(_KEPT_BYTES, self._memory.size))
        os.ftruncate(self._fd, self._memory.size)


def _nameless_file(size: int) -> int:
    if sys.platform == "linux":
        # Not /dev/shm: containers often give it 64 MB, and writing beyond that kills the writer.
        fd = os.memfd_create("vsearch-pixels")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd
