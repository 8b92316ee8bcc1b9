"""What runs in a decoder process: bodies in on stdin, pixels out through shared memory.

Started by `process.py`, as `python -m visual_search.decode.child FD MAX_PIXELS TIMEOUT_S`; what is
said then is in `protocol.py`. It ends when stdin does, so it cannot outlive the parent.
"""

import contextlib
import json
import mmap
import os
import resource
import signal
import sys
import time
from typing import BinaryIO

import numpy as np
from PIL import Image

from visual_search.decode.pixels import decode
from visual_search.decode.protocol import GO, HEADER
from visual_search.errors import ImageError

# Pictures that need less are decoded without asking; each decoder has that much at all times.
_FREE_BYTES = 16 << 20
# Python with NumPy and Pillow maps about 0.2 GB. Above that, a picture takes 4 bytes a pixel as
# decoded, and the widest decoder (WebP) three more canvases of the same size.
_BASE_MEMORY_BYTES = 2 << 30
_MEMORY_BYTES_PER_PIXEL = 8


def main() -> None:
    fd, max_pixels, timeout_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    # The parent decides when to stop: a drain finishes the images that are under way.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, _BASE_MEMORY_BYTES + _MEMORY_BYTES_PER_PIXEL * max_pixels)
    # Pillow's own second wall stands at ours: it knows sizes that only show up while decoding.
    Image.MAX_IMAGE_PIXELS = max_pixels
    room = np.frombuffer(mmap.mmap(fd, 0), np.uint8)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    # stderr was for trouble at the start. From here on nobody reads it, and a full pipe blocks.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    _answer(answers, {})

    def ask_for_memory(needs_bytes: int) -> None:
        if needs_bytes > _FREE_BYTES:
            _answer(answers, {"needs_bytes": needs_bytes})
            if requests.read(len(GO)) != GO:
                sys.exit()  # the parent is gone

    while (request := _next_request(requests)) is not None:
        body, least_px = request
        # Ends a decode that hangs even if the parent, which cuts it long before, has been killed.
        _limit(resource.RLIMIT_CPU, int(time.process_time() + 4 * timeout_s) + 1)
        try:
            picture = decode(
                body,
                max_pixels=max_pixels,
                least_px=least_px,
                room=room,
                before_pixels=ask_for_memory,
            )
            whole = {"whole_width": picture.width, "whole_height": picture.height}
            height, width, _ = picture.pixels.shape
            _answer(answers, {"height": height, "width": width, **whole})
        except ImageError as error:
            _answer(answers, {"reason": error.reason.name, "detail": error.detail})


def _next_request(requests: BinaryIO) -> tuple[bytes, int | None] | None:
    header = requests.read(HEADER.size)
    # Less than announced: the parent is gone.
    if len(header) < HEADER.size:
        return None
    size, least_px = HEADER.unpack(header)
    body = requests.read(size)
    return (body, least_px or None) if len(body) == size else None


def _answer(answers: BinaryIO, answer: dict[str, object]) -> None:
    line = json.dumps(answer | {"cpu_s": time.process_time()})
    answers.write(line.encode() + b"\n")
    answers.flush()


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    # Not every system has every limit; the time limit and the pixel cap hold everywhere.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(
            kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard)
        )


if __name__ == "__main__":
    main()
