"""What was measured, beside what was wanted and what the machine did meanwhile."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text

from visual_search.database.connection import Database

_CALIBRATION_ROWS: Final = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        reached: In `unit`, as `wanted` is.
        at_least: Whether more is better.
        calibration: What was measured in turn with it, to tell a slow machine from a slow product.
        calibrated_in: Its unit, where that is another.
    """

    name: str
    unit: str
    reached: float
    wanted: float
    at_least: bool = False
    calibration: str
    calibrated: float
    calibrated_in: str | None = None

    @property
    def kept(self) -> bool:
        """Whether what was wanted is reached."""
        return self.reached >= self.wanted if self.at_least else self.reached <= self.wanted


def as_table(figures: Sequence[Figure]) -> str:
    """The figures for people."""
    head = ("figure", "reached", "wanted", "", "calibration", "")
    rows = [
        (
            figure.name,
            f"{_number(figure.reached)} {figure.unit}",
            f"{'≥' if figure.at_least else '≤'} {_number(figure.wanted)}",
            "kept" if figure.kept else "MISSED",
            f"{_number(figure.calibrated)} {figure.calibrated_in or figure.unit}",
            figure.calibration,
        )
        for figure in figures
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in (1, 2, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [head, *rows]
    )


def p95(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1]


class Calibration:
    """Plain statements on a small table of its own, in the order of magnitude of the product's."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._turn = 0
        with database.transaction() as connection:
            connection.execute(
                text("""
                    DROP TABLE IF EXISTS calibration;
                    CREATE TABLE calibration (
                        model_key integer, id bigint, status text NOT NULL,
                        due timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (model_key, id)
                    );
                    CREATE INDEX calibration_pending ON calibration (model_key, due, id)
                        WHERE status = 'pending'
                """)
            )
        self.insert()

    def insert(self) -> float:
        """Rows/s of inserting as many rows as are seeded at a time."""
        begun = time.monotonic()
        with self._database.transaction() as connection:
            connection.execute(
                text("""
                    TRUNCATE calibration;
                    INSERT INTO calibration
                    SELECT 1, n, 'pending' FROM generate_series(1, :rows) AS n
                """),
                {"rows": _CALIBRATION_ROWS},
            )
        return _CALIBRATION_ROWS / (time.monotonic() - begun)

    def update(self, rows: int) -> float:
        """Seconds of updating so many neighbours by key."""
        first = self._turn % (_CALIBRATION_ROWS // rows) * rows + 1
        self._turn += 1
        begun = time.monotonic()
        with self._database.transaction() as connection:
            connection.execute(
                text("""
                    UPDATE calibration SET status = 'pending', due = now()
                    WHERE model_key = 1 AND id BETWEEN :first AND :last
                """),
                {"first": first, "last": first + rows - 1},
            )
        return time.monotonic() - begun

    def count(self) -> float:
        """Seconds of counting a hundred thousand rows."""
        begun = time.monotonic()
        with self._database.transaction() as connection:
            connection.execute(text("SELECT count(*) FROM calibration WHERE status <> ''"))
        return time.monotonic() - begun


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
