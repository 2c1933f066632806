"""Tar: a strict, bounded reader of archives and a writer whose bytes depend on content alone.

No entry is ever written to a file system under its own name.

Source: POSIX.1-2001 (ustar, pax), GNU tar; OCI image specification (layers).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from controller.xpkg.errors import LimitExceeded, MalformedPackage

BLOCK: Final = 512
NAME_BYTES_MAX: Final = 4096
ENTRIES_MAX: Final = 1_000_000
EXTENSION_BYTES_MAX: Final = 64 * 2**10
EXTENSIONS_MAX: Final = 16  # before one entry
SIZE_MAX: Final = 2**53

_CHUNK: Final = 64 * 2**10
_ZEROS: Final = bytes(BLOCK)
_REGULAR_TYPES: Final = frozenset({b"0", b"\0", b"7"})
_TYPE_NAMES: Final = {
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"5": "directory",
    b"6": "fifo",
    b"S": "sparse file",
}
_NO_CONTENT: Final = frozenset({b"1", b"2", b"3", b"4", b"5", b"6"})


class Source(Protocol):
    """Where an archive's bytes come from."""

    @property
    def position(self) -> int:
        """Bytes read so far."""

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes, none at the end."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an archive.

    Attributes:
        name: as stored.
        type_name: what it is, ``file`` for a regular one.
        size: bytes of its content.
        link: the target of a link.
        offset: of the content's first byte in the plain archive.
    """

    name: bytes
    type_name: str
    size: int
    link: bytes
    offset: int

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return self.type_name == "file"


@dataclass(slots=True)
class _Extended:
    """What extension headers say about the next entry."""

    name: bytes | None = None
    link: bytes | None = None
    size: int | None = None
    sparse: bool = False
    count: int = 0


class TarReader:
    """Reads an archive front to back: entries, and the content of the one read last."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._left = 0  # of the current entry's content
        self._padding = 0
        self._entries = 0

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries; content that was not read is passed over.

        After the end mark, or where the bytes end between two entries, the rest is read and
        passed over.

        Raises:
            MalformedPackage: a damaged header, or the archive is cut short.
            LimitExceeded: names, extension headers or entries beyond the limits.
        """
        extended = _Extended()
        while (header := self._header()) is not None:
            kind = header[156:157]
            size = self._size(header, extended)
            if kind in b"LKxXg":
                self._extend(extended, kind, size)
                continue
            self._entries += 1
            if self._entries > ENTRIES_MAX:
                raise LimitExceeded(f"holds more than {ENTRIES_MAX} entries")
            entry = self._entry(header, kind, size, extended)
            extended = _Extended()
            self._left, self._padding = entry.size, -entry.size % BLOCK
            yield entry
            self._skip()
        if extended.count:
            raise MalformedPackage("the archive ends after an extension header")
        while self._source.read(_CHUNK):
            pass

    def chunks(self) -> Iterator[bytes]:
        """Yield the content of the current entry, which can be read once."""
        while self._left:
            data = self._source.read(min(self._left, _CHUNK))
            if not data:
                raise MalformedPackage("the archive is cut short")
            self._left -= len(data)
            yield data

    def _skip(self) -> None:
        for _ in self.chunks():
            pass
        self._exactly(self._padding)
        self._padding = 0

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            data = self._source.read(size)
            if not data:
                raise MalformedPackage("the archive is cut short")
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def _header(self) -> bytes | None:
        """Return the next header block, None at the archive's end."""
        first = self._source.read(BLOCK)
        if not first:
            return None
        block = first + self._exactly(BLOCK - len(first))
        if block == _ZEROS:
            second = self._source.read(BLOCK)
            if second and second + self._exactly(BLOCK - len(second)) != _ZEROS:
                raise MalformedPackage("the archive has a zero block between entries")
            return None
        if self._source.position == BLOCK and not _looks_like_a_header(block):
            raise MalformedPackage("is not a tar archive, once it is uncompressed")
        stored = _octal(block[148:156], "checksum")
        blanked = block[:148] + b" " * 8 + block[156:]
        signed = sum(byte - 256 if byte > 127 else byte for byte in blanked)
        if stored not in (sum(blanked), signed):
            raise MalformedPackage(f"the archive is damaged at byte {self._source.position}")
        return block

    @staticmethod
    def _size(header: bytes, extended: _Extended) -> int:
        if header[156:157] in _NO_CONTENT:
            return 0
        return _number(header[124:136], "size") if extended.size is None else extended.size

    def _extend(self, extended: _Extended, kind: bytes, size: int) -> None:
        """Take an extension header into account."""
        extended.count += 1
        if extended.count > EXTENSIONS_MAX:
            raise LimitExceeded(f"has more than {EXTENSIONS_MAX} extension headers for one entry")
        if size > EXTENSION_BYTES_MAX:
            raise LimitExceeded(f"has an extension header of more than {EXTENSION_BYTES_MAX} bytes")
        data = self._exactly(size + -size % BLOCK)[:size]
        if kind == b"L":
            extended.name = data.split(b"\0", 1)[0]
        elif kind == b"K":
            extended.link = data.split(b"\0", 1)[0]
        elif kind != b"g":
            _apply_pax(data, extended)
        else:
            _apply_pax(data, _Extended())  # global headers are checked; none of their keys is used

    def _entry(self, header: bytes, kind: bytes, size: int, extended: _Extended) -> Entry:
        name = extended.name
        if name is None:
            name = _text(header[:100])
            if header[257:263] == b"ustar\0" and header[345]:
                name = _text(header[345:500]) + b"/" + name
        if len(name) > NAME_BYTES_MAX:
            raise LimitExceeded(f"has a name of more than {NAME_BYTES_MAX} bytes")
        if kind in _REGULAR_TYPES:
            type_name = "directory" if name.endswith(b"/") else "file"
        else:
            type_name = _TYPE_NAMES.get(kind, f"entry of type {kind!r}")
        if kind == b"S" or extended.sparse:
            type_name = "sparse file"
            self._pass_sparse_map(header, kind)
        link = _text(header[157:257]) if extended.link is None else extended.link
        return Entry(name, type_name, size, link, self._source.position)

    def _pass_sparse_map(self, header: bytes, kind: bytes) -> None:
        """Pass over the blocks that continue the map of an old GNU sparse file."""
        more = kind == b"S" and header[482:483] == b"\x01"
        blocks = 0
        while more:
            blocks += 1
            if blocks > EXTENSION_BYTES_MAX // BLOCK:
                raise LimitExceeded("has a sparse file with too many parts")
            more = self._exactly(BLOCK)[504:505] == b"\x01"


