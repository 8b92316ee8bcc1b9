"""What one image may cost: time, tries, memory."""

import asyncio
import random
from collections.abc import Callable
from typing import Final

from visual_search.download.budget import Reservation
from visual_search.download.hosts import MAX_WAIT_S
from visual_search.errors import ImageError

_BACKOFF_S: Final = 1.0


class Patience:
    """How long one image may still take, over all its tries, and how its last try failed.

    Attributes:
        ends: When it takes too long, by the event loop's clock.
        received: Bytes of bodies, of all tries.
    """

    def __init__(self, seconds: float, room: Reservation, on_bytes: Callable[[int], None]) -> None:
        self.now = asyncio.get_running_loop().time
        self.ends = self.now() + seconds
        self.received = 0
        self.failure: ImageError | None = None
        self._on_bytes = on_bytes
        self._room = room
        self._tries = 0

    @property
    def left_s(self) -> float:
        """Until it takes too long; stands still in waits that do not count."""
        return self.ends - self.now()

    def note_bytes(self, size: int) -> None:
        """A piece of a body has arrived."""
        self.received += size
        self._on_bytes(size)

    async def wait_for_room(self, size: int, timer: asyncio.Timeout) -> None:
        """Wait for memory for `size` bytes; meanwhile the time limit and its timer stand still."""
        began = self.now()
        timer.reschedule(None)
        await self._room.resize(size)
        self.ends += self.now() - began
        timer.reschedule(self.ends)

    def before_next_try(self, error: Exception) -> float | bool:
        """What stamina asks after a failed try: the pause in seconds, or False for no more tries.

        Full jitter, so that images that failed together do not come back together.
        """
        if not isinstance(error, ImageError):
            return False
        self.failure = error
        self._tries += 1
        left_s = self.left_s
        if not error.reason.retryable or left_s <= 0:
            return False
        if error.retry_after_s is None:
            longest_s = min(left_s, _BACKOFF_S * 2 ** (self._tries - 1))
            return random.uniform(0, longest_s)  # noqa: S311 - jitter is no secret
        return error.retry_after_s < min(left_s, MAX_WAIT_S) and error.retry_after_s
