"""Shards of a folder, as tests look at them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from visual_search.settings import StorageSettings
from visual_search.shard import list_files, read_vectors
from visual_search.storage import Folder, shown


def local_path(uri: str) -> Path:
    return Path(shown(uri))


def paths_in(folder: Path) -> set[Path]:
    """All files that a writer of shards made, finished or not."""
    return {folder / file.name for file in list_files(Folder(folder))}


def vectors_of(uri: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """As of `read_vectors`."""
    return read_vectors(uri, StorageSettings())
