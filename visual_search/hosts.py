"""Pauses that hosts asked for: what one worker is told, all of them keep."""

from collections.abc import Mapping

from sqlalchemy import Connection, text


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
