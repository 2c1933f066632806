"""The folder in which a package is made before it is stored.

It lies outside the cache where that is possible: what is made there is plain and large, the cache's
volume small. A folder is locked while somebody uses it; those of processes that died are removed.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controller.registry.failures import StorageError

PREFIX: Final = "crossdock-staging-"
YOUNG_SECONDS: Final = 60.0  # for which a folder may still be without its lock


@dataclass(frozen=True, slots=True)
class Staging:
    """The folder in which a package is made; it goes when the package is stored.

    Attributes:
        folder: private to one package, empty at first.
    """

    folder: Path

    @property
    def layer(self) -> Path:
        """Where the layer is downloaded to."""
        return self.folder / "layer"

    @property
    def stream(self) -> Path:
        """Where ``package.yaml`` is extracted to, plain."""
        return self.folder / "package.yaml"

    @property
    def objects(self) -> Path:
        """Where the parsed form is written to, plain: one JSON object a line."""
        return self.folder / "objects.jsonl"


@asynccontextmanager
async def staging_folder(*places: Path | None) -> AsyncIterator[Staging]:
    """Give an empty folder, which is removed at the end.

    Args:
        places: where to make it, best first; None for the system's temporary folder.

    Raises:
        StorageError: none of the places can be written.
    """
    staging, lock = await asyncio.to_thread(_make_staging, places)
    try:
        yield staging
    finally:
        await asyncio.shield(asyncio.to_thread(_remove_staging, staging, lock))


def _make_staging(places: Iterable[Path | None]) -> tuple[Staging, int]:
    faults = []
    for place in places:
        try:
            home = Path(tempfile.gettempdir()) if place is None else place
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=home))
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            faults.append(f"{error.filename or place}: {error.strerror}")
            continue
        return Staging(folder), lock
    raise StorageError(
        f"no folder to unpack into can be written ({'; '.join(faults)})",
        remedy="set TMPDIR to a folder with space",
    )


def _remove_staging(staging: Staging, lock: int) -> None:
    shutil.rmtree(staging.folder, ignore_errors=True)
    os.close(lock)


def sweep_staging(home: Path | None) -> None:
    """Remove the staging folders of processes that died.

    Args:
        home: where they are; None for the system's temporary folder.
    """
    try:
        home = home or Path(tempfile.gettempdir())
    except OSError:
        return
    for folder in home.glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            known = os.fstat(lock)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if known.st_uid == os.geteuid() and time.time() - known.st_mtime > YOUNG_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(lock)
