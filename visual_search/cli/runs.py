"""`vsearch runs`: what ran, when, how fast."""

from typing import TYPE_CHECKING, Annotated

import typer

from visual_search.cli.context import CliContext, echo_json, moment, table
from visual_search.errors import SettingsError

if TYPE_CHECKING:
    from visual_search.runs import RunRecord

app = typer.Typer(no_args_is_help=True, help="What ran, when, how fast, and where time went.")


@app.command("list")
def list_(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="Only of this model.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the latest runs, newest first.

    \b
    Examples:
      vsearch runs list
      vsearch runs list --model resnet18 --limit 5 --json
    """
    from visual_search.models import registry
    from visual_search.runs import as_document, list_runs

    cli: CliContext = context.obj
    with cli.database() as database, database.transaction() as connection:
        registry.check_known(connection, model)
        runs = list_runs(connection, models=[model] if model else None, limit=limit)
    if as_json:
        echo_json({"runs": [as_document(run) for run in runs]})
        return
    if not runs:
        typer.echo("no runs yet; `vsearch extract --model NAME` makes one")
        return
    typer.echo(
        table(
            ("run", "model", "started (UTC)", "outcome", "done", "failed", "images/s"),
            [
                (
                    str(run.run_id)[:8],
                    run.model,
                    moment(run.started_at),
                    _outcome(run),
                    run.done,
                    run.failed,
                    run.images_per_second,
                )
                for run in runs
            ],
        )
    )


@app.command()
def show(
    context: typer.Context,
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="The id, or how it begins.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show one run, with the processor time of each stage.

    \b
    Examples:
      vsearch runs show 1f3a
      vsearch runs show 1f3a --json
    """
    from visual_search.runs import as_document, find_runs

    cli: CliContext = context.obj
    with cli.database() as database, database.transaction() as connection:
        found = find_runs(connection, run_id)
    if len(found) != 1:
        raise SettingsError(
            f"{len(found) or 'no'} runs begin with {run_id!r}; `vsearch runs list` shows their ids"
        )
    run = found[0]
    if as_json:
        echo_json({"run": as_document(run)})
        return
    facts: list[tuple[object, ...]] = [
        ("run", run.run_id),
        ("model", run.model_id),
        ("worker", f"{run.host}, pid {run.pid}"),
        ("started", moment(run.started_at)),
        ("last sign of life", moment(run.heartbeat_at)),
        ("finished", moment(run.finished_at)),
        ("outcome", f"{_outcome(run)}{f': {run.message}' if run.message else ''}"),
        ("claimed", f"{run.claimed:,}"),
        ("done", f"{run.done:,}"),
        ("failed", f"{run.failed:,}"),
        ("images/s", run.images_per_second),
    ]
    worked = max(1, run.done)
    facts += [
        (f"{stage}, core-seconds", f"{seconds:.2f}  ({seconds / worked * 1000:.1f} ms an image)")
        for stage, seconds in run.core_seconds_per_stage.items()
    ]
    typer.echo(table(("", ""), facts).lstrip())


def _outcome(run: "RunRecord") -> str:
    return run.outcome or "running or died"
