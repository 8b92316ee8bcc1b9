"""The table tests call pure functions. Tests with sockets stay on loopback: a canary server on an
address that is not allowed must never see a connection."""

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import ParamSpec

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from tests.server import ImageServer
from visual_search.errors import FailureReason, ImageError
from visual_search.network_guard import Guard, GuardedResolver

PUBLIC = Guard((), (80, 443))
ALL_V6 = Guard((ip_network("::/0"),), (80, 443))

REFUSED_V4 = {
    "0.0.0.0/8": "this host",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "carrier NAT; Alibaba's metadata is 100.100.100.200",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local; most clouds' metadata",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "protocol assignments; Oracle's metadata is 192.0.0.192",
    "192.0.2.0/24": "documentation",
    "192.31.196.0/24": "AS112",
    "192.52.193.0/24": "AMT",
    "192.88.99.0/24": "6to4 relays",
    "192.168.0.0/16": "private",
    "192.175.48.0/24": "AS112",
    "198.18.0.0/15": "benchmarks",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved, and broadcast",
    "168.63.129.16/32": "Azure's WireServer",
}

Embed = Callable[[IPv4Address], IPv6Address]


def after(prefix: str, shift: int = 0) -> Embed:
    return lambda inner: IPv6Address(int(IPv6Address(prefix)) | int(inner) << shift)


EMBEDDINGS: dict[str, Embed] = {
    "compatible": after("::"),
    "mapped": after("::ffff:0:0"),
    "translated": after("::ffff:0:0:0"),
    "nat64": after("64:ff9b::"),
    "nat64 of one's own": after("64:ff9b:1::"),
    "6to4": after("2002::", 80),
    "teredo server": after("2001::f7f7:f7f7", 64),  # the client in it is 8.8.8.8
    "teredo client": lambda inner: IPv6Address(
        int(IPv6Address("2001:0:808:808::")) | int(inner) ^ 0xFFFF_FFFF
    ),
    "isatap": after("2606:4700::5efe:0:0"),
    "isatap, universal": after("2606:4700::200:5efe:0:0"),
}


P = ParamSpec("P")


