"""One user of a cache folder: its bookkeeping, its turn to write, and room for what comes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from controller.registry.cache_scan import Scan
from controller.registry.cached import CacheKey
from controller.registry.failures import CacheUnavailable
from controller.registry.ledger import PINNED, Held, Ledger
from controller.registry.shelves import Shelves

T = TypeVar("T")

DISK_SHARE: Final = 0.8  # of its disk, that a cache may take at most
_SPARE: Final = 1.1  # how much is freed for what did not fit


class CacheFolder:
    """What the disk cache stands on.

    Changes of the bookkeeping and of the files happen together, in turn, and run to their end also
    when their caller is cancelled meanwhile: one that is broken off half way would leave the
    bookkeeping wrong.

    Args:
        root: an existing folder.
        max_bytes: what it may hold; in any case at most four fifths of its disk.

    Attributes:
        mode: ``ro`` when nothing can be written.
    """

    def __init__(self, root: Path, *, max_bytes: int | None) -> None:
        self.mode: Literal["rw", "ro"] = "rw"
        self._shelves = Shelves(root)
        self._max_bytes = max_bytes
        self._budget = max_bytes or 0
        self._lock = asyncio.Lock()
        self._ledger = Ledger()
        self._counts: Counter[str] = Counter()
        self._mine: set[str] = set()  # owners that leased here
        self._reserved = 0  # bytes of what is being written
        self._underway: set[asyncio.Future[None]] = set()

    async def _finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work to its end, also when the caller is cancelled."""
        return await asyncio.shield(self._noted(work))

    async def _noted(self, work: Coroutine[Any, Any, T]) -> T:
        done = asyncio.get_running_loop().create_future()
        self._underway.add(done)
        try:
            return await work
        finally:
            self._underway.discard(done)
            done.set_result(None)

    @asynccontextmanager
    async def _writing(self, *, needed: bool = True) -> AsyncIterator[None]:
        """Take the turn to write, after learning what other processes wrote.

        Args:
            needed: a folder that cannot be written is an error; else only one in use is.

        Raises:
            OSError: the folder cannot be written, or another process does not end.
        """
        async with self._lock:
            turn = False
            if self.mode == "rw":
                try:
                    found = await asyncio.to_thread(self._shelves.begin)
                    turn = True
                    if found is not None:
                        self._load(found)
                except OSError as error:
                    if needed or error.errno == errno.EAGAIN:
                        raise
            try:
                yield
            finally:
                if turn:
                    self._shelves.end()

    def _load(self, found: Scan) -> None:
        """Take over what the folder holds, and keep the leases that could not be noted in it."""
        leases = dict(found.leases)
        for owner in self._mine:
            leases[owner] = leases.get(owner, set()) | self._ledger.keys_of(owner)
        self._ledger.load(found.held, leases)

    async def _remove(self, keys: Iterable[CacheKey]) -> None:
        async with self._writing(needed=False):
            for key in keys:
                await self._delete(key)

    async def _delete(self, key: CacheKey) -> None:
        """Remove a package, in one's turn.

        Raises:
            CacheUnavailable: it cannot be removed now.
        """
        if self.mode == "rw":
            try:
                unused = self._ledger.contents_of_only(key)
                await asyncio.to_thread(self._shelves.remove, key, unused)
            except OSError as error:
                raise self._unavailable("cannot remove a package", error) from error
        self._counts["evictions"] += self._ledger.leave(key)

    async def _make_room(self, new: Held | None) -> None:
        """Keep to the budget: what is damaged goes, then what nobody uses, oldest first.

        Args:
            new: the package that comes; None when none does.

        Raises:
            OSError: there is not enough to remove.
        """
        limit = self._budget
        coming = sum(new.contents.values()) if new is not None else 0
        aside = await asyncio.to_thread(self._shelves.quarantine.size)
        room = max(0, limit - self._ledger.size - self._reserved - coming)
        if aside > room:
            await asyncio.to_thread(self._shelves.quarantine.trim, room)
        victims = self._ledger.victims(new, limit, reserved=self._reserved)
        if victims is None:
            if new is None:
                victims = self._ledger.unleased()
            else:
                raise OSError(errno.EFBIG, f"it may hold {limit} bytes")
        for key in victims:
            await self._delete(key)

    async def _trim(self) -> None:
        """Keep to the budget where nothing new comes; what is leased stays."""
        if self.mode == "rw":
            async with self._writing(needed=False):
                await self._make_room(None)

    async def _free(self, need: int) -> bool:
        """Make room on a full disk; tell whether anything could be removed."""
        async with self._writing(needed=False):
            aside = await asyncio.to_thread(self._shelves.quarantine.size)
            await asyncio.to_thread(self._shelves.quarantine.trim, 0)
            before, wanted = self._ledger.size, int(need * _SPARE)
            for key in self._ledger.unleased():
                if aside + before - self._ledger.size >= wanted:
                    break
                await self._delete(key)
            return aside > 0 or self._ledger.size < before

    async def prune(
        self, choose: Callable[[Ledger], Iterable[CacheKey]], *, dry_run: bool = False
    ) -> list[CacheKey]:
        """Remove packages that a person chooses among those that nobody needs.

        Args:
            choose: gets the bookkeeping, returns which.
            dry_run: only tell.

        Raises:
            CacheUnavailable: one cannot be removed.
        """
        try:
            return await self._finish(self._prune(choose, dry_run=dry_run))
        except OSError as error:
            raise self._unavailable("cannot be pruned", error) from error

    async def _prune(
        self, choose: Callable[[Ledger], Iterable[CacheKey]], *, dry_run: bool
    ) -> list[CacheKey]:
        if dry_run:
            return list(choose(self._ledger))
        async with self._writing():
            keys = list(choose(self._ledger))
            for key in keys:
                await self._delete(key)
            imported = self._ledger.keys_of(PINNED)
            if not imported.isdisjoint(keys):
                kept = sorted(imported.difference(keys), key=str)
                await asyncio.to_thread(self._shelves.write_lease, PINNED, kept)
                self._ledger.release(PINNED)
                self._ledger.lease(PINNED, kept)
        return keys

    async def forget_damaged(self) -> None:
        """Remove what was set aside because it was damaged.

        Raises:
            CacheUnavailable: the folder cannot be written now.
        """
        try:
            async with self._writing():
                await asyncio.to_thread(self._shelves.quarantine.trim, 0)
        except OSError as error:
            raise self._unavailable("cannot be pruned", error) from error

    def _unavailable(self, what: str, error: BaseException | None) -> CacheUnavailable:
        self._counts["failures"] += 1
        why = f": {getattr(error, 'strerror', None) or error}" if error is not None else ""
        return CacheUnavailable(
            f"cache folder {self._shelves.root} {what}{why}",
            remedy="give it space and write permission",
        )


def budget_of(root: Path, max_bytes: int | None) -> int:
    """Return the bytes that a cache may take: as told, and at most a share of its disk."""
    share = None
    with contextlib.suppress(OSError):
        disk = os.statvfs(root)
        share = int(DISK_SHARE * disk.f_frsize * disk.f_blocks)
    limits = [limit for limit in (max_bytes, share or None) if limit is not None]
    return min(limits, default=2**63)
