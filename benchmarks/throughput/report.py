"""Results as text."""

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.throughput.figures import Spread
from benchmarks.throughput.rounds import VSEARCH, Results


def text(results: Results) -> str:
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    head = (
        f"{results.model} in {results.precision}, {results.images:,} photos, "
        f"{len(results.rounds)} rounds; {machine['cores']} cores of {machine['processor']}"
    )
    return "\n\n".join(
        (
            f"{head}\n{versions}",
            _table(
                ("images/s", "steady", "by the clock", "cosine, least", "own is nearest"),
                _rates(results),
            ),
            _table(("as many times as", *results.variants), _ratios(results)),
            _table(
                ("core-milliseconds an image", "alone", "in vsearch"),
                _stages(results),
            ),
        )
    )


def _rates(results: Results) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]]
    rows = [("limit of vsearch's stages", _spread(results.limits()), "", "", "")]
    for size in results.rounds[0].inference:
        rates = [one.inference[size].images_per_second for one in results.rounds]
        rows.append((f"inference alone, batches of {size}", _spread(rates), "", "", ""))
    for name in results.rounds[0].contenders:
        of_rounds = [one.contenders[name] for one in results.rounds]
        rows.append(
            (
                name,
                _spread(measured.steady for measured in of_rounds),
                _spread(measured.by_the_clock for measured in of_rounds),
                f"{min(measured.agreement.least_cosine for measured in of_rounds):.4f}",
                f"{min(measured.agreement.found for measured in of_rounds):.1%}",
            )
        )
    return rows


def _ratios(results: Results) -> list[tuple[str, ...]]:
    variants = [results.ratios(variant) for variant in results.variants]
    return [(name, *(_spread(ratios[name], 2) for ratios in variants)) for name in variants[0]]


def _stages(results: Results) -> list[tuple[str, ...]]:
    alone = [one.core_seconds_per_stage for one in results.rounds]
    inside = [one.contenders[VSEARCH].core_seconds_per_stage for one in results.rounds]
    server = [1000 * one.server_core_seconds for one in results.rounds]
    return [
        *(
            (stage, _milliseconds(alone, stage), _milliseconds(inside, stage))
            for stage in inside[0]
        ),
        ("(the photos' server)", _spread(server), ""),
    ]


def _milliseconds(rounds: Sequence[Mapping[str, float]], stage: str) -> str:
    """Empty for what is not there: nothing is alone at start-up."""
    return _spread(1000 * one[stage] for one in rounds) if stage in rounds[0] else ""


def _spread(values: Iterable[float], digits: int = 1) -> str:
    spread = Spread.of(values)
    return f"{spread.median:.{digits}f} ({spread.least:.{digits}f}–{spread.most:.{digits}f})"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    )
