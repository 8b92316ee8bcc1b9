"""How much memory decoded pictures may take, in all decoders together."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PixelBudget:
    """Bytes of pictures that are being decoded; for any number of threads.

    First come, first served. A picture larger than the whole budget is decoded when it is alone.
    """

    def __init__(self, limit_bytes: float = math.inf) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._turn = threading.Lock()
        self._freed = threading.Condition()

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """In this block `size` bytes are taken; waits until they are free, or nothing is taken."""
        with self._turn, self._freed:
            self._freed.wait_for(lambda: not self._held or self._held + size <= self._limit)
            self._held += size
        try:
            yield
        finally:
            with self._freed:
                self._held -= size
                self._freed.notify_all()