def refusal(check: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> ImageError:
    with pytest.raises(ImageError) as caught:
        check(*args, **kwargs)
    return caught.value


def ends(network: str) -> tuple[IPv4Address, IPv4Address]:
    whole = ip_network(network)
    first, last = whole[0], whole[-1]
    assert isinstance(first, IPv4Address)
    assert isinstance(last, IPv4Address)
    return first, last


@pytest.mark.parametrize("network", REFUSED_V4)
def test_both_ends_of_a_special_block_are_refused_and_their_neighbours_are_not(
    network: str,
) -> None:
    first, last = ends(network)
    for address in (first, last):
        error = refusal(PUBLIC.check_address, str(address), 80)
        assert error.reason is FailureReason.BLOCKED_ADDRESS
        assert str(address) in error.detail
    all_refused = [ip_network(other) for other in REFUSED_V4]
    for neighbour in (int(first) - 1, int(last) + 1):
        if 0 < neighbour < 2**32 - 1:
            address = IPv4Address(neighbour)
            if not any(address in other for other in all_refused):
                PUBLIC.check_address(str(address), 80)


@pytest.mark.parametrize("name", EMBEDDINGS)
@pytest.mark.parametrize("network", REFUSED_V4)
def test_a_refused_address_inside_another_is_refused(name: str, network: str) -> None:
    for inner in ends(network):
        refusal(PUBLIC.check_address, str(EMBEDDINGS[name](inner)), 80)
        # With all of IPv6 open, only what is inside remains a reason.
        refusal(ALL_V6.check_address, str(EMBEDDINGS[name](inner)), 80)


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_an_opened_network_that_carries_a_public_address_is_open(name: str) -> None:
    ALL_V6.check_address(str(EMBEDDINGS[name](IPv4Address("93.184.216.34"))), 80)
    carried = str(EMBEDDINGS[name](IPv4Address("10.0.0.1")))
    assert "10.0.0.1, inside" in refusal(ALL_V6.check_address, carried, 80).detail


def test_an_opened_gateway_does_not_open_the_ports_behind_it() -> None:
    carried = str(EMBEDDINGS["nat64"](IPv4Address("93.184.216.34")))
    assert "port 8080" in refusal(ALL_V6.check_address, carried, 8080).detail


def test_a_public_address_in_isatap_form_is_public() -> None:
    PUBLIC.check_address(str(EMBEDDINGS["isatap"](IPv4Address("93.184.216.34"))), 443)


@pytest.mark.parametrize(
    "address",
    [
        *("::", "::1", "100::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo", "fec0::1"),
        *("ff02::1", "1fff::1", "4000::1", "5f00::1", "2001::1", "2001:1ff:ffff::1"),
        *("2001:db8::1", "2002::1", "3fff::1", "3fff:fff:ffff::1", "2606:4700::1%eth0"),
        *("0x7f000001", "2130706433", "0177.0.0.1", "127.1", "localhost", "", "1.1.1.1\n"),
    ],
)
def test_what_is_no_public_address_is_refused(address: str) -> None:
    error = refusal(PUBLIC.check_address, address, 80)
    assert error.reason is FailureReason.BLOCKED_ADDRESS


@pytest.mark.parametrize(
    "address",
    [
        *("93.184.216.34", "100.63.255.254", "100.128.0.1", "172.32.0.1", "11.0.0.1"),
        *("169.253.255.255", "168.63.129.15", "168.63.129.17", "223.255.255.255"),
        *("2606:4700:4700::1111", "2001:200::1", "2003::1", "3ffe::1"),
    ],
)
def test_public_addresses_may_be_reached(address: str) -> None:
    PUBLIC.check_address(address, 80)
    PUBLIC.check_address(address, 443)


def test_an_allowed_network_opens_its_addresses_and_any_port() -> None:
    guard = Guard((ip_network("10.0.0.0/8"), ip_network("fd00::/8")), (80, 443))
    guard.check_address("10.1.2.3", 8080)
    guard.check_address("fd00::5", 9000)
    refusal(guard.check_address, "192.168.0.1", 80)
    refusal(guard.check_address, "93.184.216.34", 8080)


@pytest.mark.parametrize("port", [0, 22, 25, 5432, 6379, 8080])
def test_other_ports_are_refused_for_addresses_and_names(port: int) -> None:
    for host in ("93.184.216.34", "good.test", "[2606:4700::1111]"):
        error = refusal(PUBLIC.check_url, f"http://{host}:{port}/")
        assert error.reason is FailureReason.BLOCKED_ADDRESS
        assert f"port {port}" in error.detail


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1/", "http://127.255.255.254/", "http://0.0.0.0/"),
        *("http://①②⑦.⓪.⓪.①/", "http://127。0。0。1/"),
        *("http://[::1]/", "http://[0:0:0:0:0:0:0:1]/", "http://[::]/"),
        *("http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/", "http://[::127.0.0.1]/"),
        *("http://[::ffff:0:127.0.0.1]/", "http://[64:ff9b::7f00:1]/"),
        *("http://[64:ff9b:1::a00:1]/", "http://[2002:7f00:1::]/", "http://[2002:a9fe:a9fe::]/"),
        "http://[2001:0:4136:e378:8000:63bf:3f57:fdf2]/",
        *("http://[fe80::1%25lo]/", "http://[fe80::1%lo]/", "http://[fec0::1]/"),
        *("http://[fd00:ec2::254]/latest/meta-data/", "http://[2606:4700::5efe:10.0.0.1]/"),
        *("http://169.254.169.254/latest/meta-data/", "http://168.63.129.16/"),
        *("http://good.test@127.0.0.1/", "http://good.test:80@127.0.0.1:22/"),
        *("http://good.test%2f@127.0.0.1/", "http://93.184.216.34:80@127.0.0.1/"),
    ],
)
def test_a_url_with_a_refused_address_is_blocked(url: str) -> None:
    assert refusal(PUBLIC.check_url, url).reason is FailureReason.BLOCKED_ADDRESS


