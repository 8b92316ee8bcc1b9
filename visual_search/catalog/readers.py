"""Files and queries → rows, in one pass, whatever is wrong with some of them."""

import codecs
import csv
import gzip
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from visual_search.catalog.encoding import cell_encoder, decode_object, encode_object
from visual_search.catalog.rows import BadRow, Columns, Record, RefusedRowError
from visual_search.errors import UsageError
from visual_search.redaction import printable

STDIN: Final = "-"
# A longer line is cut here, and is bad for the one or the other reason.
_MAX_LINE_BYTES: Final = 4_000_000
_PARQUET_ROWS: Final = 4_096
# Rows of text cells encoded together; few, since a row can be large.
_ROWS_AT_ONCE: Final = 128
# So many lines of JSON are looked through for the names that later lines must know.
_JSON_HEAD_LINES: Final = 100
_MAX_NAMES_SHOWN: Final = 30

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
    rows: Rows


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
                    rows = _txt(file, wanted, name, assumed=file_format is None and path == STDIN)
                case Format.CSV:
                    rows = _delimited(file, ",", wanted, name)
                case Format.TSV:
                    rows = _delimited(file, "\t", wanted, name)
                case Format.JSONL:
                    rows = _jsonl(file, wanted, name)
                case Format.PARQUET:
                    rows = _parquet(file, wanted, name, opened)
        except _UNREADABLE as error:
            raise _unreadable(name, error) from error
        yield Source(name=name, rows=_guarded(rows, name))


def table_rows(
    names: Sequence[str], rows: Iterable[Sequence[Any]], columns: Columns, name: str
) -> Rows:
    """Rows of typed cells, numbered from 1.

    Raises:
        UsageError: A column is missing, or there twice.
    """
    picked = _Picked(names, columns, name)
    return _table_rows(picked, rows)


_UNREADABLE: Final = (OSError, EOFError, zlib.error, pa.ArrowException)


def _unreadable(name: str, error: Exception) -> UsageError:
    words = error.strerror if isinstance(error, OSError) else None
    return UsageError(f"cannot read {name}: {words or printable(str(error), 200)}")


def _guarded(rows: Rows, name: str) -> Rows:
    try:
        yield from rows
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


class _Picked:
    """Which cells of a row are what."""

    def __init__(self, names: Sequence[str], columns: Columns, source: str) -> None:
        wanted = (columns.url, columns.image_key, columns.product_id)
        for name, option in zip(wanted, _OPTIONS, strict=True):
            if name is not None and name not in names:
                raise _missing_column(name, option, names, source)
        twice = sorted({name for name in names if names.count(name) > 1 and name})
        if twice:
            raise UsageError(f"{source} has the column {printable(twice[0], 60)!r} twice")
        self.width = len(names)
        self.url, self.image_key, self.product_id = (
            None if name is None else names.index(name) for name in wanted
        )
        # A column without a name (an index that pandas wrote) cannot be an attribute.
        self.positions = [n for n, name in enumerate(names) if name and name not in wanted]
        self.names = [names[n] for n in self.positions]


_OPTIONS: Final = ("--url-column", "--image-key-column", "--product-id-column")


def _missing_column(name: str, option: str, there: Iterable[str], source: str) -> UsageError:
    names = [printable(known, 60) for known in there]
    more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
    shown = f"only {', '.join(names[:_MAX_NAMES_SHOWN])}{more}" if names else "none at all"
    return UsageError(f"{source} has no column {name!r}, {shown}; name one with {option}")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines with their ends, each at most `_MAX_LINE_BYTES` long; the rest of a longer is lost."""
    while line := file.readline(_MAX_LINE_BYTES):
        yield line
        while len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(_MAX_LINE_BYTES)


def _text_lines(file: IO[bytes], name: str) -> Iterator[str]:
    """Lines as text. What is not UTF-8 becomes lone surrogates, for which a row is refused."""
    lines = _lines(file)
    first = next(lines, b"")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(f"{name} is UTF-16; save it as UTF-8")
    for line in chain((first.removeprefix(codecs.BOM_UTF8),) if first else (), lines):
        yield line.decode("utf-8", "surrogateescape")


def _txt(file: IO[bytes], columns: Columns, name: str, *, assumed: bool) -> Rows:
    if columns != Columns():
        raise UsageError(f"{name} is read as lines of URLs, which have no columns; say --format")
    lines = _text_lines(file, name)
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


def _delimited(file: IO[bytes], delimiter: str, columns: Columns, name: str) -> Rows:
    reader = csv.reader(_text_lines(file, name), delimiter=delimiter)
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise UsageError(f"cannot read the header of {name}: {error}") from None
    if header is None:
        return iter(())
    return _delimited_rows(reader, _Picked(header, columns, name))


def _delimited_rows(reader: Any, picked: _Picked) -> Rows:
    block = _Cells(picked)
    while True:
        # A record may span lines: it begins one after the end of the record before.
        line = reader.line_num + 1
        try:
            for cells in reader:
                if len(cells) == picked.width:
                    block.lines.append(line)
                    block.rows.append(cells)
                    if len(block.rows) == _ROWS_AT_ONCE:
                        yield from block.records()
                elif cells:
                    yield from block.records()
                    reason = f"the header has {picked.width} cells, this row {len(cells)}"
                    yield BadRow(line=line, reason=reason)
                line = reader.line_num + 1
        except csv.Error as error:
            yield from block.records()
            yield BadRow(line=line, reason=str(error))
        else:
            yield from block.records()
            return


# As Record._make does, without a call of Python for each row.
_RECORD: Final = partial(tuple.__new__, Record)


class _Cells:
    """Rows of text cells that become records together: by columns it takes half the time."""

    def __init__(self, picked: _Picked) -> None:
        self.lines: list[int] = []
        self.rows: list[list[str]] = []
        self._picked = picked
        self._encode = cell_encoder(picked.names)

    def records(self) -> Iterator[Record]:
        """Those of the rows so far, which are forgotten."""
        if not self.rows:
            return
        columns = list(zip(*self.rows, strict=True))
        ids = (self._picked.url, self._picked.image_key, self._picked.product_id)
        url, key, product = (repeat(None) if n is None else columns[n] for n in ids)
        described = [columns[n] for n in self._picked.positions]
        attributes = self._encode(described) if described else repeat(None)
        cells = zip(self.lines, url, key, product, attributes, strict=False)  # some are endless
        yield from map(_RECORD, cells)
        self.lines.clear()
        self.rows.clear()


def _jsonl(file: IO[bytes], columns: Columns, name: str) -> Rows:
    lines = _text_lines(file, name)
    head = list(islice(lines, _JSON_HEAD_LINES))
    names: dict[str, None] = {}
    for line in head:
        try:
            names |= dict.fromkeys(decode_object(line))
        except RefusedRowError:
            continue
    wanted = (columns.url, columns.image_key, columns.product_id)
    for column, option in zip(wanted, _OPTIONS, strict=True):
        if names and column is not None and column not in names:
            raise _missing_column(column, option, names, name)
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


def _parquet(file: BinaryIO, columns: Columns, name: str, opened: ExitStack) -> Rows:
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
    return table_rows(names, cells, columns, name)


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


def _table_rows(picked: _Picked, rows: Iterable[Sequence[Any]]) -> Rows:
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
