"""What runs inside the namespace: every case in turn. What came of them is printed as JSON.

Its arguments are the namespaces outside, which it refuses to touch.
"""

import asyncio
import json
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from tests.namespace import network
from tests.namespace.cases import (
    ALIASES,
    CASES,
    DEAD,
    HOSTS,
    LED_INWARD,
    NAMES,
    OPENED,
    OWN,
    PASSWORD,
    PORTS,
    PROXY,
    UNDERSTOOD,
    USER,
    Case,
    Outcome,
)
from tests.namespace.mutants import MUTANTS, SOCKETS_ONLY, Mutant
from tests.namespace.servers import NameServer, WebServer, connections_opened, reachable
from visual_search.download import Downloader
from visual_search.errors import ImageError
from visual_search.settings import DownloadSettings


class Laboratory:
    """The servers, and one case after another."""

    def __init__(self, folder: Path) -> None:
        self._web = WebServer(PORTS)
        self._names = NameServer(NAMES, ALIASES)
        self._netrc = folder / "netrc"
        self._netrc.write_text(f"default login {USER} password {PASSWORD}\n")
        self._opened = 0
        self._retries = 0
        set_on_retry_hooks([self._count_retry])

    async def report(self) -> dict[str, Any]:
        async with self._web.listening(), self._names.listening():
            return {
                "unguarded": await self._without_guard(),
                "outcomes": await self._sweep(CASES.values()),
                "crowd": asdict(await self._crowd()),
                "mutants": {
                    name: await self._without_check(mutant) for name, mutant in MUTANTS.items()
                },
                "sockets_only": await self._with_sockets_only(),
            }

    async def _without_check(self, mutant: Mutant) -> dict[str, Any]:
        cases = [
            case
            for case in CASES.values()
            if case.group in mutant.noticed_by
            and "proxy" not in case.way
            and (case.way == OPENED or not case.group.startswith("F2"))
        ]
        with mutant.change():
            return await self._sweep(cases, tries=1)

    async def _with_sockets_only(self) -> dict[str, Any]:
        with SOCKETS_ONLY():
            return await self._sweep(LED_INWARD, tries=1)

    async def _sweep(self, cases: Iterable[Case], **settings: Any) -> dict[str, Any]:
        self._names.forget()
        return {case.key: asdict(await self._try(case, **settings)) for case in cases}

    async def _try(self, case: Case, **settings: Any) -> Outcome:
        with ExitStack() as stack:
            if case.lured:
                stack.enter_context(self._lures())
            if case.answer is not None:
                stack.enter_context(_lookups_bring(case.answer))
            return await self._fetch([case.url], {"deadline_s": 5, **case.settings, **settings})

    async def _crowd(self) -> Outcome:
        """One downloader, many at once, for a name whose every other answer leads inward."""
        self._names.forget()
        return await self._fetch(["http://crowd.test/"] * 100, {"deadline_s": 10})

    async def _fetch(self, urls: list[str], settings: dict[str, Any]) -> Outcome:
        """What comes of these URLs; reason and text are the last one's."""
        self._web.forget()
        self._names.lookups.clear()
        self._retries = 0
        before = self._opened
        async with Downloader(DownloadSettings(**settings)) as downloader:
            ends = await asyncio.gather(*map(downloader.fetch, urls), return_exceptions=True)
        match ends[-1]:
            case ImageError() as error:
                reason, text = error.reason.value, error.detail
            case BaseException() as error:
                reason, text = type(error).__name__, str(error)
            case download:
                reason, text = None, download.body.decode("latin-1")
        self._opened = connections_opened()
        await self._web.seen(opened := self._opened - before)
        return Outcome(
            reason=reason,
            text=text,
            connections=list(self._web.connections),
            opened=opened,
            heads=[list(head) for head in self._web.heads],
            lookups=dict(self._names.lookups),
            retries=self._retries,
        )

    async def _without_guard(self) -> dict[str, bool]:
        """Whether any other client would have got a connection: else its absence shows nothing."""
        found = {}
        for title in UNDERSTOOD:
            parts = urlsplit(title)
            host, port = (parts.hostname or "").replace("%25", "%"), parts.port or 80
            found[title] = await asyncio.to_thread(reachable, host, port)
        await self._web.seen(sum(found.values()))
        self._opened = connections_opened()
        return found

    @contextmanager
    def _lures(self) -> Iterator[None]:
        proxy = f"http://{USER}:{PASSWORD}@{PROXY}:3128"
        names = ("http_proxy", "https_proxy", "all_proxy")
        lures = dict.fromkeys([*names, *map(str.upper, names)], proxy)
        with patch.dict(os.environ, lures | {"NETRC": str(self._netrc)}):
            os.environ.pop("NO_PROXY", None)
            os.environ.pop("no_proxy", None)
            yield

    def _count_retry(self, details: RetryDetails) -> None:
        self._retries += 1


@contextmanager
def _lookups_bring(addresses: tuple[str, ...]) -> Iterator[None]:
    """Whatever is looked up, in the system's own way, has these addresses."""

    def answer(host: str, port: int, **_options: Any) -> list[Any]:
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            (family[":" in address], socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for address in addresses
        ]

    with patch.object(socket, "getaddrinfo", answer):
        yield


def main(outside: set[str]) -> int:
    # No authority is needed where nothing speaks TLS, and loading the system's takes 0.1 s a case.
    os.environ["SSL_CERT_FILE"] = os.devnull
    with TemporaryDirectory() as name:
        folder = Path(name)
        try:
            network.build(folder, outside, HOSTS, OWN, DEAD)
        except OSError as error:
            print(error, file=sys.stderr)
            return network.REFUSED
        print(json.dumps(asyncio.run(Laboratory(folder).report())))
    return 0


if __name__ == "__main__":
    sys.exit(main(set(sys.argv[1:])))
