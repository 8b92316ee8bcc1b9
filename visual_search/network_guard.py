"""Which addresses may be reached: public ones, and those the user has opened.

Catalogue URLs come from outside, so none may lead inward. Four checks, because each sees what
another cannot:

- the text of a URL, before any parser reads it (`Guard.check_url`), each redirect's as well;
- all answers for a name at once (`GuardedResolver`), so that a name with one bad address is
  refused whatever the others are;
- the address a socket is made for (`Guard.make_socket`): literals never pass the resolver;
- in each of these, every IPv4 address that an IPv6 address carries inside.
"""

import re
import socket
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp import AddrInfoType
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from visual_search.errors import FailureReason, ImageError
from visual_search.redaction import printable

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address

# IANA's special-purpose registry, complete: also the blocks it calls globally reachable (AS112,
# AMT), where no image is served. Python's own `is_global` follows the Python version and lets
# multicast, 192.0.0.0/24 and 192.88.99.0/24 through.
_REFUSED_V4 = tuple(
    IPv4Network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24"),
        *("192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # Azure's WireServer: inward, behind a public address
    )
)

_GLOBAL_V6 = IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)

# Where an IPv4 address stands inside an IPv6 one: network, bits to the right of it.
_EMBEDDINGS = (
    (IPv6Network("::/96"), 0),  # compatible, RFC 4291
    (IPv6Network("::ffff:0:0/96"), 0),  # mapped, RFC 4291
    (IPv6Network("::ffff:0:0:0/96"), 0),  # translated, RFC 2765
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64, RFC 6052
    (IPv6Network("64:ff9b:1::/48"), 0),  # NAT64 of one's own, RFC 8215
    (IPv6Network("2002::/16"), 80),  # 6to4, RFC 3056
    (IPv6Network("2001::/32"), 64),  # Teredo's server, RFC 4380
)
_TEREDO = IPv6Network("2001::/32")
_ISATAP = 0x0000_5EFE  # upper half of the interface id, RFC 5214 …
_ISATAP_FLAGS = 0x0300_0000  # … whatever its "universal" and "group" bits are

# `http://[::1]@/`, an address where the user name belongs, is the second for yarl.
_UNREADABLE = (ValueError, IndexError)

_UNSAFE = re.compile(r"[\s\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?")
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?")
_AFTER_HOST = re.compile(r"[^:]+://[^/?#]*([^#]*)")
_ENCODED = re.compile(r"[A-Za-z0-9\-._~:/?@!$&'()*+,;=%\[\]|^]*")


