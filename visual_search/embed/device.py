"""What there is on this machine to compute with."""

from functools import cache
from typing import Final

import torch

from visual_search.cores import usable_cores
from visual_search.errors import UsageError
from visual_search.settings import Device

# Each has the memory for what is between two layers to itself.
_MOST_BATCHES: Final = 8


def choose_device(name: Device) -> torch.device:
    """The device of this name; `auto` is the first there is of cuda, mps and cpu.

    Raises:
        UsageError: There is no such device here.
    """
    # Not torch.accelerator: it names cuda where torch was built for it, with or without a GPU.
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, is_there in there.items() if is_there))
    if name not in there:
        raise UsageError(f"unknown device {name!r}; use auto, cpu, cuda or mps")
    if not there[name]:
        raise UsageError(
            f"no {name} device that torch {torch.__version__} can use here; use --device auto or "
            "--device cpu"
        )
    return torch.device(name)


def batches_at_a_time(device: torch.device, threads: int | None = None) -> int:
    """How many threads best embed at once.

    On a CPU one for each core, up to eight, each with a batch and its share of the cores to itself:
    threads that share a batch wait for each other after every layer, all the more where decoders
    take their turns on the same cores. ResNet-18 gets a seventh more images through two cores so.

    Args:
        device: Where they embed.
        threads: How many there may be on a CPU; one for each core unless given.
    """
    return min(threads or usable_cores(), _MOST_BATCHES) if device.type == "cpu" else 1


def threads_for_each(workers: int, threads: int | None = None) -> int:
    """How many of torch's threads each of so many batches at a time has to itself.

    In a container torch itself would count the cores of the whole machine.

    Args:
        workers: How many batches there are at a time.
        threads: How many they have together; one for each core unless given.
    """
    return max(1, min(_threads(), threads or usable_cores()) // workers)


@cache
def _threads() -> int:
    """Torch's threads. Asked once: in a thread that was given fewer, torch says that number."""
    return torch.get_num_threads()


def does_bf16_fast(device: torch.device) -> bool:
    """Whether bf16 is worth its loss of precision on this device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def torch_release() -> str:
    """Such as `2.14.1`, without what it was built for."""
    return torch.__version__.partition("+")[0]
