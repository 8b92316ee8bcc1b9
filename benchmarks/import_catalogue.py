"""How fast `vsearch catalog import` is, and how much memory it takes.

A made-up catalogue is imported twice by the real command into an embedded database: into nothing,
then again with nothing to change. The reference is what Postgres does with the same file at best:
one COPY into a table of text without an index, once before and once after.

    python benchmarks/import_catalogue.py
    python benchmarks/import_catalogue.py --rows 100000 --json
"""

import argparse
import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy import text

from visual_search.database.connection import Database, open_database
from visual_search.settings import load_settings

COLUMNS = (
    "product_id", "image_url", "title", "brand", "category", "colour", "price", "available",
)  # fmt: skip
HOSTS, BRANDS, CATEGORIES, COLOURS = 5, 300, 40, 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One import; rates are rows a second.

    Attributes:
        seconds: Without the start of Python and of the database.
        peak_rss_bytes: Of the importing process; Postgres has its own.
        share_of_copy: The rate as a share of the reference's.
    """

    seconds: float
    rows_per_second: float
    peak_rss_bytes: int
    share_of_copy: float


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", action="store_true", help="print one JSON document")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="vsearch-benchmark-") as folder:
        products = Path(folder) / "products.csv"
        write_products(products, given.rows, random.Random(given.seed))
        with database_in(Path(folder)) as (database, environment):
            before = copy_rate(database, products, given.rows)
            first = import_command(products, environment)
            again = import_command(products, environment)
            copy = (before + copy_rate(database, products, given.rows)) / 2
        runs = {
            name: measured(document, peak, given.rows, copy)
            for name, (document, peak) in {"new": first, "unchanged": again}.items()
        }
        size = products.stat().st_size
    if given.json:
        figures = {name: asdict(run) for name, run in runs.items()}
        print(json.dumps({"rows": given.rows, "copy_rows_per_second": copy, **figures}, indent=2))
        return
    print(f"{given.rows:,} rows, {size:,} bytes; reference: COPY at {copy:,.0f} rows/s")
    for name, run in runs.items():
        print(
            f"{name:>9}: {run.rows_per_second:,.0f} rows/s ({run.share_of_copy:.1%} of COPY), "
            f"{run.seconds:.1f} s, peak {run.peak_rss_bytes / 1e6:,.0f} MB"
        )


def write_products(path: Path, rows: int, chance: random.Random) -> None:
    """A catalogue such as shops export: titles differ, brands and colours come again."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for n in range(rows):
            category = chance.randrange(CATEGORIES)
            writer.writerow(
                (
                    f"p{n:08d}",
                    f"https://cdn{n % HOSTS}.shop.test/img/{n % 1000:03d}/{n:08d}_front.jpg?w=800",
                    f"Model {n} in category {category}, fine quality",
                    f"Brand {chance.randrange(BRANDS)}",
                    f"category {category}",
                    f"colour {chance.randrange(COLOURS)}",
                    f"{chance.randrange(500, 30_000) / 100:.2f}",
                    chance.choice(("true", "false")),
                )
            )


@contextmanager
def database_in(home: Path) -> Iterator[tuple[Database, dict[str, str]]]:
    """An embedded database that is up all along, and the environment of commands that use it."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("VSEARCH_")}
    for name in os.environ.keys() - inherited.keys():
        del os.environ[name]
    with open_database(load_settings(home=home), create=True) as database:
        yield database, inherited | {"VSEARCH_HOME": str(home)}


def copy_rate(database: Database, products: Path, rows: int) -> float:
    """Rows a second of a bare COPY."""
    columns = ", ".join(f"{name} text" for name in COLUMNS)
    with database.transaction() as connection, products.open("rb") as file:
        began = time.monotonic()
        connection.execute(text(f"CREATE TABLE reference ({columns})"))
        driver = connection.connection.driver_connection
        assert driver is not None
        with driver.cursor() as cursor:
            cursor.copy_expert("COPY reference FROM STDIN (FORMAT csv, HEADER)", file, 1 << 20)
        seconds = time.monotonic() - began
        connection.execute(text("DROP TABLE reference"))
    return rows / seconds


def import_command(products: Path, environment: dict[str, str]) -> tuple[dict[str, float], int]:
    """Run the command; its document, and the most memory that the process had."""
    command = [sys.executable, "-m", "visual_search", "catalog", "import", str(products)]
    process = subprocess.Popen(
        [*command, "--product-id-column", "product_id", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout:
        document = json.load(process.stdout)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} exited with {process.returncode}")
    return document, peak_bytes(usage)


def peak_bytes(usage: resource.struct_rusage) -> int:
    """`ru_maxrss` is in kilobytes, on macOS in bytes."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measured(document: dict[str, float], peak: int, rows: int, copy: float) -> Measured:
    rate = rows / document["seconds"]
    return Measured(
        seconds=document["seconds"],
        rows_per_second=round(rate, 1),
        peak_rss_bytes=peak,
        share_of_copy=round(rate / copy, 4),
    )


if __name__ == "__main__":
    main()
