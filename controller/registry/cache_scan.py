"""The scan: what a cache folder holds, read once from front to back. Blocks.

It is quick rather than thorough: a record's checksum is compared, of content only the size. All
bytes of content are compared when a package is opened.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from controller.registry.cache_files import DamagedEntry, OtherVersion, open_file, open_folder
from controller.registry.cached import CacheKey, Record
from controller.registry.ledger import Held

RECORD_MAX: Final = 32 * 1024 * 1024
LEASE_MAX: Final = 4 * 1024 * 1024
HEX: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_READ_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(slots=True)
class Scan:
    """What a cache folder holds.

    Attributes:
        held: whole packages.
        broken: records that are damaged, misplaced, or whose content is missing; below the home.
        orphans: content that no record names; none are told where a record could not be read or
            is of another version.
        leases: what each owner needs.
    """

    held: list[Held] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)
    orphans: list[Path] = field(default_factory=list)
    leases: dict[str, set[CacheKey]] = field(default_factory=dict)


def scan(home: Path) -> Scan:
    """Read what a cache folder holds; what cannot be read counts as nothing.

    Args:
        home: the folder with ``records`` and ``content``.
    """
    found = Scan(leases=read_leases(home / "leases"))
    sizes = _content_sizes(home / "content")
    named: set[str] = set()
    now, complete = time.time(), True
    for path, raw, used in _records(home / "records"):
        if raw is None:
            complete = False
            continue
        try:
            held = Held.of(Record.decode(raw), min(used, now))
        except OtherVersion:
            complete = False
            continue
        except DamagedEntry:
            found.broken.append(path)
            continue
        whole = all(sizes.get(name) == size for name, size in held.contents.items())
        if whole and record_name(held.key) == (path.parent.name, path.name):
            found.held.append(held)
            named.update(held.contents)
        else:
            found.broken.append(path)
    if complete:
        content = home / "content"
        found.orphans = [content / name[:2] / name for name in sizes if name not in named]
    return found


def record_name(key: CacheKey) -> tuple[str, str]:
    """Return the folder and the file of a package's record."""
    folder = hashlib.sha256(key.repository.encode()).hexdigest()
    return folder, f"{key.digest.replace(':', '-')}.json"


def _entries(folder: int) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _folders(place: Path) -> Iterator[tuple[Path, int]]:
    """Yield the folders in a folder, open; none where it cannot be read."""
    try:
        outer = open_folder(place)
    except OSError:
        return
    try:
        for entry in _entries(outer):
            try:
                inner = open_folder(entry.name, outer)
            except OSError:
                continue
            try:
                yield place / entry.name, inner
            finally:
                os.close(inner)
    finally:
        os.close(outer)


def _content_sizes(place: Path) -> dict[str, int]:
    sizes = {}
    for _, folder in _folders(place):
        for entry in _entries(folder):
            try:
                sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
            except OSError:
                continue
    return sizes


def _records(place: Path) -> Iterator[tuple[Path, bytes | None, float]]:
    """Yield each record's path, bytes (None where they cannot be read now) and last use."""
    for path, folder in _folders(place):
        for entry in _entries(folder):
            if not entry.name.endswith(".json"):
                continue
            try:
                yield path / entry.name, *_read(entry.name, folder)
            except OSError as error:
                no_file = error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}
                yield path / entry.name, b"" if no_file else None, 0.0


def _read(name: str, folder: int) -> tuple[bytes, float]:
    file = os.open(name, _READ_FLAGS, dir_fd=folder)
    try:
        known = os.fstat(file)
        if known.st_size > RECORD_MAX or known.st_nlink > 1:
            return b"", known.st_mtime
        return os.read(file, known.st_size), known.st_mtime
    finally:
        os.close(file)


def read_leases(place: Path) -> dict[str, set[CacheKey]]:
    """Return who uses what; files that cannot be read count as nothing."""
    found: dict[str, set[CacheKey]] = {}
    for path in place.glob("*.json"):
        try:
            with open_file(path) as file:
                document: Any = orjson.loads(file.read(LEASE_MAX) or b"")
            found[document["owner"]] = {CacheKey(**key) for key in document["keys"]}
        except (OSError, ValueError, LookupError, TypeError, DamagedEntry):
            continue
    return found
