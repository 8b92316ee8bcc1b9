"""Tables of text: read in pieces or row by row, they are what the csv module says."""

import csv
import io
from collections.abc import Iterator

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from visual_search.catalog import delimited, lines
from visual_search.catalog.columns import Columns
from visual_search.catalog.encoding import CellEncoder
from visual_search.catalog.rows import BadRow, Block, Record

HEADER = b"image_url,sku,a,b\n"
COLUMNS = Columns(product_id="sku")
# What a table is made of; most rows are as wide as the header, and some are not.
PIECES = st.sampled_from(
    (
        b"u,s,1,2\n", b"u,s,1,2\r\n", b'u,s,"x, y",true\n', b'u,s,"say ""so""",\n', b"u,s,,\n",
        b'u,s,"two\nlines",b\n', b'u,s,a"b,"c"d\n', b'"u","s","",""\n', b",,,\n",
        b"u", b"s", b",", b'"', b"\n", b"\r", b"\r\n", b" ", b"\t", b"\\", b"\0",
        "é".encode(), b"\xff", b"\xef\xbb\xbf", b"-1", b"x" * 40,
    )
)  # fmt: skip
TABLES = st.lists(PIECES, max_size=30).map(b"".join)


def expected(table: bytes, longest: int) -> Iterator[Record | BadRow]:
    """The rows as the csv module has them."""
    encoder = CellEncoder(["a", "b"])
    cut = (line[:longest] for line in io.BytesIO(table))
    reader = csv.reader(line.decode("utf-8", "surrogateescape") for line in cut)
    next(reader)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except csv.Error as error:
            yield BadRow(line=line, reason=str(error))
            continue
        except StopIteration:
            return
        if len(cells) == 4:
            yield Record(line, cells[0], None, cells[1], encoder.row(cells[2:]))
        elif cells:
            yield BadRow(line=line, reason=f"the header has 4 cells, this row {len(cells)}")


def blocks(table: bytes, ahead: int = 1 << 19, longest: int = 4_000_000) -> list[Block]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_AHEAD_BYTES", ahead)
        patch.setattr(lines, "_MAX_LINE_BYTES", longest)
        return list(delimited.delimited(io.BytesIO(table), ",", COLUMNS, "t"))


# Bytes looked at ahead, and of the longest line.
SIZES = st.sampled_from(((8, 90), (30, 90), (90, 90), (1 << 19, 4_000_000)))


@settings(max_examples=600, deadline=None)
@given(TABLES, SIZES)
@example(b'u,s,"a"b"c",1\nu,s,"a"\n,1\n', (90, 90))
@example(b"u,s,1,2\ru,s,1,2\n" + b'u,s,"x\ny",2\n', (1 << 19, 4_000_000))
@example(b'u,s,5" disk,1\nu,s,2,7" disk\nu,s,"x\ny",1\n', (30, 90))
@example(b"x" * 80 + b'u,s,"x, y",true\nu,s,1,2\n', (90, 90))
@example(b"x" * 90 + b"u,s,1,2\nu,s,1,2\n", (30, 90))
def test_a_table_is_what_the_csv_module_says_however_it_is_read(
    table: bytes, sizes: tuple[int, int]
) -> None:
    found = [row for block in blocks(HEADER + table, *sizes) for row in block.rows()]
    assert found == list(expected(HEADER + table, sizes[1]))


def test_what_is_plain_is_read_in_one_piece_and_an_odd_row_costs_only_its_piece() -> None:
    plain = b'http://h.test/1.jpg,s,"quoted, with ""quotes""",12.50\n' * 100
    table = HEADER + plain + b'u,s,"two\nlines",1\n' + plain
    found = blocks(table, 1_000)
    assert [row.line for block in found for row in block.rows()] == [
        *range(2, 103), *range(104, 204),
    ]  # fmt: skip
    by_row = [block for block in found if not isinstance(block.urls, pa.StringArray)]
    assert len(by_row) <= 2
    assert sum(len(block.lines) for block in by_row) < 50


def test_a_cell_longer_than_the_csv_modules_limit_is_a_bad_row() -> None:
    table = HEADER + b"u,s,1,2\n" + b"u,s," + b"x" * 131_073 + b",2\n" + b"u,s,1,2\n"
    (block,) = blocks(table)
    assert list(block.lines) == [2, 4]
    assert block.bad == [BadRow(line=3, reason="field larger than field limit (131072)")]


def test_long_names_and_short_rows_come_in_small_blocks() -> None:
    """Each attribute brings its name: half a megabyte of rows could be gigabytes of attributes."""
    name = b"n" * 20_000
    found = blocks(b"image_url,sku," + name + b"\n" + b"u,s,1\n" * 50_000)
    assert sum(len(block.lines) for block in found) == 50_000
    assert max(len(block.lines) for block in found) <= 200
    found = blocks(b"image_url,sku\n" + b"u,s\n" * 50_000)
    assert sum(len(block.lines) for block in found) == 50_000
    assert max(len(block.lines) for block in found) <= 10_000
