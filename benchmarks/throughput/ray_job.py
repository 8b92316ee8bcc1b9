"""Ray Data, as its guides to transforming data and to batch inference have it.

A function downloads and decodes, a class in a pool of actors holds the network: an actor for each
core, in which Ray Data runs the function, too. (Its own download expression keeps an actor to
itself: on two cores, the network's takes the last one, and the job never starts.)
"""

import logging
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import ray
import requests
from PIL import Image
from ray.data import ActorPoolStrategy, DataContext

from benchmarks.throughput.job import Job
from benchmarks.throughput.network import (
    PlainNetwork,
    SameNetwork,
    channels_first,
    spec_and_weights,
)
from visual_search.cores import usable_cores

_BATCH = 32


class _Vectorizer:
    def __init__(self, job: Job) -> None:
        self._network = SameNetwork(job) if job.recipe == "same" else PlainNetwork(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        # A copy: what Ray hands out cannot be written to, which torch warns of.
        pixels = channels_first(batch["image"].copy())
        return {"image_url": batch["image_url"], "embedding": self._network(pixels)}


def main() -> None:
    job = Job.of_command_line()
    size_px = spec_and_weights(job)[0].preprocessing.size

    def load(row: dict[str, Any]) -> dict[str, Any]:
        answer = requests.get(row["image_url"], timeout=30)
        answer.raise_for_status()
        image = Image.open(BytesIO(answer.content)).convert("RGB")
        resized = image.resize((size_px, size_px), Image.Resampling.BILINEAR)
        return row | {"image": np.array(resized)}

    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    ray.data.from_items([{"image_url": url} for url in job.urls]).map(load).map_batches(
        _Vectorizer,
        fn_constructor_args=(replace(job, urls=()),),
        batch_size=_BATCH,
        compute=ActorPoolStrategy(size=usable_cores()),
    ).write_parquet(str(job.vectors))


if __name__ == "__main__":
    main()
