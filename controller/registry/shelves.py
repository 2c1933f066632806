"""The files of the package cache. Everything here blocks; the cache calls it in threads.

Below ``<root>/v1``: ``content/<2 hex>/<sha256>`` holds both forms of packages, compressed and named
by their own hash; ``records/<sha256 of repository>/<algorithm>-<hex>.json`` says which belong to a
package and is written last; ``leases/<owner>.json`` says who uses what; ``ingest`` holds files that
are being written; ``lock`` is held, shared, by every process that uses the folder.

Order of writing: content, then record. Order of removal: record, then content that no record names.
So a record never names what was not completely written before.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import re
import secrets
import stat
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson
import zstandard

from controller.registry.cached import (
    GZIP_LEVEL,
    READ_BYTES,
    ZSTD_LEVEL,
    CachedPackage,
    CacheKey,
    Content,
    DamagedEntry,
    Encoding,
    Record,
    hash_file,
    open_file,
)
from controller.registry.ledger import contents_of

VERSION: Final = "v1"
RECORD_MAX: Final = 32 * 1024 * 1024
LOCK_TRIES, LOCK_PAUSE = 50, 0.1
_OWNER = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Shelves:
    """The folder of a cache.

    Args:
        root: exists.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / VERSION
        self.ingest = self.home / "ingest"
        self._content = self.home / "content"
        self._records = self.home / "records"
        self._leases = self.home / "leases"
        self._lock: io.FileIO | None = None

    def open(self) -> None:
        """Make the folders and hold the lock; whoever is alone clears what was left half done.

        Raises:
            OSError: the folder cannot be written.
        """
        for folder in (self.ingest, self._content, self._records, self._leases):
            self._make(folder)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._lock = io.FileIO(os.open(self.home / "lock", flags, 0o600), "r+b")
        if self._try_lock(fcntl.LOCK_EX):
            self._clear()
        for _ in range(LOCK_TRIES):
            if self._try_lock(fcntl.LOCK_SH):
                return
            time.sleep(LOCK_PAUSE)

    def _try_lock(self, kind: int) -> bool:
        if self._lock is None:
            return False
        try:
            fcntl.flock(self._lock, kind | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _clear(self) -> None:
        """Remove what a process that died left: files being written, content without record."""
        for path in self.ingest.iterdir():
            _remove_tree(path)
        named = {name for record in self.records() for name in contents_of(record)}
        for path in self._content.glob("??/*"):
            if path.name not in named:
                path.unlink(missing_ok=True)

    def records(self) -> Iterator[Record]:
        """Return all records that can be read; damaged ones are removed where that is possible."""
        for path in sorted(self._records.glob("*/*.json")):
            try:
                record = self._read_record(path)
            except DamagedEntry:
                self.discard([path])
            except OSError:
                continue
            else:
                if self._record_path(record.key) == path:
                    yield record
                else:
                    self.discard([path])

    def _record_path(self, key: CacheKey) -> Path:
        repository = hashlib.sha256(key.repository.encode()).hexdigest()
        return self._records / repository / f"{key.digest.replace(':', '-')}.json"

    def _content_path(self, name: str) -> Path:
        return self._content / name[:2] / name

    def _read_record(self, path: Path) -> Record:
        with open_file(path) as file:
            raw = file.read(RECORD_MAX + 1) or b""
        if len(raw) > RECORD_MAX:
            raise DamagedEntry("the record is too large")
        return Record.decode(raw)

    def read(self, key: CacheKey) -> CachedPackage:
        """Open a package after comparing all its bytes with what was stored.

        Raises:
            FileNotFoundError: there is none.
            DamagedEntry: it is not what was stored.
            OSError: it cannot be read.
        """
        record = self._read_record(self._record_path(key))
        if record.key != key:
            raise DamagedEntry("the record is of another package")
        with contextlib.ExitStack() as on_error:
            files = [
                on_error.enter_context(self._open_content(content))
                for content in (record.stream, record.objects)
            ]
            on_error.pop_all()
        return CachedPackage(record, stream=files[0], objects=files[1], cached=True)

    def _open_content(self, content: Content) -> io.FileIO:
        if not _HEX.fullmatch(content.stored_sha256):
            raise DamagedEntry("the record names no content")
        try:
            file = open_file(self._content_path(content.stored_sha256))
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

    def part_names(self, count: int) -> list[Path]:
        """Return names for files that are being written."""
        return [self.ingest / secrets.token_hex(16) for _ in range(count)]

    def discard(self, parts: Iterable[Path]) -> None:
        """Remove files that were being written and got no name."""
        for part in parts:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def pack(self, source: Path, part: Path, encoding: Encoding) -> Content:
        """Write a compressed copy of a file, complete on disk.

        Args:
            source: plain.
            part: a name that ``part_names`` gave.
            encoding: ``gzip`` or ``zstd``.

        Raises:
            OSError: it cannot be written.
        """
        self._make(part.parent)
        with source.open("rb") as plain, part.open("xb") as packed:
            content = _compress(plain, packed, encoding)
            packed.flush()
            os.fchmod(packed.fileno(), 0o444)
            os.fsync(packed.fileno())
        return content

    def commit(self, record: Record, parts: Iterable[Path]) -> None:
        """Give the two forms of a package their names, then write its record.

        Args:
            record: of the package.
            parts: stream and objects, as ``pack`` wrote them.

        Raises:
            OSError: not possible; the package is not in the cache.
        """
        for part, content in zip(parts, (record.stream, record.objects), strict=True):
            target = self._content_path(content.stored_sha256)
            self._make(target.parent)
            part.replace(target)
            sync_folder(target.parent)
        path = self._record_path(record.key)
        self._make(path.parent)
        self.write(path, record.encode())

    def _make(self, folder: Path) -> None:
        """Make a folder of the cache; the root itself is never made."""
        if not folder.is_dir():
            self.home.mkdir(exist_ok=True)
            folder.mkdir(parents=True, exist_ok=True)

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
        for path in (self._record_path(key), *map(self._content_path, contents)):
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.EROFS}:
                    raise

    def leases(self) -> dict[str, set[CacheKey]]:
        """Return who uses what; files that cannot be read count as nothing."""
        found: dict[str, set[CacheKey]] = {}
        for path in self._leases.glob("*.json"):
            try:
                with open_file(path) as file:
                    document: Any = orjson.loads(file.read(RECORD_MAX) or b"")
                found[document["owner"]] = {CacheKey(**key) for key in document["keys"]}
            except (OSError, ValueError, LookupError, TypeError, DamagedEntry):
                continue
        return found

    def write_lease(self, owner: str, keys: Iterable[CacheKey]) -> None:
        """Note what an owner uses; nothing removes the note.

        Raises:
            OSError: not possible.
        """
        path, listed = self._lease_path(owner), list(keys)
        if listed:
            self.write(path, orjson.dumps({"owner": owner, "keys": listed}))
            return
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ENOTDIR, errno.EROFS}:
                raise

    def _lease_path(self, owner: str) -> Path:
        known = _OWNER.fullmatch(owner) is not None
        name = owner if known else f"sha256_{hashlib.sha256(owner.encode()).hexdigest()}"
        return self._leases / f"{name}.json"


