"""`vsearch status`: how far each model is."""

import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from visual_search.cli.context import CliContext, echo_json
from visual_search.errors import ExitCode, SettingsError

if TYPE_CHECKING:
    from visual_search.database.connection import Database
    from visual_search.status import ModelStatus


def status(
    context: typer.Context,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Show it again and again until Ctrl-C.")
    ] = False,
    interval_s: Annotated[
        float, typer.Option("--interval", min=0.1, metavar="SECONDS", help="With --watch.")
    ] = 2.0,
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="Exit 4 if work is pending, 3 if images failed, else 0."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print metrics in Prometheus' text format.")
    ] = False,
) -> None:
    """Show progress, failures and the last run of every active model.

    \b
    Examples:
      vsearch status
      vsearch status --watch
      vsearch status --json | jq '.models[].pending'
      vsearch status --prometheus > vsearch.prom
      vsearch status --exit-code || echo "not finished"
    """
    from visual_search.status import as_documents, model_statuses

    chosen = {"--watch": watch, "--json": as_json, "--prometheus": prometheus}
    given = [name for name, asked in chosen.items() if asked]
    if len(given) > 1:
        raise SettingsError(f"{' and '.join(given)} exclude each other; give one of them")
    cli: CliContext = context.obj
    with cli.database() as database:
        if watch:
            _watch(database, interval_s)
        statuses = model_statuses(database)
        if as_json:
            echo_json({"generated_at": datetime.now(UTC), "models": as_documents(statuses)})
        elif prometheus:
            from visual_search.metrics.families import status_text

            typer.echo(status_text(statuses, datetime.now(UTC)), nl=False)
        else:
            typer.echo(_text(database, statuses))
    if exit_code:
        raise typer.Exit(int(_code(statuses)))


def _watch(database: "Database", interval_s: float) -> None:
    from visual_search.status import model_statuses

    while True:
        text = _text(database, model_statuses(database))
        clear = "\033[H\033[2J" if sys.stdout.isatty() else ""
        typer.echo(f"{clear}{text}\n")
        time.sleep(interval_s)


def _text(database: "Database", statuses: list["ModelStatus"]) -> str:
    from visual_search.status import as_table, count_images

    if statuses:
        return as_table(statuses, datetime.now(UTC))
    return (
        f"{count_images(database):,} images, no model has run yet; "
        "`vsearch extract --model NAME` begins, `vsearch models list` names them"
    )


def _code(statuses: list["ModelStatus"]) -> ExitCode:
    if any(model.pending or model.claimed for model in statuses):
        return ExitCode.WORK_PENDING
    if any(model.failed for model in statuses):
        return ExitCode.FAILURE_RATE
    return ExitCode.OK
