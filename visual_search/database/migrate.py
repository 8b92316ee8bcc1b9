"""Bring the schema up to date, or say that it is not."""

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import text

from visual_search.database.schema import MIGRATION_LOCK
from visual_search.errors import SchemaError

if TYPE_CHECKING:
    from visual_search.database.connection import Database


def folder() -> Path:
    """The migrations: beside the package where it is installed, one folder up in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"


def head() -> str:
    """The newest revision this version knows; revisions are numbered by their file names."""
    return max(file.name.partition("_")[0] for file in (folder() / "versions").glob("[0-9]*.py"))


def current(database: "Database") -> str | None:
    """The revision of the schema, `None` where nothing was ever made."""
    with database.transaction() as connection:
        there = connection.execute(
            text("SELECT to_regclass(format('%I.alembic_version', CAST(:schema AS text)))"),
            {"schema": database.schema},
        ).scalar()
        if there is None:
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def check(database: "Database") -> None:
    """Raise `SchemaError` unless the schema is the one this version works with."""
    found, wanted = current(database), head()
    if found == wanted:
        return
    if found is not None and found > wanted:
        raise SchemaError(
            f"the schema of {database.place} is at {found}, newer than this vsearch ({wanted}); "
            "install the newer vsearch"
        )
    raise SchemaError(
        f"the schema of {database.place} is {f'at {found}' if found else 'missing'}, this vsearch "
        f"needs {wanted}; run `vsearch db upgrade`"
    )


def upgrade(database: "Database") -> str | None:
    """Upgrade in one transaction; any number of callers at once.

    Returns:
        The revision before, `None` where nothing was there.
    """
    before = current(database)
    if before == head():
        return before
    if before is not None and before > head():
        check(database)
    # Alembic costs 0.4 s to import, and nearly every call has nothing to upgrade.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(folder()).replace("%", "%%"))
    with database.transaction() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
        config.attributes["connection"] = connection
        config.attributes["schema"] = database.schema
        command.upgrade(config, "head")
    return before
