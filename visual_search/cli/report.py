"""`vsearch report`: a page about the work, for people."""

from pathlib import Path
from typing import Annotated

import typer

from visual_search.cli.context import CliContext, echo_json
from visual_search.errors import SettingsError

# Not the name of the demo's page, which lies in a home, too.
FILE = "overview.html"


def report(
    context: typer.Context,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help=f"Where to; {FILE} in `home` unless given."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="NAME", help="Only of this model; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write an HTML page: progress, throughput, failures, slow hosts, shards, with plots.

    \b
    Examples:
      vsearch report
      vsearch report --output /var/www/html/vsearch.html
      vsearch report --model resnet18 --model resnet50

    \b
    The page is complete in itself and loads nothing. An older one is replaced.
    """
    from visual_search.report import overview
    from visual_search.report.page.document import write_page

    cli: CliContext = context.obj
    path = (output or cli.settings.home / FILE).absolute()
    if _is_folder(path):
        raise SettingsError(
            f"{path} is a folder; name a file in it, such as --output {path / FILE}"
        )
    with cli.database() as database:
        content = overview.gather(database, model or ())
    written = write_page(path, overview.render(content))
    if as_json:
        echo_json({"path": path, "bytes": written})
    else:
        typer.echo(path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # what is wrong with it, writing says
        return False
