"""Files as lines of text, whatever is in them."""

import codecs
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO, Final

from visual_search.errors import UsageError

# A longer line is cut here, and is bad for the one or the other reason.
_MAX_LINE_BYTES: Final = 4_000_000
_AHEAD_BYTES: Final = 1 << 19


class Lines:
    """A file's lines, one by one or many at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._ahead = b""
        self._at = 0
        self._ended = False

    def text(self, name: str) -> Iterator[str]:
        """Take lines with their ends. What is not UTF-8 becomes lone surrogates.

        Raises:
            UsageError: It is UTF-16.
        """
        lines = self._cut()
        first = next(lines, b"")
        if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UsageError(f"{name} is UTF-16; save it as UTF-8")
        for line in chain((first.removeprefix(codecs.BOM_UTF8),) if first else (), lines):
            yield line.decode("utf-8", "surrogateescape")

    def ahead(self) -> bytes:
        """The next lines as they are in the file, without taking them; empty at its end.

        Whole lines, of at most `_AHEAD_BYTES` together; the beginning of the next one if that
        alone is longer, and all of it if it is the last and has no end.
        """
        if not self._ended and (missing := _AHEAD_BYTES - len(self._ahead) + self._at) > 0:
            more = self._file.read(missing)
            self._ended = len(more) < missing
            self._ahead = self._ahead[self._at :] + more
            self._at = 0
        end = self._ahead.rfind(b"\n", self._at) + 1
        return self._ahead[self._at : end or None]

    def take(self, ahead: bytes) -> None:
        """Take what is ahead."""
        self._at += len(ahead)

    def _cut(self) -> Iterator[bytes]:
        """Lines, each at most `_MAX_LINE_BYTES` long; the rest of a longer is lost."""
        while line := self._line():
            rest = line
            while len(rest) == _MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = self._line()
            yield line

    def _line(self) -> bytes:
        if end := self._ahead.find(b"\n", self._at) + 1:
            line = self._ahead[self._at : end]
            self._at = end
            return line
        begun = self._ahead[self._at :]
        self._ahead, self._at = b"", 0
        if self._ended:
            return begun
        missing = _MAX_LINE_BYTES - len(begun)
        more = self._file.readline(missing)
        self._ended = len(more) < missing and not more.endswith(b"\n")
        return begun + more
