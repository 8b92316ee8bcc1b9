"""Measure, print the table, keep figures and plot. See the package."""

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from benchmarks.database import commands, growth, steps, tables
from benchmarks.database.build import MODELS, build
from benchmarks.database.claimers import claimers
from benchmarks.database.figures import Figure, as_table
from benchmarks.database.steps import Place
from visual_search.database.connection import open_database
from visual_search.settings import load_settings

_IN_DATABASE: Final[dict[str, Callable[[Place], Iterator[Figure]]]] = {
    "claims": steps.claims_and_records,
    "snapshot": steps.claims_under_a_snapshot,
    "seeding": steps.seeding,
    "status": steps.progress,
    "claimers": lambda place: claimers(
        place.database, place.url, place.keys[MODELS[0].name], place.images
    ),
}
_HOME: Final = Path("vsearch-data") / "database-benchmark"
_PARTS: Final = (*_IN_DATABASE, "growth", "commands", "idle")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.database",
        description="What the database costs in a large catalogue.",
    )
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--home", type=Path, default=_HOME, help="keeps the catalogue for later")
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=_PARTS, help="these parts")
    asked = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("VSEARCH_")]:
        del os.environ[name]
    found: dict[str, list[Figure]] = {}
    settings = load_settings(home=asked.home)
    with open_database(settings, create=True) as database:
        place = Place(
            database=database,
            url=tables.url_of(asked.home),
            settings=settings,
            keys=build(database, settings, asked.images),
            images=asked.images,
        )
        # As a run does once its model is loaded.
        gc.collect()
        gc.freeze()
        for part, measure in _IN_DATABASE.items():
            if part in asked.only:
                found[part] = _shown(measure(place))
        if "growth" in asked.only:
            points = growth.grow(place)
            found["growth"] = _shown(growth.figures(points))
            growth.plot(points, asked.home / "cost.svg")
    if "commands" in asked.only:
        found["commands"] = _shown(commands.in_large_catalogue(asked.home))
    if "idle" in asked.only:
        idle = commands.nothing_to_do(asked.home / "all-done", min(1_000_000, asked.images))
        found["idle"] = _shown(idle)
    _keep(asked.home / "figures.json", asked.images, found)
    if missed := [
        figure.name for figures in found.values() for figure in figures if not figure.kept
    ]:
        sys.exit("missed: " + "; ".join(missed))


def _shown(measured: Iterator[Figure]) -> list[Figure]:
    figures = list(measured)
    print(as_table(figures), flush=True)
    return figures


def _keep(file: Path, images: int, found: dict[str, list[Figure]]) -> None:
    """Write the figures of each part measured now over its former ones."""
    document = json.loads(file.read_text()) if file.exists() else {}
    if document.get("images") != images:
        document = {"images": images, "parts": {}}
    for part, figures in found.items():
        document["parts"][part] = [asdict(figure) | {"kept": figure.kept} for figure in figures]
    file.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
