"""What workers measured of hosts, added up by day."""

from sqlalchemy import text

from visual_search.database.connection import Database
from visual_search.hosts import TRAFFIC_DAYS, Traffic, add_traffic, slowest_hosts


def test_workers_add_up_what_hosts_were_asked_for(database: Database) -> None:
    with database.transaction() as connection:
        add_traffic(
            connection,
            {
                "fast.test": Traffic(requests=20, bytes=1000, seconds=2.0),
                "slow.test:8080": Traffic(requests=5, failed=1, bytes=30, seconds=50.0),
            },
        )
        add_traffic(
            connection,
            {
                "slow.test:8080": Traffic(requests=5, failed=2, bytes=70, seconds=10.0),
                "rare.test": Traffic(requests=9, seconds=900.0),
            },
        )
        assert slowest_hosts(connection, 10) == [
            ("slow.test:8080", Traffic(requests=10, failed=3, bytes=100, seconds=60.0)),
            ("fast.test", Traffic(requests=20, bytes=1000, seconds=2.0)),
        ]
        assert len(slowest_hosts(connection, 1)) == 1


def test_where_no_host_was_asked_often_all_are_told(database: Database) -> None:
    with database.transaction() as connection:
        add_traffic(connection, {"h.test": Traffic(requests=2, seconds=1.0)})
        assert [host for host, _ in slowest_hosts(connection, 10)] == ["h.test"]


def test_what_hosts_did_long_ago_is_forgotten(database: Database) -> None:
    with database.transaction() as connection:
        add_traffic(connection, {"h.test": Traffic(requests=20, seconds=900.0)})
        connection.execute(
            text("UPDATE host_traffic SET day = day - CAST(:days AS integer)"),
            {"days": TRAFFIC_DAYS + 1},
        )
        add_traffic(connection, {"h.test": Traffic(requests=20, seconds=2.0)})
        assert slowest_hosts(connection, 10) == [
            ("h.test", Traffic(requests=20, seconds=2.0)),
        ]
