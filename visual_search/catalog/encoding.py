"""Attributes as JSON text: what a cell of a table becomes in `products.attributes`."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from json.encoder import encode_basestring_ascii
from typing import Any, Final, NoReturn
from uuid import UUID

from visual_search.catalog.rows import RefusedRowError
from visual_search.redaction import printable

_is_number: Final = re.compile(r"(?:-(?=[0-9.]*[1-9]))?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?").fullmatch
_MAX_NUMBER_CHARS: Final = 16
_FIRST_OF_NUMBER: Final = frozenset("-0123456789")
_BOOLEANS: Final = {
    "true": "true",
    "True": "true",
    "TRUE": "true",
    "false": "false",
    "False": "false",
    "FALSE": "false",
}
_REMEMBERED_CELLS: Final = 4_096
# An unknown type, a number too long for Python's limit, an infinite Decimal.
_NO_JSON: Final = (TypeError, ValueError, OverflowError)


def cell_encoder(
    names: Iterable[str],
) -> Callable[[Sequence[Sequence[str]]], Iterable[str | None]]:
    """Encode columns of text cells, one column for each name.

    Text files know no types, so a cell's own form decides, and the same cell is always the same
    value: plain decimal numbers of up to 16 characters (`12.50`, not `007`, `1e3` or `+1`) are
    numbers, digit for digit; `true`, `True`, `TRUE` and their opposites are booleans; an empty
    cell is no attribute; everything else is text.

    Returns:
        A function from columns to one object in JSON for each row, `None` if its cells are empty.
    """
    known = [_Members(name) for name in names]

    def encode(columns: Sequence[Sequence[str]]) -> Iterable[str | None]:
        members = [
            map(member_of.__getitem__, column)
            for member_of, column in zip(known, columns, strict=True)
        ]
        rows: Iterable[Iterable[str]] = zip(*members, strict=True)
        if any("" in column for column in columns):
            rows = (filter(None, row) for row in rows)
        return (f"{{{given}}}" if given else None for given in map(",".join, rows))

    return encode


class _Members(dict[str, str]):
    """The cells of one column as members of an object.

    Brands, colours and prices come again and again, titles do not.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._head = f"{_encode(name)}:"
        self[""] = ""

    def __missing__(self, cell: str) -> str:
        if cell[0] in _FIRST_OF_NUMBER and len(cell) <= _MAX_NUMBER_CHARS and _is_number(cell):
            member = self._head + cell
        else:
            member = self._head + (_BOOLEANS.get(cell) or encode_basestring_ascii(cell))
        if len(self) < _REMEMBERED_CELLS:
            self[cell] = member
        return member


def encode_object(attributes: Mapping[str, Any]) -> str | None:
    """Encode values with types; nested ones survive, NULL and NaN are no attribute.

    Raises:
        RefusedRowError: A value has no form in JSON.
    """
    given = {name: value for name, value in attributes.items() if value is not None}
    try:
        try:
            encoded = _encode(given)
        except ValueError:  # not finite: rare, and slow to look for
            encoded = _encode(_finite(given))
    except RecursionError:
        raise RefusedRowError("the attributes are nested too deeply") from None
    except _NO_JSON:
        raise RefusedRowError(_not_encodable(given)) from None
    return None if encoded == "{}" else encoded


def decode_object(line: str) -> dict[str, Any]:
    """A line of JSON as an object.

    Raises:
        RefusedRowError: It is none.
    """
    try:
        value = _decode(line)
    except json.JSONDecodeError as error:
        raise RefusedRowError(
            f"not JSON: {error.msg.removesuffix(' at')} at position {error.pos + 1}"
        ) from None
    except ValueError as error:
        raise RefusedRowError(f"not JSON: {printable(str(error), 100)}") from None
    except RecursionError:
        raise RefusedRowError("the JSON is nested too deeply") from None
    if not isinstance(value, dict):
        raise RefusedRowError("not a JSON object")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _plain(value: object) -> object:
    """The JSON form of what Parquet and Postgres have and JSON has not."""
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        whole = value == value.to_integral_value()
        return int(value) if whole else float(value)
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(type(value).__name__)


_encode: Final = json.JSONEncoder(allow_nan=False, separators=(",", ":"), default=_plain).encode
_decode: Final = json.JSONDecoder(parse_constant=_no_constant).decode


def _finite(value: Any) -> Any:
    """`value` without the members that are NaN; infinity stays, and is refused."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items() if not _is_nan(inner)}
    if isinstance(value, list):
        return [None if _is_nan(inner) else _finite(inner) for inner in value]
    return value


def _is_nan(value: object) -> bool:
    return isinstance(value, float | Decimal) and math.isnan(value)


def _not_encodable(attributes: Mapping[str, Any]) -> str:
    for name, value in attributes.items():
        try:
            _encode(_finite(value))
        except _NO_JSON as error:
            shown = printable(str(name), 60)
            return f"attribute {shown!r} has no form in JSON: {printable(str(error), 100)}"
    return "an attribute has no form in JSON"
