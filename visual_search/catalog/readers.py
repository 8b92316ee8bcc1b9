"""Files and queries → rows, in one pass, whatever is wrong with some of them."""

import gzip
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from visual_search.catalog.columns import Columns, Picked, require
from visual_search.catalog.delimited import delimited
from visual_search.catalog.encoding import decode_object, encode_object
from visual_search.catalog.lines import Lines
from visual_search.catalog.rows import BadRow, Blocks, Record, RefusedRowError, in_blocks
from visual_search.errors import UsageError
from visual_search.redaction import printable

STDIN: Final = "-"
_PARQUET_ROWS: Final = 4_096
# So many lines of JSON are looked through for the names that later lines must know.
_JSON_HEAD_LINES: Final = 100

Rows = Iterator[Record | BadRow]


class Format(StrEnum):
    """How a file holds rows."""

    TXT = "txt"
    CSV = "csv"
    TSV = "tsv"
    JSONL = "jsonl"
    PARQUET = "parquet"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Rows from somewhere, to be read once.

    Attributes:
        name: For messages: the path, `standard input` or `the query`.
    """

    name: str
    blocks: Blocks

    @property
    def rows(self) -> Rows:
        """The rows one by one."""
        return chain.from_iterable(block.rows() for block in self.blocks)


@contextmanager
def open_file(
    path: str, *, file_format: Format | None = None, columns: Columns | None = None
) -> Iterator[Source]:
    """The rows of a file; what can be known before the first row is checked here.

    Args:
        path: `-` is the standard input. A text file may be compressed (`.gz`).
        file_format: `None`: by the file's extension; the standard input holds URLs, one a line.
        columns: `None`: the names of `Columns`.

    Raises:
        UsageError: The file cannot be read, its format is not known, or a column is missing.
            While rows are read: the file is damaged, or the disk is.
    """
    name = "standard input" if path == STDIN else path
    known = file_format or _format_of(path)
    wanted = columns or Columns()
    with ExitStack() as opened:
        try:
            file = _open(path, opened)
            match known:
                case Format.TXT:
                    assumed = file_format is None and path == STDIN
                    blocks = in_blocks(_txt(file, wanted, name, assumed=assumed))
                case Format.CSV:
                    blocks = delimited(file, ",", wanted, name)
                case Format.TSV:
                    blocks = delimited(file, "\t", wanted, name)
                case Format.JSONL:
                    blocks = in_blocks(_jsonl(file, wanted, name))
                case Format.PARQUET:
                    blocks = _parquet(file, wanted, name, opened)
        except _UNREADABLE as error:
            raise _unreadable(name, error) from error
        yield Source(name=name, blocks=_guarded(blocks, name))


def table_blocks(
    names: Sequence[str], rows: Iterable[Sequence[Any]], columns: Columns, name: str
) -> Blocks:
    """Rows of typed cells, numbered from 1.

    Raises:
        UsageError: A column is missing, or there twice.
    """
    return in_blocks(_table_rows(Picked(names, columns, name), rows))


_UNREADABLE: Final = (OSError, EOFError, zlib.error, pa.ArrowException)


def _unreadable(name: str, error: Exception) -> UsageError:
    words = error.strerror if isinstance(error, OSError) else None
    return UsageError(f"cannot read {name}: {words or printable(str(error), 200)}")


def _guarded(blocks: Blocks, name: str) -> Blocks:
    try:
        yield from blocks
    except _UNREADABLE as error:
        raise _unreadable(name, error) from error


def _format_of(path: str) -> Format:
    if path == STDIN:
        return Format.TXT
    suffix = Path(path.removesuffix(".gz")).suffix.lower().removeprefix(".")
    try:
        return Format(suffix)
    except ValueError:
        raise UsageError(
            f"cannot tell the format of {path} by its name; say --format {'|'.join(Format)}"
        ) from None


def _open(path: str, opened: ExitStack) -> BinaryIO:
    if path == STDIN:
        return sys.stdin.buffer
    if path.endswith(".gz"):
        return cast("BinaryIO", opened.enter_context(gzip.open(path, "rb")))
    return opened.enter_context(Path(path).open("rb"))


def _txt(file: BinaryIO, columns: Columns, name: str, *, assumed: bool) -> Rows:
    if columns != Columns():
        raise UsageError(f"{name} is read as lines of URLs, which have no columns; say --format")
    lines = Lines(file).text(name)
    first = next(lines, None)
    if first is None:
        return iter(())
    if assumed and not first.lower().startswith(("http://", "https://")):
        raise UsageError(
            f"the first line of the {name} is not a URL; say what it is: "
            f"--format {'|'.join(Format)}"
        )
    return _txt_rows(chain((first,), lines))


def _txt_rows(lines: Iterator[str]) -> Rows:
    blank: list[int] = []
    for number, line in enumerate(lines, 1):
        url = line.strip(" \t\r\n")
        if not url:
            blank.append(number)
            continue
        # Empty lines at the end are nobody's mistake.
        for empty in blank:
            yield BadRow(line=empty, reason="the URL is empty")
        blank.clear()
        yield Record(number, url, None, None, None)


def _jsonl(file: BinaryIO, columns: Columns, name: str) -> Rows:
    lines = Lines(file).text(name)
    head = list(islice(lines, _JSON_HEAD_LINES))
    names: dict[str, None] = {}
    for line in head:
        try:
            names |= dict.fromkeys(decode_object(line))
        except RefusedRowError:
            continue
    if names:
        require(columns, names, name)
    return _jsonl_rows(chain(head, lines), columns)


def _jsonl_rows(lines: Iterator[str], columns: Columns) -> Rows:
    url, key, product = columns.url, columns.image_key, columns.product_id
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            cells = decode_object(line)
            attributes = {n: cell for n, cell in cells.items() if n not in (url, key, product)}
            yield Record(
                number,
                None if url is None else cells.get(url),
                None if key is None else _present(cells.get(key)),
                None if product is None else cells.get(product),
                encode_object(attributes),
            )
        except RefusedRowError as error:
            yield BadRow(line=number, reason=str(error))


def _parquet(file: BinaryIO, columns: Columns, name: str, opened: ExitStack) -> Blocks:
    if not file.seekable() or name.endswith(".gz"):
        # The index of a Parquet file is at its end.
        spool = opened.enter_context(TemporaryFile())  # noqa: SIM115 - closed with all the rest
        shutil.copyfileobj(file, spool)
        file = cast("BinaryIO", spool)
    parquet = opened.enter_context(pq.ParquetFile(file, pre_buffer=False))
    names = parquet.schema_arrow.names
    cells = (
        row
        for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS)
        for row in zip(*(_values(column) for column in batch.columns), strict=True)
    )
    return table_blocks(names, cells, columns, name)


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        # As Python has them; otherwise pyarrow makes them pandas' own.
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    try:
        return cast("list[Any]", column.to_pylist(maps_as_pydicts="lossy"))
    except (ValueError, OverflowError):
        return [_value(cell) for cell in column]


def _value(cell: pa.Scalar) -> object:
    """A cell of a column that has cells which Python cannot hold: broken UTF-8, the year 10000."""
    try:
        return cell.as_py()
    except (ValueError, OverflowError):
        return _Unreadable()


class _Unreadable:
    """In a row's place for a URL, an id or an attribute, it makes the row a bad one."""


def _table_rows(picked: Picked, rows: Iterable[Sequence[Any]]) -> Rows:
    url, key, product = picked.url, picked.image_key, picked.product_id
    attributes = list(zip(picked.positions, picked.names, strict=True))
    for number, cells in enumerate(rows, 1):
        try:
            yield Record(
                number,
                None if url is None else cells[url],
                None if key is None else _present(cells[key]),
                None if product is None else cells[product],
                encode_object({name: cells[n] for n, name in attributes}),
            )
        except RefusedRowError as error:
            yield BadRow(line=number, reason=str(error))


def _present(key: object) -> object:
    """A record without a key would be one whose key is its URL: here there is a column for it."""
    return "" if key is None else key
