"""`vsearch catalog`: what there is to embed."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from visual_search.cli.context import CliContext, counted, echo_json, moment, table
from visual_search.errors import ExitCode, RunError, SettingsError
from visual_search.redaction import printable

if TYPE_CHECKING:
    from visual_search.catalog import BadRow, CatalogueStats, Format, Imported, Removed

_MAX_BAD_ROWS_SHOWN: Final = 20
_URL_COLUMN: Final = "image_url"

app = typer.Typer(
    no_args_is_help=True, help="What there is to embed: image URLs, attributes of products."
)

FormatName = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="txt (one URL a line), csv, tsv, jsonl or parquet; by default the end of FILE's name, "
        "for - txt.",
    ),
]


@app.command("import")
def import_(
    context: typer.Context,
    file: Annotated[
        str | None, typer.Argument(metavar="FILE|-", help="Where the rows are; - is stdin.")
    ] = None,
    query: Annotated[
        str | None,
        typer.Option("--query", metavar="SQL", help="Instead of FILE: a SELECT from your tables."),
    ] = None,
    file_format: FormatName = None,
    url_column: Annotated[
        str, typer.Option("--url-column", metavar="NAME", help="The column of image URLs.")
    ] = _URL_COLUMN,
    image_key_column: Annotated[
        str | None,
        typer.Option(
            "--image-key-column",
            metavar="NAME",
            help="The column of your own image ids; without it, the URL is what names an image.",
        ),
    ] = None,
    product_id_column: Annotated[
        str | None,
        typer.Option(
            "--product-id-column",
            metavar="NAME",
            help="The column of product ids; without it, each image is a product.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Bring the catalogue up to a file, or to a query on your own tables in the same database.

    Columns without an option of their own become attributes of the product. Importing again
    changes only what changed: a known image key with another URL gets that URL and is not embedded
    again. Bad rows are reported by line, the others are kept. Makes the embedded database where
    there is none. Exits 1 if no row was kept.

    \b
    Examples:
      vsearch catalog import urls.txt
      vsearch catalog import products.csv --product-id-column sku --image-key-column photo_id
      zcat products.csv.gz | vsearch catalog import - --format csv
      vsearch catalog import --query "SELECT sku, image_url, title FROM shop.products" \\
          --product-id-column sku
    """
    from visual_search.catalog import Columns, import_images, open_file, open_query
    from visual_search.progress import Progress

    if (file is None) == (query is None):
        raise SettingsError("give FILE (- is stdin) or --query SQL, one of them")
    if query is not None and file_format is not None:
        raise SettingsError("--format is of a file, and --query reads none; leave it out")
    cli: CliContext = context.obj
    columns = Columns(url=url_column, image_key=image_key_column, product_id=product_id_column)
    with ExitStack() as opened:
        # A wrong file or column is found before an embedded database is made. A query's tables are
        # in one that is there.
        if file is not None:
            source = opened.enter_context(
                open_file(file, file_format=_format(file_format), columns=columns)
            )
        database = opened.enter_context(cli.database(create=file is not None))
        if query is not None:
            source = opened.enter_context(open_query(database, query, columns=columns))
        progress = opened.enter_context(Progress("import", unit="row", failed="bad"))
        began = time.monotonic()
        imported = import_images(database, source, on_progress=progress.show)
        seconds = time.monotonic() - began
    if as_json:
        echo_json(
            {**asdict(imported), "unchanged": imported.unchanged, "seconds": round(seconds, 3)}
        )
    else:
        _tell_bad_rows(source.name, imported.bad_rows, imported.bad)
        if imported.rows:
            typer.echo(_import_sentence(imported, seconds))
    _check_kept(source.name, imported.rows, imported.bad, as_json=as_json)


