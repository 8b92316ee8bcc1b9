"""What every storage does."""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFile:
    """A file that was listed.

    Attributes:
        modified_at: Seconds since 1970 by the storage's clock.
    """

    name: str
    bytes: int
    modified_at: float


class NewFile(Protocol):
    """A file on its way: `file` takes its bytes, and nobody sees it yet.

    Attributes:
        file: Writable, readable, seekable. Whoever writes to it syncs it.
    """

    file: BinaryIO

    def publish(self) -> None:
        """Make the file visible, whole, for good.

        Raises:
            OSError, StorageError: It is not known to be there.
        """

    def discard(self) -> None:
        """Drop what is not published; after `publish` there is nothing to drop."""


class Storage(Protocol):
    """Files below one address.

    Each is written once, whole, under a name that is not used again. Names are relative, with `/`
    between their parts.

    What concerns one file is an OSError: it is not there, or the disk cannot read it. That the
    storage as a whole cannot be reached is a StorageError.
    """

    @property
    def address(self) -> str:
        """As users know it."""

    @property
    def folder(self) -> Path | None:
        """Where its files are on this machine; `None` elsewhere."""

    def uri(self, name: str) -> str:
        """Where a file is, for all machines that have this storage."""

    def begin(self, name: str) -> NewFile:
        """Begin a file of this name."""

    def write(self, name: str, content: bytes) -> None:
        """Write a small file at once; what was there by this name is replaced."""

    def try_out(self, name: str) -> None:
        """Write as much as a small file takes, to see that it can be done.

        Nothing is left of it, even if the process is killed meanwhile; `name` is a small file
        that is there and may be written anew with what it holds.
        """

    def read(self, name: str) -> bytes:
        """All of a small file."""

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file for reading, seekable."""

    def size(self, name: str) -> int:
        """How many bytes a file has."""

    def files(self) -> Iterator[StoredFile]:
        """All files, in the order of their names."""

    def delete(self, name: str) -> None:
        """Delete a file; one that is not there is deleted."""


def sha256_of(file: BinaryIO) -> str:
    """Hexadecimal sha256 of all of a file."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # has readinto
