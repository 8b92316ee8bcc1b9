"""`vsearch demo`: all of it at work, nothing else needed."""

import typer

from visual_search.cli.context import CliContext


def demo(context: typer.Context) -> None:
    """Run the real pipeline on a small shop drawn for it, broken links included, in a minute.

    \b
    Examples:
      vsearch demo
      VSEARCH_HOME=/data/vsearch vsearch demo
      VSEARCH_HOME=vsearch-data/demo vsearch status     afterwards: look around

    Leaves a report with nearest neighbours, figures and failures in HOME/demo/report.html. Uses
    nothing of your own catalogue: everything is in HOME/demo, which is emptied at the start, and
    the only address reached is 127.0.0.1. Exits 0 although some images are meant to fail.
    """
    from visual_search.demo.run import run

    cli: CliContext = context.obj
    run(cli.settings, typer.echo)
