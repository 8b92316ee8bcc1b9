"""A Ray cluster of two nodes with a processor each, in a process of its own.

`python -m tests.ray_nodes` prints its address and the folder of its logs. A line on standard input
takes the second node away, as when a machine is lost; the end of it ends the cluster.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

_NODE: dict[str, Any] = {
    "num_cpus": 1,
    "num_gpus": 0,
    "node_ip_address": "127.0.0.1",
    "include_dashboard": False,
    "object_store_memory": 80 << 20,
}


class RayNodes:
    """The test's side of the cluster.

    Attributes:
        address: Of the cluster.
        folder: Where its nodes and all that runs on them keep their logs.
    """

    def __init__(self, address: str, folder: Path, requests: IO[str], answers: IO[str]) -> None:
        self.address = address
        self.folder = folder
        self._requests = requests
        self._answers = answers

    def remove_one(self) -> None:
        """The second node is gone when this comes back."""
        self._requests.write("\n")
        self._requests.flush()
        assert self._answers.readline() == "removed\n"


@contextmanager
def ray_nodes(environment: Mapping[str, str]) -> Iterator[RayNodes]:
    """Up while the block runs; `environment` is what actors find."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.ray_nodes"],
        env=dict(environment) | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        requests, answers = cast("IO[str]", process.stdin), cast("IO[str]", process.stdout)
        try:
            _, address, folder = next(line for line in answers if line.startswith("up ")).split()
            yield RayNodes(address, Path(folder), requests, answers)
        finally:
            requests.close()


def main() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=_NODE)
    second = cluster.add_node(**_NODE)
    cluster.wait_for_nodes()
    print("up", cluster.address, cluster.head_node.get_session_dir_path(), flush=True)
    for _ in sys.stdin:
        cluster.remove_node(second)
        print("removed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
