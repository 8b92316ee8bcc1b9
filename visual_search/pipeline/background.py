"""The database for an event loop: each step on another thread."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection

from visual_search.database.connection import Database
from visual_search.pipeline.core_time import RunCoreTime

T = TypeVar("T")


class BackgroundDatabase:
    """Lets the loop go on while a short transaction runs, and notes the core time it takes."""

    def __init__(self, database: Database, core_time: RunCoreTime) -> None:
        self._database = database
        self._core_time = core_time

    async def run(self, step: Callable[[Connection], T]) -> T:
        """Run one step in a transaction of its own, as `Database.run` does."""

        def timed() -> T:
            with self._core_time.measured("database", self._core_time.models):
                return self._database.run(step)

        return await asyncio.to_thread(timed)
