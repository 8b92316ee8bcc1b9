"""`vsearch shards`: the Parquet files that count."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visual_search.cli.context import CliContext, complain, counted, echo_json, moment, table
from visual_search.errors import ExitCode

if TYPE_CHECKING:
    from visual_search.compaction import GroupResult
    from visual_search.database.connection import Database
    from visual_search.models.registry import RegisteredModel

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
        removed = sum(shard.removed_rows for shard in shards)
        if removed:
            complain(
                f"note: {counted(removed, 'row')} of these shards no longer count, since their "
                "images were refreshed or removed; docs/refresh.md says how readers leave them out"
            )
    elif shards:
        typer.echo(
            table(
                ("model", "rows", "removed", "bytes", "created (UTC)", "path"),
                [
                    (
                        shard.model_id,
                        shard.rows,
                        shard.removed_rows,
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
def compact(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="NAME", help="Only of this model; may be repeated."),
    ] = None,
    below: Annotated[
        int | None,
        typer.Option(
            "--below",
            min=1,
            metavar="ROWS",
            help="Merge shards with fewer rows; half of extract.shard_rows unless given.",
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", metavar="URI", help="Where to look; as for extract.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be merged, and do nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Merge small shards into few of up to extract.shard_rows rows. No vector changes.

    \b
    Examples:
      vsearch shards compact --dry-run
      vsearch shards compact
      vsearch shards compact --model resnet18 --below 2000

    \b
    Readers, runs and other calls may go on meanwhile: at any moment each vector is in one listed
    shard. The old files stay until `vsearch shards gc --delete`, a day later at the earliest.
    Exit codes: 0 done or nothing to do, 1 a shard is damaged and its group was left as it is,
    75 temporary, 130 or 143 stopped by a signal.
    """
    from visual_search.compaction import GroupOutcome, GroupResult
    from visual_search.compaction import compact as compact_shards
    from visual_search.progress import Progress
    from visual_search.storage import open_storage

    cli: CliContext = context.obj
    settings = cli.settings_with(output=output)
    limit = below or max(1, settings.extract.shard_rows // 2)
    results: list[GroupResult] = []
    with cli.database(settings) as database:
        models = _models(database, model or [])
        with Progress("compact", unit="vec") as progress:
            for result in compact_shards(
                database,
                open_storage(settings.output_uri, settings.storage),
                models,
                below=limit,
                max_rows=settings.extract.shard_rows,
                hold_s=settings.extract.lease_s,
                settings=settings.storage,
                dry_run=dry_run,
                tell=lambda rows: progress.show(rows, 0),
            ):
                results.append(result)
                if not as_json:
                    typer.echo(_told(result))
    if as_json:
        groups = [_document(result) for result in results]
        echo_json({"dry_run": dry_run, "below": limit, "groups": groups})
    elif not results:
        typer.echo(f"nothing to do: no two shards with fewer than {limit:,} rows fit into one")
    outcomes = {result.outcome for result in results}
    if GroupOutcome.DAMAGED in outcomes:
        raise typer.Exit(int(ExitCode.FAILED))
    if GroupOutcome.GIVEN_UP in outcomes:
        raise typer.Exit(int(ExitCode.TEMPORARY))


def _models(database: "Database", names: list[str]) -> list["RegisteredModel"]:
    """Those with these names or ids; without any all that ever ran, retired ones, too."""
    from visual_search.models import registry

    with database.transaction() as connection:
        for name in names:
            registry.check_known(connection, name)
        return [
            known
            for known in registry.registered(connection)
            if not names or known.name in names or known.model_id in names
        ]


def _told(result: "GroupResult") -> str:
    from visual_search.storage import shown

    shards = counted(len(result.group.shards), "shard")
    whose = result.group.model_id
    if result.shard is not None:
        return (
            f"{whose}: {shards} with {result.group.bytes:,} bytes became one with "
            f"{counted(result.shard.rows, 'row')} and {result.shard.bytes:,} bytes: "
            f"{shown(result.shard.uri)}"
        )
    if result.why is None:
        return f"{whose}: {shards} would become one with {counted(result.group.rows, 'row')}"
    return f"{whose}: {shards} stay as they are: {result.why}"


def _document(result: "GroupResult") -> dict[str, Any]:
    made = result.shard
    return {
        "model": result.group.shards[0].shard.model,
        "model_id": result.group.model_id,
        "outcome": result.outcome.value,
        "why": result.why,
        "shard_id": None if made is None else made.shard_id,
        "uri": None if made is None else made.uri,
        "rows": result.group.rows if made is None else made.rows,
        "bytes": None if made is None else made.bytes,
        "sources": [
            {
                "shard_id": each.shard.shard_id,
                "uri": each.shard.uri,
                "rows": each.rows,
                "bytes": each.shard.bytes,
            }
            for each in result.group.shards
        ],
    }


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
    superseded_grace_s: Annotated[
        float,
        typer.Option(
            "--superseded-grace",
            min=0,
            metavar="SECONDS",
            help="Leave shards alone that `compact` merged since then: somebody may read them.",
        ),
    ] = 24 * 3600.0,
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
        garbage = list(
            collect_garbage(
                database,
                storage,
                grace_s=grace_s,
                superseded_grace_s=superseded_grace_s,
                delete=delete,
            )
        )
    if as_json:
        echo_json({"deleted": delete, "files": [asdict(file) for file in garbage]})
        return
    for file in garbage:
        typer.echo(f"{file.why}: {file.path}")
    total = sum(file.bytes for file in garbage)
    advice = "" if delete or not garbage else "; `vsearch shards gc --delete` deletes them"
    found = f"{counted(len(garbage), 'file')}, {total:,} bytes"
    typer.echo(f"{found}{' deleted' if delete else ''}{advice}")
