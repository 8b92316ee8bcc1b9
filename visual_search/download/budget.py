"""How much memory bodies may take between the network and the decoders."""

import asyncio
import math
from typing import Final

# Until sizes are known: about the size of a photo in a shop.
_FIRST_GUESS_BYTES: Final = 200_000
_GUESS_WEIGHT: Final = 1 / 16


class BodyBudget:
    """Bytes of bodies that are arriving or waiting to be decoded; for one event loop.

    First come, first served. A body larger than the whole budget gets in when it is alone.
    """

    def __init__(self, limit_bytes: float = math.inf) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()
        self._guess = float(_FIRST_GUESS_BYTES)

    @property
    def usual_bytes(self) -> int:
        """The size of a body as the latest ones were, so that few are asked for in vain."""
        return int(self._guess)

    def note(self, size: int) -> None:
        """A body had this size."""
        self._guess += (size - self._guess) * _GUESS_WEIGHT

    async def take(self, size: int) -> None:
        """Wait until `size` bytes are free, or nothing is held."""
        async with self._turn:
            while self._held and self._held + size > self._limit:
                self._freed.clear()
                await self._freed.wait()
            self._held += size

    def give_back(self, size: int) -> None:
        """So many bytes are free again."""
        self._held -= size
        self._freed.set()


class Reservation:
    """What one body holds of the budget, while it is not known how large it will be."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._size = 0

    async def resize(self, size: int) -> None:
        """Hold `size` bytes; waits if that is more than now. Nothing is held while it waits."""
        if size > self._size:
            self.release()
            await self._budget.take(size)
        else:
            self._budget.give_back(self._size - size)
        self._size = size

    def release(self) -> None:
        """Hold nothing."""
        self._budget.give_back(self._size)
        self._size = 0
