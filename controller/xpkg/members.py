"""Members: the files inside an archive, found by name and read in place.

Source: POSIX ustar and pax; archives of ``docker save``, which may hold links between members.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from controller.model.manifest import shown
from controller.xpkg import tar
from controller.xpkg.compression import PLAIN, STEP_BYTES, Reader
from controller.xpkg.errors import LimitExceeded, MalformedPackage

ARCHIVE_BYTES_MAX: Final = 2 * 2**30
SMALL_BYTES_MAX: Final = 4 * 2**20
MEMBERS_MAX: Final = 10_000

_LIMIT: Final = f"{ARCHIVE_BYTES_MAX} bytes"
_LINKS_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class Member:
    """Where a member's bytes stand in the plain archive or in a file of its own, or its link."""

    offset: int
    size: int
    link: str | None = None
    name: str = ""


class Window:
    """A member's bytes as a stream of their own."""

    def __init__(self, stream: IO[bytes], member: Member) -> None:
        self._stream = stream
        self._member = member
        self._at = 0

    def seek(self, position: int, /) -> int:
        """Go to a position from the member's start."""
        self._at = position
        return position

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes, none at the member's end."""
        self._stream.seek(self._member.offset + self._at)
        part = self._stream.read(min(size, self._member.size - self._at))
        self._at += len(part)
        return part


class Members:
    """The members of one archive file, which stays open until ``close``."""

    def __init__(self, path: Path) -> None:
        self._stream: IO[bytes] = path.open("rb")
        self._by_name: dict[str, Member] = {}

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def index(self) -> None:
        """Read the archive once and note its members.

        Raises:
            MalformedPackage: it is no archive, damaged, or ambiguous.
        """
        self._unpack()
        reader = Reader(self._stream, budget=ARCHIVE_BYTES_MAX, limit=_LIMIT)
        for entry in tar.TarReader(reader):
            if entry.type_name == "directory":
                continue
            name = clean(entry.name.decode("utf-8", "surrogateescape"))
            if name in self._by_name:
                raise MalformedPackage(f"file {shown(name)} occurs twice")
            if len(self._by_name) >= MEMBERS_MAX:
                raise LimitExceeded(f"holds more than {MEMBERS_MAX} files")
            self._by_name[name] = Member(entry.offset, entry.size, _link(name, entry))

    def find(self, name: str) -> Member:
        """Return a member by its name, following links inside the archive.

        Raises:
            MalformedPackage: there is none.
        """
        path = clean(name)
        for _ in range(_LINKS_MAX + 1):
            member = self._by_name.get(path)
            if member is None:
                raise MalformedPackage(f"file {shown(name)} not found in tar")
            if member.link is None:
                return member
            path = member.link
        raise MalformedPackage(f"file {shown(name)} is a chain of links without an end")

    def open(self, member: Member) -> Window:
        """Return a member's bytes as a stream; members are read one at a time."""
        return Window(self.stream_of(member), member)

    def stream_of(self, member: Member) -> IO[bytes]:  # noqa: ARG002 - one stream holds them all
        """Return the file that holds a member's bytes."""
        return self._stream

    def chunks(self, member: Member) -> Iterator[bytes]:
        """Yield a member's bytes."""
        window = self.open(member)
        while part := window.read(STEP_BYTES):
            yield part

    def bytes_of(self, name: str) -> bytes:
        """Return all bytes of a small member.

        Raises:
            MalformedPackage: there is none.
            LimitExceeded: it has more than 4 MiB.
        """
        member = self.find(name)
        if member.size > SMALL_BYTES_MAX:
            raise LimitExceeded(f"{shown(name)} is larger than {SMALL_BYTES_MAX} bytes")
        return b"".join(self.chunks(member))

    def _unpack(self) -> None:
        """Replace a compressed archive by an unnamed file with its plain bytes."""
        reader = Reader(self._stream, budget=ARCHIVE_BYTES_MAX, limit=_LIMIT)
        if reader.compression == PLAIN:
            self._stream.seek(0)
            return
        unpacked = tempfile.TemporaryFile(prefix="crossdock-")  # noqa: SIM115 - closed with self
        packed, self._stream = self._stream, unpacked
        with packed:
            while part := reader.read(STEP_BYTES):
                unpacked.write(part)
        unpacked.seek(0)


def _link(name: str, entry: tar.Entry) -> str | None:
    """Return what a link's target is called in the archive, None for a file."""
    if entry.type_name not in ("hard link", "symbolic link"):
        if not entry.is_file:
            raise MalformedPackage(f"file {shown(name)} is a {entry.type_name}")
        return None
    target = PurePosixPath(entry.link.decode("utf-8", "surrogateescape"))
    if entry.type_name == "symbolic link" and not target.is_absolute():
        target = PurePosixPath(name).parent / target
    parts: list[str] = []
    for part in target.parts:
        if part == "..":
            parts = parts[:-1] if parts else ["(outside)"]
        elif part != "/":
            parts.append(part)
    return "/".join(parts)


def clean(name: str) -> str:
    """Return a member's path as it is looked up: without ``./``, ``//`` and a leading ``/``.

    Raises:
        MalformedPackage: the path holds ``..``.
    """
    encoded = name.encode("utf-8", "surrogateescape")
    return tar.clean_name(encoded).decode("utf-8", "surrogateescape")
