"""The ledger of a refresh: images with a vector whose pictures may have changed."""

import time
from collections.abc import Sequence

from sqlalchemy import Connection

from visual_search import claim, refresh
from visual_search.claim import Outlook, Suspicion
from visual_search.images import ClaimedImage, LeaseToken, ModelKey, RunId, WrittenShard
from visual_search.pipeline.ledger import WithoutVector
from visual_search.record import RecordedRow
from visual_search.refresh import Refresh, Sweep


class Checking:
    """Images are claimed in sweeps through the model's history, the suspicious ones at the end."""

    checking = True

    def __init__(self, model_key: ModelKey, of: Refresh) -> None:
        self._model_key = model_key
        self._refresh = of
        self._sweep = Sweep()
        self._of_suspects: dict[Suspicion, Sweep] = {}
        self._postponed_to: float | None = None

    def rescue(self, connection: Connection, *, lease_s: float, own_run: RunId) -> int:
        rescued = claim.rescue_images(connection, self._model_key, lease_s=lease_s, own_run=own_run)
        if rescued:
            # Somewhere among what this worker has been past.
            self._sweep.suspect = 0
            self._of_suspects.clear()
        return rescued

    def claim(
        self, connection: Connection, *, token: LeaseToken, rows: int, suspicion: Suspicion
    ) -> tuple[list[ClaimedImage], bool]:
        sweep = self._sweep_for(suspicion)
        if sweep is None or sweep.ended:
            return [], False
        images = refresh.claim_outdated(
            connection,
            token=token,
            model_key=self._model_key,
            rows=rows,
            suspicion=suspicion,
            refresh=self._refresh,
            sweep=sweep,
        )
        return images, not sweep.ended

    def claim_along(
        self,
        connection: Connection,
        *,
        token: LeaseToken,
        images: Sequence[ClaimedImage],
        suspicion: Suspicion,
    ) -> list[ClaimedImage]:
        return refresh.claim_outdated_along(
            connection,
            token=token,
            model_key=self._model_key,
            images=images,
            suspicion=suspicion,
            refresh=self._refresh,
        )

    def seed(self, _connection: Connection) -> int:
        """A refresh learns of no new images."""
        return 0

    def look_out(self, connection: Connection) -> Outlook:
        due_in_s = None
        if self._postponed_to is not None:
            due_in_s = self._postponed_to - time.monotonic()
            if due_in_s <= 0:
                self._postponed_to = None
                self._sweep = Sweep(suspect=self._sweep.suspect)
        return Outlook(
            due_in_s=due_in_s,
            lease_ends_in_s=refresh.next_lease_end(connection, self._model_key),
        )

    def count_waiting(self, connection: Connection) -> int:
        return refresh.count_outdated(connection, self._model_key, self._refresh)

    def record(self, connection: Connection, *, token: LeaseToken, outcomes: WithoutVector) -> None:
        refresh.record_unchanged(
            connection, token=token, model_key=self._model_key, unchanged=outcomes.unchanged
        )
        refresh.record_unchecked(
            connection, token=token, model_key=self._model_key, failures=outcomes.failures
        )
        refresh.postpone_checks(
            connection, token=token, model_key=self._model_key, postponed=outcomes.postponed
        )
        for each in outcomes.postponed:
            due = time.monotonic() + each.wait_s
            self._postponed_to = min(due, self._postponed_to or due)

    def commit(
        self,
        connection: Connection,
        *,
        token: LeaseToken,
        shard: WrittenShard,
        rows: Sequence[RecordedRow],
    ) -> None:
        refresh.lock_replaced(connection, token=token, model_key=self._model_key, rows=rows)
        claim.lock_lease(connection, token)
        refresh.replace_vectors(
            connection, token=token, model_key=self._model_key, shard=shard, rows=rows
        )

    def _sweep_for(self, suspicion: Suspicion) -> Sweep | None:
        if suspicion is Suspicion.NONE:
            return self._sweep
        start = self._sweep.suspect
        if start is None:
            return None
        return self._of_suspects.setdefault(suspicion, Sweep(start=start, image_id=start))
