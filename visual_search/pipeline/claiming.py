"""Which images a run works on next: claims for all its models, one of which leads."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Final
from uuid import uuid4

import structlog
from sqlalchemy import Connection

from visual_search import claim
from visual_search.claim import Outlook, Suspicion
from visual_search.errors import FencedError
from visual_search.images import ClaimedImage, ImageId, LeaseToken
from visual_search.pipeline.background import BackgroundDatabase
from visual_search.pipeline.model_run import ModelRun, WantedImage
from visual_search.pipeline.recorder import OpenShard
from visual_search.settings import ExtractSettings

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_CLAIM_ROWS: Final = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class _Lease:
    """Under what a model claims: its current shard's lease, or a new one."""

    run: ModelRun
    token: LeaseToken
    new: bool


class _LeaseLostError(Exception):
    """Another worker has taken over the lease of this model's current shard."""

    def __init__(self, run: ModelRun) -> None:
        self.run = run


class Claimer:
    """Claims images for the models' current shards.

    One model leads: its images are claimed, and for the other models those of them that they lack,
    too. The first to lead is the one that knows the least of the catalogue, so that whatever
    another model lacks, it lacks as well.

    All of it belongs to the event loop's thread.

    Attributes:
        busy: A claim is under way; until it ends, the current shards must stay.
    """

    def __init__(
        self, database: BackgroundDatabase, models: Sequence[ModelRun], settings: ExtractSettings
    ) -> None:
        self._database = database
        self._models = models
        self._settings = settings
        self.busy = False

    @property
    def running(self) -> list[ModelRun]:
        """The models that nothing has stopped."""
        return [run for run in self._models if run.error is None]

    async def claim(self, suspicion: Suspicion) -> list[WantedImage]:
        """Claim for the current shards, or for new ones; what the first model finds that leads."""
        self.busy = True
        try:
            for run in await self._by_progress():
                images = await self._claim_led_by(run, suspicion)
                if images:
                    return images
            return []
        finally:
            self.busy = False
            for run in self._models:
                if run.error is not None:
                    run.close_shard()

    async def rescue(self) -> int:
        """Take back what dead workers held; says how many images."""
        return await self._database.run(self._rescue)

    async def look_out(self) -> list[Outlook]:
        """Note for each running model what is left for later."""

        def step(connection: Connection) -> list[Outlook]:
            outlooks = []
            for run in self.running:
                run.outlook = run.ledger.look_out(connection)
                outlooks.append(run.outlook)
            return outlooks

        return await self._database.run(step)

    async def count_waiting(self) -> None:
        """Note for each running model how many images are left."""

        def step(connection: Connection) -> None:
            for run in self.running:
                run.waiting = run.ledger.count_waiting(connection)

        await self._database.run(step)

    def _rescue(self, connection: Connection) -> int:
        return sum(
            run.ledger.rescue(connection, lease_s=self._settings.lease_s, own_run=run.run_id)
            for run in self.running
        )

    async def _by_progress(self) -> list[ModelRun]:
        """Those that may claim more, the one that knows the least of the catalogue first."""
        runs = {run.model.model_key: run for run in self.running if run.left != 0}
        if len(runs) < 2:
            return list(runs.values())
        order = await self._database.run(lambda c: claim.by_progress(c, list(runs)))
        return [runs[model_key] for model_key in order]

    async def _claim_led_by(self, leader: ModelRun, suspicion: Suspicion) -> list[WantedImage]:
        while True:
            try:
                claims, more = await self._claim_once(leader, suspicion)
            except _LeaseLostError as lost:
                with lost.run.bound():
                    log.warning("lease_lost")
                lost.run.close_shard()
                continue
            if claims:
                return self._count(claims)
            if not more and (suspicion is not Suspicion.NONE or not await self._seed(leader)):
                return []

    async def _claim_once(
        self, leader: ModelRun, suspicion: Suspicion
    ) -> tuple[dict[_Lease, list[ClaimedImage]], bool]:
        """What each model got that got anything; and whether to look again if none did."""
        others = [run for run in self.running if run is not leader and run.left != 0]
        first, *leases = [
            _Lease(
                run=run,
                token=run.current.token if run.current else LeaseToken(uuid4()),
                new=run.current is None,
            )
            for run in [leader, *others]
        ]
        rows = min(_CLAIM_ROWS, self._room(leader), *(self._room(run) for run in others))

        def step(connection: Connection) -> tuple[dict[_Lease, list[ClaimedImage]], bool]:
            self._rescue(connection)
            with self._claiming_under(connection, first) as led:
                images, more = leader.ledger.claim(
                    connection, token=first.token, rows=rows, suspicion=suspicion
                )
                led.extend(images)
            claims = {first: led}
            for lease in leases if led else []:
                with self._claiming_under(connection, lease) as along:
                    along.extend(
                        lease.run.ledger.claim_along(
                            connection, token=lease.token, images=led, suspicion=suspicion
                        )
                    )
                claims[lease] = along
            return {lease: images for lease, images in claims.items() if images}, more

        return await self._database.run(step)

    @contextmanager
    def _claiming_under(
        self, connection: Connection, lease: _Lease
    ) -> Iterator[list[ClaimedImage]]:
        """The list is to be filled with what is claimed; a lease that gets nothing is not kept."""
        if lease.new:
            claim.open_lease(
                connection,
                token=lease.token,
                model_key=lease.run.model.model_key,
                run_id=lease.run.run_id,
                lease_s=self._settings.lease_s,
                checking=lease.run.ledger.checking,
            )
        images: list[ClaimedImage] = []
        try:
            yield images
        except FencedError:
            raise _LeaseLostError(lease.run) from None
        if lease.new and not images:
            claim.close_lease(connection, lease.token)

    def _room(self, run: ModelRun) -> int:
        """How many images the model may claim for its current shard."""
        room = self._settings.shard_rows
        if run.current is not None:
            room -= run.current.claimed - run.current.unchanged
        return room if run.left is None else min(room, run.left)

    def _count(self, claims: Mapping[_Lease, Sequence[ClaimedImage]]) -> list[WantedImage]:
        """Take note of what was claimed; by image."""
        wanted: dict[ImageId, list[tuple[ModelRun, ClaimedImage]]] = {}
        for lease, images in claims.items():
            run = lease.run
            shard = run.current
            if shard is None:
                shard = run.current = OpenShard(token=lease.token)
                run.open_shards += 1
                run.recorder.watch(shard)
            shard.claimed += len(images)
            run.claimed += len(images)
            if run.left is not None:
                run.left -= len(images)
            if shard.claimed - shard.unchanged >= self._settings.shard_rows:
                run.close_shard()
            for image in images:
                wanted.setdefault(image.image_id, []).append((run, image))
        return [WantedImage(claims=tuple(parts)) for parts in wanted.values()]

    async def _seed(self, leader: ModelRun) -> int:
        """Make more images pending for a model, and for those that know no more than it now."""
        seeded = await self._database.run(leader.ledger.seed)
        if seeded:
            for run in takewhile(lambda run: run is not leader, await self._by_progress()):
                await self._database.run(run.ledger.seed)
        return seeded
