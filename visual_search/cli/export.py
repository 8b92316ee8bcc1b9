"""`vsearch export`: a clean set of vectors for other programs."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from visual_search.cli.context import CliContext, counted, echo_json
from visual_search.errors import SettingsError

if TYPE_CHECKING:
    from visual_search.export import Format


def export(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", "-m", metavar="NAME", help="Whose vectors.")],
    format_: Annotated[
        str, typer.Option("--format", metavar="NAME", help="parquet, npy or csv.")
    ] = "parquet",
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="URI",
            help="Folder, s3://… or gs://…, of its own; in `home` unless given.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Write parts anew that are there already.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write every vector that counts, once, with image and products, for other programs.

    \b
    Examples:
      vsearch export --model resnet18
      vsearch export --model resnet18 --format npy --to exports/resnet18
      vsearch export --model resnet18 --to s3://my-bucket/exports/resnet18

    \b
    The same command again goes on where one was cut short, and adds what came since. Parts that
    are there are kept; --fresh writes them anew, with the products' attributes of today.
    """
    from visual_search.export import export as export_vectors
    from visual_search.models import registry
    from visual_search.progress import Progress
    from visual_search.storage import open_storage

    cli: CliContext = context.obj
    settings = cli.settings
    kind = _format(format_)
    with cli.database() as database:
        with database.transaction() as connection:
            registry.check_known(connection, model)
            known = max(
                (
                    found
                    for found in registry.registered(connection)
                    if model in (found.name, found.model_id)
                ),
                # Of a name the active one; where none is, the last that was.
                key=lambda found: (found.active, found.created_at),
            )
        place = open_storage(
            to or str(settings.home.absolute() / "exports" / f"{known.model_id}-{kind}"),
            settings.storage,
        )
        with Progress(known.name) as progress:
            done = export_vectors(
                database,
                known,
                place,
                format_=kind,
                storage=settings.storage,
                fresh=fresh,
                tell=lambda rows: progress.show(rows, 0),
            )
    if as_json:
        echo_json({"to": place.address, "model_id": known.model_id, **asdict(done)})
        return
    typer.echo(
        f"{counted(done.rows, 'vector')} of {known.model_id} in {place.address}: "
        f"{counted(done.written, 'part')} written, {done.kept:,} kept, {done.deleted:,} deleted"
    )


def _format(name: str) -> "Format":
    from visual_search.export import Format

    known: tuple[Format, ...] = get_args(Format)
    for format_ in known:
        if format_ == name:
            return format_
    raise SettingsError(f"unknown format {name!r}; one of {', '.join(known)}")
