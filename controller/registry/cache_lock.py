"""The locks by which processes share a cache folder. Blocks.

``lock`` is held, shared, by every process that uses the folder; whoever gets it alone may clear
what dead processes left. ``writing`` is held, alone, for as long as names are given or removed; it
counts who wrote, so that others read the folder anew. The system frees both when a process dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Final

USE_WAIT_SECONDS: Final = 5.0
WRITE_WAIT_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.02
_COUNTER_BYTES: Final = 8


class FolderLock:
    """Both locks of one user of a cache folder.

    Args:
        home: holds the files of the locks.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._use: int | None = None
        self._write: int | None = None
        self._seen = -1

    @property
    def is_open(self) -> bool:
        """Tell whether the folder is locked for use, and its files are still in it."""
        return self._is_current(self._use, "lock") and self._is_current(self._write, "writing")

    def open(self) -> bool:
        """Lock the folder for use; tell whether nobody else uses it. ``share`` must follow.

        Raises:
            OSError: the files of the locks cannot be written.
        """
        self.close()
        self._use = self._opened("lock")
        self._write = self._opened("writing")
        alone = self._try(self._use, fcntl.LOCK_EX)
        self._seen = self._count()
        return alone

    def share(self) -> None:
        """Let others use the folder too.

        Raises:
            OSError: another process does not let it go.
        """
        self._wait(self._use, fcntl.LOCK_SH, USE_WAIT_SECONDS)

    def begin(self) -> bool:
        """Wait until nobody else writes; tell whether somebody did since the last time.

        Raises:
            OSError: another process does not stop writing.
        """
        self._wait(self._write, fcntl.LOCK_EX, WRITE_WAIT_SECONDS)
        assert self._write is not None
        count = self._count()
        foreign = count != self._seen
        self._seen = (count + 1) % 2 ** (8 * _COUNTER_BYTES)
        # A full disk keeps the count from being written; then only figures of others are late.
        with contextlib.suppress(OSError):
            os.pwrite(self._write, self._seen.to_bytes(_COUNTER_BYTES, "little"), 0)
        return foreign

    def end(self) -> None:
        """Let others write."""
        if self._write is not None:
            fcntl.flock(self._write, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of both."""
        for descriptor in (self._use, self._write):
            if descriptor is not None:
                os.close(descriptor)
        self._use = self._write = None
        self._seen = -1

    def _count(self) -> int:
        assert self._write is not None
        return int.from_bytes(os.pread(self._write, _COUNTER_BYTES, 0), "little")

    def _opened(self, name: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self._home / name, flags, 0o600)

    def _is_current(self, descriptor: int | None, name: str) -> bool:
        if descriptor is None:
            return False
        try:
            there = (self._home / name).stat(follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(os.fstat(descriptor), there)

    @staticmethod
    def _try(descriptor: int, kind: int) -> bool:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                return False
            raise
        return True

    def _wait(self, descriptor: int | None, kind: int, seconds: float) -> None:
        assert descriptor is not None
        deadline = time.monotonic() + seconds
        while not self._try(descriptor, kind):
            if time.monotonic() > deadline:
                raise OSError(errno.EAGAIN, "another process holds its lock")
            time.sleep(_PAUSE_SECONDS)
