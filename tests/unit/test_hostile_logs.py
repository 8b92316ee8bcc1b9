"""Logs, tables and complaints that quote what others wrote: one line for each, nothing obeyed."""

import io
import json
import re
import sys
from collections.abc import Iterator

import pytest
import structlog

from visual_search.cli import logs
from visual_search.cli.context import complain, table

FORGED = (
    'x\n{"event": "forged", "level": "info"}',
    "x\r\nvsearch: forged",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;a title\x07",
    "\x9b2J",
    "\x85next line",
    "\u2028line separator",
    "\u202egpj.exe",
    "\0",
    "\b\b\b",
    '"}, {"event": "forged"',
)
# What structlog itself writes to colour a terminal.
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    """Standard error, on a terminal or off it."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def logged(monkeypatch: pytest.MonkeyPatch, said: str, *, terminal: bool) -> list[str]:
    """The lines that one record with `said` in every place becomes."""
    stderr = Terminal(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    logs.configure(debug=True)
    with structlog.contextvars.bound_contextvars(model=said):
        structlog.get_logger().warning(said, error=said, url=said)
    written = stderr.getvalue()
    assert written.endswith("\n")
    return written.removesuffix("\n").split("\n")


@pytest.mark.parametrize("said", FORGED, ids=ascii)
def test_a_record_off_a_terminal_is_one_line_of_json(
    monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    (line,) = logged(monkeypatch, said, terminal=False)
    record = json.loads(line)
    assert line.isprintable()
    assert record["level"] == "warning"
    assert record["event"] == record["error"] == record["url"] == record["model"] != "forged"


@pytest.mark.parametrize("said", FORGED, ids=ascii)
def test_a_record_on_a_terminal_is_one_line_that_steers_nothing(
    monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    (line,) = logged(monkeypatch, said, terminal=True)
    assert COLOURS.sub("", line).isprintable()
    assert "\x1b[31mred" not in line


def test_what_is_no_text_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = Terminal(terminal=False)
    monkeypatch.setattr(sys, "stderr", stderr)
    logs.configure(debug=False)
    structlog.get_logger().info("counted", rows=7, rate=0.5, place="größe 尺寸")
    record = json.loads(stderr.getvalue())
    assert (record["rows"], record["rate"], record["place"]) == (7, 0.5, "größe 尺寸")
    assert "größe 尺寸" in stderr.getvalue()


@pytest.mark.parametrize("said", FORGED, ids=ascii)
def test_a_row_of_a_table_and_a_complaint_are_one_line(
    capsys: pytest.CaptureFixture[str], said: str
) -> None:
    shown = table(("model", "detail"), [("tiny", said), (said, None)])
    assert len(shown.split("\n")) == 3
    assert shown.replace("\n", "").isprintable()
    complain(said)
    complained = capsys.readouterr().err
    assert complained.startswith("vsearch: ")
    assert complained.removesuffix("\n").isprintable()
