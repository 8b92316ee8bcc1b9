"""Vectors in a folder of this machine, or of a network that is mounted here."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from visual_search.storage.interface import StoredFile


class Folder:
    """The files below a folder. See `Storage`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = str(folder)

    def uri(self, name: str) -> str:
        """`file:///absolute/path`."""
        return (self.folder / name).as_uri()

    def begin(self, name: str) -> "PartialFile":
        """A hidden file beside the one it will be."""
        path = self.folder / name
        _make_durably(path.parent)
        return PartialFile(path, path.with_name(f".{path.name}.partial"))

    def write(self, name: str, content: bytes) -> None:
        """Write it beside its place first: readers see the old file or the new one."""
        path = self.folder / name
        _make_durably(path.parent)
        # Workers in containers have one folder and the same process number.
        new = PartialFile(path, path.with_name(f".{path.name}.{uuid4()}.partial"))
        try:
            new.file.write(content)
            new.file.flush()
            os.fsync(new.file.fileno())
            new.publish()
        finally:
            new.discard()

    def try_out(self, name: str) -> None:
        """Write a file without a name."""
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.write(self.read(name))

    def read(self, name: str) -> bytes:
        """All of a small file."""
        return (self.folder / name).read_bytes()

    def open(self, name: str) -> BinaryIO:
        """A file for reading."""
        return (self.folder / name).open("rb")

    def size(self, name: str) -> int:
        """How many bytes a file has."""
        return (self.folder / name).stat().st_size

    def files(self) -> Iterator[StoredFile]:
        """All files, hidden ones, too."""
        for path in sorted(self.folder.rglob("*")):
            with suppress(FileNotFoundError):  # renamed or deleted since it was listed
                facts = path.stat()
                if path.is_file():
                    yield StoredFile(
                        name=path.relative_to(self.folder).as_posix(),
                        bytes=facts.st_size,
                        modified_at=facts.st_mtime,
                    )

    def delete(self, name: str) -> None:
        """Delete a file."""
        (self.folder / name).unlink(missing_ok=True)


class PartialFile:
    """A hidden file until it is renamed. See `NewFile`."""

    def __init__(self, path: Path, partial: Path) -> None:
        self._path = path
        self._partial = partial
        self.file: BinaryIO = partial.open("w+b")

    def publish(self) -> None:
        """Rename it."""
        self.file.close()
        self._partial.replace(self._path)
        # The rename lasts only once the folder is synced. Without this, a power cut after
        # the database commit leaves a recorded shard that is not there.
        _sync_folder(self._path.parent)

    def discard(self) -> None:
        """Delete it."""
        # The disk may be full or gone, which is why it is dropped.
        with suppress(OSError):
            self.file.close()
        with suppress(OSError):
            self._partial.unlink(missing_ok=True)


def _make_durably(folder: Path) -> None:
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in made:
        _sync_folder(each.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
