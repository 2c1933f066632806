"""Files of the cache folder: opened without following links, hashed, made lasting, removed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import secrets
import stat
from pathlib import Path
from typing import Final

READ_BYTES: Final = 1024 * 1024


class DamagedEntry(Exception):  # noqa: N818 - it never leaves this room
    """What the cache holds is not what was stored."""


class OtherVersion(Exception):  # noqa: N818 - it never leaves this room
    """A whole record of another version of crossdock; it is neither used nor removed."""


def open_file(path: Path, *, below: Path | None = None) -> io.FileIO:
    """Open a regular file for reading; links and other kinds of files are refused.

    Args:
        path: the file.
        below: a folder above it; from there on no folder may be a link either.

    Raises:
        DamagedEntry: it is no regular file, is reached by a link, or has a second name.
        OSError: it cannot be opened.
    """
    try:
        descriptor = _open_without_links(path, below)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:
            raise DamagedEntry(f"{path.name} is reached by a link, or is no file") from None
        raise
    known = os.fstat(descriptor)
    if not stat.S_ISREG(known.st_mode) or known.st_nlink > 1:
        os.close(descriptor)
        what = "has a second name" if stat.S_ISREG(known.st_mode) else "is no regular file"
        raise DamagedEntry(f"{path.name} {what}")
    return io.FileIO(descriptor, "rb")


def _open_without_links(path: Path, below: Path | None) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if below is None:
        return os.open(path, flags)
    *folders, name = path.relative_to(below).parts
    folder = os.open(below, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in folders:
            inner = open_folder(part, folder)
            os.close(folder)
            folder = inner
        return os.open(name, flags, dir_fd=folder)
    finally:
        os.close(folder)


def open_folder(name: str | Path, parent: int | None = None) -> int:
    """Open a folder that is no link, by its name in an open folder.

    Raises:
        OSError: ELOOP for a link; it cannot be opened.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=parent)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(name)) from None
        raise


def hash_file(file: io.FileIO) -> tuple[str, int]:
    """Return the hex digest and the size of an open file."""
    digest, size = hashlib.sha256(), 0
    while chunk := os.pread(file.fileno(), READ_BYTES, size):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as lasting as the files."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            remove_tree(inner)
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


def allocate(file: int, size: int) -> None:
    """Take the space of a file, where its file system can."""
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
            raise
