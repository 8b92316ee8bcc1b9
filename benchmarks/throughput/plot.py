"""Results as a picture."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.throughput.figures import Spread
from benchmarks.throughput.rounds import Results

_OURS, _THEIRS, _LIMIT = "#1f6f8b", "#b8b8b8", "#c0392b"


def draw(results: Results, path: Path) -> None:
    figure, (rates, stages) = plt.subplots(
        2, 1, figsize=(8, 5), height_ratios=(4, 1), layout="constrained"
    )
    machine = results.machine
    figure.suptitle(
        f"{results.model}, {results.precision}, {machine['cores']} cores of {machine['processor']}"
    )
    _draw_rates(rates, results)
    _draw_stages(stages, results)
    figure.savefig(path)
    plt.close(figure)


def _draw_rates(axes: Axes, results: Results) -> None:
    rates: dict[str, Sequence[float]] = {
        name: [one.contenders[name].steady for one in results.rounds]
        for name in results.rounds[0].contenders
    }
    rates["inference alone"] = [one.best_inference for one in results.rounds]
    spreads = {name: Spread.of(values) for name, values in rates.items()}
    names = sorted(spreads, key=lambda name: spreads[name].median)
    axes.barh(
        names,
        [spreads[name].median for name in names],
        xerr=(
            [spreads[name].median - spreads[name].least for name in names],
            [spreads[name].most - spreads[name].median for name in names],
        ),
        color=[_OURS if name in results.variants else _THEIRS for name in names],
    )
    limit = Spread.of(results.limits()).median
    axes.axvline(limit, color=_LIMIT, label="limit of vsearch's stages")
    axes.set_xlabel("images a second: median, least and most of the rounds")
    axes.legend(loc="lower right")


def _draw_stages(axes: Axes, results: Results) -> None:
    left = 0.0
    for stage in results.rounds[0].core_seconds_per_stage:
        milliseconds = (
            1000 * Spread.of(one.core_seconds_per_stage[stage] for one in results.rounds).median
        )
        axes.barh([""], [milliseconds], left=left, label=f"{stage} {milliseconds:.1f}")
        left += milliseconds
    axes.set_xlabel("core-milliseconds an image, each stage alone")
    axes.set_yticks([])
    axes.legend(
        ncols=5,
        loc="upper center",
        bbox_to_anchor=(0.5, 1.6),
        frameon=False,
        fontsize="small",
        handlelength=1,
        columnspacing=1,
    )
