"""Daft, as its guides to images and to class-based functions have it.

Download, decoding and resizing are Daft's own expressions; the network is a class whose batch
method Daft calls.
"""

from typing import Any

import daft
import numpy as np
from daft import DataType, Series, col

from benchmarks.throughput.job import Job
from benchmarks.throughput.network import (
    PlainNetwork,
    SameNetwork,
    channels_first,
    spec_and_weights,
)

_BATCH = 32


class _Vectorizer:
    def __init__(self, job: Job) -> None:
        self._network = SameNetwork(job) if job.recipe == "same" else PlainNetwork(job)

    def _embed(self, images: Series) -> Any:
        return self._network(channels_first(np.stack(images.to_pylist())))

    embed = daft.method.batch(return_dtype=DataType.list(DataType.float32()), batch_size=_BATCH)(
        _embed
    )


def main() -> None:
    job = Job.of_command_line()
    size_px = spec_and_weights(job)[0].preprocessing.size
    embed = daft.cls(_Vectorizer, max_concurrency=1)(job).embed
    images = daft.from_pydict({"image_url": list(job.urls)})
    pixels = col("image_url").download().decode_image(mode="RGB").resize(size_px, size_px)
    images.with_column("image", pixels).select(
        "image_url", embed(col("image")).alias("embedding")
    ).write_parquet(str(job.vectors))


if __name__ == "__main__":
    main()
