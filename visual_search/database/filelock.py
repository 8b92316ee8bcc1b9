"""Locks between processes that end with their process, however it ends."""

import fcntl
import os
import weakref
from functools import partial
from pathlib import Path


class FileLock:
    """An flock on the file `path`, held from construction to `close`.

    Without `wait` it is not waited for.

    A lock lives as long as any copy of its descriptor is open, so no child may keep one: exec
    closes it by itself, and a fork closes it here.

    Raises:
        BlockingIOError: Another process has it, and it is not waited for.
        OSError: The file cannot be opened, or its file system knows no locks.
    """

    def __init__(self, path: Path, *, shared: bool = False, wait: bool = True) -> None:
        self._path = path
        self._descriptor = -1
        # A weak reference, since such a registration cannot be taken back.
        os.register_at_fork(after_in_child=partial(_close, weakref.ref(self)))
        while not self.is_current():
            # Either the first time, or the folder was deleted while we waited for its lock.
            self.close()
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            try:
                fcntl.flock(self._descriptor, how if wait else how | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise

    def is_current(self) -> bool:
        """Whether the locked file is still the one that others find at its path."""
        try:
            return self._descriptor >= 0 and os.path.samestat(
                os.fstat(self._descriptor), self._path.lstat()
            )
        except FileNotFoundError:
            return False

    def was_last(self) -> bool:
        """Give up a shared lock, and say whether nobody else holds it.

        Without a lock that keeps others from joining meanwhile, the answer is worth nothing.
        """
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Give up the lock; more than once does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _close(reference: weakref.ref[FileLock]) -> None:
    if lock := reference():
        lock.close()
