"""The network alone, on photos that are decoded and resized already: nothing can be faster.

For each size of batch: images a second, and core-seconds an image. Freed memory is handled as in
vsearch.
"""

import time

import torch

from visual_search.cli.memory import keep_freed_memory

# Before torch has started its threads, as in the command.
keep_freed_memory()

from benchmarks.throughput.job import Job  # noqa: E402
from benchmarks.throughput.network import SameNetwork  # noqa: E402
from benchmarks.throughput.stages import download, prepared  # noqa: E402

BATCHES = (16, 32, 64)


def main() -> None:
    job = Job.of_command_line()
    network = SameNetwork(job)
    pixels, _ = prepared(job, download(job)[0][: max(BATCHES)])
    rates = {}
    for size in BATCHES:
        batch = torch.stack(pixels[:size])
        network(batch)
        batches = max(1, len(job.urls) // size)
        started, core_started = time.monotonic(), time.process_time()
        for _ in range(batches):
            network(batch)
        images = batches * size
        rates[str(size)] = {
            "images_per_second": images / (time.monotonic() - started),
            "core_seconds": (time.process_time() - core_started) / images,
        }
    job.write_notes(batches=rates)


if __name__ == "__main__":
    main()