class Guard:
    """Knows what may be reached.

    All checks raise ImageError with `BAD_URL` or `BLOCKED_ADDRESS`. It is neither an OSError nor
    a RuntimeError on purpose: those make the connector go on with the next address.
    """

    def __init__(self, allow_networks: Sequence[Network], allow_ports: Sequence[int]) -> None:
        """Open `allow_networks` on every port, public addresses on `allow_ports`."""
        self._networks = tuple(allow_networks)
        self._ports = frozenset(allow_ports)

    def check_url(self, text: str) -> URL:
        """Parse an absolute URL; path and query stay as written, for signatures cover them.

        Raises:
            ImageError: `BAD_URL` for what no HTTP client should be given, `BLOCKED_ADDRESS` for
                a literal address or a port that is not open. Names are not looked up here.
        """
        if unsafe := _UNSAFE.search(text):
            raise _bad_url(
                f"character {unsafe[0]!a} at position {unsafe.start()}; "
                "percent-encode it (a space is %20)"
            )
        try:
            url = URL(text)
            user, _ = url.user, url.host  # decoded now, or aiohttp fails on them later
        except _UNREADABLE:
            # The parser's message may quote the URL, credentials included.
            raise _bad_url("not a URL: its host or port cannot be read") from None
        if url.scheme not in ("http", "https"):
            raise _bad_url(f"scheme {printable(url.scheme, 20)!r} is neither http nor https")
        if user is not None and (":" in user or not user.isascii()):
            raise _bad_url("the user name before the host cannot be sent")
        self._check_host(url.raw_host or "", url.port or 0)
        return _as_written(text, url)

    def follow(self, url: URL, location: str) -> URL:
        """The URL that `location`, an answer's header, leads to from `url`.

        Credentials in a URL go to the origin they were written for and to no other.

        Raises:
            ImageError: As `check_url`.
        """
        if _UNSAFE.search(location):
            raise _bad_url("redirect to a location with whitespace, backslash or control character")
        try:
            target = url.join(URL(location, encoded=True))
            same_origin = target.origin() == url.origin()
            user, password = (url.user, url.password) if same_origin else (None, None)
            text = str(target.with_user(user).with_password(password))
        except _UNREADABLE:
            raise _bad_url("redirect to what is not an http URL") from None
        return self.check_url(text)

    def check_address(self, address: str, port: int) -> None:
        """Refuse `address` unless it and every address inside it is public or opened.

        Raises:
            ImageError: `BLOCKED_ADDRESS`.
        """
        try:
            chain = tuple(_unwrapped(ip_address(address)))
        except ValueError:
            raise _blocked(f"{printable(address, 60)!r} is not an IP address") from None
        opened = [any(inner in network for network in self._networks) for inner in chain]
        for inner, is_open in zip(chain, opened, strict=True):
            if not is_open and not _is_public(inner):
                inside = "" if inner is chain[0] else f", inside {chain[0]},"
                raise _blocked(
                    f"{inner}{inside} is not a public address; download.allow_networks opens it"
                )
        if port not in self._ports and not all(opened):
            raise self._refused_port(port)

    def make_socket(self, info: AddrInfoType) -> socket.socket:
        """A socket for one address of a connector's list; its `socket_factory`.

        Raises:
            ImageError: `BLOCKED_ADDRESS`; no socket exists then.
        """
        family, kind, protocol, _, (address, port, *_) = info
        self.check_address(address, port)
        return socket.socket(family, kind, protocol)

    def _check_host(self, host: str, port: int) -> None:
        if ":" in host:
            self.check_address(host, port)
        elif _ENDS_IN_NUMBER.fullmatch(host):
            # 127.1, 0x7f000001, 2130706433, 0177.0.0.1: the C library takes them for addresses.
            try:
                IPv4Address(host)
            except ValueError:
                raise _bad_url(
                    f"host {printable(host, 60)!r} is not an address in the usual notation"
                ) from None
            self.check_address(host, port)
        elif len(host) > 253 or not _NAME.fullmatch(host):
            raise _bad_url(f"{printable(host, 60)!r} is not a host name")
        elif port not in self._ports and not self._networks:
            raise self._refused_port(port)

    def _refused_port(self, port: int) -> ImageError:
        ports = ", ".join(map(str, sorted(self._ports)))
        return _blocked(f"port {port} is none of download.allow_ports ({ports})")


class GuardedResolver(AbstractResolver):
    """A resolver that refuses a name as a whole if any of its addresses is refused."""

    def __init__(self, guard: Guard, resolver: AbstractResolver) -> None:
        self._guard = guard
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses of `host`, each checked.

        Raises:
            ImageError: `BLOCKED_ADDRESS`, naming the host.
            OSError: The name has no address.
        """
        answers = await self._resolver.resolve(host, port, family)
        if not answers:
            raise OSError(None, "the name has no address")
        for answer in answers:
            try:
                self._guard.check_address(answer["host"], answer["port"])
            except ImageError as error:
                raise ImageError(error.reason, f"{printable(host, 100)}: {error.detail}") from None
        return answers

    async def close(self) -> None:
        await self._resolver.close()


def _unwrapped(address: Address) -> Iterator[Address]:
    """`address`, then every IPv4 address inside it."""
    yield address
    if isinstance(address, IPv4Address):
        return
    bits = int(address)
    for network, shift in _EMBEDDINGS:
        if address in network:
            yield IPv4Address(bits >> shift & 0xFFFF_FFFF)
    if address in _TEREDO:
        yield IPv4Address(~bits & 0xFFFF_FFFF)  # the client, stored inverted
    if bits >> 32 & 0xFFFF_FFFF & ~_ISATAP_FLAGS == _ISATAP:
        yield IPv4Address(bits & 0xFFFF_FFFF)


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _REFUSED_V4)
    if address.scope_id is not None:
        return False
    return address in _GLOBAL_V6 and not any(address in network for network in _REFUSED_V6)


def _as_written(text: str, url: URL) -> URL:
    """`url` with path and query exactly as in `text`, where that needs no encoding.

    Parsing rewrites `%2F` in a query to `/` and `%7E` to `~`: the same resource, but a signature
    over the text no longer holds.
    """
    rest = _AFTER_HOST.match(text)
    if rest is None or not _ENCODED.fullmatch(rest[1]):
        return url
    # The host stays the parsed one, and `rest` begins with "/" or "?": it cannot reach into it.
    return URL(f"{url.scheme}://{url.raw_authority}{rest[1]}", encoded=True)


def _bad_url(detail: str) -> ImageError:
    return ImageError(FailureReason.BAD_URL, detail)


def _blocked(detail: str) -> ImageError:
    return ImageError(FailureReason.BLOCKED_ADDRESS, detail)
