"""`vsearch db`: the schema, and the embedded server."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from visual_search.cli.context import CliContext, echo_json
from visual_search.errors import SettingsError

app = typer.Typer(no_args_is_help=True, help="The database: schema version, embedded server.")


@app.command()
def upgrade(context: typer.Context) -> None:
    """Bring the schema up to date; makes it where there is none.

    \b
    Examples:
      vsearch db upgrade
      VSEARCH_DATABASE_URL=postgresql://user@host/name vsearch db upgrade
    """
    from visual_search.database import migrate
    from visual_search.database.connection import open_database

    cli: CliContext = context.obj
    with open_database(cli.settings, create=True, any_schema=True) as database:
        before = migrate.upgrade(database)
        after, place = migrate.head(), database.place
    if before == after:
        typer.echo(f"the schema of {place} is up to date at {after}")
    else:
        typer.echo(f"upgraded the schema of {place} from {before or 'nothing'} to {after}")


@app.command()
def current(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show the schema's version, and the one this vsearch works with.

    \b
    Examples:
      vsearch db current
    """
    from visual_search.database import migrate
    from visual_search.database.connection import open_database

    cli: CliContext = context.obj
    with open_database(cli.settings, any_schema=True) as database:
        found, wanted, place = migrate.current(database), migrate.head(), database.place
    if as_json:
        echo_json({"current": found, "head": wanted, "up_to_date": found == wanted})
    else:
        advice = "" if found == wanted else "; run `vsearch db upgrade`"
        typer.echo(f"{place}: schema {found or 'missing'}, this vsearch needs {wanted}{advice}")


@app.command()
def stop(
    context: typer.Context,
    force: Annotated[
        bool, typer.Option("--force", help="Even while other commands use it.")
    ] = False,
) -> None:
    """Stop the embedded server. It also stops by itself when its last user ends.

    \b
    Examples:
      vsearch db stop
    """
    from visual_search.database import embedded

    cli: CliContext = context.obj
    if cli.settings.database_url is not None:
        raise SettingsError("VSEARCH_DATABASE_URL names a server that vsearch does not run")
    stopped = embedded.stop(cli.settings.home, force=force)
    typer.echo("stopped" if stopped else "nothing was running")


@app.command()
def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; nothing is replaced.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write the embedded database to a file, as it is at this moment; runs go on meanwhile.

    \b
    Examples:
      vsearch db backup catalogue.backup
      vsearch db backup "/mnt/backups/$(date +%F).backup"

    \b
    The file is there when it is whole and was read back; only its owner may read it. Vectors are
    not in it: copy the output, too. A database of your own is backed up by its own tools.
    """
    from visual_search.database import embedded

    cli: CliContext = context.obj
    settings = cli.settings
    if settings.database_url is not None:
        raise SettingsError(
            "VSEARCH_DATABASE_URL names a server that vsearch does not run; back it up with "
            f"`pg_dump --format=custom --schema={settings.database.schema_name} "
            f'--file={quote(str(file))} "$VSEARCH_DATABASE_URL"`'
        )
    revision = embedded.back_up(settings.home, file, schema=settings.database.schema_name)
    size = file.stat().st_size
    if as_json:
        echo_json({"file": file.absolute(), "bytes": size, "schema": revision})
    else:
        typer.echo(f"{file}: {size:,} bytes, schema {revision}")


@app.command()
def restore(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `db backup` wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make the embedded database from a backup, in a home that has none.

    \b
    Examples:
      VSEARCH_HOME=/data/restored vsearch db restore catalogue.backup

    \b
    Until all of it is there, the home has no catalogue. Look at the vectors next: `vsearch shards
    verify` names those that the backup knows and that are gone.
    """
    from visual_search.database import embedded, migrate

    cli: CliContext = context.obj
    settings = cli.settings
    if settings.database_url is not None:
        raise SettingsError(
            "VSEARCH_DATABASE_URL names a server that vsearch does not run; restore into it with "
            '`pg_restore --single-transaction --no-owner --dbname="$VSEARCH_DATABASE_URL" '
            f"{quote(str(file))}`"
        )
    revision = embedded.restore(settings.home, file, schema=settings.database.schema_name)
    home, head = settings.home.absolute(), migrate.head()
    if as_json:
        echo_json({"home": home, "schema": revision, "head": head})
        return
    advice = "" if revision == head else f"; `vsearch db upgrade` brings it to {head}"
    typer.echo(f"restored the catalogue of {home}, schema {revision}{advice}")
