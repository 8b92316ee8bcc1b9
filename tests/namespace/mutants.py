"""Guards that lack a check, to show that the cases notice.

Each replaces what it must of the product, in this process, and puts it back. The checks overlap on
purpose, so most mutants lack more than one: all that stand between a case and the canary.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import aiohttp
from aiohttp import AddrInfoType
from aiohttp.abc import ResolveResult
from yarl import URL

from tests.namespace.cases import EMBEDDINGS
from visual_search import network_guard
from visual_search.network_guard import Address, Guard, GuardedResolver

Change = Callable[[], AbstractContextManager[object]]

_make_guard, _follow, _checked_answers = Guard.__init__, Guard.follow, GuardedResolver.resolve


def _any_socket(_guard: Guard, info: AddrInfoType) -> socket.socket:
    return socket.socket(*info[:3])


def _any_host(_guard: Guard, _host: str, _port: int) -> None:
    pass


def _any_target(_guard: Guard, url: URL, location: str) -> URL:
    return url.join(URL(location))


async def _any_answer(
    self: GuardedResolver,
    host: str,
    port: int = 0,
    family: socket.AddressFamily = socket.AF_UNSPEC,
) -> list[ResolveResult]:
    return await self._resolver.resolve(host, port, family)


async def _first_answer(
    self: GuardedResolver,
    host: str,
    port: int = 0,
    family: socket.AddressFamily = socket.AF_UNSPEC,
) -> list[ResolveResult]:
    answers = await self._resolver.resolve(host, port, family)
    self._guard.check_address(answers[0]["host"], port)
    return answers


async def _other_answers(
    self: GuardedResolver,
    host: str,
    port: int = 0,
    family: socket.AddressFamily = socket.AF_UNSPEC,
) -> list[ResolveResult]:
    await _checked_answers(self, host, port, family)
    return await self._resolver.resolve(host, port, family)


def _is_global(address: Address) -> bool:
    return address.is_global


def _nothing_inside(address: Address) -> Iterator[Address]:
    yield address


def _follow_with_credentials(guard: Guard, url: URL, location: str) -> URL:
    return _follow(guard, url, location).with_user(url.user).with_password(url.password)


def _check_no_port(guard: Guard, allow_networks: Any, allow_ports: Any) -> None:
    _make_guard(guard, allow_networks, range(1 << 16))


def _replaced(**members: object) -> Change:
    """The guard with these methods instead of its own; `resolve` is its resolver's."""

    @contextmanager
    def change() -> Iterator[None]:
        with ExitStack() as stack:
            for name, member in members.items():
                owner = GuardedResolver if name == "resolve" else Guard
                stack.enter_context(patch.object(owner, name, member))
            yield

    return change


@contextmanager
def _python_decides() -> Iterator[None]:
    with (
        patch.object(network_guard, "_is_public", _is_global),
        patch.object(network_guard, "_unwrapped", _nothing_inside),
    ):
        yield


def _session(**makers: Callable[[], object]) -> Change:
    """Sessions with other arguments than the product gives; and with sockets for any address."""
    real = aiohttp.ClientSession

    def session(**given: Any) -> aiohttp.ClientSession:
        return real(**given | {name: make() for name, make in makers.items()})

    @contextmanager
    def change() -> Iterator[None]:
        with (
            patch.object(aiohttp, "ClientSession", session),
            patch.object(Guard, "make_socket", _any_socket),
        ):
            yield

    return change


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A change, and the groups of cases in each of which one at least must notice it."""

    change: Change
    noticed_by: tuple[str, ...]


MUTANTS = {
    "a resolver only": Mutant(
        change=_replaced(_check_host=_any_host, make_socket=_any_socket),
        noticed_by=("S1", "S14", "S16", "S27", "S33", "S43", "S48", "S49", "S50", "S55"),
    ),
    "the text of URLs only": Mutant(
        change=_replaced(resolve=_any_answer, make_socket=_any_socket),
        noticed_by=("S3", "S4", "S32", "S37", "S38", "S39", "S41", "S49"),
    ),
    "the first answer only": Mutant(
        change=_replaced(resolve=_first_answer, make_socket=_any_socket),
        noticed_by=("S39", "F3"),
    ),
    "looked up again to connect": Mutant(
        change=_replaced(resolve=_other_answers, make_socket=_any_socket),
        noticed_by=("S40",),
    ),
    "redirects unchecked": Mutant(
        change=_replaced(follow=_any_target, make_socket=_any_socket),
        noticed_by=("S43", "S44", "S45", "S46", "S47", "S48", "S49", "S55", "F14"),
    ),
    "no port rule": Mutant(
        change=_replaced(__init__=_check_no_port),
        noticed_by=("S55", "S56", "S62"),
    ),
    "Python's is_global": Mutant(
        change=_python_decides,
        # The same in every version of Python; S20, S21 and S30 only in older ones.
        noticed_by=("S17", "S18", "S19", "S26", "S31", "S39"),
    ),
    "nothing unwrapped": Mutant(
        change=lambda: patch.object(network_guard, "_unwrapped", _nothing_inside),
        noticed_by=("S26", *(f"F2 {form}" for form in EMBEDDINGS)),
    ),
    "credentials follow": Mutant(
        change=_replaced(follow=_follow_with_credentials),
        noticed_by=("F14",),
    ),
    "cookies kept": Mutant(
        change=_session(cookie_jar=aiohttp.CookieJar),
        noticed_by=("F14",),
    ),
    "the environment's proxies": Mutant(
        change=_session(trust_env=lambda: True),
        noticed_by=("S57",),
    ),
}

# Not a mutant to be noticed: whatever else fails, the check of each socket keeps all of them out.
SOCKETS_ONLY = _replaced(_check_host=_any_host, resolve=_any_answer)
