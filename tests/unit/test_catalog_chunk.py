"""Chunks: rows taken as columns are what they are one by one."""

from collections.abc import Iterator, Sequence
from hashlib import sha256

from hypothesis import given, settings
from hypothesis import strategies as st

from visual_search.catalog import chunk
from visual_search.catalog.rows import (
    BLOCK_ROWS,
    BadRow,
    Record,
    RefusedRowError,
    checked_attributes,
    checked_id,
    checked_url,
    in_blocks,
)

Row = tuple[object, object, object, str | None]

URLS = st.sampled_from(
    (
        "http://h.test/1.jpg",
        "https://Shop.test:8080/2.jpg?w=1",
        "http://h.test",
        "http://h.tes",
        "http://bücher.test/é.jpg",
        "http://h.test/back\\slash",
        "http://h.test/" + "x" * 8_000,
        "http://h.test/" + "x" * 9_000,
        "http://user:secret@h.test/",
        "http://-/",
        "ftp://h.test/",
        "http://h.test/\t",
        "http://h.test/\ud800",
        "http:///no-host",
        b"http://h.test/1.jpg",
        "",
        None,
        7,
    )
)
IDS = st.sampled_from(
    (None, "", "a", "b\\", "tab\tid", "line\nid", "é", "x" * 2_001, "é" * 1_001, "\0", "\ud800", 7)
)
ATTRIBUTES = st.sampled_from(
    (None, '{"a":1}', '{"b":"\\u00e9\\\\"}', '{"c":"\\u0000"}', '{"d":"\\ud800"}', "{}")
)
REFUSED_BY_READER = st.none()
ROWS = st.lists(st.one_of(st.tuples(URLS, IDS, IDS, ATTRIBUTES), REFUSED_BY_READER), max_size=40)
URLS_ONLY = st.lists(st.tuples(URLS, st.none(), st.none(), ATTRIBUTES), max_size=40)


def numbered(rows: Sequence[Row | None]) -> Iterator[Record | BadRow]:
    for line, row in enumerate(rows, 1):
        yield BadRow(line=line, reason="refused") if row is None else Record(line, *row)


class OneByOne:
    """What a chunk must hold, in the plainest way."""

    def __init__(self, rows: Sequence[Row | None]) -> None:
        self.bad: dict[int, str] = {}
        self.images: dict[str, str] = {}
        self.products: dict[str, str | None] = {}
        self.links: set[tuple[str, str]] = set()
        for line, row in enumerate(rows, 1):
            try:
                self._take(row)
            except RefusedRowError as error:
                self.bad[line] = str(error)

    def _take(self, row: Row | None) -> None:
        if row is None:
            raise RefusedRowError("refused")
        url, host = checked_url(row[0])
        key = url if row[1] is None else checked_id(row[1], "image key")
        product = chunk._product_id(row[2], key)
        if row[3] is not None:
            checked_attributes(row[3])
        hashed = sha256(key.encode()).hexdigest()[:32]
        fields = (chunk.escaped(key), rf"\\x{hashed}", chunk.escaped(url), chunk.escaped(host))
        self.images[hashed] = "\t".join(fields) + "\n"
        self.links.add((product, hashed))
        if row[3] is not None or product not in self.products:
            self.products[product] = row[3]


@settings(max_examples=400, deadline=None)
@given(st.one_of(ROWS, URLS_ONLY))
def test_rows_taken_as_columns_are_what_they_are_one_by_one(rows: list[Row | None]) -> None:
    bad: list[BadRow] = []
    chunks = list(chunk.collect(in_blocks(numbered(rows)), bad.append))
    expected = OneByOne(rows)
    assert {row.line: row.reason for row in bad} == expected.bad
    assert sum(taken.rows for taken in chunks) == len(rows) - len(bad)
    if not chunks:
        assert not expected.images
        return
    taken = chunks[0].chunk()
    assert len(chunks) == 1
    hashes, products = taken.hashes.to_pylist(), taken.product_ids.to_pylist()
    assert hashes == sorted(hashes)
    assert products == sorted(products, key=str.encode)
    assert dict(zip(hashes, taken.images.to_pylist(), strict=True)) == expected.images
    lines = {
        product: f"{chunk.escaped(product)}\t{chunk.escaped(attributes or '{}')}\n"
        for product, attributes in expected.products.items()
    }
    assert dict(zip(products, taken.products.to_pylist(), strict=True)) == lines
    described = dict(zip(products, taken.described.to_pylist(), strict=True))
    assert described == {name: said is not None for name, said in expected.products.items()}
    linked = zip(taken.linked_products.to_pylist(), taken.linked_images, strict=True)
    assert sorted((product, hashes[image]) for product, image in linked) == sorted(
        (chunk.escaped(product), hashed) for product, hashed in expected.links
    )


def test_a_chunk_has_its_limit_of_rows_and_at_most_a_block_more() -> None:
    rows = [(f"http://h.test/{n}", None, None, None) for n in range(chunk.MAX_ROWS + BLOCK_ROWS)]
    chunks = list(chunk.collect(in_blocks(numbered(rows)), lambda _bad: None))
    assert len(chunks) == 2
    assert chunk.MAX_ROWS <= chunks[0].rows < chunk.MAX_ROWS + BLOCK_ROWS
    assert sum(taken.rows for taken in chunks) == len(rows)
