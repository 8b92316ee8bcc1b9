"""Columns of text, worked on as a whole; cells that need it, one by one."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Positions = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def joined(*parts: pa.Array | str) -> pa.StringArray:
    """Columns and constants as one column; null where one of them is."""
    return pc.binary_join_element_wise(*parts, "")


def where(mask: pa.BooleanArray) -> Positions:
    """The positions at which it is not false."""
    return np.flatnonzero(pc.fill_null(mask, fill_value=True))


def patched(
    column: pa.StringArray, positions: Positions, values: Sequence[str | None]
) -> pa.StringArray:
    """A column with other values at some positions, in ascending order."""
    if not len(positions):
        return column
    mask = np.zeros(len(column), bool)
    mask[positions] = True
    return pc.replace_with_mask(column, mask, pa.array(values, pa.string()))
