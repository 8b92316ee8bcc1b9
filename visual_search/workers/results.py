"""The results of many workers as one: what a user is told of a model."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from visual_search.errors import ExitCode
from visual_search.pipeline import ModelResult, gravest
from visual_search.runs import RunFigures


def merge_results(model: str, workers: Iterable[Sequence[ModelResult]]) -> ModelResult:
    """What the lives of all workers come to.

    Args:
        model: Whose results.
        workers: Of each worker the results of this model, one for each life, the last one last.

    Returns:
        Sums. `run_id` is one of the runs; `vsearch runs list` has all of them.
    """
    lives = [list(results) for results in workers if results]
    every = [result for results in lives for result in results]
    if not every:
        return ModelResult(model=model)
    rates = [rate for results in lives if (rate := _rate(results)) is not None]
    figures = _sum([result.figures for result in every])
    # Whoever was last to look knows best what is left.
    last = lives[-1][-1]
    code = gravest(every)
    return ModelResult(
        model=model,
        model_id=next((result.model_id for result in every if result.model_id), None),
        run_id=next((result.run_id for result in every if result.run_id), None),
        figures=replace(figures, images_per_second=round(sum(rates), 2) if rates else None),
        shards=sum(result.shards for result in every),
        waiting=last.waiting,
        due_in_s=last.due_in_s,
        any_failed=any(result.any_failed for result in every),
        exit_code=code,
        error=next(
            (r.error for r in every if r.exit_code is code and code is not ExitCode.OK), None
        ),
    )


def _rate(lives: Sequence[ModelResult]) -> float | None:
    """A worker's steady rate: that of the life in which it did most."""
    return max(lives, key=lambda life: life.figures.done).figures.images_per_second


def _sum(figures: Sequence[RunFigures]) -> RunFigures:
    seconds: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for each in figures:
        seconds.update(each.core_seconds_per_stage)
        reasons.update(each.failed_by_reason)
    return RunFigures(
        claimed=sum(each.claimed for each in figures),
        done=sum(each.done for each in figures),
        failed=sum(each.failed for each in figures),
        core_seconds_per_stage=dict(seconds),
        failed_by_reason=dict(reasons),
        shards=sum(each.shards for each in figures),
        downloaded_bytes=sum(each.downloaded_bytes for each in figures),
    )