def _compress(plain: BinaryIO, packed: BinaryIO, encoding: Encoding) -> Content:
    packer: Any = (
        zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
        if encoding == "gzip"
        else zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()
    )
    whole, stored = hashlib.sha256(), hashlib.sha256()
    sizes = [0, 0]

    def put(data: bytes) -> None:
        stored.update(data)
        sizes[1] += len(data)
        packed.write(data)

    while chunk := plain.read(READ_BYTES):
        whole.update(chunk)
        sizes[0] += len(chunk)
        put(packer.compress(chunk))
    put(packer.flush())
    return Content(whole.hexdigest(), sizes[0], stored.hexdigest(), sizes[1], encoding)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as lasting as the files."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_tree(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            _remove_tree(inner)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def check_directory(path: Path) -> str | None:
    """Tell why a folder cannot hold the cache, None when it can be used at least for reading.

    Args:
        path: the folder that was named.
    """
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return f"cache folder {path} does not exist: create it, or name another"
    except OSError as error:
        return f"cannot use cache folder {path}: {error.strerror}"
    if not is_folder:
        return f"cache folder {path} is a file: name a folder"
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                break
    except OSError as error:
        return f"cannot read cache folder {path}: {error.strerror}: give the manager the right"
    return None


def probe(path: Path) -> OSError | None:
    """Return why a folder cannot be written, None when it can."""
    file = path / f".probe-{secrets.token_hex(8)}"
    try:
        file.touch(0o600, exist_ok=False)
    except OSError as error:
        return error
    with contextlib.suppress(OSError):
        file.unlink()
    return None
