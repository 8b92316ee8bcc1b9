"""The demo's own folder: empty at its start, kept at its end, and nobody else's."""

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from visual_search.database import embedded
from visual_search.errors import StorageError, UsageError

PICTURES: Final = "pictures"
PRODUCTS: Final = "products.jsonl"
REPORT: Final = "report.html"

_MARKER: Final = "made-by-vsearch-demo.txt"
_MARKER_TEXT: Final = """\
`vsearch demo` made this folder. The next one deletes what it finds here of the last one.
"""
# What runs make in their home: vectors, and what they remember about weights.
_FOLDERS: Final = (PICTURES, "vectors", "weights")


@contextmanager
def emptied_folder(folder: Path) -> Iterator[None]:
    """Make `folder` this demo's while the block runs, without what an earlier one left there.

    What no demo made stays where it is.

    Raises:
        UsageError: It is somebody else's, it is being used, or it cannot be written.
    """
    with writing(folder):
        marker = _marker(folder)
    try:
        with writing(folder):
            _take(marker, folder)
            embedded.remove(folder)
            for name in _FOLDERS:
                if (folder / name).exists():
                    shutil.rmtree(folder / name)
            for name in (PRODUCTS, REPORT):
                (folder / name).unlink(missing_ok=True)
        yield
    finally:
        os.close(marker)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Give names to what the file system refuses in the block.

    Raises:
        StorageError: The disk is full.
        UsageError: Any other refusal.
    """
    try:
        yield
    except OSError as error:
        words = f"{error.strerror or error} ({error.filename or folder})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"cannot keep the demo in {folder}: {words}; make room and try again"
            ) from error
        raise UsageError(
            f"cannot keep the demo in {folder}: {words}; choose another VSEARCH_HOME"
        ) from error


def _marker(folder: Path) -> int:
    """The open marker of `folder`, made where there is nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _MARKER
    if not path.exists() and any(folder.iterdir()):
        raise UsageError(
            f"{folder} is not empty, and no demo made it; move it away, or choose another "
            "VSEARCH_HOME"
        )
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)


def _take(marker: int, folder: Path) -> None:
    """Lock the marker, and so the folder; the kernel unlocks it however this process ends."""
    try:
        fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"another demo is running in {folder}; wait for it to end, or choose another "
            "VSEARCH_HOME"
        ) from None
    os.pwrite(marker, _MARKER_TEXT.encode(), 0)
