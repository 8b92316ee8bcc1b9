"""How the work for a model ended, and that of several together."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from visual_search.errors import ExitCode
from visual_search.images import RunId
from visual_search.runs import RunFigures

# Several models end with the gravest of their exit codes, in this order.
_GRAVEST: Final = (
    ExitCode.INTERRUPTED,
    ExitCode.TERMINATED,
    ExitCode.USAGE,
    ExitCode.FAILED,
    ExitCode.TEMPORARY,
    ExitCode.FAILURE_RATE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelResult:
    """How the work for one model ended.

    Attributes:
        checked: Vectors were checked, instead of images embedded that have none.
        run_id: `None` where there was nothing to do, or no run could start.
        waiting: Images that are pending but not due yet; or vectors that are still to be checked.
        due_in_s: Seconds until the first of them is due.
        any_failed: Whether images, of this run or an earlier one, are failed now.
        error: The one sentence of what stopped it.
    """

    model: str
    checked: bool = False
    model_id: str | None = None
    run_id: RunId | None = None
    figures: RunFigures = field(default_factory=RunFigures)
    shards: int = 0
    waiting: int = 0
    due_in_s: float | None = None
    any_failed: bool = False
    exit_code: ExitCode = ExitCode.OK
    error: str | None = None


def gravest(results: Sequence[ModelResult]) -> ExitCode:
    """The exit code of several models."""
    codes = {result.exit_code for result in results}
    return next((code for code in _GRAVEST if code in codes), ExitCode.OK)
