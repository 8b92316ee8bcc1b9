"""What a test watches while workers are at work: samples taken ten times a second."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

from visual_search.database.connection import Database
from visual_search.errors import DatabaseGoneError
from visual_search.status import ModelStatus, model_statuses

T = TypeVar("T")


class Watch(Generic[T]):
    """Calls `look` every `every_s` in a thread, as long as the block runs.

    Attributes:
        seen: What it returned each time.
    """

    def __init__(self, look: Callable[[], T], every_s: float = 0.1) -> None:
        self._look = look
        self._every_s = every_s
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self.seen: list[T] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                self.seen.append(self._look())
            except DatabaseGoneError:
                pass  # some tests take it away
            except BaseException as error:  # noqa: BLE001 - raised again at the block's end
                self._error = error
                return


def watch_status(url: str, schema: str = "vsearch") -> Watch[list[ModelStatus]]:
    """Watch `status`, on connections of its own."""
    database = Database(url, schema=schema, outage_s=0)

    def look() -> list[ModelStatus]:
        try:
            return model_statuses(database)
        finally:
            database.close()

    return Watch(look)


def assert_numbers_add_up(watch: Watch[list[ModelStatus]], *, images: int) -> None:
    """At every moment total = done + pending + claimed + failed, and none of them is negative."""
    assert any(watch.seen)
    for statuses in watch.seen:
        for status in statuses:
            counts = (status.done, status.pending, status.claimed, status.failed)
            assert min(counts) >= 0, status
            assert status.total == sum(counts) == images, status
            assert status.waiting <= status.pending, status
