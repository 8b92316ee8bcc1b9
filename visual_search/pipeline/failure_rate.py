"""Whether a run is hopeless: too many images fail for reasons of their surroundings."""

from collections import Counter
from typing import Final

from sqlalchemy import Connection, text

from visual_search.catalog.rows import host_of
from visual_search.database.connection import Database
from visual_search.errors import FailureRateError
from visual_search.images import ClaimedImage, FailedImage

_ENOUGH_IMAGES: Final = 200
_ENOUGH_TO_END: Final = 10
_ENOUGH_HOSTS: Final = 2


class FailureRate:
    """Counts a run's outcomes; used by the recorder's thread only.

    Verdicts about an image (404, not an image …) do not count as failures here: a catalogue full
    of dead links is an honest result, a dead network is not.
    """

    def __init__(self, limit: float, *, checking: bool = False) -> None:
        self._limit = limit
        self._stays = "their vectors stay" if checking else "they stay pending"
        self._images = 0
        self._failures: Counter[str] = Counter()
        self._hosts: set[str] = set()
        self._others: bool | None = None

    def embedded(self, _image: ClaimedImage) -> None:
        """Count a vector."""
        self._images += 1

    def unchanged(self) -> None:
        """Count a vector that was found to be up to date."""
        self._images += 1

    def failed(self, failure: FailedImage) -> None:
        """Count a failure."""
        self._images += 1
        if failure.reason.retryable:
            self._failures[failure.reason.value] += 1
            self._hosts.add(host_of(failure.image.url))

    def hopeless(self, database: Database) -> FailureRateError | None:
        """Whether to stop now: judged over enough images, and not by one bad host of many."""
        if self._images < _ENOUGH_IMAGES or self._share() <= self._limit:
            return None
        if len(self._hosts) < _ENOUGH_HOSTS and self._has_other_hosts(database):
            return None
        return self._error("stopped")

    def fruitless(self) -> FailureRateError | None:
        """Whether a finished run, however small, failed altogether for such reasons."""
        if self._images < _ENOUGH_TO_END or self._share() < 1 or self._limit >= 1:
            return None
        return self._error("finished")

    def _share(self) -> float:
        return self._failures.total() / self._images if self._images else 0.0

    def _has_other_hosts(self, database: Database) -> bool:
        """Asked once, for the first host that fails: without other hosts it reads every image."""
        if self._others is None:
            self._others = database.run(self._find_other_hosts)
        return self._others

    def _find_other_hosts(self, connection: Connection) -> bool:
        return bool(
            connection.execute(
                text("""
                    SELECT EXISTS (SELECT FROM images
                                   WHERE host <> ALL(CAST(:hosts AS text[])))
                """),
                {"hosts": list(self._hosts)},
            ).scalar_one()
        )

    def _error(self, verb: str) -> FailureRateError:
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._failures.most_common())
        return FailureRateError(
            f"{verb}: {self._failures.total()} of {self._images} images failed for reasons of "
            f"network or server ({reasons}), limit {self._limit:.0%}; {self._stays}. "
            "`vsearch failures list` shows them, `vsearch doctor` checks the network"
        )