@pytest.mark.parametrize(
    "url",
    [
        # Notations that the C library takes for 127.0.0.1
        *("http://2130706433/", "http://0x7f000001/", "http://0x7f.0.0.1/", "http://0x7f.1/"),
        *("http://0177.0.0.1/", "http://017700000001/", "http://127.1/", "http://127.0.1/"),
        *("http://127.000.000.001/", "http://0/", "http://127.0.0.1./", "http://0X7F.1/"),
        # Characters that parsers disagree about
        *("http://127.0.0.1\\@good.test/", "http://good.test\\@127.0.0.1/", "http:\\\\good.test/"),
        *("http://1.1.1.1 &@127.0.0.1# @3.3.3.3/", "http://\t127.0.0.1/", " http://good.test/"),
        *("http://good.test/a\r\nHost: x/", "http://good.test\r\n/", "http://good.test/\x00"),
        *("http://good.test/\u2028x", "http://good.test/\x85", "http://good.test/\udcff"),
        *("http://127.0.0.1%00.good.test/", "http://good.test%0d%0a/", "http://a%41.test/"),
        *("http://127.0.0.1\u200b/", "http://1\xad27.0.0.1/", "http://١٢٧.0.0.1/"),
        # No host, no host name, no port
        *("http://", "http:///x", "http:/x", "http:x", "//good.test/", "good.test/x", "", "/x"),
        *(
            "http://a..test/",
            "http://.test/",
            "http://*/",
            "http://a,b/",
            "http://[::1/",
            "http://[::1]@/",
        ),
        *("http://xn--a/", "http://" + "a" * 64 + ".test/", "http://" + "a." * 127 + "test/"),
        *("http://good.test:99999/", "http://good.test:x/", "http://good.test:-1/"),
        # Other schemes
        *("file:///etc/passwd", "ftp://good.test/", "gopher://127.0.0.1:6379/_", "dict://x:1/"),
        *("data:image/png;base64,AAAA", "unix:/x", "http+unix://%2Fvar%2Frun%2Fdocker.sock/"),
        "javascript:alert(1)",
        # Credentials that cannot be sent
        *("http://a%3Ab:c@good.test/", "http://%C3%BC:c@good.test/"),
    ],
)
def test_what_no_client_should_be_given_is_a_bad_url(url: str) -> None:
    error = refusal(PUBLIC.check_url, url)
    assert error.reason is FailureReason.BAD_URL
    assert error.detail.isprintable()


def test_a_bad_url_tells_no_secret() -> None:
    for url in (
        "http://user:SECRET@good.test:x/",
        "http://good.test/?sig=SECRET x",
        "http://user:SECRET@127.0.0.1/?SECRET",
    ):
        assert "SECRET" not in str(refusal(PUBLIC.check_url, url))


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://good.test/a.jpg", "https://good.test/a.jpg"),
        ("HTTPS://Good.TEST:443/A%2fb/%7Ex.jpg", "https://good.test/A%2fb/%7Ex.jpg"),
        ("https://good.test/a?s=a%2Fb%7E~&x=a+b%20c", "https://good.test/a?s=a%2Fb%7E~&x=a+b%20c"),
        ("https://good.test?x=%3D#part", "https://good.test/?x=%3D"),
        ("https://good.test", "https://good.test/"),
        ("https://u:p%40@good.test/x", "https://u:p%40@good.test/x"),
        ("https://bücher.test/ü.jpg?q=ü", "https://xn--bcher-kva.test/%C3%BC.jpg?q=%C3%BC"),
        ("https://exa_mple.test/{x}", "https://exa_mple.test/%7Bx%7D"),
        ("http://good.test./x", "http://good.test./x"),
    ],
)
def test_path_and_query_stay_as_written(url: str, sent: str) -> None:
    """A signature covers the text of a URL: one rewritten escape and it no longer holds."""
    checked = PUBLIC.check_url(url)
    host = f"{checked.raw_user}:{checked.raw_password}@" if checked.raw_user else ""
    port = "" if checked.is_default_port() else f":{checked.port}"
    assert f"{checked.scheme}://{host}{checked.raw_host}{port}{checked.raw_path_qs}" == sent


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/y.jpg", "http://u:p@good.test/y.jpg"),
        ("?v=%7E", "http://u:p@good.test/x?v=%7E"),
        ("http://good.test/y", "http://u:p@good.test/y"),
        ("https://good.test/y", "https://good.test/y"),
        ("//other.test/y", "http://other.test/y"),
        ("http://a:b@other.test/y", "http://other.test/y"),
    ],
)
def test_a_redirect_takes_credentials_nowhere_else(location: str, target: str) -> None:
    url = PUBLIC.check_url("http://u:p@good.test/x")
    assert str(PUBLIC.follow(url, location)) == target


@pytest.mark.parametrize(
    "location",
    [
        *(
            "http://127.0.0.1/",
            "//169.254.169.254/",
            "\\\\127.0.0.1",
            "/\\127.0.0.1",
            "http://x y/",
        ),
        *(
            "file:///etc/passwd",
            "gopher://127.0.0.1/",
            "data:,x",
            "http://[::1",
            "http://[::1]@/",
            "http://good.test%0d%0aX:y/",
            "http://2130706433",
        ),
        *("http://good.test:22/", "/\r\nX: y", "/\udcff"),
    ],
)
def test_a_redirect_inward_is_refused(location: str) -> None:
    error = refusal(PUBLIC.follow, PUBLIC.check_url("http://good.test/x"), location)
    assert error.reason in (FailureReason.BAD_URL, FailureReason.BLOCKED_ADDRESS)


