"""Files as rows: every format, and whatever is wrong with some of their lines."""

import gzip
import io
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visual_search.catalog.chunk import collect
from visual_search.catalog.columns import Columns
from visual_search.catalog.readers import Format, open_file
from visual_search.catalog.rows import BadRow, Record
from visual_search.errors import ExitCode, UsageError

URL = "http://h.test/{}.jpg"
KEYED = Columns(image_key="photo", product_id="sku")


def read(path: Path | str, columns: Columns | None = None, **options: Any) -> list[Record | BadRow]:
    with open_file(str(path), columns=columns, **options) as source:
        return list(source.rows)


def refused(path: Path | str, columns: Columns | None = None, **options: Any) -> dict[int, str]:
    """Bad rows by line, those that a chunk refuses included."""
    bad: list[BadRow] = []
    with open_file(str(path), columns=columns, **options) as source:
        for _ in collect(source.blocks, bad.append):
            pass
    return {row.line: row.reason for row in bad}


def complaint(path: Path | str, columns: Columns | None = None, **options: Any) -> str:
    with pytest.raises(UsageError) as error:
        read(path, columns, **options)
    assert error.value.exit_code is ExitCode.USAGE
    assert "\n" not in str(error.value)
    return str(error.value)


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def records(rows: Sequence[Record | BadRow]) -> list[Record]:
    assert all(isinstance(row, Record) for row in rows), rows
    return [row for row in rows if isinstance(row, Record)]


def attributes(row: Record | BadRow) -> Any:
    assert isinstance(row, Record)
    return None if row.attributes is None else json.loads(row.attributes)


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_text_is_one_url_a_line(tmp_path: Path) -> None:
    path = file(
        tmp_path, "urls.txt", f"{URL.format(1)}\r\n  {URL.format(2)}\n\n{URL.format(3)}\n\n"
    )
    rows = read(path)
    assert rows == [
        Record(1, URL.format(1), None, None, None),
        Record(2, URL.format(2), None, None, None),
        BadRow(line=3, reason="the URL is empty"),
        Record(4, URL.format(3), None, None, None),
    ]


@pytest.mark.parametrize(("name", "delimiter"), [("p.csv", ","), ("p.tsv", "\t"), ("P.CSV", ",")])
def test_tables_have_keys_products_and_attributes(
    tmp_path: Path, name: str, delimiter: str
) -> None:
    lines = [
        ("sku", "image_url", "photo", "title", "price", "available"),
        ("p1", URL.format(1), "a", "Coat", "12.50", "true"),
        ("", URL.format(2), "b", "", "", ""),
    ]
    path = file(tmp_path, name, "\r\n".join(delimiter.join(cells) for cells in lines) + "\r\n")
    first, second = records(read(path, KEYED))
    assert first[:4] == (2, URL.format(1), "a", "p1")
    assert first.attributes == '{"title":"Coat","price":12.50,"available":true}'
    assert second == (3, URL.format(2), "b", "", None)


def test_a_mark_of_byte_order_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = file(tmp_path, "p.csv", b"\xef\xbb\xbfimage_url\n" + URL.format(1).encode())
    assert records(read(path))[0].url == URL.format(1)


def test_json_lines_keep_nested_values(tmp_path: Path) -> None:
    rows = [
        {"image_url": URL.format(1), "photo": 7, "sku": "p", "sizes": ["S"], "made": {"in": "PT"}},
        {"image_url": URL.format(2), "photo": "b"},
    ]
    path = file(tmp_path, "p.jsonl", "\n\n".join(json.dumps(row) for row in rows) + "\n")
    first, second = records(read(path, KEYED))
    assert first[:4] == (1, URL.format(1), 7, "p")
    assert attributes(first) == {"sizes": ["S"], "made": {"in": "PT"}}
    assert second == (3, URL.format(2), "b", None, None)


