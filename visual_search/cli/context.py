"""What every command shares: settings, the database, logs and JSON output."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import typer

from visual_search.redaction import printable

if TYPE_CHECKING:
    from visual_search.database.connection import Database
    from visual_search.settings import Settings

SCHEMA_VERSION = 1


class CliContext:
    """Made by the root command, found in `context.obj` by all others."""

    def __init__(self, *, config_file: Path | None, debug: bool) -> None:
        self.config_file = config_file
        self.debug = debug

    @cached_property
    def settings(self) -> "Settings":
        """File and environment, without a command's own flags."""
        return self.settings_with()

    def settings_with(self, **flags: Any) -> "Settings":
        """File and environment with `flags` on top; logs are set up on the way."""
        from visual_search.cli import logs
        from visual_search.settings import load_settings, unknown_variables

        logs.configure(debug=self.debug)
        settings = load_settings(self.config_file, **flags)
        logs.warn_of_unknown(unknown_variables())
        return settings

    @contextmanager
    def database(
        self, settings: "Settings | None" = None, *, create: bool = False
    ) -> Iterator["Database"]:
        """The catalogue's database, ready to work with."""
        from visual_search.database.connection import open_database

        with open_database(settings or self.settings, create=create) as database:
            yield database


def echo_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document to stdout; times in UTC."""
    typer.echo(
        json.dumps(
            {"schema_version": SCHEMA_VERSION, **document},
            default=_plain,
            indent=2,
            ensure_ascii=False,
        )
    )


def complain(sentence: object) -> None:
    """Say on stderr what is wrong, in one line, whatever it quotes."""
    typer.echo(f"vsearch: {printable(str(sentence), None)}", err=True)


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    """Left-aligned columns; numbers to the right. What a cell says cannot steer a terminal."""
    cells = [
        tuple("–" if cell is None else printable(str(cell), None) for cell in row) for row in rows
    ]
    widths = [max(len(row[n]) for row in [head, *cells]) for n in range(len(head))]
    numeric = [
        bool(rows) and all(isinstance(row[n], int | float) for row in rows)
        for n in range(len(head))
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in [head, *cells]
    )


def counted(number: int, thing: str) -> str:
    """`1 shard`, `2 shards`, `1,000 shards`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def moment(time: datetime | None) -> str:
    """A time for people, in UTC to the second."""
    return "–" if time is None else f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, UUID | Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} in a JSON document")
