"""`vsearch doctor`: what works here, and what to do about what does not."""

from dataclasses import asdict
from typing import Annotated

import typer

from visual_search.cli.context import CliContext, echo_json
from visual_search.errors import ExitCode
from visual_search.redaction import printable


def doctor(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="NAME", help="Check these models' weights."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Check database, schema, output, models, device and DNS. Exits 1 if anything is wrong.

    \b
    Examples:
      vsearch doctor
      vsearch doctor --model resnet18
    """
    from visual_search.doctor import examine

    cli: CliContext = context.obj
    findings = list(examine(cli.settings, model or []))
    if as_json:
        echo_json({"findings": [asdict(finding) for finding in findings]})
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            mark = "ok " if finding.ok else "BAD"
            typer.echo(f"{mark} {finding.subject.ljust(width)}  {printable(finding.detail, None)}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(int(ExitCode.FAILED))