def test_parquet_keeps_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image_url": [URL.format(1), URL.format(2)],
            "photo": pa.array([7, None], pa.int64()),
            "sku": ["p", "q"],
            "price": pa.array([Decimal("12.50"), None], pa.decimal128(9, 2)),
            "sizes": [["S", "M"], None],
            "since": pa.array([datetime(2026, 1, 2), None], pa.timestamp("ns")),  # noqa: DTZ001
            "available": [True, False],
        }
    )
    pq.write_table(table, tmp_path / "p.parquet")
    first, second = records(read(tmp_path / "p.parquet", KEYED))
    assert first[:4] == (1, URL.format(1), 7, "p")
    assert attributes(first) == {
        "price": 12.5,
        "sizes": ["S", "M"],
        "since": "2026-01-02T00:00:00",
        "available": True,
    }
    assert attributes(second) == {"available": False}
    assert refused(tmp_path / "p.parquet", KEYED) == {2: "the image key is empty"}


def test_a_compressed_file_is_read_as_what_is_in_it(tmp_path: Path) -> None:
    content = f"image_url,n\n{URL.format(1)},1\n"
    path = file(tmp_path, "p.csv.gz", gzip.compress(content.encode()))
    assert attributes(read(path)[0]) == {"n": 1}
    pq.write_table(pa.table({"image_url": [URL.format(1)]}), tmp_path / "p.parquet")
    packed = gzip.compress((tmp_path / "p.parquet").read_bytes())
    assert records(read(file(tmp_path, "q.parquet.gz", packed)))[0].url == URL.format(1)


def test_the_standard_input_is_urls_or_what_it_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe(monkeypatch, URL.format(1).encode())
    assert records(read("-"))[0].url == URL.format(1)
    pipe(monkeypatch, f"image_url\n{URL.format(1)}\n".encode())
    assert records(read("-", file_format=Format.CSV))[0].url == URL.format(1)
    pq.write_table(pa.table({"image_url": [URL.format(1)]}), tmp_path / "p.parquet")
    pipe(monkeypatch, (tmp_path / "p.parquet").read_bytes())
    assert records(read("-", file_format=Format.PARQUET))[0].url == URL.format(1)
    pipe(monkeypatch, f"image_url\n{URL.format(1)}\n".encode())
    assert "--format txt|csv|tsv|jsonl|parquet" in complaint("-")


@pytest.mark.parametrize("name", ["e.txt", "e.csv", "e.tsv", "e.jsonl", "e.csv.gz"])
def test_an_empty_file_has_no_rows(tmp_path: Path, name: str) -> None:
    path = file(tmp_path, name, gzip.compress(b"") if name.endswith(".gz") else b"")
    assert read(path) == []


def test_bad_rows_of_a_table_cost_only_themselves(tmp_path: Path) -> None:
    lines = [
        b"image_url,title",
        f'{URL.format(1)},"two\nlines, and ""quotes"""'.encode(),  # lines 2 and 3
        b",empty",
        b"http://h.test/" + b"x" * 8_200 + b",long",
        b"ftp://h.test/6.jpg,scheme",
        b"http://h.test/\x01.jpg,control",
        URL.format(8).encode(),
        URL.format(9).encode() + b",too,many",
        b"http://h.test/\xff.jpg,broken",
        URL.format(11).encode() + b",broken \xff\xfe",
        URL.format(12).encode() + b",NUL \0",
        b"http://h.test/\0.jpg,NUL",
        b"",
        URL.format(15).encode() + b"," + b"y" * 200_000,
        b'"http://h.test/1\n6.jpg",line',  # lines 16 and 17
        URL.format(18).encode() + b',"fine"',
    ]
    path = file(tmp_path, "p.csv", b"\n".join(lines))
    assert refused(path) == {
        4: "the URL is empty",
        5: "the URL has 8,214 characters, limit 8,192",
        6: "the URL does not begin with http:// or https://",
        7: "the URL has a control character at position 15",
        8: "the header has 2 cells, this row 1",
        9: "the header has 2 cells, this row 3",
        10: "the URL is not UTF-8",
        11: "an attribute has a NUL character or is not UTF-8",
        12: "an attribute has a NUL character or is not UTF-8",
        13: "the URL has a control character at position 15",
        15: "field larger than field limit (131072)",
        16: "the URL has a control character at position 16",
    }
    with open_file(str(path)) as source:
        (chunk,) = collect(source.blocks, lambda _row: None)
    assert chunk.rows == 2