class Answers(AbstractResolver):
    """Gives the same addresses for every name."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=ip, port=port, family=family, proto=0, flags=0)
            for ip in self.addresses
        ]

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "addresses",
    [
        ("127.0.0.1",),
        ("93.184.216.34", "10.0.0.1"),
        ("10.0.0.1", "93.184.216.34"),
        ("93.184.216.34", "::1"),
        ("2606:4700::1111", "fd00::1"),
        ("0x7f000001",),
    ],
)
def test_a_name_with_one_refused_answer_is_refused_whole(addresses: Sequence[str]) -> None:
    resolver = GuardedResolver(PUBLIC, Answers(*addresses))
    error = refusal(asyncio.run, resolver.resolve("evil.test", 80))
    assert error.reason is FailureReason.BLOCKED_ADDRESS
    assert error.detail.startswith("evil.test: ")


def test_a_name_with_public_answers_only_is_resolved() -> None:
    resolver = GuardedResolver(PUBLIC, Answers("93.184.216.34", "2606:4700::1111"))
    answers = asyncio.run(resolver.resolve("good.test", 443))
    assert [answer["host"] for answer in answers] == ["93.184.216.34", "2606:4700::1111"]


def test_a_name_without_an_answer_is_a_failed_lookup() -> None:
    """An empty list would trip an assertion inside the connector."""
    with pytest.raises(OSError, match="no address"):
        asyncio.run(GuardedResolver(PUBLIC, Answers()).resolve("empty.test", 80))


@pytest.fixture
def canary() -> Iterator[ImageServer]:
    with ImageServer("127.0.0.2") as server:
        server.serve("/", b"reached")
        yield server


def get(url: str, guard: Guard, resolver: AbstractResolver | None = None) -> bytes:
    """Fetch with a bare aiohttp session, which follows redirects by itself."""

    async def fetch() -> bytes:
        connector = aiohttp.TCPConnector(
            resolver=resolver or GuardedResolver(guard, ThreadedResolver()),
            socket_factory=guard.make_socket,
        )
        async with aiohttp.ClientSession(connector=connector) as session, session.get(url) as got:
            return await got.read()

    return asyncio.run(fetch())


@pytest.mark.parametrize("host", ["127.0.0.2", "[::ffff:127.0.0.2]", "①②⑦.⓪.⓪.②"])
def test_no_socket_is_made_for_a_literal_address(canary: ImageServer, host: str) -> None:
    guard = Guard((ip_network("127.0.0.1/32"),), (canary.port,))
    error = refusal(get, f"http://{host}:{canary.port}/", guard)
    assert error.reason is FailureReason.BLOCKED_ADDRESS
    assert canary.connections == 0


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "0x7f000002", "0x7f.2"])
def test_no_socket_is_made_for_a_name_that_leads_inward(canary: ImageServer, host: str) -> None:
    guard = Guard((), (canary.port,))
    error = refusal(get, f"http://{host}:{canary.port}/", guard)
    assert error.reason is FailureReason.BLOCKED_ADDRESS
    assert canary.connections == 0


def test_a_resolver_that_lies_is_caught_at_the_socket(canary: ImageServer) -> None:
    """Rebinding: what was checked and what is connected to need not be the same answer."""
    guard = Guard((ip_network("127.0.0.1/32"),), (canary.port,))
    url = f"http://evil.test:{canary.port}/"
    error = refusal(get, url, guard, Answers("127.0.0.2"))
    assert error.reason is FailureReason.BLOCKED_ADDRESS
    # Several addresses race; aiohappyeyeballs then swallows the refusals and finds nothing to
    # raise. Only the resolver's refusal, which comes first, has a name.
    with pytest.raises((ImageError, IndexError)):
        get(url, guard, Answers("127.0.0.2", "127.0.0.3"))
    assert canary.connections == 0


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_socket_is_made_for_a_redirect_inward(canary: ImageServer, status: int) -> None:
    with ImageServer() as outside:
        outside.redirect("/", canary.url("/"), status)
        guard = Guard((ip_network("127.0.0.1/32"),), (canary.port,))
        error = refusal(get, outside.url("/"), guard)
        assert error.reason is FailureReason.BLOCKED_ADDRESS
        assert outside.hits["/"] == 1
    assert canary.connections == 0


def test_an_allowed_address_is_reached(canary: ImageServer) -> None:
    guard = Guard((ip_network("127.0.0.2/32"),), (80, 443))
    assert get(canary.url("/"), guard) == b"reached"
    assert get(f"http://name.test:{canary.port}/", guard, Answers("127.0.0.2")) == b"reached"
