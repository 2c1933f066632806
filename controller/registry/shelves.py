"""The files of the package cache. Everything here blocks; the cache calls it in threads.

Below ``<root>/v1``: ``content/<2 hex>/<sha256>`` holds both forms of packages, compressed and named
by their own hash; ``records/<sha256 of repository>/<algorithm>-<hex>.json`` says which belong to a
package and is written last; ``leases/<owner>.json`` says who uses what; ``ingest`` holds files that
are being written; ``quarantine`` what was damaged; ``lock`` and ``writing`` are for processes to
share the folder.

Order of writing: content, then record. Order of removal: record, then content that no record names.
So a record never names what was not completely written before.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import orjson

from controller.registry.cache_files import (
    READ_BYTES,
    DamagedEntry,
    allocate,
    hash_file,
    open_file,
    remove_tree,
    sync_folder,
)
from controller.registry.cache_lock import FolderLock
from controller.registry.cache_quarantine import Quarantine
from controller.registry.cache_scan import HEX, RECORD_MAX, Scan, record_name, scan
from controller.registry.cached import (
    CachedPackage,
    CacheKey,
    Content,
    Encoding,
    Record,
    compress,
)

VERSION: Final = "v1"
INGEST_SECONDS: Final = 3600.0  # after which a file that is being written is nobody's
TOUCH_SECONDS: Final = 60.0  # how exact the time of last use is on disk
_OWNER = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EROFS})


class Shelves:
    """The folder of a cache.

    Args:
        root: exists.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / VERSION
        self.ingest = self.home / "ingest"
        self.quarantine = Quarantine(self.home / "quarantine")
        self._content = self.home / "content"
        self._records = self.home / "records"
        self._leases = self.home / "leases"
        self._lock = FolderLock(self.home)

    def open(self) -> Scan:
        """Make the folders, lock them, and read them; whoever is alone clears what was left.

        Raises:
            OSError: the folder cannot be written.
        """
        for folder in (self.ingest, self._content, self._records, self._leases):
            self._make(folder)
        alone = self._lock.open()
        found = self.scan()
        if alone:
            for path in self.ingest.iterdir():
                remove_tree(path)
            self.tidy(found)
        self._lock.share()
        return found

    def close(self) -> None:
        """Let go of the locks."""
        self._lock.close()

    def scan(self) -> Scan:
        """Read what the folder holds; what cannot be read counts as nothing."""
        return scan(self.home)

    def begin(self) -> Scan | None:
        """Wait until no other process writes; tell what is there where others wrote since.

        ``end`` must follow.

        Raises:
            OSError: the folder cannot be written, or another process does not end.
        """
        found = None if self._lock.is_open else self.open()
        if not self._lock.begin():
            return found
        try:
            return self.scan()
        except BaseException:
            self._lock.end()
            raise

    def end(self) -> None:
        """Let other processes write."""
        self._lock.end()

    def tidy(self, found: Scan) -> int:
        """Set broken records aside; remove content without record and what nobody writes any more.

        Args:
            found: a scan since which nobody wrote.

        Returns:
            The number of broken records.
        """
        for path in found.broken:
            self.quarantine.put(path)
        self.discard(found.orphans)
        for path in self.ingest.iterdir():
            with contextlib.suppress(OSError):
                known = path.stat(follow_symlinks=False)
                if path.is_file() and time.time() - known.st_mtime > INGEST_SECONDS:
                    path.unlink()
        return len(found.broken)

    def record_path(self, key: CacheKey) -> Path:
        """Return where a package's record is."""
        return self._records.joinpath(*record_name(key))

    def content_path(self, content: Content) -> Path:
        """Return where one form of a package is."""
        return self._content_path(content.stored_sha256)

    def _content_path(self, name: str) -> Path:
        return self._content / name[:2] / name

    def record(self, key: CacheKey) -> Record:
        """Return the record of a package; its content is not looked at.

        Raises:
            FileNotFoundError: there is none.
            DamagedEntry: it is not what was stored.
            OtherVersion: it is of another version.
            OSError: it cannot be read.
        """
        with open_file(self.record_path(key), below=self.root) as file:
            raw = file.read(RECORD_MAX + 1) or b""
        if len(raw) > RECORD_MAX:
            raise DamagedEntry("the record is too large")
        record = Record.decode(raw)
        if record.key != key:
            raise DamagedEntry("the record is of another package")
        return record

    def read(self, key: CacheKey) -> CachedPackage:
        """Open a package after comparing all its bytes with what was stored.

        Raises:
            FileNotFoundError: there is none.
            DamagedEntry: it is not what was stored.
            OtherVersion: it is of another version.
            OSError: it cannot be read.
        """
        record = self.record(key)
        with contextlib.ExitStack() as on_error:
            files = [
                on_error.enter_context(self.open_content(content))
                for content in (record.stream, record.objects)
            ]
            on_error.pop_all()
        return CachedPackage(record, stream=files[0], objects=files[1], cached=True)

    def open_content(self, content: Content) -> io.FileIO:
        """Open one form of a package, as it is kept, after comparing all its bytes.

        Raises:
            DamagedEntry: it is missing or not what was stored.
            OSError: it cannot be read.
        """
        if not HEX.fullmatch(content.stored_sha256):
            raise DamagedEntry("the record names no content")
        try:
            file = open_file(self._content_path(content.stored_sha256), below=self.root)
        except FileNotFoundError:
            raise DamagedEntry("its content is missing") from None
        try:
            whole = hash_file(file) == (content.stored_sha256, content.stored_size)
        except OSError:
            file.close()
            raise
        if not whole:
            file.close()
            raise DamagedEntry("its content does not match its hash")
        return file

    def touch(self, key: CacheKey, time: float) -> None:
        """Note that a package was used, where that is possible.

        Args:
            key: which package.
            time: seconds since the epoch.
        """
        path = self.record_path(key)
        with contextlib.suppress(OSError):
            if abs(path.stat().st_mtime - time) > TOUCH_SECONDS:
                os.utime(path, (time, time), follow_symlinks=False)

    def set_aside(self, key: CacheKey) -> None:
        """Move the damaged files of a package into the quarantine; whole ones stay.

        Raises:
            OSError: they cannot be moved or removed.
        """
        path = self.record_path(key)
        try:
            record = self.record(key)
        except DamagedEntry:
            if self._is_ours(path):
                self.quarantine.put(path)
            return
        for content in (record.stream, record.objects):
            try:
                self.open_content(content).close()
            except DamagedEntry:
                path = self.content_path(content)
                if HEX.fullmatch(content.stored_sha256) and self._is_ours(path):
                    self.quarantine.put(path)

    def _is_ours(self, path: Path) -> bool:
        """Tell whether no link leads out of the folder on the way to a path."""
        return not any(p.is_symlink() for p in path.parents if p.is_relative_to(self.home))

    def part_names(self, count: int) -> list[Path]:
        """Return names for files that are being written."""
        return [self.ingest / secrets.token_hex(16) for _ in range(count)]

    def discard(self, parts: Iterable[Path]) -> None:
        """Remove files that nothing names, where that is possible."""
        for part in parts:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def pack(self, source: Path, part: Path, encoding: Encoding) -> Content:
        """Write a compressed copy of a file.

        Args:
            source: plain.
            part: does not exist; outside the cache.
            encoding: ``gzip`` or ``zstd``.

        Raises:
            OSError: it cannot be written.
        """
        with source.open("rb") as plain, part.open("xb") as packed:
            return compress(plain, packed, encoding)

    def place(self, source: Path, part: Path, content: Content) -> None:
        """Copy a packed file into the cache's own file system, complete on disk.

        Args:
            source: as ``pack`` wrote it.
            part: a name that ``part_names`` gave.
            content: what ``pack`` returned; the space is taken before the first byte.

        Raises:
            DamagedEntry: the file is not what it is said to be.
            OSError: it cannot be written.
        """
        self._make(part.parent)
        with source.open("rb") as packed, part.open("xb") as file:
            if content.stored_size:
                allocate(file.fileno(), content.stored_size)
            digest = hashlib.sha256()
            while chunk := packed.read(READ_BYTES):
                digest.update(chunk)
                file.write(chunk)
            if digest.hexdigest() != content.stored_sha256:
                raise DamagedEntry(f"{source.name} does not match its hash")
            file.flush()
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())

    def commit(self, record: Record, parts: Iterable[Path]) -> None:
        """Give the two forms of a package their names, then write its record.

        Args:
            record: of the package.
            parts: stream and objects, as ``place`` wrote them.

        Raises:
            OSError: not possible; the package is not in the cache.
        """
        for part, content in zip(parts, (record.stream, record.objects), strict=True):
            target = self._content_path(content.stored_sha256)
            self._make(target.parent)
            part.replace(target)
            sync_folder(target.parent)
        path = self.record_path(record.key)
        try:
            self.write(path, record.encode())
        except OSError:
            self.discard([path])  # it may have its name, and not be lasting
            raise

    def _make(self, folder: Path) -> None:
        """Make a folder of the cache, lasting; the root itself is never made.

        Raises:
            OSError: not possible; ELOOP where a link is in the way.
        """
        steps = [folder, *(path for path in folder.parents if path.is_relative_to(self.home))]
        for path in reversed(steps):
            if path.is_symlink():
                raise OSError(errno.ELOOP, "a link is in the way", str(path))
            if not path.is_dir():
                path.mkdir(exist_ok=True)
                sync_folder(path.parent)

    def write(self, path: Path, data: bytes) -> None:
        """Replace a small file in one step.

        Raises:
            OSError: not possible; the file is as before.
        """
        (part,) = self.part_names(1)
        self._make(part.parent)
        self._make(path.parent)
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            self.discard([part])
        sync_folder(path.parent)

    def remove(self, key: CacheKey, contents: Iterable[str]) -> None:
        """Remove a record, then content that no other record names.

        Raises:
            OSError: something is left; the same call may be made again.
        """
        for path in (self.record_path(key), *map(self._content_path, contents)):
            if self._is_ours(path):
                _unlink(path)

    def write_lease(self, owner: str, keys: Iterable[CacheKey]) -> None:
        """Note what an owner uses; nothing removes the note.

        Raises:
            OSError: not possible.
        """
        path, listed = self._lease_path(owner), list(keys)
        if listed:
            self.write(path, orjson.dumps({"owner": owner, "keys": listed}))
        else:
            _unlink(path)

    def _lease_path(self, owner: str) -> Path:
        known = _OWNER.fullmatch(owner) is not None
        name = owner if known else f"sha256_{hashlib.sha256(owner.encode()).hexdigest()}"
        return self._leases / f"{name}.json"


def _unlink(path: Path) -> None:
    """Remove a file; one that is gone, or a folder that is read-only, is no error."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in _GONE:
            raise
