"""How the memory budget is divided between what waits at the stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from visual_search.models.spec import ModelSpec

# Claims between feeder and recorder, for each download that may run: enough that a slow host does
# not keep the others idle.
_AHEAD: Final = 8
_CHANNELS: Final = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryShares:
    """Each part is waited for without holding more of another than a later stage frees.

    Attributes:
        slots: Claims between feeder and recorder; each may be an image in a model's size.
        body_bytes: Bodies, from their arrival until they are decoded.
        pixel_bytes: Decoded pixels, until they are in the models' sizes.
    """

    slots: int
    body_bytes: int
    pixel_bytes: int


def shares(budget_bytes: int, *, specs: Sequence[ModelSpec], downloads: int) -> MemoryShares:
    """Half for pixels, which are large; a quarter each for bodies and images in a model's size."""
    quarter = budget_bytes // 4
    largest = max(_CHANNELS * spec.preprocessing.size**2 for spec in specs)
    return MemoryShares(
        slots=max(1, min(_AHEAD * downloads * len(specs), quarter // largest)),
        body_bytes=quarter,
        pixel_bytes=2 * quarter,
    )
