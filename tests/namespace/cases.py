"""What is tried in the namespace, what must come of it, and how the two are compared.

S1 to S62 are the numbers of `docs/reliability.md`: up to S57 ways to lead a downloader inward, from
S58 on controls that must be fetched. F2, F3 and F14 are generated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_network
from random import Random
from typing import Any

from tests.namespace.servers import image_from, place
from visual_search.errors import FailureReason

GOOD, GOOD_V6, OTHER = "93.184.216.34", "2606:4700:4700::1111", "151.101.65.6"
DEAD = "9.9.9.10"
OWN = ("93.184.216.200", "2606:4700:4700::200")
PROXY = "10.99.99.99"
PORTS = (22, 25, 80, 443, 2375, 3128, 5432, 6379, 8080)

USER, PASSWORD, BASIC = "some-user", "s3cret", "c29tZS11c2VyOnMzY3JldA=="
CREDENTIALS = f"{USER}:{PASSWORD}@"

HOSTS = {
    "localhost": "127.0.0.1",
    "metadata.google.internal": "169.254.169.254",
    "127.0.0.1.nip.test": "127.0.0.1",
    "own.test": "127.0.1.1",
    "postgres.test": "10.0.0.5",
}
NAMES: dict[str, Sequence[Sequence[str]]] = {
    "localhost": [["127.0.0.1", "::1"]],  # asked for `localhost.`, which no hosts file knows
    "good.test": [[GOOD]],
    "sub.good.test": [[OTHER]],
    "other.test": [[OTHER]],
    "both.test": [[GOOD, GOOD_V6]],
    "inside.test": [["10.1.2.3"]],
    "two.test": [[GOOD, "10.0.0.1"]],
    "three.test": [["10.0.0.1", GOOD, OTHER]],
    "v6-inward.test": [[GOOD, "::1"]],
    "v4-inward.test": [["127.0.0.1", GOOD_V6]],
    "v6-private.test": [["fd00::1"]],
    "mapped.test": [[GOOD, "::ffff:10.0.0.1"]],
    "nat64.test": [[GOOD, "64:ff9b::a9fe:a9fe"]],
    "end.test": [["10.0.0.1"]],
    "crowd.test": [[GOOD], ["127.0.0.1"]],
}
INWARD_POOL = (
    *("127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00:ec2::254"),
    *("::ffff:10.0.0.1", "64:ff9b::7f00:1", "2606:4700::5efe:a00:1"),
)
PUBLIC_POOL = (GOOD, OTHER, GOOD_V6, "2a00:1450:4001:81b::2004", "8.8.4.4")
REBINDING = {
    f"rebind-{number}.test": [[GOOD], [INWARD_POOL[number % len(INWARD_POOL)]]]
    for number in range(100)
}


def _mixed(random: Random, *, inward: bool) -> list[str]:
    """Some public addresses, perhaps one that cannot be reached, and some that lead inward."""
    answer = random.sample(PUBLIC_POOL, random.randint(1, 3)) + random.choice(([], [DEAD]))
    if inward:
        answer += random.sample(INWARD_POOL, random.randint(1, 2))
    return random.sample(answer, len(answer))


_random = Random(3)
MIXED = {f"mixed-{number}.test": _mixed(_random, inward=number % 2 > 0) for number in range(100)}
NAMES |= REBINDING | {name: [answer] for name, answer in MIXED.items()}
ALIASES = {"alias.test": "second.test", "second.test": "third.test", "third.test": "end.test"}

BLOCKED, BAD_URL = FailureReason.BLOCKED_ADDRESS, FailureReason.BAD_URL

# By their literal address, by a name from /etc/hosts or by one from DNS, these lead inward.
INWARD = {
    "S1": ["http://127.0.0.1/", "https://127.0.0.1/"],
    "S2": ["http://127.255.255.254/"],
    "S3": ["http://localhost/", "http://LOCALHOST/", "https://localhost/"],
    "S4": ["http://localhost./"],
    "S11": ["http://0.0.0.0/"],
    "S12": ["http://①②⑦.⓪.⓪.①/"],
    "S13": ["http://127。0。0。1/"],
    "S14": ["http://[::1]/", "http://[0:0:0:0:0:0:0:1]/", "https://[::1]/"],
    "S15": ["http://[::]/"],
    "S16": ["http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/"],
    "S17": ["http://[::127.0.0.1]/"],
    "S18": ["http://[::ffff:0:127.0.0.1]/"],
    "S19": ["http://[64:ff9b::7f00:1]/", "http://[64:ff9b::a9fe:a9fe]/"],
    "S20": ["http://[64:ff9b:1::a00:1]/"],
    "S21": ["http://[2002:7f00:1::]/", "http://[2002:a9fe:a9fe::]/"],
    "S22": ["http://[2001:0:4136:e378:8000:63bf:3f57:fdf2]/"],
    "S23": ["http://[fe80::1%25lo]/", "http://[fe80::1%lo]/"],
    "S24": ["http://[fd00:ec2::254]/latest/meta-data/"],
    "S25": ["http://[fec0::1]/", "http://[ff02::1]/"],
    "S26": ["http://[2606:4700::5efe:10.0.0.1]/", "http://[2606:4700::200:5efe:a00:1]/"],
    "S27": ["http://169.254.169.254/latest/meta-data/"],
    "S28": ["http://169.254.170.2/v2/credentials"],
    "S29": ["http://100.100.100.200/latest/meta-data/"],
    "S30": ["http://192.0.0.192/latest/"],
    "S31": ["http://168.63.129.16/"],
    "S32": ["http://metadata.google.internal/computeMetadata/v1/"],
    "S33": [
        *("http://10.0.0.1/", "http://172.16.0.1/", "http://172.31.255.255/"),
        "http://192.168.1.1/",
    ],
    "S34": ["http://100.64.0.1/", "http://100.127.255.254/"],
    "S35": [
        *("http://198.18.0.1/", "http://192.0.2.1/", "http://198.51.100.1/"),
        "http://203.0.113.1/",
    ],
    "S36": ["http://224.0.0.1/", "http://240.0.0.1/", "http://255.255.255.255/"],
    "S37": ["http://127.0.0.1.nip.test/"],
    "S38": ["http://two.test/", "http://three.test/"],
    "S39": [
        *("http://v6-inward.test/", "http://v4-inward.test/", "http://v6-private.test/"),
        *("http://mapped.test/", "http://nat64.test/"),
    ],
    "S41": ["http://alias.test/"],
    "S50": [
        *("http://good.test@127.0.0.1/", "http://good.test:80@127.0.0.1:22/"),
        *("http://good.test%2f@127.0.0.1/", "http://good.test%23@10.0.0.1/"),
    ],
    "S55": [
        *("http://good.test:22/", "http://good.test:25/", "http://good.test:6379/"),
        *("http://good.test:5432/", f"http://{GOOD}:22/", f"http://[{GOOD_V6}]:6379/"),
        "https://good.test:8080/",
    ],
    "S56": [
        *(f"http://{OWN[0]}:8080/", f"http://[{OWN[1]}]:8080/", "http://own.test/"),
        *("http://own.test:8080/", "http://postgres.test/", "http://postgres.test:5432/"),
        *("http://10.0.0.5:5432/", f"http://{GOOD}:5432/"),
    ],
}

# No client should be given these, wherever they may lead. The C library takes S5 to S11 for
# 127.0.0.1 and 0.0.0.0.
MALFORMED = {
    "S5": ["http://2130706433/"],
    "S6": ["http://0x7f000001/", "http://0X7F000001/"],
    "S7": ["http://0x7f.0.0.1/", "http://0x7f.1/"],
    "S8": ["http://0177.0.0.1/", "http://017700000001/"],
    "S9": ["http://127.1/", "http://127.0.1/"],
    "S10": ["http://127.000.000.001/"],
    "S11": ["http://0/"],
    "S50": ["http://[::1]@/", "http://[::1]x@/", "http://127.0.0.1@/"],
    "S51": ["http://127.0.0.1\\@good.test/", "http://good.test\\@127.0.0.1/"],
    "S52": ["http://1.1.1.1 &@127.0.0.1# @3.3.3.3/", "http://\t127.0.0.1/", "http://127.0.0.1\t/"],
    "S53": [
        *("http://127.0.0.1%00.good.test/", "http://127.0.0.1\0.good.test/"),
        *("http://good.test%0d%0aX:y/", "http://good.test\r\nX: y/", "http://127.0.0.1\n/"),
        "http://good.test/\r\nHost: 127.0.0.1\r\n\r\n",
    ],
    "S54": [
        *("file:///etc/passwd", "file://127.0.0.1/etc/passwd", "ftp://127.0.0.1/x"),
        *("ftp://good.test/", "gopher://127.0.0.1:6379/_", "dict://127.0.0.1:6379/info"),
        *("data:image/png;base64,iVBORw0KGgo=", "unix:/var/run/docker.sock", "javascript:0"),
        *("http+unix://%2Fvar%2Frun%2Fdocker.sock/", "ws://127.0.0.1/", "tcp://127.0.0.1:2375/"),
    ],
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One URL, given to a new `Downloader`.

    Attributes:
        reason: What the fetch must end with; None if it must bring an image.
        reached: Where each connection must go, in order. With `any_of_these`, one place of these is
            enough, and a race between them allowed.
        body: What it must bring, if not an image that names its source.
        knowing: So many of the first requests must bear the credentials, and no others may.
        lured: The environment has proxies and a `.netrc`.
        answer: What every lookup in the system is made to bring, instead of the truth.
    """

    group: str
    title: str
    way: str = "directly"
    url: str
    reason: FailureReason | None = None
    reached: tuple[str, ...] = ()
    any_of_these: bool = False
    body: str | None = None
    knowing: int = 0
    lured: bool = False
    answer: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.group} {self.way} {self.title}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a case.

    Attributes:
        text: The error's words, or the body.
        connections: Where connections went, as the servers saw it.
        opened: How many connections were begun, as the kernel saw it, served or not.
        heads: The requests: where they went, and their heads.
        lookups: How often each name was looked up.
        retries: How often a try was followed by another.
    """

    reason: str | None
    text: str
    connections: list[str]
    opened: int
    heads: list[list[str]]
    lookups: dict[str, int]
    retries: int


def faults(case: Case, outcome: Outcome) -> list[str]:
    """All in which `outcome` is not what it must be, in sentences."""
    found = breaches(case, outcome)
    if outcome.reason != (None if case.reason is None else case.reason.value):
        found.append(f"it ended with {outcome.reason}: {outcome.text}")
    elif case.reason is None:
        sources = case.reached if case.any_of_these else case.reached[-1:]
        images = [image_from(where).decode() for where in sources]
        if outcome.text not in (images if case.body is None else [case.body]):
            found.append(f"it brought {outcome.text!r}")
    if case.any_of_these:
        if not outcome.connections:
            found.append("nothing was reached")
    elif outcome.connections != list(case.reached):
        found.append(f"reached were {outcome.connections}, not {case.reached}")
    if any(BASIC not in head and PASSWORD not in head for _, head in outcome.heads[: case.knowing]):
        found.append("the credentials did not go where they belong")
    if outcome.retries:
        found.append(f"it was tried {outcome.retries + 1} times")
    if any(times > 1 for times in outcome.lookups.values()):
        found.append(f"a name was looked up again: {outcome.lookups}")
    return found


def breaches(case: Case, outcome: Outcome) -> list[str]:
    """Only what must never be: a connection to a wrong place, a secret told."""
    found = [f"{where} was reached" for where in outcome.connections if where not in case.reached]
    if outcome.opened != len(outcome.connections):
        found.append(f"{outcome.opened} connections were begun: {outcome.connections} arrived")
    for number, (where, head) in enumerate(outcome.heads):
        names = {line.partition(":")[0].lower() for line in head.splitlines()}
        found += [f"{where} was sent {name}" for name in names & {"cookie", "referer"}]
        if number >= case.knowing and (
            names & {"authorization", "proxy-authorization"} or PASSWORD in head
        ):
            found.append(f"{where} was sent credentials")
    return found


def answering(head: str, body: str = "", *, host: str = "good.test") -> str:
    """A URL on `host` whose answer is this."""
    length = len(body.encode())
    answer = f"HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    return f"http://{host}/say/{answer.encode().hex()}"


def redirect(target: str, status: int = 302, *, host: str = "good.test", more: str = "") -> str:
    """A URL on `host` that answers with a redirect to `target`."""
    return answering(f"{status} Moved\r\nLocation: {target}{more}", host=host)


AT_GOOD, AT_OTHER, AT_PROXY = place(GOOD, 80), place(OTHER, 80), place(PROXY, 3128)
BY_PROXY = {"proxy": f"http://{PROXY}:3128"}
STATUSES = (301, 302, 303, 307, 308)


def refused_everywhere(urls: Mapping[str, Sequence[str]], reason: FailureReason) -> Iterator[Case]:
    """Each URL given directly, by redirect, and to a downloader that uses a proxy."""
    for group, titles in urls.items():
        for title in titles:
            yield Case(group=group, title=title, url=title, reason=reason)
            yield Case(
                group=group,
                title=title,
                way="by proxy",
                url=title,
                reason=reason,
                settings=BY_PROXY,
            )
            if not set("\r\n\0") & set(title):  # no header can hold these
                yield Case(
                    group=group,
                    title=title,
                    way="by redirect",
                    url=redirect(title),
                    reason=reason,
                    reached=(AT_GOOD,),
                )


def redirects() -> Iterator[Case]:
    for group, status in zip(("S43", "S44", "S45", "S46", "S47"), STATUSES, strict=True):
        for title in ("http://127.0.0.1/", "https://127.0.0.1/", "http://[::1]/", "http://0x7f.1/"):
            reason = BAD_URL if "0x" in title else BLOCKED
            url = redirect(title, status)
            way = f"by {status}"
            yield Case(
                group=group, title=title, way=way, url=url, reason=reason, reached=(AT_GOOD,)
            )
            yield Case(
                group=group,
                title=title,
                way=f"{way} by proxy",
                url=url,
                reason=reason,
                reached=(AT_PROXY,),
                settings=BY_PROXY,
            )
    for title, reason in {
        "//169.254.169.254/": BLOCKED,
        "//good.test@127.0.0.1/": BLOCKED,
        "//2130706433/": BAD_URL,
        "\\\\127.0.0.1": BAD_URL,
        "/\\127.0.0.1": BAD_URL,
        "http:\\\\127.0.0.1/": BAD_URL,
    }.items():
        yield Case(
            group="S48",
            title=title,
            way="by redirect",
            url=redirect(title),
            reason=reason,
            reached=(AT_GOOD,),
        )
    for title in ("///127.0.0.1/", "http:///127.0.0.1/", "http:127.0.0.1/", "127.0.0.1"):
        yield Case(
            group="S48",
            title=title,
            way="by redirect, as a path of its host",
            url=redirect(title),
            reached=(AT_GOOD, AT_GOOD),
        )


def chains() -> Iterator[Case]:
    for title in ("http://10.0.0.1/", "http://end.test/", "http://[::ffff:10.0.0.1]/"):
        yield Case(
            group="S49",
            title=title,
            way="by two redirects",
            url=redirect(redirect(title, host="other.test")),
            reason=BLOCKED,
            reached=(AT_GOOD, AT_OTHER),
        )
    inward = "http://127.0.0.1/"
    page = f'<html><meta http-equiv="refresh" content="0; url={inward}"><img src="{inward}"></html>'
    for title, head in {
        "Refresh": f"200 OK\r\nRefresh: 0; url={inward}",
        "Link": f"200 OK\r\nLink: <{inward}>; rel=preload\r\nContent-Location: {inward}",
        "Location without a redirect": f"200 OK\r\nLocation: {inward}",
        "a page": "200 OK\r\nContent-Type: text/html",
    }.items():
        url = answering(head, page)
        yield Case(group="S49", title=title, url=url, reached=(AT_GOOD,), body=page)


def lookups() -> Iterator[Case]:
    """Names whose answers change or are none."""
    for name in REBINDING:
        url = f"http://{name}/"
        yield Case(group="S40", title=f"{url}1", url=f"{url}1", reached=(AT_GOOD,))
        yield Case(group="S40", title=f"{url}2", url=f"{url}2", reason=BLOCKED)
    for text in ("0x7f000001", "127.1", "localhost", "::1%lo", "127.0.0.1"):
        yield Case(
            group="S42",
            title=f"a lookup that brings {text}",
            url="http://odd.test/",
            reason=BLOCKED,
            answer=(text,),
        )
    for title, url, answer in (
        ("a lookup that brings nothing", "http://odd.test/", ()),
        ("a name that is not there", "http://nowhere.test/", None),
    ):
        yield Case(
            group="S42",
            title=title,
            url=url,
            reason=FailureReason.DNS,
            answer=answer,
            settings={"tries": 1},
        )


def surroundings() -> Iterator[Case]:
    own_port = {"allow_ports": (80, 8080)}
    for title in ("http://127.0.0.1:8080/", "http://own.test:8080/"):
        yield Case(
            group="S56",
            title=title,
            way="with its port allowed",
            url=title,
            reason=BLOCKED,
            settings=own_port,
        )
    way = "lured"
    yield Case(
        group="S57",
        title="http://good.test/",
        way=way,
        url="http://good.test/",
        reached=(AT_GOOD,),
        lured=True,
    )
    yield Case(
        group="S57",
        title="http://good.test/ → http://other.test/",
        way=way,
        url=redirect("http://other.test/"),
        reached=(AT_GOOD, AT_OTHER),
        lured=True,
    )
    for title in ("http://10.0.0.1/", "http://localhost/", "https://127.0.0.1/"):
        yield Case(group="S57", title=title, way=way, url=title, reason=BLOCKED, lured=True)


def controls() -> Iterator[Case]:
    opened = {"allow_networks": ("10.0.0.0/8",)}
    for group, title, reached in (
        ("S58", f"http://{GOOD}/", AT_GOOD),
        ("S59", "http://good.test/", AT_GOOD),
        ("S59", "http://good.test./", AT_GOOD),
        ("S61", "http://100.63.255.254/", "100.63.255.254:80"),
        ("S61", "http://100.128.0.1/", "100.128.0.1:80"),
        ("S61", "http://172.32.0.1/", "172.32.0.1:80"),
        ("S61", "http://11.0.0.1/", "11.0.0.1:80"),
        ("S61", "http://169.253.255.255/", "169.253.255.255:80"),
        ("S62", f"http://[{GOOD_V6}]/", place(GOOD_V6, 80)),
    ):
        yield Case(group=group, title=title, url=title, reached=(reached,))
    for status in STATUSES:
        yield Case(
            group="S60",
            title="http://other.test/",
            way=f"by {status}",
            url=redirect("http://other.test/", status),
            reached=(AT_GOOD, AT_OTHER),
        )
    for title, where in (
        ("http://10.0.0.1/", "10.0.0.1:80"),
        ("http://10.0.0.1:8080/", "10.0.0.1:8080"),
        ("http://inside.test:8080/", "10.1.2.3:8080"),
    ):
        way = "with 10.0.0.0/8 open"
        yield Case(group="S62", title=title, way=way, url=title, reached=(where,), settings=opened)
        yield Case(
            group="S62",
            title=title,
            way=f"{way}, by redirect",
            url=redirect(title),
            reached=(AT_GOOD, where),
            settings=opened,
        )
    for title in ("http://127.0.0.1/", "http://192.168.0.1/", "http://good.test:8080/"):
        yield Case(
            group="S62",
            title=title,
            way="with 10.0.0.0/8 open",
            url=title,
            reason=BLOCKED,
            settings=opened,
        )
    yield Case(
        group="S59",
        title="http://both.test/",
        url="http://both.test/",
        reached=(AT_GOOD, place(GOOD_V6, 80)),
        any_of_these=True,
    )
    yield Case(
        group="S59",
        title="http://good.test/",
        way="by proxy",
        url="http://good.test/",
        reached=(AT_PROXY,),
        settings=BY_PROXY,
    )


RANGES = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
    *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    "168.63.129.16/32",
)


def _halves(address: IPv4Address) -> str:
    return f"{int(address) >> 16:x}:{int(address) & 0xFFFF:x}"


EMBEDDINGS: dict[str, Callable[[IPv4Address], str]] = {
    "mapped": lambda inner: f"::ffff:{inner}",
    "compatible": lambda inner: f"::{inner}",
    "translated": lambda inner: f"::ffff:0:{inner}",
    "NAT64": lambda inner: f"64:ff9b::{inner}",
    "NAT64 of one's own": lambda inner: f"64:ff9b:1::{inner}",
    "6to4": lambda inner: f"2002:{_halves(inner)}::1",
    "ISATAP": lambda inner: f"2606:4700::5efe:{inner}",
    "Teredo server": lambda inner: f"2001:0:{_halves(inner)}:8000:63bf:f7f7:f7f7",
    "Teredo client": lambda inner: (
        f"2001:0:808:808:8000:63bf:{_halves(IPv4Address(0xFFFF_FFFF ^ int(inner)))}"
    ),
}
OPENED = "with all of IPv6 open"


def embedded() -> Iterator[Case]:
    """F2: both ends of each range, carried inside IPv6 in each way there is.

    Most of these forms stand in blocks that are refused as such; with all of IPv6 open, what they
    carry is the only reason left.
    """
    inner = {
        IPv4Address(end) for name in RANGES for end in (ip_network(name)[0], ip_network(name)[-1])
    }
    for form, embed in EMBEDDINGS.items():
        for address in sorted(inner):
            title = f"http://[{embed(address)}]/"
            yield Case(group=f"F2 {form}", title=title, url=title, reason=BLOCKED)
            yield Case(
                group=f"F2 {form}",
                title=title,
                way="by redirect",
                url=redirect(title, host=GOOD),
                reason=BLOCKED,
                reached=(AT_GOOD,),
            )
            yield Case(
                group=f"F2 {form}",
                title=title,
                way=OPENED,
                url=title,
                reason=BLOCKED,
                settings={"allow_networks": ("::/0",)},
            )


def mixtures() -> Iterator[Case]:
    """F3: 100 names with several addresses each, in every other of them some that lead inward."""
    for name, answer in MIXED.items():
        bad = not set(INWARD_POOL).isdisjoint(answer)
        reached = tuple(place(address, 80) for address in answer if address in PUBLIC_POOL)
        yield Case(
            group="F3",
            title=" ".join([name, *answer]),
            url=f"http://{name}/",
            reason=BLOCKED if bad else None,
            reached=() if bad else reached,
            any_of_these=not bad,
        )


def journeys() -> Iterator[Case]:
    """F14: what is meant for one host, on its way to another."""
    cookie = "\r\nSet-Cookie: session=s3cret; Path=/\r\nSet-Cookie: all=s3cret; Domain=test; Path=/"
    start = f"{CREDENTIALS}good.test"
    for status in STATUSES:
        for title, where in (
            ("http://other.test/", AT_OTHER),
            ("http://sub.good.test/", AT_OTHER),
            ("//other.test/", AT_OTHER),
            (f"http://{OTHER}/", AT_OTHER),
            (f"http://{GOOD}/", AT_GOOD),
            (f"http://{CREDENTIALS}other.test/", AT_OTHER),
        ):
            yield Case(
                group="F14",
                title=title,
                way=f"by {status}",
                url=redirect(title, status, host=start, more=cookie),
                reached=(AT_GOOD, where),
                knowing=1,
            )
        yield Case(
            group="F14",
            title="to another port",
            way=f"by {status}",
            url=redirect(f"http://{GOOD}:8080/", status, host=f"{CREDENTIALS}{GOOD}", more=cookie),
            reached=(AT_GOOD, place(GOOD, 8080)),
            knowing=1,
            settings={"allow_ports": (80, 8080)},
        )
        yield Case(
            group="F14",
            title="there and back",
            way=f"by {status}",
            url=redirect(redirect("http://good.test/", host="other.test"), status, host=start),
            reached=(AT_GOOD, AT_OTHER, AT_GOOD),
            knowing=1,
        )
        yield Case(
            group="F14",
            title="to its own host",
            way=f"by {status}",
            url=redirect("/", status, host=start, more=cookie),
            reached=(AT_GOOD, AT_GOOD),
            knowing=2,
        )
        yield Case(
            group="F14",
            title="with headers of its own",
            way=f"by {status}",
            url=redirect("http://other.test/", status),
            reached=(AT_GOOD, AT_OTHER),
            knowing=1,
            settings={"headers": {"good.test": {"X-Api-Key": PASSWORD}}},
        )


F1 = (
    *refused_everywhere(INWARD, BLOCKED),
    *refused_everywhere(MALFORMED, BAD_URL),
    *redirects(),
    *chains(),
    *lookups(),
    *surroundings(),
    *controls(),
)
F2 = tuple(embedded())
F3 = tuple(mixtures())
F14 = tuple(journeys())
CASES = {case.key: case for case in (*F1, *F2, *F3, *F14)}
# URLs that a client without a guard understands and follows inward.
UNDERSTOOD = [
    *(title for titles in INWARD.values() for title in titles),
    *(
        title
        for group in ("S5", "S6", "S7", "S8", "S9", "S10", "S11")
        for title in MALFORMED[group]
    ),
    *(case.title for case in F2 if case.way == "directly"),
]

# Where nothing was opened, no connection may go anywhere but to a public address.
LED_INWARD = [
    case for case in (*F1, *F3) if case.reason in (BLOCKED, BAD_URL) and not case.settings
]
