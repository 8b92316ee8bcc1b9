"""What a disk refuses, at the calls by which shards are written; for children of the nursery."""

import io
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from visual_search.shard import ShardWriter, writer
from visual_search.storage.folder import Folder, PartialFile


def refuse(*, operation: str, nth: int, error: int) -> None:
    """Let one call fail.

    Args:
        operation: `open`, `write`, `fsync`, `read`, `rename` or `mkdir`, of or for a shard.
        nth: Which call, from 1.
        error: With which number.
    """
    # So that a file takes several writes.
    writer._ROW_GROUP_ROWS = 5  # type: ignore[misc]
    refusal = _Refusal(nth, error)
    match operation:
        case "open":
            _replace(Path, "open", refusal, _is_new_partial)
        case "write":
            _write_through(refusal)
        case "fsync":
            begun = _first_shard()
            _replace(os, "fsync", refusal, lambda *_: begun.is_set())
        case "read":
            _replace(writer, "sha256_of", refusal)
        case "rename":
            _replace(Path, "replace", refusal, _is_partial)
        case "mkdir":
            _replace(Path, "mkdir", refusal, lambda path, *_: path.name.startswith("date="))
        case _:
            raise ValueError(operation)


def limit_files(*, most_bytes: int) -> None:
    """Let no file of this process grow beyond `most_bytes`, from its first shard on."""
    original = ShardWriter._open

    def limited(self: ShardWriter) -> None:
        original(self)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, resource.RLIM_INFINITY))

    ShardWriter._open = limited  # type: ignore[method-assign]


def _first_shard() -> threading.Event:
    """Set once a shard is begun: what comes before it is the marker's."""
    begun = threading.Event()
    original = Folder.begin

    def begin(self: Folder, name: str) -> PartialFile:
        begun.set()
        return original(self, name)

    Folder.begin = begin  # type: ignore[method-assign]
    return begun


class _Refusal:
    def __init__(self, nth: int, error: int) -> None:
        self._left = nth
        self._error = error
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self._left -= 1
            refused = self._left == 0
        if refused:
            raise OSError(self._error, os.strerror(self._error))


def _replace(
    owner: Any, name: str, refusal: _Refusal, when: Callable[..., bool] = lambda *_: True
) -> None:
    original = getattr(owner, name)

    def replaced(*arguments: Any, **named: Any) -> Any:
        if when(*arguments):
            refusal()
        return original(*arguments, **named)

    setattr(owner, name, replaced)


def _write_through(refusal: _Refusal) -> None:
    """Hand shards a file whose system calls to write can fail."""
    original = Path.open

    class Failing(io.FileIO):
        def write(self, data: Any) -> int:
            refusal()
            return super().write(data)

    def opened(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if _is_new_partial(path, mode):
            return io.BufferedRandom(Failing(path, "w+"), buffer_size=512)
        return original(path, mode, *arguments, **named)

    Path.open = opened  # type: ignore[method-assign, assignment]


def _is_partial(path: Path, *_: Any) -> bool:
    return path.name.endswith(".parquet.partial")


def _is_new_partial(path: Path, mode: str = "r", *_: Any) -> bool:
    return _is_partial(path) and "w" in mode
