"""Pixels to vectors.

`Embedder` is a model at work: it prepares pictures, hands batches to a runtime and checks what
comes back. The runtime is chosen in `runtime.py`; there is a file for each: `eager.py` (torch, on
any device), `compiled.py` (torch, compiled for one) and `openvino.py` (processors). `device.py`
knows this machine.
"""

from visual_search.embed.device import (
    batches_at_a_time,
    choose_device,
    does_bf16_fast,
    threads_for_each,
)
from visual_search.embed.embedder import Embedder
from visual_search.embed.preparation import prepare

__all__ = [
    "Embedder",
    "batches_at_a_time",
    "choose_device",
    "does_bf16_fast",
    "prepare",
    "threads_for_each",
]
