"""How much of the machine this process may use."""

import os
from pathlib import Path
from typing import Final

_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")


def usable_cores() -> int:
    """How many cores this process may use, by its affinity and by its container's limit."""
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _CGROUP_LIMIT.read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        # Not in a control group, or one with the quota "max".
        return cores
