"""Compression: layers and archives as plain bytes, recognised by their first bytes, and gzip files.

Source: RFC 1952 (gzip), RFC 8878 (zstd); OCI image specification (layer media types).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final, Protocol

import zstandard

from controller.xpkg.errors import LimitExceeded, MalformedPackage

GZIP: Final = "gzip"
ZSTD: Final = "zstd"
PLAIN: Final = "plain"

STEP_BYTES: Final = 64 * 2**10
_ZSTD_STEP_BYTES: Final = 256  # a zstd block of 4 bytes may hold 128 KiB
_ZSTD_WINDOW_MAX: Final = 8 * 2**20
_MAGIC_BYTES: Final = 262  # the marker of a tar archive ends here
_KNOWN_FORMATS: Final = {
    b"PK\x03\x04": "zip",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
}


def detect(head: bytes) -> str:
    """Return the compression of a layer or archive by its first bytes.

    Args:
        head: the first 262 bytes, or all there are.

    Returns:
        ``gzip``, ``zstd`` or ``plain``; nothing at all is a plain, empty archive.

    Raises:
        MalformedPackage: neither of them, naming the format where it is known.
    """
    if head.startswith(b"\x1f\x8b"):
        return GZIP
    if head[:4] == b"\x28\xb5\x2f\xfd" or _is_skippable_frame(head):
        return ZSTD
    if not head or head[257:262] == b"ustar" or not head.strip(b"\0"):
        return PLAIN
    for magic, name in _KNOWN_FORMATS.items():
        if head.startswith(magic):
            raise MalformedPackage(f"is {name}; only gzip, zstd and plain tar archives are read")
    raise MalformedPackage("is not a tar archive, compressed or not")


def _is_skippable_frame(head: bytes) -> bool:
    return len(head) >= 4 and head[0] & 0xF0 == 0x50 and head[1:4] == b"\x2a\x4d\x18"


class Stream(Protocol):
    """Stored bytes that can be read from the start."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes, none at the end."""

    def seek(self, position: int, /) -> int:
        """Go to a position."""


class Reader:
    """Plain bytes of a possibly compressed stream, in order, up to a budget.

    Attributes:
        position: plain bytes read so far.
    """

    def __init__(self, stream: Stream, *, budget: int, limit: str) -> None:
        """Begin at the start of a seekable stream.

        Args:
            stream: the compressed or plain bytes.
            budget: how many plain bytes may come out.
            limit: how errors call it, for example ``100 bytes, uncompressed``.

        Raises:
            MalformedPackage: the compression is not known.
        """
        head = stream.read(_MAGIC_BYTES)
        stream.seek(0)
        self.position = 0
        self.compression = detect(head)
        self._blocks = _DECODERS[self.compression](stream)
        self._block = b""
        self._used = 0  # of the block
        self._budget = budget
        self._limit = limit

    def read(self, size: int) -> bytes:
        """Return the next bytes: at most ``size``, at least one, none at the end.

        Raises:
            MalformedPackage: the compressed data is damaged or cut short.
            LimitExceeded: the budget is used up.
        """
        while self._used == len(self._block):
            block = next(self._blocks, None)
            if block is None:
                return b""
            self._block, self._used = block, 0
        part = self._block[self._used : self._used + size]
        self._used += len(part)
        self.position += len(part)
        if self.position > self._budget:
            raise LimitExceeded(f"is larger than {self._limit}")
        return part


def _plain(stream: Stream) -> Iterator[bytes]:
    while block := stream.read(STEP_BYTES):
        yield block


def _gunzip(stream: Stream) -> Iterator[bytes]:
    """Yield the content of all gzip members; zero bytes may follow the last one."""
    pending = b""
    while pending := pending or stream.read(STEP_BYTES):
        if not pending.startswith(b"\x1f\x8b"[: len(pending)]):
            _only_padding(pending, stream)
            return
        member = zlib.decompressobj(wbits=31)
        try:
            while not member.eof:
                block = member.decompress(pending, STEP_BYTES)
                pending = member.unconsumed_tail
                if block:
                    yield block
                elif not pending and not member.eof:
                    pending = stream.read(STEP_BYTES)
                    if not pending:
                        raise MalformedPackage("the gzip data is cut short")
        except zlib.error as error:
            raise MalformedPackage(f"the gzip data is damaged: {error}") from error
        pending = member.unused_data


def _only_padding(rest: bytes, stream: Stream) -> None:
    while rest:
        if rest.strip(b"\0"):
            raise MalformedPackage("the gzip data is followed by something else")
        rest = stream.read(STEP_BYTES)


def _unzstd(stream: Stream) -> Iterator[bytes]:
    """Yield the content of all zstd frames."""
    context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX)
    frame = context.decompressobj()
    fresh = True
    try:
        while pending := stream.read(_ZSTD_STEP_BYTES):
            while pending:
                block = frame.decompress(pending)
                if block:
                    yield block
                fresh = frame.eof
                pending = frame.unused_data if fresh else b""
                if fresh:
                    frame = context.decompressobj()
    except zstandard.ZstdError as error:
        if "too much memory" in str(error):
            limit = f"{_ZSTD_WINDOW_MAX} bytes"
            raise LimitExceeded(f"the zstd data needs a window of more than {limit}") from error
        raise MalformedPackage(f"the zstd data is damaged: {error}") from error
    if not fresh:
        raise MalformedPackage("the zstd data is cut short")


_DECODERS: Final = {PLAIN: _plain, GZIP: _gunzip, ZSTD: _unzstd}


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class GzipWriter:
    """Writes a gzip member that depends on nothing but its content (and the zlib in use).

    Source: RFC 1952: no name, no time, "unknown" operating system.
    """

    _HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self._deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 8)
        self._crc = 0
        self._size = 0
        sink.write(self._HEADER)

    def write(self, data: bytes) -> None:
        """Add content."""
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        self._sink.write(self._deflate.compress(data))

    def finish(self) -> None:
        """Write what is left and the trailer; the sink stays open."""
        self._sink.write(self._deflate.flush())
        self._sink.write(struct.pack("<II", self._crc, self._size & 0xFFFFFFFF))
