"""Lists reach the server as they are."""

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from visual_search.database.arrays import array_text
from visual_search.database.connection import Database

# Postgres has no NUL in text, and UTF-8 no half of a character.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
COLUMNS = {
    "bigint": st.integers(-(2**63), 2**63 - 1),
    "double precision": st.floats(allow_nan=False),
    "boolean": st.booleans(),
    "text": TEXT | st.sampled_from(["", "NULL", "null", "{}", "a,b", '"', "\\", '\\"', " a ", "é"]),
    "bytea": st.binary(),
    "uuid": st.uuids(),
}


def returned(database: Database, values: list[Any], of: str) -> list[Any]:
    with database.transaction() as connection:
        rows = connection.execute(
            text(f"SELECT value FROM unnest(CAST(:values AS {of}[])) WITH ORDINALITY AS v (value)"),
            {"values": values},
        ).all()
    return [bytes(row.value) if isinstance(row.value, memoryview) else row.value for row in rows]


@pytest.mark.parametrize("of", COLUMNS)
def test_what_is_sent_comes_back(database: Database, of: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(COLUMNS[of] | st.none()))
    def check(values: list[Any]) -> None:
        assert returned(database, values, of) == values

    check()


def test_a_list_is_sent_as_one_text(database: Database) -> None:
    """The driver's own expression would have a type."""
    with database.transaction() as connection:
        sent_as = connection.execute(
            text("SELECT CAST(pg_typeof(:values) AS text)"), {"values": [1, 2]}
        ).scalar_one()
    assert sent_as == "unknown"


def test_text_that_postgres_cannot_hold_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="NUL"):
        returned(database, ["a\0b"], "text")


def test_an_unknown_kind_of_value_is_refused() -> None:
    assert array_text([None, UUID(int=0)]) == "{NULL,00000000-0000-0000-0000-000000000000}"
    with pytest.raises(TypeError, match="complex"):
        array_text([1j])
