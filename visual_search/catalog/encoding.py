"""Attributes as JSON text: what a cell of a table becomes in `products.attributes`."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from json.encoder import encode_basestring_ascii
from typing import Any, Final, NoReturn
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from visual_search.catalog.arrays import joined, patched, where
from visual_search.catalog.rows import RefusedRowError
from visual_search.redaction import printable

_NUMBER: Final = r"(?:0|[1-9][0-9]*)(?:\.[0-9]+)?"
_MAX_NUMBER_CHARS: Final = 16
_is_number: Final = re.compile(rf"(?:-(?=[0-9.]*[1-9]))?{_NUMBER}").fullmatch
_BOOLEANS: Final = {
    "true": "true",
    "True": "true",
    "TRUE": "true",
    "false": "false",
    "False": "false",
    "FALSE": "false",
}
# Among cells of printable ASCII: values as they stand, and those that are not just quoted.
_BARE: Final = rf"^(?:{_NUMBER}|true|false)$"
_ODD: Final = r'["\\]|^$|^-|^(?:True|TRUE|False|FALSE)$'
# An unknown type, a number too long for Python's limit, an infinite Decimal.
_NO_JSON: Final = (TypeError, ValueError, OverflowError)


class CellEncoder:
    """Encodes rows of text cells as objects in JSON.

    Text files know no types, so a cell's own form decides, and the same cell is always the same
    value: plain decimal numbers of up to 16 characters (`12.50`, not `007`, `1e3` or `+1`) are
    numbers, digit for digit; `true`, `True`, `TRUE` and their opposites are booleans; an empty
    cell is no attribute; everything else is text.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._attributes = [_Attribute(name) for name in names]

    def row(self, cells: Iterable[str]) -> str | None:
        """One object; `None` if all cells are empty."""
        pairs = zip(self._attributes, cells, strict=True)
        members = "".join(attribute.member(cell) for attribute, cell in pairs)
        return f"{{{members[1:]}}}" if members else None

    def columns(self, columns: Iterable[pa.StringArray]) -> pa.StringArray:
        """Objects of many rows, whose cells come column by column; null as in `row`."""
        pairs = zip(self._attributes, columns, strict=True)
        objects = joined("{", *(attribute.members(cells) for attribute, cells in pairs), "}")
        objects = pc.if_else(pc.equal(objects, "{}"), None, objects)
        return pc.binary_replace_slice(objects, 1, 2, "")


class _Attribute:
    """The cells of one column as members of an object, each with a comma before it."""

    def __init__(self, name: str) -> None:
        self._head = f",{_encode(name)}:"

    def member(self, cell: str) -> str:
        """Empty if the cell is."""
        if not cell:
            return ""
        if len(cell) <= _MAX_NUMBER_CHARS and _is_number(cell):
            return self._head + cell
        return self._head + (_BOOLEANS.get(cell) or encode_basestring_ascii(cell))

    def members(self, cells: pa.StringArray) -> pa.StringArray:
        """Empty where a cell is."""
        # Brands, colours and prices come again and again.
        encoded = cells.dictionary_encode()
        once = encoded.dictionary
        bare = pc.and_(
            pc.match_substring_regex(once, _BARE),
            pc.less_equal(pc.binary_length(once), _MAX_NUMBER_CHARS),
        )
        members = pc.if_else(bare, joined(self._head, once), joined(f'{self._head}"', once, '"'))
        odd = where(
            pc.or_(pc.invert(pc.ascii_is_printable(once)), pc.match_substring_regex(once, _ODD))
        )
        looked_at = [self.member(cell) for cell in once.take(odd).to_pylist()]
        return patched(members, odd, looked_at).take(encoded.indices)


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
