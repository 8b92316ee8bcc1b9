"""How fast hosts serve: noted request by request, recorded now and then."""

import asyncio
from contextlib import suppress
from typing import Final

import structlog

from visual_search import hosts
from visual_search.errors import DatabaseGoneError
from visual_search.hosts import Traffic
from visual_search.images import Exchange
from visual_search.pipeline.background import BackgroundDatabase

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_INTERVAL_S: Final = 10.0


class TrafficLog:
    """What hosts were asked for since it was last recorded. Lives on one event loop."""

    def __init__(self, database: BackgroundDatabase) -> None:
        self._database = database
        self._traffic: dict[str, Traffic] = {}

    def note(self, exchange: Exchange) -> None:
        """Count one request."""
        before = self._traffic.get(exchange.host, Traffic())
        self._traffic[exchange.host] = Traffic(
            requests=before.requests + 1,
            failed=before.failed + exchange.failed,
            bytes=before.bytes + exchange.bytes,
            seconds=before.seconds + exchange.seconds,
        )

    async def record(self, fed: asyncio.Event) -> None:
        """Every ten seconds until `fed`, and then a last time."""
        while not fed.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(fed.wait(), _INTERVAL_S)
            traffic, self._traffic = self._traffic, {}
            if not traffic:
                continue
            try:
                await self._database.run(
                    lambda connection, traffic=traffic: hosts.add_traffic(connection, traffic)  # type: ignore[misc]
                )
            except DatabaseGoneError as error:
                # Nothing hangs on it; what does will find the same.
                log.warning("traffic_not_recorded", error=str(error))
