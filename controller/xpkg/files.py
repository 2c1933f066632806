"""Files: results that appear complete or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

_NAME_BYTES_MAX: Final = 150  # of a name that gets a prefix and a suffix


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file beside a path and put it there when the block ends without an error.

    Args:
        path: replaced when it exists, untouched on errors; its folder exists.

    Raises:
        OSError: the file cannot be written.
    """
    name = path.name.encode()[:_NAME_BYTES_MAX].decode(errors="ignore")
    temporary = path.with_name(f".{name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Sink(Protocol):
    """Takes bytes."""

    def write(self, data: bytes, /) -> object:
        """Take some more."""


class Hashing:
    """Passes bytes on and hashes them.

    Attributes:
        size: bytes so far.
    """

    def __init__(self, sink: Sink | None = None) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> str:
        """``sha256:<64 hex>`` of the bytes so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes, /) -> int:
        """Take some more bytes."""
        self._hash.update(data)
        self.size += len(data)
        if self._sink is not None:
            self._sink.write(data)
        return len(data)
