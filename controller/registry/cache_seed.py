"""Flat files of a folder that others filled: ``<name>.gz``, one gzipped package.yaml each.

The name is made of the repository and the first digits of the digest, so a flat file proves nothing
about its content. It counts only where whoever made the folder vouches for it: in a read-only
folder, or when a person imports it. Blocks.

Source: Crossplane's package cache (names, format).
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from controller.model.objects import friendly_id
from controller.registry.cache_files import READ_BYTES, DamagedEntry
from controller.registry.failures import LimitExceeded

SEED_BYTES_MAX: Final = 200 * 1024 * 1024  # of a package.yaml


def seed_name(source: str, digest: str) -> str:
    """Return the name of the flat file of a package.

    Args:
        source: its repository with the registry, as the package names it.
        digest: ``sha256:<hex>``.
    """
    return f"{friendly_id(source, digest)}.gz"


def find_seed(root: Path, sources: Iterable[str], digest: str) -> Path | None:
    """Return the flat file of a package, None when there is none.

    Links count when they stay in the folder: that is how volumes of ConfigMaps are made.

    Args:
        root: the cache folder.
        sources: repositories that the package may be named by, best first.
        digest: ``sha256:<hex>``.
    """
    place = root.resolve()
    for source in sources:
        with contextlib.suppress(OSError):
            path = (root / seed_name(source, digest)).resolve(strict=True)
            if path.is_relative_to(place):
                return path
    return None


def unpack_seed(path: Path, target: BinaryIO) -> int:
    """Write the plain bytes of a flat file; return how many.

    Raises:
        DamagedEntry: it is no whole gzip file, or empty.
        LimitExceeded: it holds more than a package may.
        OSError: it cannot be read, or the target not written.
    """
    size = 0
    with _opened(path) as packed:
        for plain in _gunzip(packed, path.name):
            size += len(plain)
            if size > SEED_BYTES_MAX:
                raise LimitExceeded(f"{path.name} holds more than {SEED_BYTES_MAX} bytes")
            target.write(plain)
    if not size:
        raise DamagedEntry(f"{path.name} is empty")
    return size


def _opened(path: Path) -> io.FileIO:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedEntry(f"{path.name} is no regular file")
    return io.FileIO(descriptor, "rb")


def _gunzip(packed: io.FileIO, name: str) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        while not unpacker.eof:
            data = unpacker.unconsumed_tail or packed.read(READ_BYTES) or b""
            plain = unpacker.decompress(data, READ_BYTES)
            if not data and not plain and not unpacker.eof:
                raise DamagedEntry(f"{name} is cut short")
            yield plain
    except zlib.error as error:
        raise DamagedEntry(f"{name} is no gzip file ({error})") from None
    if unpacker.unused_data or packed.read(1):
        raise DamagedEntry(f"{name} has bytes after its end")
