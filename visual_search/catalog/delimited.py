"""Text files of cells → rows, many at once where every line is a row."""

import codecs
import csv
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from visual_search.catalog.columns import Columns, Picked
from visual_search.catalog.encoding import CellEncoder
from visual_search.catalog.lines import Lines
from visual_search.catalog.rows import BadRow, Block, Blocks, Record, in_blocks
from visual_search.errors import UsageError

# More than `Lines.ahead` ever gives: it is parsed as one piece.
_PARSED_BYTES: Final = 1 << 22
_MAX_ROWS: Final = 8_192
_MAX_NAMES_BYTES: Final = 4_000_000


def delimited(file: BinaryIO, delimiter: str, columns: Columns, name: str) -> Blocks:
    """The rows of a file whose first row has the names of its columns.

    Raises:
        UsageError: The header cannot be read, or a column is missing.
    """
    lines = Lines(file)
    text = lines.text(name)
    reader = csv.reader(text, delimiter=delimiter)
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise UsageError(f"cannot read the header of {name}: {error}") from None
    if header is None:
        return iter(())
    table = _Table(Picked(header, columns, name), delimiter)
    return table.blocks(lines, text, reader.line_num + 1)


class _Table:
    """Rows of text cells: Arrow reads what is plain, Python what is not, with the same result."""

    def __init__(self, picked: Picked, delimiter: str) -> None:
        self._picked = picked
        self._delimiter = delimiter
        self._encoder = CellEncoder(picked.names)
        # Each attribute brings its name.
        names_bytes = sum(map(len, picked.names)) + 1
        self._rows_at_once = max(1, min(_MAX_ROWS, _MAX_NAMES_BYTES // names_bytes))
        names = [str(n) for n in range(picked.width)]
        self._options = (
            pa_csv.ReadOptions(column_names=names, use_threads=False, block_size=_PARSED_BYTES),
            pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )

    def blocks(self, lines: Lines, text: Iterator[str], line: int) -> Blocks:
        """All rows from the one that begins at a line; `text` takes from `lines`."""
        while ahead := lines.ahead():
            count = ahead.count(b"\n")
            if batch := self._plain(ahead, count):
                lines.take(ahead)
                for start in range(0, count, self._rows_at_once):
                    some = batch.slice(start, self._rows_at_once)
                    yield self._block(some, line + start)
                line += count
            else:
                taken = csv.reader(text, delimiter=self._delimiter)
                yield from in_blocks(self._each(taken, line, max(count, 1)))
                line += taken.line_num

    def _plain(self, ahead: bytes, count: int) -> pa.RecordBatch | None:
        """Rows that are one line each; `None` if something about them is odd."""
        # Where each "\r" stands before a "\n", only a "\n" ends a row.
        if b"\r" in ahead and ahead.count(b"\r") != ahead.count(b"\r\n"):
            return None
        if ahead.startswith(codecs.BOM_UTF8):  # of which Arrow makes nothing, wherever it begins
            return None
        try:
            table = pa_csv.read_csv(pa.BufferReader(ahead), *self._options)
        except pa.ArrowInvalid:  # not UTF-8, a row of another width
            return None
        if table.num_rows != count:  # an empty line, or a row of several lines
            return None
        (batch,) = table.to_batches()
        if batch.column(self._picked.width - 1)[-1].as_py().endswith("\n"):  # an open quote
            return None
        too_long = any(_longest(cells) > csv.field_size_limit() for cells in batch.columns)
        return None if too_long else batch

    def _block(self, batch: pa.RecordBatch, line: int) -> Block:
        picked = self._picked
        url, key, product = (
            None if n is None else batch.column(n)
            for n in (picked.url, picked.image_key, picked.product_id)
        )
        cells = [batch.column(n) for n in picked.positions]
        return Block(
            lines=range(line, line + batch.num_rows),
            urls=url,
            image_keys=key,
            product_ids=product,
            attributes=self._encoder.columns(cells) if cells else None,
        )

    def _each(self, reader: Any, first: int, count: int) -> Iterator[Record | BadRow]:
        """Rows one by one: those that begin in `count` lines from the first one on."""
        picked = self._picked
        while reader.line_num < count:
            # A row may span lines: it begins one after the end of the row before.
            line = first + reader.line_num
            try:
                cells = next(reader, None)
            except csv.Error as error:
                yield BadRow(line=line, reason=str(error))
                continue
            if cells is None:
                return
            if len(cells) == picked.width:
                url, key, product = (
                    None if n is None else cells[n]
                    for n in (picked.url, picked.image_key, picked.product_id)
                )
                attributes = self._encoder.row([cells[n] for n in picked.positions])
                yield Record(line, url, key, product, attributes)
            elif cells:
                reason = f"the header has {picked.width} cells, this row {len(cells)}"
                yield BadRow(line=line, reason=reason)


def _longest(cells: pa.StringArray) -> int:
    longest: int = pc.max(pc.binary_length(cells)).as_py()
    return longest