@app.command()
def remove(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="Names of images; - is stdin.")],
    file_format: FormatName = None,
    url_column: Annotated[
        str | None,
        typer.Option(
            "--url-column", metavar="NAME", help=f"The column of URLs (default: {_URL_COLUMN})."
        ),
    ] = None,
    image_key_column: Annotated[
        str | None,
        typer.Option(
            "--image-key-column", metavar="NAME", help="The column of your own image ids instead."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count what would be removed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Take images out of the catalogue, with their history and products that have no other image.

    A URL removes the image it was imported as, and every image that has it now. Vectors that are
    already written stay in their files: a reader leaves them out by joining on image_id with the
    catalogue. Removing again removes nothing.

    \b
    Examples:
      vsearch catalog remove takedowns.txt --dry-run
      vsearch catalog remove takedowns.txt
      vsearch catalog remove discontinued.csv --image-key-column photo_id
    """
    from visual_search.catalog import Columns, open_file, preview_removal, remove_images
    from visual_search.progress import Progress

    if url_column is not None and image_key_column is not None:
        raise SettingsError("--url-column and --image-key-column exclude each other; give one")
    cli: CliContext = context.obj
    url = url_column or _URL_COLUMN
    columns = Columns(url=None if image_key_column else url, image_key=image_key_column)
    with (
        open_file(file, file_format=_format(file_format), columns=columns) as source,
        cli.database() as database,
        Progress("remove", unit="row", failed="bad") as progress,
    ):
        if dry_run:
            removed = preview_removal(database, source)
        else:
            removed = remove_images(database, source, on_progress=progress.show)
    if as_json:
        echo_json({"dry_run": dry_run, **asdict(removed)})
    else:
        _tell_bad_rows(source.name, removed.bad_rows, removed.bad)
        typer.echo(_removal_sentence(removed, dry_run=dry_run))
    if removed.bad:
        _check_kept(source.name, removed.rows, removed.bad, as_json=as_json)


@app.command()
def stats(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Count images, products, hosts and attributes.

    \b
    Examples:
      vsearch catalog stats
      vsearch catalog stats --json | jq .images
    """
    from visual_search.catalog import catalogue_stats

    cli: CliContext = context.obj
    with cli.database() as database, database.transaction() as connection:
        found = catalogue_stats(connection)
    if as_json:
        echo_json(asdict(found))
    else:
        typer.echo(_stats_text(found))


def _format(name: str | None) -> "Format | None":
    from visual_search.catalog import Format

    if name is None:
        return None
    try:
        return Format(name)
    except ValueError:
        raise SettingsError(f"unknown format {name!r}; one of {', '.join(Format)}") from None


def _tell_bad_rows(source: str, bad_rows: "Sequence[BadRow]", bad: int) -> None:
    for row in bad_rows[:_MAX_BAD_ROWS_SHOWN]:
        typer.echo(printable(f"{source}:{row.line}: {row.reason}", None), err=True)
    if bad > _MAX_BAD_ROWS_SHOWN:
        typer.echo(
            f"… and {counted(bad - _MAX_BAD_ROWS_SHOWN, 'more bad row')}; --json lists up to 1,000",
            err=True,
        )


def _check_kept(source: str, rows: int, bad: int, *, as_json: bool) -> None:
    """A source of which nothing was taken is a failure, also where the document says it all."""
    if rows:
        return
    if as_json:
        raise typer.Exit(int(ExitCode.FAILED))
    if bad:
        raise RunError(f"no row of {source} could be taken; {counted(bad, 'bad row')}")
    raise RunError(f"{source} has no rows; nothing was imported")


def _import_sentence(imported: "Imported", seconds: float) -> str:
    return (
        f"{counted(imported.rows, 'row')}: {counted(imported.new, 'new image')}, "
        f"{imported.updated:,} with another URL, {imported.unchanged:,} unchanged; "
        f"{counted(imported.products_new, 'new product')}, "
        f"{imported.products_updated:,} with other attributes; {counted(imported.bad, 'bad row')}; "
        f"{seconds:,.1f} s, {imported.rows / seconds:,.0f} rows/s"
    )


def _removal_sentence(removed: "Removed", *, dry_run: bool) -> str:
    names = counted(removed.unknown, "name")
    unknown = f"; {names} not in the catalogue" if removed.unknown else ""
    vectors = (
        f"\nshards that are already written keep {counted(removed.vectors, 'vector')} of theirs; "
        "readers leave them out by joining on image_id with the catalogue"
        if removed.vectors
        else ""
    )
    gone = f"{counted(removed.images, 'image')} and {counted(removed.products, 'product')}"
    return f"{'would remove' if dry_run else 'removed'} {gone}{unknown}{vectors}"


def _stats_text(found: "CatalogueStats") -> str:
    facts: list[tuple[object, ...]] = [
        ("images", f"{found.images:,}"),
        ("newest image (UTC)", moment(found.last_added_at)),
        ("products", f"{found.products:,}"),
        ("products without attributes", f"{found.products_without_attributes:,}"),
        ("hosts", f"{found.host_count:,}"),
    ]
    blocks = [table(("", ""), facts).lstrip()]
    if found.hosts:
        hosts: list[tuple[object, ...]] = [(known.host, known.images) for known in found.hosts]
        blocks.append(table(("host", "images"), hosts))
    if found.attributes:
        shares: list[tuple[object, ...]] = [
            (known.name, f"{known.products / found.products_sampled:.1%}")
            for known in found.attributes
        ]
        sampled = found.products_sampled < found.products
        of = f"{found.products_sampled:,} products, a sample" if sampled else "all products"
        blocks.append(table(("attribute", f"share of {of}"), shares))
    return "\n\n".join(blocks)
