"""Logs on stderr: warnings for people on a terminal, one JSON object a line elsewhere."""

import logging
import sys
from collections.abc import Sequence
from typing import TextIO, cast

import structlog
from tqdm import tqdm

from visual_search.redaction import printable


class _AroundBars:
    """A file that writes to stderr above a progress bar instead of into it."""

    def write(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr, end="")

    def flush(self) -> None:
        sys.stderr.flush()


def configure(*, debug: bool) -> None:
    """Set up structlog, and the standard library's loggers of what we use."""
    terminal = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if terminal
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=not terminal),
            _on_one_line,
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_level(debug=debug, bars=terminal)),
        logger_factory=structlog.WriteLoggerFactory(
            cast("TextIO", _AroundBars()) if terminal else sys.stderr
        ),
        cache_logger_on_first_use=False,
    )
    # Other libraries' messages may quote whole URLs; ours say what matters.
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")
    for name in ("aiohttp", "asyncio", "stamina", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _level(*, debug: bool, bars: bool) -> int:
    """Where there are bars, they say how it goes."""
    if debug:
        return logging.DEBUG
    return logging.WARNING if bars else logging.INFO


def _on_one_line(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """What servers and files say can neither steer a terminal nor pass for a record of its own."""
    return {
        name: printable(value, None) if isinstance(value, str) else value
        for name, value in event.items()
    }


def warn_of_unknown(variables: Sequence[str]) -> None:
    """Name environment variables that look like settings but are none."""
    for name in variables:
        structlog.get_logger(__name__).warning("unknown_environment_variable", name=name)
