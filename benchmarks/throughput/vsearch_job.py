"""vsearch: the command itself, on an embedded database, from the server to the recorded shard.

The catalogue is imported before the clock starts, since the others get theirs in memory. Starting
and stopping the database counts.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.throughput.job import Job


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command printed, and what it took.

    Attributes:
        core_seconds: Of the process and the children it has waited for: decoders, but not Postgres,
            which belongs to nobody.
    """

    document: dict[str, Any]
    seconds: float
    core_seconds: float


def main() -> None:
    job = Job.of_command_line()
    vsearch(job, "catalog", "import", "-", "--json", say="\n".join(job.urls))
    # A precision among the flags comes later, and counts.
    precision = ("--precision", job.precision)
    run = vsearch(job, "extract", "--model", job.model, *precision, *job.flags, "--json")
    (result,) = run.document["results"]
    if result["counts"]["done"] != len(job.urls):
        sys.exit(f"not all images were embedded: {result}")
    (shown,) = vsearch(job, "runs", "list", "--json").document["runs"]
    stages: dict[str, float] = shown["core_seconds_per_stage"]
    # Mostly start-up: importing torch, which is over before the run begins to count.
    core_seconds = stages | {"rest": run.core_seconds - sum(stages.values())}
    job.write_notes(
        seconds=run.seconds,
        steady_images_per_second=result["images_per_second"],
        core_seconds_per_stage={
            stage: spent / len(job.urls) for stage, spent in core_seconds.items()
        },
    )
    shards = vsearch(job, "shards", "list", "--json").document["shards"]
    tables = [pq.read_table(_path(shard["uri"]), columns=["url", "embedding"]) for shard in shards]
    job.vectors.mkdir()
    pq.write_table(
        pa.concat_tables(tables).rename_columns(["image_url", "embedding"]),
        job.vectors / "vectors.parquet",
    )


def vsearch(job: Job, *arguments: str, say: str | None = None) -> Answer:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("VSEARCH_")}
    said = job.folder / "said"
    started = time.monotonic()
    with said.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "visual_search", "--config", str(job.config), *arguments],
            env=environment | {"VSEARCH_HOME": str(job.folder / "home")},
            stdin=subprocess.PIPE,
            stdout=file,
            text=True,
        )
        assert process.stdin is not None
        with process.stdin as stdin:
            stdin.write(say or "")
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"vsearch {' '.join(arguments)} exited with {process.returncode}")
    return Answer(
        document=json.loads(said.read_text()),
        seconds=seconds,
        core_seconds=usage.ru_utime + usage.ru_stime,
    )


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


if __name__ == "__main__":
    main()
