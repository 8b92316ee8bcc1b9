"""Requests are sent once, except over a connection that may have been dead before."""

from dataclasses import dataclass
from types import SimpleNamespace

import aiohttp

from visual_search.download.translation import translated


@dataclass(slots=True)
class Sending:
    """One request, until the head of its answer; a middleware of aiohttp.

    aiohttp would repeat any unanswered request once by itself. Here only one over a kept
    connection is repeated, since the server may have closed that before; an unanswered request
    over a new connection is a failed try, and tries are counted in one place.
    """

    kept_connection: bool = False

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        while True:
            self.kept_connection = False
            try:
                return await handler(request)
            except aiohttp.ClientConnectionError as error:
                if not self.kept_connection:
                    raise translated(error, request.url) from None


def tracing() -> aiohttp.TraceConfig:
    """Tells a `Sending`, given as `trace_request_ctx`, that its connection is a kept one."""

    async def note(
        _session: aiohttp.ClientSession,
        context: SimpleNamespace,
        _params: aiohttp.TraceConnectionReuseconnParams,
    ) -> None:
        sending: Sending = context.trace_request_ctx
        sending.kept_connection = True

    config = aiohttp.TraceConfig()
    config.on_connection_reuseconn.append(note)
    return config
