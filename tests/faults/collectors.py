"""A process that collects garbage without a pause; what a child of the nursery runs."""

from pathlib import Path

from visual_search import upkeep
from visual_search.database.connection import Database
from visual_search.storage import Folder


def collect_until(*, url: str, folder: str, stop: str, report: str) -> None:
    """Delete what no shard needs, however young, pass after pass, until the file `stop` exists.

    Args:
        url: Of the database.
        folder: Of the vectors.
        stop: Looked for between two passes.
        report: A file that grows by a byte each pass.
    """
    database = Database(url, schema="vsearch", outage_s=30)
    storage = Folder(Path(folder))
    with Path(report).open("ab", buffering=0) as passes:
        while not Path(stop).exists():
            for _garbage in upkeep.collect_garbage(database, storage, grace_s=0, delete=True):
                pass
            passes.write(b".")
    database.close()
