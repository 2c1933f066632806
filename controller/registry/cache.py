"""The package cache: what was fetched and verified once is not fetched again.

``PackageCache`` is what the stages know; ``DiskCache`` keeps packages in a folder, ``NoCache``
keeps none. Trouble with the cache never stops an install: reading it then finds nothing, and
storing raises ``CacheUnavailable``, after which ``keep_uncached`` gives the package all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import Counter
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

import structlog

from controller.registry.cached import (
    CachedPackage,
    CacheKey,
    DamagedEntry,
    Facts,
    Record,
    keep_uncached,
)
from controller.registry.failures import CacheUnavailable
from controller.registry.ledger import Ledger
from controller.registry.shelves import Shelves, check_directory, probe
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

log = structlog.get_logger(__name__)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What a cache did and holds.

    Attributes:
        mode: ``rw``, ``ro`` (nothing is stored) or ``off``.
        entries: packages.
        size: bytes.
        hits: packages that were found.
        misses: packages that were not.
        stores: packages that were stored.
        evictions: packages that were removed.
        damaged: entries that were not what was stored.
        failures: packages that could not be read or stored.
    """

    mode: Literal["rw", "ro", "off"]
    entries: int = 0
    size: int = 0
    hits: int = 0
    misses: int = 0
    stores: int = 0
    evictions: int = 0
    damaged: int = 0
    failures: int = 0


class PackageCache(Protocol):
    """Keeps packages by repository and digest; safe for many users at once."""

    async def get(self, key: CacheKey) -> CachedPackage | None:
        """Open a package, None when it is not there or damaged. Never raises."""

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

    def statistics(self) -> CacheStatistics:
        """Return how often nothing was found."""
        return CacheStatistics("off", misses=self._misses)


