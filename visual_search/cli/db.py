"""`vsearch db`: the schema, and the embedded server."""

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
