"""What a row may say: URLs, ids and attributes that are kept as they are, or refused."""

import json
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visual_search.catalog.encoding import CellEncoder, decode_object, encode_object
from visual_search.catalog.rows import (
    MAX_ATTRIBUTES_BYTES,
    MAX_URL_CHARS,
    RefusedRowError,
    checked_attributes,
    checked_id,
    checked_url,
)

HOSTILE_CHARACTERS = "a'\"%\\\t\n\r\0\u202e\ud800\udfff,;{}N/?#@:é中😀 \x7f\x85"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://shop.test/1.jpg", "shop.test"),
        ("https://Shop.TEST:443/1.jpg", "shop.test"),
        ("http://shop.test:8080", "shop.test:8080"),
        ("HTTPS://shop.test?picture=1", "shop.test"),
        ("http://user:secret@shop.test/", "shop.test"),
        ("http://[2001:db8::1]:81/1.jpg", "[2001:db8::1]:81"),
        ("http://shop.test/a b\\c'd\"%20é", "shop.test"),
        ("http://Bücher.test:81/1.jpg", "xn--bcher-kva.test:81"),
        ("http://a/" + "x" * (MAX_URL_CHARS - 9), "a"),
    ],
)
def test_a_url_is_kept_as_it_is_with_its_host(url: str, host: str) -> None:
    assert checked_url(url) == (url, host)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "the URL is empty"),
        ("", "the URL is empty"),
        (7, "the URL is not text but int"),
        ("http://a/" + "x" * (MAX_URL_CHARS - 8), "the URL has 8,193 characters, limit 8,192"),
        ("http://h/\t1", "the URL has a control character at position 10"),
        ("http://h/é\x85", "the URL has a control character at position 11"),
        ("http://h/\0", "the URL has a control character at position 10"),
        ("http://h/\ud800", "the URL is not UTF-8"),
        ("ftp://h/1.jpg", "the URL does not begin with http:// or https://"),
        ("shop.test/1.jpg", "the URL does not begin with http:// or https://"),
        ("httpſ://h/1.jpg", "the URL does not begin with http:// or https://"),
        (" http://h/1.jpg", "the URL does not begin with http:// or https://"),
        ("http:///1.jpg", "the URL has no host"),
        ("https://?x", "the URL has no host"),
        ("http://h:port/", "the URL's host or port cannot be read"),
        ("http://h:99999/", "the URL's host or port cannot be read"),
        ("http://[::1/", "the URL's host or port cannot be read"),
        ("http://user@/", "the URL's host or port cannot be read"),
        (f"http://{'é' * 64}.test/", "the URL's host or port cannot be read"),
    ],
)
def test_a_bad_url_is_refused_with_the_reason(url: object, reason: str) -> None:
    with pytest.raises(RefusedRowError) as refused:
        checked_url(url)
    assert str(refused.value) == reason


@settings(max_examples=200, deadline=None)
@given(st.text(HOSTILE_CHARACTERS, max_size=20), st.sampled_from(["http://h.test/", "http://", ""]))
def test_whatever_is_in_a_url_it_is_kept_or_refused(text: str, before: str) -> None:
    try:
        url, host = checked_url(before + text)
    except RefusedRowError:
        return
    assert url == before + text
    assert host
    assert not set(url) & set("\t\n\r\0\x7f\x85\ud800\udfff")


@pytest.mark.parametrize(
    ("value", "text"),
    [("a\tb\\N", "a\tb\\N"), (7, "7"), (7.0, "7"), (Decimal(70), "70"), ("007", "007")],
)
def test_an_id_is_text_or_a_whole_number(value: object, text: str) -> None:
    assert checked_id(value, "image key") == text


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "the image key is empty"),
        ("", "the image key is empty"),
        (True, "the image key is neither text nor a whole number"),
        (7.5, "the image key is neither text nor a whole number"),
        (math.nan, "the image key is neither text nor a whole number"),
        (math.inf, "the image key is neither text nor a whole number"),
        (b"7", "the image key is neither text nor a whole number"),
        ("x" * 8_193, "the image key has 8,193 characters, limit 8,192"),
        ("a\0", "the image key has a NUL character or is not UTF-8"),
        ("é\0", "the image key has a NUL character or is not UTF-8"),
        ("\udc80", "the image key has a NUL character or is not UTF-8"),
    ],
)
def test_any_other_id_is_refused(value: object, reason: str) -> None:
    with pytest.raises(RefusedRowError) as refused:
        checked_id(value, "image key")
    assert str(refused.value) == reason


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("12", 12),
        ("12.50", 12.5),
        ("-0.5", -0.5),
        ("0", 0),
        ("1234567890123456", 1234567890123456),
        ("true", True),
        ("FALSE", False),
        ("-0", "-0"),
        ("-0.00", "-0.00"),
        ("007", "007"),
        ("1e3", "1e3"),
        ("+1", "+1"),
        ("1.", "1."),
        (".5", ".5"),
        ("12345678901234567", "12345678901234567"),
        ("١٢", "١٢"),
        ("-", "-"),
        ("tRUE", "tRUE"),
        ("null", "null"),
        ('say "hi"\n', 'say "hi"\n'),
    ],
)
def test_the_form_of_a_cell_says_what_it_is(cell: str, value: object) -> None:
    encoded = encoded_both_ways(["x"], [[cell], [cell], ["other"]])[:2]
    for text in encoded:
        assert text is not None
        decoded = json.loads(text)["x"]
        assert (decoded, type(decoded)) == (value, type(value))