def _looks_like_a_header(block: bytes) -> bool:
    """Tell whether a block has a marker, or a checksum where archives without one have it."""
    field = block[148:156].rstrip(b" \0").lstrip(b" ")
    return block[257:262] == b"ustar" or (bool(field) and not field.strip(b"01234567"))


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _octal(field: bytes, what: str) -> int:
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits:
        return 0
    if not all(byte in b"01234567" for byte in digits):
        raise MalformedPackage(f"the archive has a {what} that is no number")
    return int(digits, 8)


def _number(field: bytes, what: str) -> int:
    """Return a number in octal digits or in base 256 (GNU)."""
    if not field[0] & 0x80:
        return _octal(field, what)
    value = int.from_bytes(field, "big") & ~(1 << (8 * len(field) - 1))
    if field[0] & 0x40 or value > SIZE_MAX:
        raise MalformedPackage(f"the archive has a {what} that is negative or too large")
    return value


def _apply_pax(data: bytes, extended: _Extended) -> None:
    """Read the records of a pax header, each ``<length> <key>=<value>`` and a newline."""
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        digits = data[position:space]
        if space < 0 or not digits.isdigit():
            raise MalformedPackage("the archive has a damaged pax header")
        end = position + int(digits)
        record = data[space + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if end > len(data) or not record.endswith(b"\n") or not equals:
            raise MalformedPackage("the archive has a damaged pax header")
        _apply_record(key, value, extended)
        position = end


def _apply_record(key: bytes, value: bytes, extended: _Extended) -> None:
    if key in (b"path", b"linkpath"):
        if b"\0" in value:
            raise MalformedPackage("the archive has a name with a zero byte")
        if key == b"path":
            extended.name = value
        else:
            extended.link = value
    elif key == b"size":
        if not value.isdigit() or len(value) > 16 or int(value) > SIZE_MAX:
            raise MalformedPackage("the archive has a size that is no number or too large")
        extended.size = int(value)
    elif key.startswith(b"GNU.sparse."):
        extended.sparse = True


def clean_name(name: bytes) -> bytes:
    """Return an entry's path from the root: ``a/b`` for ``./a//b`` or ``/a/./b/``.

    Raises:
        MalformedPackage: the path holds ``..``.
    """
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise MalformedPackage(f"the archive has an unsafe name: {shown_name(name)}")
    return b"/".join(parts)


def shown_name(name: bytes) -> str:
    """Return a name for a message: printable, cut to 100 characters."""
    text = name[:400].decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else "?" for c in text)[:100]


def header(name: str, size: int) -> bytes:
    """Return the ustar header of a regular file: mode 0644, no owner, no time.

    Args:
        name: at most 100 bytes of ASCII.
        size: below 8 GiB.
    """
    block = bytearray(BLOCK)
    encoded = name.encode("ascii")
    if len(encoded) > 100 or size >= 8**11:
        raise ValueError(f"{name} does not fit a ustar header")
    block[: len(encoded)] = encoded
    block[100:124] = b"0000644\x000000000\x000000000\x00"
    block[124:148] = b"%011o\x0000000000000\x00" % size
    block[148:157] = b"        0"
    block[257:265] = b"ustar\x0000"
    block[329:345] = b"0000000\x000000000\x00"
    block[148:156] = b"%06o\x00 " % sum(block)
    return bytes(block)


def padding(size: int) -> bytes:
    """Return the zeros that follow a content of a size."""
    return bytes(-size % BLOCK)


END: Final = bytes(2 * BLOCK)
