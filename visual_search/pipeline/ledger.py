"""Where a model's images come from and where outcomes go: images without a vector, or checks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sqlalchemy import Connection

from visual_search import claim, record
from visual_search.claim import Outlook, Place, Suspicion
from visual_search.images import (
    ClaimedImage,
    FailedImage,
    LeaseToken,
    ModelKey,
    PostponedImage,
    RunId,
    UnchangedImage,
    WrittenShard,
)
from visual_search.record import RecordedRow
from visual_search.settings import ExtractSettings


@dataclass(kw_only=True, slots=True)
class WithoutVector:
    """Outcomes that bring no vector and wait to be recorded."""

    unchanged: list[UnchangedImage] = field(default_factory=list)
    failures: list[FailedImage] = field(default_factory=list)
    postponed: list[PostponedImage] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.unchanged) + len(self.failures) + len(self.postponed)

    def clear(self) -> None:
        """They are recorded."""
        self.unchanged.clear()
        self.failures.clear()
        self.postponed.clear()


class Ledger(Protocol):
    """Each method is a step inside a transaction, which may be undone and run again.

    Attributes:
        checking: Vectors that are there are checked.
    """

    checking: bool

    def rescue(self, connection: Connection, *, lease_s: float, own_run: RunId) -> int:
        """Take back what dead workers held; says how many images."""

    def claim(
        self, connection: Connection, *, token: LeaseToken, rows: int, suspicion: Suspicion
    ) -> tuple[list[ClaimedImage], bool]:
        """Images for this model, and whether there may be more though there were none."""

    def claim_along(
        self,
        connection: Connection,
        *,
        token: LeaseToken,
        images: Sequence[ClaimedImage],
        suspicion: Suspicion,
    ) -> list[ClaimedImage]:
        """Those of the images just claimed for another model that this one wants, too."""

    def seed(self, connection: Connection) -> int:
        """Learn of more images of the catalogue; says of how many."""

    def look_out(self, connection: Connection) -> Outlook:
        """What is left for later when nothing can be claimed now."""

    def count_waiting(self, connection: Connection) -> int:
        """How many images are left for later."""

    def record(self, connection: Connection, *, token: LeaseToken, outcomes: WithoutVector) -> None:
        """Record what came of images that have no new vector."""

    def commit(
        self,
        connection: Connection,
        *,
        token: LeaseToken,
        shard: WrittenShard,
        rows: Sequence[RecordedRow],
    ) -> None:
        """Lock the lease and make a written shard part of the history."""


class Extraction:
    """Images without a vector."""

    checking = False

    def __init__(self, model_key: ModelKey, settings: ExtractSettings) -> None:
        self._model_key = model_key
        self._settings = settings
        self._place = Place()

    def rescue(self, connection: Connection, *, lease_s: float, own_run: RunId) -> int:
        return claim.rescue_images(connection, self._model_key, lease_s=lease_s, own_run=own_run)

    def claim(
        self, connection: Connection, *, token: LeaseToken, rows: int, suspicion: Suspicion
    ) -> tuple[list[ClaimedImage], bool]:
        due = claim.claim_images(
            connection,
            token=token,
            model_key=self._model_key,
            rows=rows,
            suspicion=suspicion,
            place=self._place if suspicion is Suspicion.NONE else None,
        )
        # Behind images whose hosts are paused there may be others.
        return claim.release_paused(connection, token=token, images=due), bool(due)

    def claim_along(
        self,
        connection: Connection,
        *,
        token: LeaseToken,
        images: Sequence[ClaimedImage],
        suspicion: Suspicion,
    ) -> list[ClaimedImage]:
        return claim.claim_along(
            connection,
            token=token,
            model_key=self._model_key,
            images=images,
            suspicion=suspicion,
        )

    def seed(self, connection: Connection) -> int:
        return claim.seed_images(connection, self._model_key)

    def look_out(self, connection: Connection) -> Outlook:
        return claim.look_out(connection, self._model_key)

    def count_waiting(self, connection: Connection) -> int:
        return claim.count_pending(connection, self._model_key)

    def record(self, connection: Connection, *, token: LeaseToken, outcomes: WithoutVector) -> None:
        record.postpone_images(
            connection, token=token, model_key=self._model_key, postponed=outcomes.postponed
        )
        record.record_failures(
            connection,
            token=token,
            model_key=self._model_key,
            failures=outcomes.failures,
            max_attempts=self._settings.max_attempts,
            backoff_s=self._settings.backoff_s,
        )

    def commit(
        self,
        connection: Connection,
        *,
        token: LeaseToken,
        shard: WrittenShard,
        rows: Sequence[RecordedRow],
    ) -> None:
        claim.lock_lease(connection, token)
        record.commit_shard(
            connection, token=token, model_key=self._model_key, shard=shard, rows=rows
        )
