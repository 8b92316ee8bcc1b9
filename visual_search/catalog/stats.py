"""What a catalogue holds, counted in one pass over each table."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Connection, text

_SAMPLED_PRODUCTS: Final = 100_000
_MAX_HOSTS: Final = 10
_MAX_ATTRIBUTES: Final = 100
_NEWEST_IMAGES: Final = 10_000
_NEWEST_HOSTS: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class HostCount:
    """How many images a host has; `host` as in `images.host`."""

    host: str
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AttributeCount:
    """How many of the products looked at have an attribute."""

    name: str
    products: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogueStats:
    """Counts of a catalogue.

    Attributes:
        host_count: How many hosts there are.
        hosts: Those with the most images.
        last_added_at: When the newest image came; `None` without any.
        products_without_attributes: Products of which nothing is known but their id.
        products_sampled: How many products `attributes` speaks about: all, or in a large
            catalogue those on pages chosen at random, the same ones every time.
        attributes: The most frequent ones.
    """

    images: int
    products: int
    host_count: int
    hosts: tuple[HostCount, ...]
    last_added_at: datetime | None
    products_without_attributes: int
    products_sampled: int
    attributes: tuple[AttributeCount, ...]


def catalogue_stats(connection: Connection) -> CatalogueStats:
    """Count."""
    hosts = connection.execute(
        text("""
            WITH per_host AS MATERIALIZED (
                SELECT host, count(*) AS images, max(created_at) AS last_added_at
                FROM images GROUP BY host
            ), largest AS (
                SELECT host, images FROM per_host ORDER BY images DESC, host LIMIT :most
            )
            SELECT coalesce(sum(images), 0) AS images, count(*) AS hosts,
                   max(last_added_at) AS last_added_at,
                   (SELECT coalesce(jsonb_agg(jsonb_build_array(host, images)), '[]')
                    FROM largest) AS largest
            FROM per_host
        """),
        {"most": _MAX_HOSTS},
    ).one()
    products = connection.execute(
        text(
            """
            SELECT count(*) AS all, count(*) FILTER (WHERE attributes = '{}') AS bare
            FROM products
            """
        )
    ).one()
    sampled, attributes = _attributes(connection, products.all)
    return CatalogueStats(
        images=int(hosts.images),
        products=products.all,
        host_count=hosts.hosts,
        hosts=tuple(HostCount(host=host, images=images) for host, images in hosts.largest),
        last_added_at=hosts.last_added_at,
        products_without_attributes=products.bare,
        products_sampled=sampled,
        attributes=attributes,
    )


def newest_hosts(connection: Connection) -> list[str]:
    """Hosts, without ports, of the newest images whose hosts are names and not addresses.

    As browsers and `getaddrinfo` read it: a host whose last part is a number is an address.

    Returns:
        A few different ones, the newest first.
    """
    hosts = connection.execute(
        text(r"""
            WITH newest AS (
                SELECT image_id, host FROM images ORDER BY image_id DESC LIMIT :images
            )
            SELECT split_part(host, ':', 1) AS name FROM newest
            WHERE host NOT LIKE '[%'
              AND host !~ '(^|\.)([0-9]+|0[xX][0-9a-fA-F]*)\.?(:[0-9]+)?$'
            GROUP BY name ORDER BY max(image_id) DESC LIMIT :most
        """),
        {"images": _NEWEST_IMAGES, "most": _NEWEST_HOSTS},
    )
    return [row.name for row in hosts]


def _attributes(connection: Connection, products: int) -> tuple[int, tuple[AttributeCount, ...]]:
    percent = 100 * min(1, _SAMPLED_PRODUCTS / products) if products else 100
    row = connection.execute(
        text("""
            WITH sampled AS MATERIALIZED (
                SELECT attributes FROM products TABLESAMPLE SYSTEM (:percent) REPEATABLE (0)
            ), counted AS (
                SELECT name, count(*) AS products
                FROM sampled, jsonb_object_keys(attributes) AS name
                GROUP BY name ORDER BY products DESC, name LIMIT :most
            )
            SELECT (SELECT count(*) FROM sampled) AS sampled,
                   (SELECT coalesce(jsonb_agg(jsonb_build_array(name, products)), '[]')
                    FROM counted) AS counted
        """),
        {"percent": percent, "most": _MAX_ATTRIBUTES},
    ).one()
    counts = (AttributeCount(name=name, products=count) for name, count in row.counted)
    return row.sampled, tuple(counts)
