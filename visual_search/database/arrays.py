"""Lists of values on their way to the server."""

from collections.abc import Iterable
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Engine, event

_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\""})


def send_lists_as_text(engine: Engine) -> None:
    """Let each list in a statement's parameters go to the server as one text, `{1,2,3}`.

    The driver by itself writes an expression with a term for each value. A thousand numbers take
    it 2.5 ms and the server's planner 2 ms; as text they take 0.3 ms and next to nothing. The
    statement has to say the type: `CAST(:image_ids AS bigint[])`.
    """

    @event.listens_for(engine, "before_cursor_execute", retval=True)
    def send(
        _connection: object,
        _cursor: object,
        statement: str,
        parameters: Any,
        _context: object,
        _executemany: bool,
    ) -> tuple[str, Any]:
        return statement, _with_texts(parameters)


def array_text(values: Iterable[object]) -> str:
    """The text by which Postgres reads an array of these values.

    Args:
        values: Each an int, float, bool, str, bytes, UUID or None.

    Raises:
        TypeError: Another kind of value is among them.
    """
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: object) -> str:
    match value:
        case None:
            return "NULL"
        case bool() | int() | float() | UUID():
            return str(value)
        case str():
            return f'"{value.translate(_ESCAPED)}"'
        case bytes():
            return rf'"\\x{value.hex()}"'
    raise TypeError(f"no element of an array: {type(value).__name__}")


def _with_texts(parameters: Any) -> Any:
    if not isinstance(parameters, dict):
        return parameters
    return {
        name: array_text(value) if isinstance(value, list) else value
        for name, value in parameters.items()
    }
