"""Damaged files of the cache, set aside so that a person can look at them. Blocks."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import Final

from controller.registry.cache_files import remove_tree

FILES_MAX: Final = 16
BYTES_MAX: Final = 64 * 1024 * 1024


class Quarantine:
    """The folder of damaged files; the oldest go when there are too many.

    Args:
        folder: need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, path: Path) -> None:
        """Take a file away from where it is; it is removed where that cannot be.

        Raises:
            OSError: it can neither be moved nor removed.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            name = f"{time.time_ns():020d}-{secrets.token_hex(4)}-{path.name}"
            path.rename(self.folder / name[:250])
        except FileNotFoundError:
            return
        except OSError:
            remove_tree(path)
        self.trim(BYTES_MAX)

    def size(self) -> int:
        """Return its bytes."""
        return sum(size for _, size in self._files())

    def trim(self, limit: int) -> None:
        """Remove the oldest until there are few enough, of at most so many bytes."""
        files = self._files()
        total = sum(size for _, size in files)
        excess = len(files) - FILES_MAX
        for path, size in files:
            if excess <= 0 and total <= limit:
                return
            with contextlib.suppress(OSError):
                remove_tree(path)
            total -= size
            excess -= 1

    def _files(self) -> list[tuple[Path, int]]:
        """Return what is in it with its bytes, oldest first."""
        found = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in sorted(entries, key=lambda item: item.name):
                with contextlib.suppress(OSError):
                    found.append((Path(entry.path), entry.stat(follow_symlinks=False).st_size))
        return found
