"""The network alone, on photos that are decoded and resized already: nothing can be faster.

For each size of batch: images a second, and core-seconds an image, the median of several passes in
which the sizes take turns. Freed memory is handled as in vsearch, and as many batches are computed
at a time.
"""

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import cycle, islice, repeat
from typing import Final

import torch

from visual_search.cli.memory import keep_freed_memory

# Before torch has started its threads, as in the command.
keep_freed_memory()

from benchmarks.throughput.job import Job  # noqa: E402
from benchmarks.throughput.network import spec_and_weights  # noqa: E402
from benchmarks.throughput.rounds import Alone  # noqa: E402
from benchmarks.throughput.stages import download, prepared  # noqa: E402
from visual_search.embed import (  # noqa: E402
    Embedder,
    batches_at_a_time,
    choose_device,
    threads_for_each,
)

BATCHES: Final = (16, 32, 64)
_PASSES: Final = 5


def main() -> None:
    job = Job.of_command_line()
    device = choose_device("auto")
    workers = batches_at_a_time(device)
    embedder = Embedder(*spec_and_weights(job), device, batch_size=max(BATCHES), workers=workers)
    pixels, _ = prepared(job, download(job)[0][: max(BATCHES)])
    batches = {size: torch.stack([*islice(cycle(pixels), size)]) for size in BATCHES}
    measured: dict[int, list[Alone]] = {size: [] for size in BATCHES}
    threads = (threads_for_each(workers),)
    with ThreadPoolExecutor(workers, "embedder", torch.set_num_threads, threads) as pool:

        def embed(size: int, times: int) -> Alone:
            started, core_started = time.monotonic(), time.process_time()
            list(pool.map(embedder.embed, repeat(batches[size], times * workers)))
            images = times * workers * size
            return Alone(
                images_per_second=images / (time.monotonic() - started),
                core_seconds=(time.process_time() - core_started) / images,
            )

        for size in BATCHES:
            embed(size, 1)
        for _ in range(_PASSES):
            for size in BATCHES:
                measured[size].append(embed(size, max(BATCHES) // size))
    rates = {str(size): asdict(_median(passes)) for size, passes in measured.items()}
    job.write_notes(batches=rates)


def _median(passes: Sequence[Alone]) -> Alone:
    return Alone(
        images_per_second=statistics.median(one.images_per_second for one in passes),
        core_seconds=statistics.median(one.core_seconds for one in passes),
    )


if __name__ == "__main__":
    main()
