"""`vsearch config`: the settings as they are here and now."""

import re
from typing import Annotated, Any

import typer

from visual_search.cli.context import CliContext, echo_json

app = typer.Typer(no_args_is_help=True, help="The settings, after file, environment and flags.")


@app.command()
def show(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print every setting as TOML, secrets masked.

    \b
    Examples:
      vsearch config show
      vsearch --config configs/gpu.toml config show
      VSEARCH_DOWNLOAD__PER_HOST=2 vsearch config show --json
    """
    cli: CliContext = context.obj
    shown = cli.settings.shown()
    if as_json:
        echo_json({"settings": shown})
        return
    for line in _toml(shown, prefix=""):
        typer.echo(line)


def _toml(values: dict[str, Any], prefix: str) -> list[str]:
    plain = {name: value for name, value in values.items() if not isinstance(value, dict)}
    lines = [
        f"# {name} is not set" if value is None else f"{_key(name)} = {_value(value)}"
        for name, value in plain.items()
    ]
    for name, value in values.items():
        if isinstance(value, dict) and value:
            inner = _toml(value, f"{prefix}{_key(name)}.")
            if any(not isinstance(item, dict) for item in value.values()):
                lines += ["", f"[{prefix}{_key(name)}]"]
            lines += inner
    return lines


def _key(name: str) -> str:
    """A name as TOML takes it: hosts have dots, which would mean tables."""
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else _value(name)


def _value(value: object) -> str:
    """TOML writes strings, numbers, booleans and lists of them as JSON does."""
    import json

    return json.dumps(value, ensure_ascii=False)
