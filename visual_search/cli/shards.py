"""`vsearch shards`: the Parquet files that count."""

from dataclasses import asdict
from typing import Annotated

import typer

from visual_search.cli.context import CliContext, counted, echo_json, moment, table
from visual_search.errors import ExitCode

app = typer.Typer(no_args_is_help=True, help="The Parquet files that hold the vectors.")

Model = Annotated[
    str | None, typer.Option("--model", "-m", metavar="NAME", help="Only of this model.")
]


@app.command("list")
def list_(
    context: typer.Context,
    model: Model = None,
    paths: Annotated[
        bool, typer.Option("--paths", help="Only the paths, one a line, for other programs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List recorded shards. Read these, never a folder: a folder may hold unfinished files.

    \b
    Examples:
      vsearch shards list
      vsearch shards list --model resnet18 --paths
      vsearch shards list --json | jq -r '.shards[].uri'
    """
    from visual_search.models import registry
    from visual_search.record import list_shards
    from visual_search.storage import shown

    cli: CliContext = context.obj
    with cli.database() as database, database.transaction() as connection:
        registry.check_known(connection, model)
        shards = list_shards(connection, model=model)
    if as_json:
        echo_json({"shards": [asdict(shard) for shard in shards]})
    elif paths:
        for shard in shards:
            typer.echo(shown(shard.uri))
    elif shards:
        typer.echo(
            table(
                ("model", "rows", "bytes", "created (UTC)", "path"),
                [
                    (
                        shard.model_id,
                        shard.rows,
                        shard.bytes,
                        moment(shard.created_at),
                        shown(shard.uri),
                    )
                    for shard in shards
                ],
            )
        )
    else:
        typer.echo("no shards yet; `vsearch extract --model NAME` writes them")


@app.command()
def verify(
    context: typer.Context,
    model: Model = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Discard damaged shards; their images are embedded again."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compare every shard's size, sha256 and rows with the record. Exits 1 if any is damaged.

    \b
    Examples:
      vsearch shards verify
      vsearch shards verify --model resnet18 --repair
    """
    from visual_search.models import registry
    from visual_search.record import list_shards
    from visual_search.upkeep import find_damaged
    from visual_search.upkeep import repair as repair_shards

    cli: CliContext = context.obj
    with cli.database() as database:
        with database.transaction() as connection:
            registry.check_known(connection, model)
            shards = list_shards(connection, model=model)
        damaged = find_damaged(shards, cli.settings.storage)
        again = repair_shards(database, damaged) if repair else 0
    if as_json:
        echo_json(
            {
                "checked": len(shards),
                "damaged": [asdict(bad.shard) | {"damage": bad.damage} for bad in damaged],
                "images_pending_again": again,
            }
        )
    else:
        for bad in damaged:
            typer.echo(f"damaged: {bad.shard.uri}: {bad.damage}")
        typer.echo(f"{counted(len(shards), 'shard')} checked, {len(damaged):,} damaged")
        if repair and damaged:
            typer.echo(f"{counted(again, 'image')} pending again; run `vsearch extract`")
    if damaged and not repair:
        raise typer.Exit(int(ExitCode.FAILED))


@app.command()
def gc(
    context: typer.Context,
    output: Annotated[
        str | None, typer.Option("--output", metavar="URI", help="Where to look; as for extract.")
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete what is found; otherwise it is only listed.")
    ] = False,
    grace_s: Annotated[
        float, typer.Option("--grace", min=0, metavar="SECONDS", help="Leave younger files alone.")
    ] = 3600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List, or delete, shard files that no reader may see: what dead or refused runs left behind.

    \b
    Examples:
      vsearch shards gc
      vsearch shards gc --delete
    """
    from visual_search.storage import open_storage
    from visual_search.upkeep import collect_garbage

    cli: CliContext = context.obj
    settings = cli.settings_with(output=output)
    with cli.database(settings) as database:
        storage = open_storage(settings.output_uri, settings.storage)
        garbage = list(collect_garbage(database, storage, grace_s=grace_s, delete=delete))
    if as_json:
        echo_json({"deleted": delete, "files": [asdict(file) for file in garbage]})
        return
    for file in garbage:
        typer.echo(f"{file.why}: {file.path}")
    total = sum(file.bytes for file in garbage)
    advice = "" if delete or not garbage else "; `vsearch shards gc --delete` deletes them"
    found = f"{counted(len(garbage), 'file')}, {total:,} bytes"
    typer.echo(f"{found}{' deleted' if delete else ''}{advice}")
