"""What runs in a decoder process: bodies in on stdin, pixels out through shared memory.

Started by `process.py`, as `python -m visual_search.decode.child FD MAX_PIXELS TIMEOUT_S LEAST_PX`;
the last is 0 where no image may be decoded smaller than it is. One request is 8 bytes of length
and the body; one answer is one line of JSON. JSON, because nothing that this process says may run
code in its parent. It ends when stdin does, so it cannot outlive the parent.
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
from visual_search.errors import ImageError

_HEADER_BYTES = 8
# Python with NumPy and Pillow maps about 0.2 GB. Above that, a picture takes 4 bytes a pixel as
# decoded, and the widest decoder (WebP) three more canvases of the same size.
_BASE_MEMORY_BYTES = 2 << 30
_MEMORY_BYTES_PER_PIXEL = 8


def main() -> None:
    fd, max_pixels, timeout_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    least_px = int(sys.argv[4]) or None
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
    while (body := _next_body(requests)) is not None:
        # Ends a decode that hangs even if the parent, which cuts it long before, has been killed.
        _limit(resource.RLIMIT_CPU, int(time.process_time() + 4 * timeout_s) + 1)
        try:
            picture = decode(body, max_pixels=max_pixels, least_px=least_px, room=room)
            whole = {"whole_width": picture.width, "whole_height": picture.height}
            height, width, _ = picture.pixels.shape
            _answer(answers, {"height": height, "width": width, **whole})
        except ImageError as error:
            _answer(answers, {"reason": error.reason.name, "detail": error.detail})


def _next_body(requests: BinaryIO) -> bytes | None:
    header = requests.read(_HEADER_BYTES)
    size = int.from_bytes(header)
    body = requests.read(size)
    # Less than announced: the parent is gone.
    return body if len(header) == _HEADER_BYTES and len(body) == size else None


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
