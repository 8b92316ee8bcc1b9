"""The command line: parse, call, print, exit. One file per command group.

Command bodies import what they need when they run, so that `--help` answers at once.
"""

import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from visual_search import __version__
from visual_search.cli import (
    catalog,
    config,
    db,
    demo,
    doctor,
    export,
    extract,
    failures,
    models,
    report,
    runs,
    shards,
    status,
)
from visual_search.cli.context import CliContext, complain
from visual_search.cli.memory import keep_freed_memory
from visual_search.cli.threads import let_idle_threads_sleep
from visual_search.errors import ExitCode, RunError, VsearchError
from visual_search.redaction import redact_urls

app = typer.Typer(
    name="vsearch",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=True,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"vsearch {__version__}")
        raise typer.Exit


@app.callback(
    epilog="Settings: file < VSEARCH_* variables < flags; `vsearch config show` prints them all."
)
def root(
    context: typer.Context,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="TOML file with settings and models."),
    ] = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="Debug logs, and tracebacks with errors.")
    ] = False,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Turn a catalogue of image URLs into feature vectors, once per image and model.

    \b
    Examples:
      vsearch demo                                   see it work, nothing else needed
      vsearch catalog import products.csv            tell it what there is
      vsearch extract --model efficientnet_lite0     download, embed, write, record
      vsearch status                                 how far each model is
      vsearch shards list --paths                    the Parquet files, for any reader
    """
    context.obj = CliContext(config_file=config_file, debug=debug)


app.add_typer(catalog.app, name="catalog")
app.command("extract")(extract.extract)
app.command("status")(status.status)
app.command("report")(report.report)
app.add_typer(failures.app, name="failures")
app.add_typer(runs.app, name="runs")
app.add_typer(shards.app, name="shards")
app.add_typer(models.app, name="models")
app.add_typer(db.app, name="db")
app.add_typer(config.app, name="config")
app.command("export")(export.export)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)


def main() -> None:
    """Entry point of the command line."""
    run(app)


def run(command: Callable[[], object]) -> None:
    """Run it as all of a process; errors become one sentence and an exit code."""
    debug = "--debug" in sys.argv
    keep_freed_memory()
    let_idle_threads_sleep()
    # As process 1 of a container Python ignores SIGTERM; elsewhere it would leave the embedded
    # server running.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        command()
    except VsearchError as error:
        if debug:
            _show_traceback()
        complain(error)
        code = error.exit_code if isinstance(error, RunError) else ExitCode.FAILED
        raise SystemExit(int(code)) from None
    except KeyboardInterrupt:
        raise SystemExit(int(ExitCode.INTERRUPTED)) from None
    except Exception as error:  # noqa: BLE001 - the last place where it can become a sentence
        # A bug. Its message may quote data, so only its kind is shown without --debug.
        if debug:
            _show_traceback()
        complain(
            f"unexpected {type(error).__name__}; this is a bug. "
            + ("Please report it" if debug else "Run again with `vsearch --debug …` to see where")
        )
        raise SystemExit(int(ExitCode.FAILED)) from None


def _show_traceback() -> None:
    """Of the error at hand. Other libraries' errors that led to it quote URLs, secrets included."""
    typer.echo(redact_urls(traceback.format_exc()), nl=False, err=True)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(int(ExitCode.TERMINATED))
