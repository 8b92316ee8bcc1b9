"""Processes that only claim, as fast as they can; what a child of the nursery runs."""

import json
import time
from pathlib import Path
from uuid import uuid4

from visual_search import claim
from visual_search.claim import Suspicion
from visual_search.database.connection import Database
from visual_search.images import LeaseToken, ModelKey, RunId


def claim_all(*, url: str, model_key: int, rows: int, start: str, report: str) -> None:
    """Claim until there is nothing left; every batch under a lease of its own, as shards are.

    Args:
        url: Of the database.
        model_key: Whose images.
        rows: The largest claim.
        start: A file that says that all others are ready, too.
        report: Takes one JSON line for each claim: its image ids and its end by the clock.
    """
    database = Database(url, schema="vsearch", outage_s=0)
    run_id = RunId(uuid4())
    with database.transaction():
        pass  # connected
    Path(report).touch()
    while not Path(start).exists():
        time.sleep(0.001)
    with Path(report).open("w") as lines:
        while True:
            token = LeaseToken(uuid4())
            with database.transaction() as connection:
                claim.open_lease(
                    connection,
                    token=token,
                    model_key=ModelKey(model_key),
                    run_id=run_id,
                    lease_s=600,
                )
                images = claim.claim_images(
                    connection,
                    token=token,
                    model_key=ModelKey(model_key),
                    rows=rows,
                    suspicion=Suspicion.NONE,
                )
            if not images:
                break
            ids = [image.image_id for image in images]
            lines.write(json.dumps({"ids": ids, "at": time.monotonic()}) + "\n")
    database.close()