def encoded_both_ways(names: list[str], rows: list[list[str]]) -> list[str | None]:
    """Row by row, and by columns with the same result."""
    encoder = CellEncoder(names)
    one_by_one = [encoder.row(row) for row in rows]
    columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    assert encoder.columns(columns).to_pylist() == one_by_one
    return one_by_one


def test_a_price_keeps_its_digits() -> None:
    rows = [["12.50", ""], ["0.10", ""]]
    assert encoded_both_ways(["price", "size"], rows) == ['{"price":12.50}', '{"price":0.10}']


def test_empty_cells_are_no_attributes() -> None:
    rows = [["", ""], ["x", ""], ["", "y"]]
    assert encoded_both_ways(["a", "b"], rows) == [None, '{"a":"x"}', '{"b":"y"}']
    assert encode_object({"a": None, "b": math.nan}) is None


CELLS = st.text('01.-+e"\\é\n tTrRuUeE', max_size=6) | st.sampled_from(
    ("true", "True", "TRUE", "false", "False", "FALSE", "1" * 16, "1" * 17, "\u2028", "😀")
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(CELLS, min_size=2, max_size=2), min_size=1, max_size=20))
def test_columns_of_cells_are_what_their_rows_are(rows: list[list[str]]) -> None:
    for row, text in zip(rows, encoded_both_ways(['"a"', "b"], rows), strict=True):
        assert (text is None) == (row == ["", ""])
        shown = {} if text is None else json.loads(text)
        assert list(shown) == [n for n, cell in zip(('"a"', "b"), row, strict=True) if cell]


def test_values_with_types_survive() -> None:
    encoded = encode_object(
        {
            "sizes": ["S", "M"],
            "origin": {"country": "PT", "km": 12.5, "gone": math.nan},
            "price": Decimal("12.50"),
            "stock": Decimal(3),
            "since": date(2026, 1, 2),
            "at": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
            "sku": UUID(int=7),
            "available": True,
        }
    )
    assert encoded is not None
    assert json.loads(encoded) == {
        "sizes": ["S", "M"],
        "origin": {"country": "PT", "km": 12.5},
        "price": 12.5,
        "stock": 3,
        "since": "2026-01-02",
        "at": "2026-01-02T03:04:00+00:00",
        "sku": "00000000-0000-0000-0000-000000000007",
        "available": True,
    }


def deep() -> Any:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"thumbnail": b"\xff"}, "attribute 'thumbnail' has no form in JSON: bytes"),
        ({"a": 1, "ratio": math.inf}, "attribute 'ratio' has no form in JSON"),
        ({"deep": deep()}, "the attributes are nested too deeply"),
    ],
)
def test_what_json_cannot_say_is_refused_by_name(attributes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RefusedRowError, match=reason):
        encode_object(attributes)


@pytest.mark.parametrize(
    ("attributes", "kept"),
    [
        (r'{"a":"\ud83d\ude00"}', True),
        (r'{"a":"\\ud800"}', True),
        (r'{"a":"\\u0000"}', True),
        (r'{"a":"\ud800"}', False),
        (r'{"a":"\ude00\ud83d"}', False),
        (r'{"a":"\u0000"}', False),
        (r'{"\u0000":1}', False),
        (r'{"a":"\\\u0000"}', False),
    ],
)
def test_json_that_postgres_cannot_hold_is_refused(attributes: str, kept: bool) -> None:
    if kept:
        assert checked_attributes(attributes) == attributes
    else:
        with pytest.raises(RefusedRowError, match="NUL character or is not UTF-8"):
            checked_attributes(attributes)


def test_attributes_have_a_limit() -> None:
    with pytest.raises(RefusedRowError, match=r"1,000,008 bytes, limit 1,000,000"):
        checked_attributes(f'{{"a":"{"x" * MAX_ATTRIBUTES_BYTES}"}}')


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": 1', "not JSON: Expecting ',' delimiter at position 8"),
        ('{"a": NaN}', "not JSON: NaN is no number"),
        ("[1]", "not a JSON object"),
        ("1" * 5_000, "not JSON: "),
        ("[" * 100_000, "the JSON is nested too deeply"),
    ],
)
def test_a_line_that_is_no_object_is_refused(line: str, reason: str) -> None:
    with pytest.raises(RefusedRowError) as refused:
        decode_object(line)
    assert str(refused.value).startswith(reason)
