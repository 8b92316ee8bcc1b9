"""What workers tell each other about hosts: pauses they asked for, and how fast they serve."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text

TRAFFIC_DAYS: Final = 30
# The mean of fewer requests says little, unless there is no host that got more.
_TELLING_REQUESTS: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What a host was asked for.

    Attributes:
        requests: Redirects count, and tries.
        failed: Those of them that brought no image.
        bytes: Of bodies, also of what came to nothing.
        seconds: Sum over the requests, from asking to the last byte. Side by side, they last
            longer together than on the clock.
    """

    requests: int = 0
    failed: int = 0
    bytes: int = 0
    seconds: float = 0.0


def share_pauses(connection: Connection, pauses: Mapping[str, float]) -> dict[str, float]:
    """Make `pauses` known to all workers; learn those of all.

    Args:
        connection: Inside a transaction.
        pauses: Hosts as `images.host` has them, and for how many seconds to leave them alone. A
            longer pause that is known already stays.

    Returns:
        All hosts to be left alone, and for how many more seconds.
    """
    if pauses:
        # In one order, so that two workers do not wait for each other.
        names = sorted(pauses)
        connection.execute(
            text("""
                INSERT INTO hosts (host, retry_at)
                SELECT host, clock_timestamp() + make_interval(secs => seconds)
                FROM unnest(CAST(:hosts AS text[]), CAST(:seconds AS double precision[]))
                     AS p (host, seconds)
                ON CONFLICT (host) DO UPDATE
                SET retry_at = greatest(hosts.retry_at, excluded.retry_at)
            """),
            {"hosts": names, "seconds": [pauses[name] for name in names]},
        )
    rows = connection.execute(
        text("""
            SELECT host, EXTRACT(epoch FROM retry_at - clock_timestamp()) AS seconds
            FROM hosts WHERE retry_at > clock_timestamp()
        """)
    )
    return {row.host: float(row.seconds) for row in rows}


def add_traffic(connection: Connection, traffic: Mapping[str, Traffic]) -> None:
    """Add to what is known of today, and forget days that are long past.

    Args:
        connection: Inside a transaction. If its answer is lost and it is repeated, it may count
            twice, which a mean does not mind.
        traffic: By hosts as `images.host` has them.
    """
    connection.execute(
        text("""
            DELETE FROM host_traffic
            WHERE day < CAST(now() AT TIME ZONE 'UTC' AS date) - CAST(:days AS integer)
        """),
        {"days": TRAFFIC_DAYS},
    )
    # In one order, so that two workers do not wait for each other.
    names = sorted(traffic)
    connection.execute(
        text("""
            INSERT INTO host_traffic (day, host, requests, failed, bytes, seconds)
            SELECT CAST(now() AT TIME ZONE 'UTC' AS date), host, requests, failed, bytes, seconds
            FROM unnest(CAST(:hosts AS text[]), CAST(:requests AS bigint[]),
                        CAST(:failed AS bigint[]), CAST(:bytes AS bigint[]),
                        CAST(:seconds AS double precision[]))
                 AS t (host, requests, failed, bytes, seconds)
            ON CONFLICT (day, host) DO UPDATE SET
                requests = host_traffic.requests + excluded.requests,
                failed = host_traffic.failed + excluded.failed,
                bytes = host_traffic.bytes + excluded.bytes,
                seconds = host_traffic.seconds + excluded.seconds
        """),
        {
            "hosts": names,
            "requests": [traffic[name].requests for name in names],
            "failed": [traffic[name].failed for name in names],
            "bytes": [traffic[name].bytes for name in names],
            "seconds": [traffic[name].seconds for name in names],
        },
    )


def slowest_hosts(connection: Connection, limit: int) -> list[tuple[str, Traffic]]:
    """Hosts whose requests took longest on average in the last days, the slowest first.

    One that was asked a few times only is left out where others were asked more often.
    """
    rows = connection.execute(
        text("""
            WITH known AS (
                SELECT host, sum(requests) AS requests, sum(failed) AS failed,
                       sum(bytes) AS bytes, sum(seconds) AS seconds
                FROM host_traffic GROUP BY host
            )
            SELECT * FROM known
            WHERE requests >= least(:telling, (SELECT max(requests) FROM known))
            ORDER BY seconds / requests DESC, host LIMIT :limit
        """),
        {"telling": _TELLING_REQUESTS, "limit": limit},
    )
    return [
        (
            row.host,
            Traffic(
                requests=int(row.requests),
                failed=int(row.failed),
                bytes=int(row.bytes),
                seconds=row.seconds,
            ),
        )
        for row in rows
    ]
