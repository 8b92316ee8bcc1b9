"""What a worker says of itself: complete each time, so that the latest is all one needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Final

from pydantic import TypeAdapter

from visual_search.pipeline import ModelResult
from visual_search.runs import RunFigures

_EVERY_S: Final = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """How far a worker is.

    Attributes:
        shown: Images embedded so far, recorded or not, of all models; then those that failed.
        figures: Of each model's run that has begun.
        results: Of the models that are through.
    """

    shown: tuple[int, int] = (0, 0)
    figures: Mapping[str, RunFigures] = field(default_factory=dict)
    results: tuple[ModelResult, ...] = ()

    def as_line(self) -> bytes:
        """The report as one line of JSON."""
        return _REPORTS.dump_json(self) + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Report":
        """What `as_line` wrote."""
        return _REPORTS.validate_json(line)


class Reporter:
    """The worker's side: notes what happens, and sends it now and then.

    All of it belongs to the thread that runs the pipeline.
    """

    def __init__(self, send: Callable[[Report], None]) -> None:
        self._send = send
        self._report = Report()
        self._figures: dict[str, Callable[[], RunFigures]] = {}
        self._sent_at = monotonic()

    def begin(self, model: str, figures: Callable[[], RunFigures]) -> None:
        """A model's run begins."""
        self._figures[model] = figures
        self._tell()

    def show(self, done: int, failed: int) -> None:
        """So many images are embedded, and so many failed, by now."""
        self._report = replace(self._report, shown=(done, failed))
        if monotonic() - self._sent_at >= _EVERY_S:
            self._tell()

    def end(self, result: ModelResult) -> None:
        """A model is through."""
        self._report = replace(self._report, results=(*self._report.results, result))
        self._tell()

    def _tell(self) -> None:
        figures = {model: figures() for model, figures in self._figures.items()}
        self._report = replace(self._report, figures=figures)
        self._sent_at = monotonic()
        self._send(self._report)


_REPORTS: TypeAdapter[Report] = TypeAdapter(Report)