class DiskCache:
    """Keeps packages in a folder; survives crashes and other processes that use the folder.

    Args:
        root: an existing folder.
        max_bytes: what it may hold; None for no limit of our own.
        temporary: folder for staging; None for the system's.
    """

    def __init__(
        self, root: Path, *, max_bytes: int | None = None, temporary: Path | None = None
    ) -> None:
        self.mode: Literal["rw", "ro"] = "rw"
        self.warning: str | None = None
        self._shelves = Shelves(root)
        self._max_bytes = max_bytes
        self._temporary = temporary
        self._lock = asyncio.Lock()
        self._ledger = Ledger()
        self._counts: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        """Read what the folder holds.

        Raises:
            CacheUnavailable: it cannot be used, not even for reading; the text is one line.
        """
        await asyncio.to_thread(self._open)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self._shelves.close)

    def _open(self) -> None:
        root = self._shelves.root
        fault = check_directory(root)
        if fault is not None:
            raise CacheUnavailable(fault)
        try:
            refused = probe(root)
            if refused is not None:
                raise refused
            self._shelves.open()
        except OSError as error:
            # A full folder may have room later; one without rights stays as it is.
            self.mode = "ro" if error.errno in _READ_ONLY else "rw"
            self.warning = f"cache folder {root} cannot be written: {error.strerror}"
            log.warning(self.warning, mode=self.mode)
        for record in self._shelves.records():
            self._ledger.enter(record)
        for owner, keys in self._shelves.leases().items():
            self._ledger.lease(owner, keys)
        sweep_staging(self._temporary)

    async def get(self, key: CacheKey) -> CachedPackage | None:
        """Open a package after comparing all its bytes; None when it is not there or damaged."""
        evictions = self._counts["evictions"]
        try:
            package = await asyncio.to_thread(self._shelves.read, key)
        except (FileNotFoundError, NotADirectoryError):
            self._counts["misses"] += 1
            return None
        except DamagedEntry as damage:
            self._counts.update(damaged=1, misses=1)
            log.warning(
                "cached package is damaged, fetching it again", key=str(key), why=str(damage)
            )
            with contextlib.suppress(CacheUnavailable):
                await self.delete(key)
            return None
        except OSError as error:
            self._counts.update(failures=1, misses=1)
            log.warning("cached package cannot be read", key=str(key), error=error.strerror)
            return None
        self._counts["hits"] += 1
        if evictions == self._counts["evictions"]:  # else it may be gone by now
            self._ledger.enter(package.record)
        return package

    def ingest(self) -> AbstractAsyncContextManager[Staging]:
        """Give a folder to make a package in, away from the cache where that is possible."""
        return staging_folder(self._temporary, self._shelves.ingest)

    async def store(self, key: CacheKey, staging: Staging, facts: Facts) -> CachedPackage:
        """Keep a package; whoever sees its record sees all of it.

        Raises:
            CacheUnavailable: no space, no right, or larger than the cache may be.
        """
        if self.mode == "ro":
            raise self._unavailable("cannot be written", None)
        for last in (False, True):
            try:
                package = await self._store(key, staging, facts)
            except OSError as error:
                # What nobody uses makes room once.
                if not last and error.errno in _FULL and await self._evict_unleased():
                    continue
                self._counts["failures"] += 1
                raise self._unavailable("cannot store a package", error) from error
            self._counts["stores"] += 1
            return package
        raise AssertionError("the second try returns or raises")

    async def _store(self, key: CacheKey, staging: Staging, facts: Facts) -> CachedPackage:
        shelves, parts = self._shelves, self._shelves.part_names(2)
        try:
            stream = await asyncio.to_thread(shelves.pack, staging.stream, parts[0], "gzip")
            objects = await asyncio.to_thread(shelves.pack, staging.objects, parts[1], "zstd")
            record = Record(key, facts, stream, objects)
            async with self._lock:
                await self._make_room(record)
                await asyncio.to_thread(shelves.commit, record, parts)
                self._ledger.enter(record)
                return await asyncio.to_thread(shelves.read, key)
        except DamagedEntry as damage:
            raise OSError(errno.EIO, str(damage)) from damage
        finally:
            await asyncio.shield(asyncio.to_thread(shelves.discard, parts))

    async def delete(self, key: CacheKey) -> None:
        """Remove a package; readers that have it open keep it."""
        async with self._lock:
            await self._delete(key)

    async def _delete(self, key: CacheKey) -> None:
        if self.mode == "rw":
            try:
                unused = self._ledger.contents_of_only(key)
                await asyncio.to_thread(self._shelves.remove, key, unused)
            except OSError as error:
                self._counts["failures"] += 1
                raise self._unavailable("cannot remove a package", error) from error
        self._counts["evictions"] += self._ledger.leave(key)

    async def lease(self, owner: str, key: CacheKey) -> None:
        """Keep a package from being removed; noted on disk so that a restart knows it."""
        async with self._lock:
            if key in self._ledger.keys_of(owner):
                return
            self._ledger.lease(owner, {key})
            if self.mode == "rw":
                keys = sorted(self._ledger.keys_of(owner), key=str)
                try:
                    await asyncio.to_thread(self._shelves.write_lease, owner, keys)
                except OSError as error:
                    # It holds in this process; without the note a restart may fetch again.
                    log.warning("cannot note a lease", owner=owner, error=error.strerror)

    async def release(self, owner: str) -> list[CacheKey]:
        """Remove the packages that only this owner needed; a folder that is gone has none."""
        async with self._lock:
            freed = self._ledger.freed_by(owner)
            # The lease goes last: after a failure the same call finds the rest again.
            for key in freed:
                await self._delete(key)
            if self.mode == "rw" and self._ledger.keys_of(owner):
                try:
                    await asyncio.to_thread(self._shelves.write_lease, owner, ())
                except OSError as error:
                    raise self._unavailable("cannot remove a lease", error) from error
            self._ledger.release(owner)
            return freed

    async def release_others(self, owners: Collection[str]) -> list[CacheKey]:
        """Remove the packages of owners that no longer exist.

        Args:
            owners: those that exist.

        Raises:
            CacheUnavailable: one cannot be removed now.
        """
        gone = [owner for owner in self._ledger.owners() if owner not in owners]
        return [key for owner in gone for key in await self.release(owner)]

    def statistics(self) -> CacheStatistics:
        """Return what the cache did and holds."""
        counts = {name: self._counts[name] for name in _COUNTED}
        return CacheStatistics(self.mode, len(self._ledger), self._ledger.size, **counts)

    async def _make_room(self, record: Record) -> None:
        """Keep to the budget: what nobody uses goes, least recently used first.

        Raises:
            OSError: there is not enough to remove.
        """
        if self._max_bytes is None:
            return
        victims = self._ledger.victims(record, self._max_bytes)
        if victims is None:
            raise OSError(errno.EFBIG, f"it may hold {self._max_bytes} bytes")
        for key in victims:
            await self._delete(key)

    async def _evict_unleased(self) -> int:
        async with self._lock:
            keys = self._ledger.unleased()
            for key in keys:
                await self._delete(key)
            return len(keys)

    def _unavailable(self, what: str, error: OSError | None) -> CacheUnavailable:
        why = f": {error.strerror}" if error is not None else ""
        return CacheUnavailable(
            f"cache folder {self._shelves.root} {what}{why}",
            remedy="give it space and write permission",
        )


_COUNTED = ("hits", "misses", "stores", "evictions", "damaged", "failures")
