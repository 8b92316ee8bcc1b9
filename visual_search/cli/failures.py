"""`vsearch failures`: the ledger of images without a vector."""

from typing import Annotated

import typer

from visual_search.cli.context import CliContext, counted, echo_json, moment, table
from visual_search.errors import FailureReason, SettingsError

app = typer.Typer(no_args_is_help=True, help="Which images failed, why, and trying them again.")

Model = Annotated[
    str | None, typer.Option("--model", "-m", metavar="NAME", help="Only of this model.")
]


@app.command("list")
def list_(
    context: typer.Context,
    model: Model = None,
    reason: Annotated[
        str | None, typer.Option("--reason", metavar="REASON", help="Only for this reason.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
    unchecked: Annotated[
        bool,
        typer.Option("--unchecked", help="Instead: vectors that the last refresh could not check."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List failed images, and waiting ones with the time of their next attempt.

    \b
    Examples:
      vsearch failures list
      vsearch failures list --model resnet18 --reason not_found
      vsearch failures list --json | jq -r '.failures[].url'
      vsearch failures list --unchecked --reason gone
    """
    from dataclasses import asdict, replace

    from visual_search.failures import list_failures
    from visual_search.models import registry
    from visual_search.redaction import redact_urls

    cli: CliContext = context.obj
    wanted = _reason(reason)
    with cli.database() as database, database.transaction() as connection:
        registry.check_known(connection, model)
        # A key may be the URL that the image had at first, which may be signed like the others.
        failures = [
            replace(failure, image_key=redact_urls(failure.image_key))
            for failure in list_failures(
                connection,
                model=model,
                reason=wanted.value if wanted else None,
                limit=limit,
                unchecked=unchecked,
            )
        ]
    if as_json:
        echo_json({"failures": [asdict(failure) for failure in failures]})
        return
    if not failures:
        typer.echo("no failures")
        return
    later = "next refresh" if unchecked else "never"
    typer.echo(
        table(
            ("model", "reason", "http", "attempts", "next attempt (UTC)", "url", "detail"),
            [
                (
                    failure.model,
                    failure.reason,
                    failure.http_status,
                    failure.attempts,
                    moment(failure.next_attempt_at) if failure.next_attempt_at else later,
                    failure.url,
                    failure.detail,
                )
                for failure in failures
            ],
        )
    )


@app.command()
def retry(
    context: typer.Context,
    model: Model = None,
    reason: Annotated[
        list[str] | None,
        typer.Option("--reason", metavar="REASON", help="Only for this reason; may be repeated."),
    ] = None,
) -> None:
    """Make failed and waiting images pending again, due now, with a clean slate.

    \b
    Examples:
      vsearch failures retry --reason not_found
      vsearch failures retry --model resnet18
    """
    from visual_search.failures import retry_failed
    from visual_search.models import registry

    cli: CliContext = context.obj
    reasons = [wanted for name in reason or [] if (wanted := _reason(name))] or None
    total = 0
    with cli.database() as database, database.transaction() as connection:
        registry.check_known(connection, model)
        chosen = [
            known
            for known in registry.registered(connection)
            if (known.active if model is None else model in (known.name, known.model_id))
        ]
        for known in chosen:
            total += retry_failed(connection, model_key=known.model_key, reasons=reasons)
    typer.echo(f"{counted(total, 'image')} will be tried again by the next `vsearch extract`")


def _reason(name: str | None) -> FailureReason | None:
    if name is None:
        return None
    named = next((reason for reason in FailureReason if reason.value == name), None)
    if named is None:
        known = ", ".join(reason.value for reason in FailureReason)
        raise SettingsError(f"unknown reason {name!r}; one of {known}")
    return named