def test_bad_lines_of_json_cost_only_themselves(tmp_path: Path) -> None:
    lines = [
        json.dumps({"image_url": URL.format(1)}).encode(),
        b'{"image_url": ',
        b"7",
        b'{"title": "no URL"}',
        b'{"image_url": 7}',
        b'{"image_url": "http://h.test/\xff"}',
        b'{"image_url": "http://h.test/7", "a": "\\u0000"}',
        b'{"image_url": "http://h.test/8", "a": 1e999}',
        json.dumps({"image_url": URL.format(9)}).encode(),
    ]
    path = file(tmp_path, "p.jsonl", b"\n".join(lines))
    bad = refused(path)
    assert bad.pop(8).startswith("attribute 'a' has no form in JSON: Out of range")
    assert bad == {
        2: "not JSON: Expecting value at position 16",
        3: "not a JSON object",
        4: "the URL is empty",
        5: "the URL is not text but int",
        6: "the URL is not UTF-8",
        7: "an attribute has a NUL character or is not UTF-8",
    }


def test_cells_of_parquet_that_python_cannot_hold_cost_only_their_row(tmp_path: Path) -> None:
    broken = pa.array([b"http://h.test/\xff", URL.format(2).encode(), URL.format(3).encode()])
    far = pa.array([0, 2**62, 0], pa.int64()).cast(pa.timestamp("us"))
    table = pa.table({"image_url": broken.view(pa.string()), "since": far})
    pq.write_table(table, tmp_path / "p.parquet")
    bad = refused(tmp_path / "p.parquet")
    assert list(bad) == [1, 2]
    assert "since" in bad[2]


def test_a_line_without_end_is_one_bad_row(tmp_path: Path) -> None:
    path = file(tmp_path, "urls.txt", "http://h.test/" + "x" * 9_000_000 + f"\n{URL.format(2)}\n")
    assert list(refused(path)) == [1]
    assert [row.line for row in read(path)] == [1, 2]


def test_an_id_too_long_for_its_index_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path, "p.csv", f"image_url,photo,sku\n{URL.format(1)},a,{'é' * 1_001}\n")
    assert refused(path, KEYED) == {2: "the product id has 2,002 bytes, limit 2,000"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.dat", b"", "cannot tell the format of"),
        ("p", b"", "--format txt|csv|tsv|jsonl|parquet"),
        ("p.csv", b"id,picture\n", "only id, picture; name one with --url-column"),
        ("p.csv", b"image_url,a,a\n", "has the column 'a' twice"),
        ("p.csv", b'"' + b"x" * 200_000, "cannot read the header"),
        ("p.csv", "image_url\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("p.csv.gz", b"image_url\n", "cannot read"),
        ("p.jsonl", b'{"picture": 1}\n', "only picture; name one with --url-column"),
        ("p.parquet", b"PAR1", "cannot read"),
    ],
)
def test_what_is_no_catalogue_is_refused_in_one_sentence(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = file(tmp_path, name, content)
    message = complaint(path)
    assert said in message
    assert str(path) in message


@pytest.mark.parametrize("column", ["image_key", "product_id"])
def test_a_missing_column_is_named_with_its_option(tmp_path: Path, column: str) -> None:
    path = file(tmp_path, "p.csv", "image_url\n")
    assert f"--{column.replace('_', '-')}-column" in complaint(path, Columns(**{column: "id"}))


def test_lines_of_urls_have_no_columns(tmp_path: Path) -> None:
    path = file(tmp_path, "urls.txt", URL.format(1))
    assert "which have no columns" in complaint(path, Columns(product_id="sku"))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert f"{tmp_path}/no.csv: No such file" in complaint(tmp_path / "no.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "Is a directory" in complaint(tmp_path / "folder.csv")


def test_a_file_that_breaks_off_says_so_after_its_good_rows(tmp_path: Path) -> None:
    content = "image_url\n" + "".join(f"http://h.test/{n}\n" for n in range(200_000))
    packed = gzip.compress(content.encode())
    path = file(tmp_path, "p.csv.gz", packed[: len(packed) // 2])
    read_so_far: list[Record | BadRow] = []
    with (
        open_file(str(path)) as source,
        pytest.raises(UsageError, match=r"cannot read .*p\.csv\.gz: Compressed file ended"),
    ):
        read_so_far.extend(source.rows)
    assert len(read_so_far) > 1_000
