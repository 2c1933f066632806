"""The package cache: what was fetched and verified once is not fetched again.

``PackageCache`` is what the stages know; ``DiskCache`` keeps packages in a folder, ``NoCache``
keeps none. Trouble with the cache never stops an install: reading it then finds nothing, and
storing raises ``CacheUnavailable``, after which ``keep_uncached`` gives the package all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from controller.registry.cache_disk import DiskCache
from controller.registry.cache_files import check_directory
from controller.registry.cache_statistics import CacheStatistics
from controller.registry.cached import CachedPackage, CacheKey, Facts, keep_uncached
from controller.registry.failures import CacheUnavailable
from controller.registry.staging import Staging, staging_folder, sweep_staging

__all__ = [
    "CacheKey",
    "CacheStatistics",
    "CacheUnavailable",
    "CachedPackage",
    "DiskCache",
    "Facts",
    "NoCache",
    "PackageCache",
    "Staging",
    "check_directory",
    "keep_uncached",
]


class PackageCache(Protocol):
    """Keeps packages by repository and digest; safe for many users at once."""

    async def get(self, key: CacheKey) -> CachedPackage | None:
        """Open a package, None when it is not there or damaged. Never raises."""

    async def seed(self, key: CacheKey, staging: Staging, *, sources: Sequence[str] = ()) -> bool:
        """Put package.yaml of a package that the folder's maker provided into a staging folder.

        Args:
            key: which package.
            staging: takes the plain stream.
            sources: other names of its repository, best first.

        Returns:
            Whether there was one. It is whole, but nothing proves that it is what the registry has.
        """

    def ingest(self) -> AbstractAsyncContextManager[Staging]:
        """Give a folder to make a package in, away from the cache; it is removed at the end.

        Raises:
            StorageError: no folder can be written.
        """

    async def store(self, key: CacheKey, staging: Staging, facts: Facts) -> CachedPackage:
        """Keep a package that was made in a staging folder, and open it.

        Args:
            key: which package.
            staging: holds both its forms, unharmed whatever happens here.
            facts: about it.

        Raises:
            CacheUnavailable: it cannot be kept; ``keep_uncached`` opens it nevertheless.
        """

    async def delete(self, key: CacheKey) -> None:
        """Remove a package; one that is not there is no error.

        Raises:
            CacheUnavailable: it cannot be removed now.
        """

    async def lease(self, owner: str, key: CacheKey) -> None:
        """Keep a package from being removed while an owner (an object's uid) needs it."""

    async def release(self, owner: str) -> list[CacheKey]:
        """Remove the packages that only this owner needed; return which.

        Raises:
            CacheUnavailable: one cannot be removed now; call it again.
        """

    async def release_others(self, owners: Collection[str]) -> list[CacheKey]:
        """Release the owners of before this process began that no longer exist.

        Args:
            owners: those that exist.

        Raises:
            CacheUnavailable: a package cannot be removed now; call it again.
        """

    async def sweep(self) -> None:
        """Repair what crashes and other processes left; remove what nobody needs any more.

        Raises:
            CacheUnavailable: the folder cannot be written now.
        """

    def statistics(self) -> CacheStatistics:
        """Return what the cache did and holds."""


class NoCache:
    """Keeps nothing: every use fetches.

    Args:
        temporary: folder for staging; None for the system's.
    """

    def __init__(self, *, temporary: Path | None = None) -> None:
        self._temporary = temporary
        self._misses = 0

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(sweep_staging, self._temporary)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        return None

    async def get(self, key: CacheKey) -> CachedPackage | None:
        """Find nothing."""
        del key
        self._misses += 1
        return None

    async def seed(self, key: CacheKey, staging: Staging, *, sources: Sequence[str] = ()) -> bool:
        """Provide nothing."""
        del key, staging, sources
        return False

    def ingest(self) -> AbstractAsyncContextManager[Staging]:
        """Give a folder to make a package in."""
        return staging_folder(self._temporary)

    async def store(self, key: CacheKey, staging: Staging, facts: Facts) -> CachedPackage:
        """Open a package that is gone when it is closed."""
        return await keep_uncached(key, staging, facts)

    async def delete(self, key: CacheKey) -> None:
        """Do nothing."""

    async def lease(self, owner: str, key: CacheKey) -> None:
        """Do nothing."""

    async def release(self, owner: str) -> list[CacheKey]:
        """Do nothing; free nothing."""
        del owner
        return []

    async def release_others(self, owners: Collection[str]) -> list[CacheKey]:
        """Do nothing; free nothing."""
        del owners
        return []

    async def sweep(self) -> None:
        """Do nothing."""

    def statistics(self) -> CacheStatistics:
        """Return how often nothing was found."""
        return CacheStatistics("off", misses=self._misses)
