"""Counts of a catalogue, and the host that `doctor` looks up."""

import pytest
from sqlalchemy import text

from tests.database.test_catalog_import import import_rows, select
from visual_search.catalog import Columns, catalogue_stats, newest_hosts, stats
from visual_search.catalog.stats import AttributeCount, CatalogueStats, HostCount
from visual_search.database.connection import Database


def counted(database: Database) -> CatalogueStats:
    with database.transaction() as connection:
        return catalogue_stats(connection)


def test_an_empty_catalogue_counts_nothing(database: Database) -> None:
    assert counted(database) == CatalogueStats(
        images=0,
        products=0,
        host_count=0,
        hosts=(),
        last_added_at=None,
        products_without_attributes=0,
        products_sampled=0,
        attributes=(),
    )


def test_images_products_hosts_and_attributes_are_counted(database: Database) -> None:
    rows = [
        ("p", "http://a.test/1", "Coat", 1),
        ("p", "http://a.test/2", "Coat", 1),
        ("q", "http://b.test:81/3", "Hat", None),
        ("r", "http://b.test/4", None, None),
    ]
    names = ("sku", "image_url", "title", "price")
    import_rows(database, names, rows, Columns(product_id="sku"))
    found = counted(database)
    assert (found.images, found.products, found.host_count) == (4, 3, 3)
    assert found.hosts == (
        HostCount(host="a.test", images=2),
        HostCount(host="b.test", images=1),
        HostCount(host="b.test:81", images=1),
    )
    assert select(database, "SELECT max(created_at) FROM images") == [(found.last_added_at,)]
    assert found.products_without_attributes == 1
    assert found.products_sampled == 3
    assert found.attributes == (
        AttributeCount(name="title", products=2),
        AttributeCount(name="price", products=1),
    )


def test_only_the_ten_largest_hosts_are_listed(database: Database) -> None:
    rows = [(f"http://h{host}.test/{n}",) for host in range(12) for n in range(12 - host)]
    import_rows(database, ("image_url",), rows)
    found = counted(database)
    assert found.host_count == 12
    assert [known.images for known in found.hosts] == list(range(12, 2, -1))


def test_attributes_of_a_large_catalogue_are_counted_in_a_sample(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "_SAMPLED_PRODUCTS", 2_000)
    rows = [(f"http://h.test/{n}", n % 2 or None, "x" * 50) for n in range(20_000)]
    import_rows(database, ("image_url", "odd", "title"), rows)
    found = counted(database)
    assert found.products == 20_000
    assert 0 < found.products_sampled < 10_000
    assert found == counted(database)
    shares = {known.name: known.products / found.products_sampled for known in found.attributes}
    assert shares["title"] == 1
    assert shares["odd"] == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("urls", "hosts"),
    [
        ([], []),
        (["http://old.test/1", "http://new.test:8080/2"], ["new.test", "old.test"]),
        (["http://a.test/1", "http://b.test/2", "http://a.test:1/3"], ["a.test", "b.test"]),
        ([f"http://{n}.test/" for n in "abcde"], ["e.test", "d.test", "c.test"]),
        (["http://name.test/1", "http://127.0.0.1/2", "http://[::1]:80/3"], ["name.test"]),
        (["http://name.test/1", "http://127.1:81/2", "http://2130706433/3", "http://0x7f.1/4"],
         ["name.test"]),
        (["http://10.0.0.1/1", "http://127.0.0.1./2"], []),
        (["http://1.example/1"], ["1.example"]),
    ],
)  # fmt: skip
def test_the_newest_hosts_are_names(database: Database, urls: list[str], hosts: list[str]) -> None:
    for url in urls:
        import_rows(database, ("image_url",), [(url,)])
    assert database.run(newest_hosts) == hosts


def test_odd_names_of_attributes_are_counted_as_they_are(database: Database) -> None:
    with database.transaction() as connection:
        connection.execute(
            text("INSERT INTO products VALUES ('p', CAST(:attributes AS jsonb))"),
            {"attributes": '{"a\\"b:c": 1, "": 2}'},
        )
    assert {known.name for known in counted(database).attributes} == {'a"b:c', ""}
