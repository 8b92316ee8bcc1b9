"""The network alone, on photos that are decoded and resized already: nothing can be faster.

For each size of batch: images a second, and core-seconds an image. Freed memory is handled as in
vsearch, and as many batches are computed at a time.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

import torch

from visual_search.cli.memory import keep_freed_memory

# Before torch has started its threads, as in the command.
keep_freed_memory()

from benchmarks.throughput.job import Job  # noqa: E402
from benchmarks.throughput.network import spec_and_weights  # noqa: E402
from benchmarks.throughput.stages import download, prepared  # noqa: E402
from visual_search.embed import (  # noqa: E402
    Embedder,
    batches_at_a_time,
    choose_device,
    threads_for_each,
)

BATCHES = (16, 32, 64)


def main() -> None:
    job = Job.of_command_line()
    device = choose_device("auto")
    workers = batches_at_a_time(device)
    embedder = Embedder(*spec_and_weights(job), device, batch_size=max(BATCHES), workers=workers)
    pixels, _ = prepared(job, download(job)[0][: max(BATCHES)])
    rates = {}
    threads = (threads_for_each(workers),)
    with ThreadPoolExecutor(workers, "embedder", torch.set_num_threads, threads) as pool:
        for size in BATCHES:
            batch = torch.stack(pixels[:size])
            list(pool.map(embedder.embed, repeat(batch, workers)))
            rounds = max(1, len(job.urls) // size // workers)
            started, core_started = time.monotonic(), time.process_time()
            list(pool.map(embedder.embed, repeat(batch, rounds * workers)))
            images = rounds * workers * size
            rates[str(size)] = {
                "images_per_second": images / (time.monotonic() - started),
                "core_seconds": (time.process_time() - core_started) / images,
            }
    job.write_notes(batches=rates)


if __name__ == "__main__":
    main()
