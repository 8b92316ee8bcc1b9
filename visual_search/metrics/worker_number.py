"""Numbers that tell the workers of a machine apart, and are used again."""

from pathlib import Path
from typing import Final

from visual_search.database.filelock import FileLock

_MOST_WORKERS: Final = 256


class WorkerNumber:
    """The lowest number that no living worker has which locks in the same folder.

    The kernel takes it back when the process ends, however it ends; so what a dead worker left
    under its number is written over by the next, and there are never more numbers than there were
    workers at once. `close` gives it back.

    Attributes:
        number: From 0.

    Raises:
        OSError: The folder cannot be written to, or all numbers are taken.
    """

    def __init__(self, folder: Path) -> None:
        for number in range(_MOST_WORKERS):
            try:
                # No *.prom, so that node_exporter passes it over.
                self._lock = FileLock(folder / f".vsearch_worker_{number}.lock", wait=False)
            except BlockingIOError:
                continue
            self.number = number
            return
        raise BlockingIOError(f"{_MOST_WORKERS} workers at once")

    def close(self) -> None:
        """Another worker may have the number."""
        self._lock.close()
