"""What went wrong and what is slow: failures by reason and host, hosts by their speed."""

from html import escape
from typing import Final

from visual_search.hosts import TRAFFIC_DAYS, Traffic
from visual_search.redaction import printable
from visual_search.report.overview.content import FailingHost, FailingHosts, Overview
from visual_search.report.page import reasons
from visual_search.report.page.failure_table import failure_table
from visual_search.report.page.table import Column, table
from visual_search.report.page.wording import count, elapsed, percent, size
from visual_search.report.plots.bars import Bar, bar_plot
from visual_search.report.plots.figure import Paint, Words

_KINDS: Final[tuple[tuple[Paint, str], ...]] = (
    ("failed", "failed for good"),
    ("waiting", "waiting"),
)
_REASONS_OF_A_HOST: Final = 4


def failures_section(content: Overview) -> str:
    """Nothing where nothing failed."""
    if not content.failures:
        return ""
    return f"""\
<section>
<h2>Failures by reason</h2>
<p>An image that fails costs only itself; with several models it counts once for each. All of \
them, line by line: <code>vsearch failures list</code>.</p>
{_by_reason(content)}
{failure_table(content.failures)}
</section>
<section>
<h2>Failures by host</h2>
<p>{_how_counted(content)}</p>
{_by_host(content.failing_hosts)}
</section>"""


def _by_reason(content: Overview) -> str:
    counts: dict[str, dict[bool, int]] = {}
    for group in content.failures:
        counts.setdefault(group.reason, {})[group.waiting] = group.images
    ordered = sorted(counts.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    first, first_counts = ordered[0]
    bars = [
        Bar(
            label=reasons.words(reason),
            shown=f"{sum(parts.values()):,}",
            parts=(("failed", parts.get(False, 0)), ("waiting", parts.get(True, 0))),
        )
        for reason, parts in ordered
    ]
    return bar_plot(
        Words(
            name="reasons",
            title="Images without a vector, by reason",
            description=(
                f"Bars for {count(len(bars), 'reason')}; the most frequent is {first} with "
                f"{sum(first_counts.values()):,}. The table below has the numbers."
            ),
        ),
        bars,
        legend=_KINDS,
    )


def _how_counted(content: Overview) -> str:
    known, failures = content.failing_hosts, sum(group.images for group in content.failures)
    said = f"They are of {count(known.host_count, 'host')}"
    if len(known.hosts) < known.host_count:
        said += f"; here are the {len(known.hosts)} with most of them"
    if known.looked_at < failures:
        return (
            f"{said}. Of {failures:,} failures {known.looked_at:,} were looked at, some of each "
            "model and reason."
        )
    return f"{said}."


def _by_host(known: FailingHosts) -> str:
    if not known.hosts:
        return ""
    bars = [
        Bar(
            label=printable(host.host),
            shown=f"{host.failed + host.waiting:,}",
            parts=(("failed", host.failed), ("waiting", host.waiting)),
        )
        for host in known.hosts
    ]
    plot = bar_plot(
        Words(
            name="hosts",
            title="Images without a vector, by host",
            description=(
                f"Bars for {count(len(bars), 'host')}; most failures are of {bars[0].label}, "
                f"{bars[0].shown}. The table has the numbers."
            ),
        ),
        bars,
        legend=_KINDS,
    )
    columns = (
        Column(head="Host", number=False),
        Column(head="Failed"),
        Column(head="Waiting"),
        Column(head="Reasons", number=False, wide=True),
    )
    rows = [
        (
            f"<code>{escape(printable(host.host))}</code>",
            f"{host.failed:,}",
            f"{host.waiting:,}",
            escape(_reasons_of(host)),
        )
        for host in known.hosts
    ]
    return f'<div class="beside">{plot}\n{table("Failures by host", columns, rows)}</div>'


def _reasons_of(host: FailingHost) -> str:
    frequent = sorted(host.by_reason.items(), key=lambda item: (-item[1], item[0]))
    told = [f"{images:,} {printable(reason)}" for reason, images in frequent[:_REASONS_OF_A_HOST]]
    others = sum(images for _, images in frequent[_REASONS_OF_A_HOST:])
    return ", ".join(told + [f"{others:,} for other reasons"] * (others > 0))


def slowest_hosts_section(content: Overview) -> str:
    """Nothing where nothing was measured yet."""
    if not content.slowest_hosts:
        return ""
    bars = [
        Bar(
            label=printable(host),
            shown=elapsed(_mean_s(traffic)),
            parts=(("other", _mean_s(traffic)),),
        )
        for host, traffic in content.slowest_hosts
    ]
    plot = bar_plot(
        Words(
            name="slowest",
            title="Time of a request, on average",
            description=(
                f"Bars for {count(len(bars), 'host')}; the slowest is {bars[0].label} with "
                f"{bars[0].shown} a request. The table has the numbers."
            ),
        ),
        bars,
    )
    columns = (
        Column(head="Host", number=False),
        Column(head="A request"),
        Column(head="Requests"),
        Column(head="Failed"),
        Column(head="Received"),
        Column(head="Speed"),
    )
    rows = [_traffic_row(host, traffic) for host, traffic in content.slowest_hosts]
    return f"""\
<section>
<h2>Slowest hosts</h2>
<p>As downloads of all models measured it in the last {TRAFFIC_DAYS} days: from asking to the last \
byte, failed requests and redirects included. Speed is that of one connection.</p>
<div class="beside">{plot}
{table("The slowest hosts", columns, rows)}</div>
</section>"""


def _traffic_row(host: str, traffic: Traffic) -> tuple[str, ...]:
    speed = f"{size(traffic.bytes / traffic.seconds)}/s" if traffic.seconds else "–"
    return (
        f"<code>{escape(printable(host))}</code>",
        elapsed(_mean_s(traffic)),
        f"{traffic.requests:,}",
        percent(traffic.failed, traffic.requests),
        size(traffic.bytes),
        speed,
    )


def _mean_s(traffic: Traffic) -> float:
    return traffic.seconds / traffic.requests
