"""The package cache in a folder."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from controller.registry.cache_files import DamagedEntry, OtherVersion, check_directory, probe
from controller.registry.cache_folder import CacheFolder, budget_of
from controller.registry.cache_scan import Scan
from controller.registry.cache_seed import find_seed, unpack_seed
from controller.registry.cache_statistics import CacheStatistics
from controller.registry.cached import CachedPackage, CacheKey, Facts, Record, open_in_thread
from controller.registry.failures import CacheUnavailable, LimitExceeded
from controller.registry.ledger import PINNED, Held
from controller.registry.staging import Staging, staging_folder, sweep_staging

log = structlog.get_logger(__name__)

ORPHAN_SECONDS: Final = 3600.0  # for which a package that nobody needs is kept by a sweep
CLOSE_SECONDS: Final = 10.0
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_LASTING = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.EAGAIN, errno.ELOOP})
_COUNTED = ("hits", "misses", "stores", "evictions", "damaged", "failures")


class DiskCache(CacheFolder):
    """Keeps packages in a folder; survives crashes and other processes that use the folder.

    Args:
        root: an existing folder.
        max_bytes: what it may hold; in any case at most four fifths of its disk.
        retention: seconds for which a package is kept after the last that needed it is gone, as
            long as there is room.
        temporary: folder for staging; None for the system's.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_bytes: int | None = None,
        retention: float = 0.0,
        temporary: Path | None = None,
    ) -> None:
        super().__init__(root, max_bytes=max_bytes)
        self.warning: str | None = None
        self._retention = retention
        self._temporary = temporary
        self._inherited: set[str] = set()  # owners that leased before this process began

    async def __aenter__(self) -> Self:
        """Read what the folder holds.

        Raises:
            CacheUnavailable: it cannot be used, not even for reading; the text is one line.
        """
        found = await asyncio.to_thread(self._open)
        self._ledger.load(found.held, found.leases)
        self._inherited = set(found.leases) - {PINNED}
        with contextlib.suppress(CacheUnavailable, OSError):
            await self._finish(self._trim())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._underway:
            await asyncio.wait(self._underway, timeout=CLOSE_SECONDS)
        await asyncio.to_thread(self._shelves.close)

    def _open(self) -> Scan:
        root = self._shelves.root
        fault = check_directory(root)
        if fault is not None:
            raise CacheUnavailable(fault)
        sweep_staging(self._temporary)
        self._budget = budget_of(root, self._max_bytes)
        try:
            refused = probe(root)
            if refused is not None:
                raise refused
            found = self._shelves.open()
        except OSError as error:
            # A full folder may have room later; one without rights stays as it is.
            self.mode = "ro" if error.errno in _LASTING else "rw"
            self.warning = f"cache folder {root} cannot be written: {error.strerror}"
            log.warning(self.warning, mode=self.mode)
            return self._shelves.scan()
        self._counts["damaged"] += len(found.broken)
        return found

    async def get(self, key: CacheKey) -> CachedPackage | None:
        """Open a package after comparing all its bytes; None when it is not there or damaged."""
        evictions = self._counts["evictions"]
        try:
            package = await self._read(key)
        except OSError as error:
            self._counts["failures"] += 1
            log.warning("cached package cannot be read", key=str(key), error=error.strerror)
            package = None
        if package is None:
            self._counts["misses"] += 1
            return None
        self._counts["hits"] += 1
        now = time.time()
        if self.mode == "rw":
            await asyncio.to_thread(self._shelves.touch, key, now)
        if evictions == self._counts["evictions"]:  # else it may be gone by now
            self._ledger.enter(Held.of(package.record, now))
        return package

    async def _read(self, key: CacheKey) -> CachedPackage | None:
        try:
            return await open_in_thread(self._shelves.read, key)
        except (FileNotFoundError, NotADirectoryError, OtherVersion):
            if key in self._ledger:
                await self._finish(self._forget(key))
            return None
        except DamagedEntry as damage:
            self._counts["damaged"] += 1
            log.warning(
                "cached package is damaged, fetching it again", key=str(key), why=str(damage)
            )
        if self.mode == "rw":
            with contextlib.suppress(OSError, CacheUnavailable):
                await self._finish(self._set_aside(key))
        return None

    async def _forget(self, key: CacheKey) -> None:
        """Note that another process removed a package."""
        async with self._lock:
            try:
                await asyncio.to_thread(self._shelves.record, key)
            except (FileNotFoundError, NotADirectoryError, OtherVersion):
                self._ledger.leave(key)
            except (DamagedEntry, OSError):
                return

    async def _set_aside(self, key: CacheKey) -> None:
        """Move what is damaged of a package away, unless it was stored anew meanwhile."""
        async with self._writing():
            try:
                (await asyncio.to_thread(self._shelves.read, key)).close()
            except DamagedEntry:
                await asyncio.to_thread(self._shelves.set_aside, key)
                await self._delete(key)

    def ingest(self) -> AbstractAsyncContextManager[Staging]:
        """Give a folder to make a package in, away from the cache where that is possible."""
        return staging_folder(self._temporary, self._shelves.ingest)

    async def seed(self, key: CacheKey, staging: Staging, *, sources: Sequence[str] = ()) -> bool:
        """Take package.yaml from a flat file of a read-only folder; others' are not believed."""
        if self.mode != "ro":
            return False
        named = [*sources, key.repository]
        try:
            return await asyncio.to_thread(
                _unpack_seed, self._shelves.root, named, key.digest, staging
            )
        except (DamagedEntry, LimitExceeded, OSError) as error:
            self._counts["failures"] += 1
            log.warning("flat cache file cannot be used", key=str(key), error=str(error))
            return False

    async def store(self, key: CacheKey, staging: Staging, facts: Facts) -> CachedPackage:
        """Keep a package; whoever sees its record sees all of it.

        Raises:
            CacheUnavailable: no space, no right, or larger than the cache may be.
        """
        try:
            if self.mode == "ro":
                raise PermissionError(errno.EROFS, "it cannot be written")
            await self._finish(self._pack_and_keep(key, staging, facts))
            package = await open_in_thread(self._shelves.read, key)
        except (DamagedEntry, OtherVersion, OSError) as error:
            raise self._unavailable("cannot store a package", error) from error
        self._counts["stores"] += 1
        return package

    async def adopt(self, record: Record, packed: Sequence[Path]) -> None:
        """Keep a package that another cache had.

        Args:
            record: of the package.
            packed: its stream and its objects, as that cache kept them.

        Raises:
            CacheUnavailable: no space, no right, larger than the cache may be, or damaged.
        """
        try:
            if self.mode == "ro":
                raise PermissionError(errno.EROFS, "it cannot be written")
            await self._finish(self._keep(record, packed))
        except (DamagedEntry, OSError) as error:
            raise self._unavailable("cannot store a package", error) from error
        self._counts["stores"] += 1

    async def _pack_and_keep(self, key: CacheKey, staging: Staging, facts: Facts) -> None:
        shelves, mark = self._shelves, secrets.token_hex(8)
        packed = [staging.folder / f"{mark}-{name}" for name in ("stream", "objects")]
        try:
            stream = await asyncio.to_thread(shelves.pack, staging.stream, packed[0], "gzip")
            objects = await asyncio.to_thread(shelves.pack, staging.objects, packed[1], "zstd")
            await self._keep(Record(key, facts, stream, objects), packed)
        finally:
            await asyncio.to_thread(shelves.discard, packed)

    async def _keep(self, record: Record, packed: Sequence[Path]) -> None:
        held = Held.of(record, time.time())
        size = sum(held.contents.values())
        async with self._writing():
            await self._make_room(held)
            self._reserved += size
        try:
            try:
                await self._place(record, held, packed)
            except OSError as error:
                # What nobody uses makes room once.
                if error.errno not in _FULL or not await self._free(size):
                    raise
                await self._place(record, held, packed)
        finally:
            self._reserved -= size

    async def _place(self, record: Record, held: Held, packed: Sequence[Path]) -> None:
        shelves, parts = self._shelves, self._shelves.part_names(2)
        contents = (record.stream, record.objects)
        try:
            for source, part, content in zip(packed, parts, contents, strict=True):
                await asyncio.to_thread(shelves.place, source, part, content)
            async with self._writing():
                await asyncio.to_thread(shelves.commit, record, parts)
                self._ledger.enter(held)
        finally:
            await asyncio.to_thread(shelves.discard, parts)

    async def delete(self, key: CacheKey) -> None:
        """Remove a package; readers that have it open keep it.

        Raises:
            CacheUnavailable: it cannot be removed now.
        """
        try:
            await self._finish(self._remove([key]))
        except OSError as error:
            raise self._unavailable("cannot remove a package", error) from error

    async def lease(self, owner: str, key: CacheKey) -> None:
        """Keep a package from being removed; noted on disk so that a restart knows it."""
        self._mine.add(owner)
        self._inherited.discard(owner)
        if key not in self._ledger.keys_of(owner):
            await self._finish(self._lease(owner, key))

    async def _lease(self, owner: str, key: CacheKey) -> None:
        try:
            async with self._writing(needed=False):
                self._ledger.lease(owner, {key})
                if self.mode == "rw":
                    keys = sorted(self._ledger.keys_of(owner), key=str)
                    await asyncio.to_thread(self._shelves.write_lease, owner, keys)
        except OSError as error:
            # It holds in this process; without the note a restart may fetch again.
            self._ledger.lease(owner, {key})
            log.warning("cannot note a lease", owner=owner, error=error.strerror)

    async def release(self, owner: str) -> list[CacheKey]:
        """Remove the packages that only this owner needed; a folder that is gone has none.

        Raises:
            CacheUnavailable: one cannot be removed now; call it again.
        """
        try:
            return await self._finish(self._release(owner))
        except OSError as error:
            raise self._unavailable("cannot remove a lease", error) from error

    async def _release(self, owner: str) -> list[CacheKey]:
        removed = []
        async with self._writing(needed=False):
            now = time.time()
            # The lease goes last: after a failure the same call finds the rest again.
            for key in self._ledger.freed_by(owner):
                if self._retention > 0:
                    self._ledger.used(key, now)
                    await asyncio.to_thread(self._shelves.touch, key, now)
                else:
                    await self._delete(key)
                    removed.append(key)
            if self.mode == "rw" and self._ledger.keys_of(owner):
                await asyncio.to_thread(self._shelves.write_lease, owner, ())
            self._ledger.release(owner)
            self._mine.discard(owner)
            self._inherited.discard(owner)
        return removed

    async def release_others(self, owners: Collection[str]) -> list[CacheKey]:
        """Release the owners of before this process began that no longer exist.

        Args:
            owners: those that exist.

        Raises:
            CacheUnavailable: a package cannot be removed now; call it again.
        """
        gone = sorted(self._inherited.difference(owners))
        return [key for owner in gone for key in await self.release(owner)]

    async def sweep(self) -> None:
        """Repair what crashes, failures and other processes left; remove what nobody needs.

        Raises:
            CacheUnavailable: the folder cannot be written now.
        """
        if self.mode == "rw":
            try:
                await self._finish(self._sweep())
            except OSError as error:
                raise self._unavailable("cannot be swept", error) from error

    async def _sweep(self) -> None:
        async with self._writing():
            found = await asyncio.to_thread(self._shelves.scan)
            self._load(found)
            self._counts["damaged"] += await asyncio.to_thread(self._shelves.tidy, found)
            oldest = time.time() - max(self._retention, ORPHAN_SECONDS)
            for key in self._ledger.unused_since(oldest):
                await self._delete(key)
        await self._trim()

    def statistics(self) -> CacheStatistics:
        """Return what the cache did and holds."""
        counts = {name: self._counts[name] for name in _COUNTED}
        ledger = self._ledger
        return CacheStatistics(
            self.mode, len(ledger), ledger.size, ledger.leased_size(), self._budget, **counts
        )


def _unpack_seed(root: Path, sources: Iterable[str], digest: str, staging: Staging) -> bool:
    path = find_seed(root, sources, digest)
    if path is None:
        return False
    with staging.stream.open("wb") as target:
        unpack_seed(path, target)
    return True
