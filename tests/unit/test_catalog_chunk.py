"""Chunks: rows taken together are what they would be one by one."""

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from visual_search.catalog import chunk
from visual_search.catalog.rows import BadRow, Record

URLS = st.sampled_from(
    (
        "http://h.test/1.jpg",
        "https://Shop.test:8080/2.jpg?w=1",
        "http://h.test",
        "http://h.tes",
        "http://bücher.test/é.jpg",
        "http://h.test/back\\slash",
        "ftp://h.test/",
        "http://h.test/\t",
        "http:///no-host",
        "",
        None,
        7,
    )
)
IDS = st.sampled_from((None, "", "a", "b\\", "tab\tid", "é", "x" * 2_001, "é" * 1_001, "\0", 7))
ATTRIBUTES = st.sampled_from((None, '{"a":1}', '{"b":"\\u00e9"}', '{"c":"\\u0000"}', "{}"))
ROWS = st.lists(
    st.one_of(
        st.tuples(URLS, IDS, IDS, ATTRIBUTES),
        st.just(None),  # a row that its reader refused
    ),
    max_size=40,
)


def collected(
    rows: Sequence[tuple[object, object, object, str | None] | None],
) -> tuple[list[chunk.Chunk], list[BadRow]]:
    def numbered() -> Iterator[Record | BadRow]:
        for line, row in enumerate(rows, 1):
            yield BadRow(line=line, reason="refused") if row is None else Record(line, *row)

    bad: list[BadRow] = []
    return list(chunk.chunks(numbered(), bad.append)), bad


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ROWS)
def test_rows_taken_together_are_what_they_are_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
    rows: list[tuple[object, object, object, str | None] | None],
) -> None:
    together = collected(rows)
    with monkeypatch.context() as patched:
        patched.setattr(chunk, "_ROWS_AT_ONCE", 1)
        assert collected(rows) == together


def test_bad_rows_are_handed_over_in_their_order() -> None:
    good, bad = ("http://h.test/1", None, None, None), ("ftp://h.test/", None, None, None)
    rows = [good, bad, None, good, bad, None] * 50
    (taken,), refused = collected(rows)
    assert [row.line for row in refused] == [n for n, row in enumerate(rows, 1) if row != good]
    assert taken.rows == 100


def test_a_url_without_a_path_is_not_taken_for_another_hosts() -> None:
    rows = [(url, None, None, None) for url in ("http://h.co/1", "http://h.com", "http://h.co")]
    (taken,), _ = collected(rows)
    assert [line.split("\t")[3] for line in taken.images.values()] == [
        "h.co\n",
        "h.com\n",
        "h.co\n",
    ]
