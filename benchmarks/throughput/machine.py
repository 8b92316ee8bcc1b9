"""On what a measurement was made."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from visual_search.cores import usable_cores

_PACKAGES = ("visual-search", "torch", "torchvision", "pillow", "pyarrow", "daft", "ray")
_FLAGS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16")


def described() -> dict[str, object]:
    """Plain values: processor, cores, what it does fast, versions."""
    able = torch.cpu.get_capabilities()
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "flags": {name: bool(able.get(name)) for name in _FLAGS},
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")),
        platform.machine(),
    )
