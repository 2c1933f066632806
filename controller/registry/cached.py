"""One package as the cache hands it out, the folder it is made in, and the record about it.

A package has two forms: the verified stream (``package.yaml`` as it was in the image) and the
parsed form (one JSON object a line). Both are read through open files, so that nothing that happens
to the cache later harms a reader.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import os
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import Any, BinaryIO, Final, Literal, Self, TypeAlias

import orjson
import zstandard

from controller.registry.cache_files import (
    READ_BYTES,
    DamagedEntry,
    OtherVersion,
    hash_file,
    open_file,
)
from controller.registry.failures import LimitExceeded, StorageError
from controller.registry.reference import is_digest
from controller.registry.staging import Staging

JsonObject: TypeAlias = dict[str, Any]
Encoding: TypeAlias = Literal["gzip", "zstd", ""]

LINE_MAX: Final = 64 * 1024 * 1024
WINDOW_MAX: Final = 2**23
RECORD_VERSION: Final = 1
ZSTD_LEVEL: Final = 1
GZIP_LEVEL: Final = 1


@dataclass(frozen=True, slots=True)
class CacheKey:
    """Which package: the repository that was authorised, and the digest of its manifest or index.

    Attributes:
        repository: ``<registry>/<path>``, as ``Reference.source`` gives it.
        digest: ``<algorithm>:<hex>``.
    """

    repository: str
    digest: str

    def __post_init__(self) -> None:
        if not is_digest(self.digest):
            raise ValueError(f"{self.digest[:140]!r} is no digest")

    def __str__(self) -> str:
        return f"{self.repository}@{self.digest}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known about a package beside its two forms.

    Attributes:
        meta: its metadata object.
        selected_digest: of the image manifest that was read.
        layer_digest: of the layer that the stream comes from.
        layer_size: bytes.
        manifest: exact bytes of the image manifest.
        details: whatever else the caller wants to find again, the version of its parser included.
        verified: which signature policies accepted it, each with ``policyFingerprint``.
    """

    meta: JsonObject
    selected_digest: str = ""
    layer_digest: str = ""
    layer_size: int = 0
    manifest: bytes = b""
    details: JsonObject = field(default_factory=dict)
    verified: list[JsonObject] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Content:
    """One form of a package: what it is and how it is kept.

    Attributes:
        sha256: hex digest of the plain bytes.
        size: number of the plain bytes.
        stored_sha256: hex digest of the file.
        stored_size: bytes of the file.
        encoding: of the file.
    """

    sha256: str
    size: int
    stored_sha256: str
    stored_size: int
    encoding: Encoding


@dataclass(frozen=True, slots=True)
class Record:
    """Everything about one cached package but its two forms."""

    key: CacheKey
    facts: Facts
    stream: Content
    objects: Content

    def encode(self) -> bytes:
        """Return the record as a file: the hex digest of the rest, a line end, JSON."""
        facts = {item.name: getattr(self.facts, item.name) for item in fields(Facts)}
        facts["manifest"] = base64.b64encode(self.facts.manifest).decode()
        document = {
            "version": RECORD_VERSION,
            "key": self.key,
            "facts": facts,
            "stream": self.stream,
            "objects": self.objects,
        }
        body = orjson.dumps(document)
        return hashlib.sha256(body).hexdigest().encode() + b"\n" + body

    @classmethod
    def decode(cls, raw: bytes) -> Record:
        """Return the record of a file.

        Raises:
            DamagedEntry: the file is not what ``encode`` wrote.
            OtherVersion: it is whole, and of another version.
        """
        checksum, _, body = raw.partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != checksum:
            raise DamagedEntry("the record does not match its checksum")
        try:
            document = orjson.loads(body)
            if document["version"] != RECORD_VERSION:
                raise OtherVersion(f"the record has version {document['version']}")
            facts = dict(document["facts"])
            facts["manifest"] = base64.b64decode(facts["manifest"], validate=True)
            return cls(
                CacheKey(**document["key"]),
                Facts(**facts),
                Content(**document["stream"]),
                Content(**document["objects"]),
            )
        except (ValueError, LookupError, TypeError) as error:
            raise DamagedEntry(f"the record is malformed: {error}") from None


class CachedPackage:
    """An open package; close it after use.

    Attributes:
        record: what is known about it.
        cached: it is in the cache; otherwise it is gone when it is closed.
    """

    def __init__(
        self, record: Record, *, stream: io.FileIO, objects: io.FileIO, cached: bool
    ) -> None:
        self.record = record
        self.cached = cached
        self._stream = stream
        self._objects = objects

    @property
    def key(self) -> CacheKey:
        """Which package it is."""
        return self.record.key

    @property
    def meta(self) -> JsonObject:
        """The package's metadata object. Read only."""
        return self.record.facts.meta

    @property
    def details(self) -> JsonObject:
        """What the one who stored it noted. Read only."""
        return self.record.facts.details

    def accepted_by(self, fingerprint: str | None) -> bool:
        """Tell whether a signature policy accepted it already.

        Args:
            fingerprint: of the policy; None when none applies, which accepts everything.
        """
        known = (entry.get("policyFingerprint") for entry in self.record.facts.verified)
        return fingerprint is None or fingerprint in known

    def objects(self) -> Iterator[bytes]:
        """Return the lines of the parsed form, without line ends; blocks, so use it in a thread."""
        reader = open_content(self._objects, self.record.objects)
        rest = b""
        while chunk := reader.read(READ_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_MAX:
                raise LimitExceeded(f"an object is larger than {LINE_MAX} bytes")
            yield from lines
        if rest:
            yield rest

    async def batches(self, size: int = READ_BYTES) -> AsyncIterator[list[bytes]]:
        """Return the lines of the parsed form in lists of about ``size`` bytes, read in threads."""
        lines = self.objects()
        while batch := await asyncio.to_thread(_take, lines, size):
            yield batch

    def open_stream(self) -> BinaryIO:
        """Return ``package.yaml`` as it was in the image; blocks, so read it in a thread."""
        return io.BufferedReader(open_content(self._stream, self.record.stream), READ_BYTES)

    def close(self) -> None:
        """Let go of the files."""
        self._stream.close()
        self._objects.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def _take(lines: Iterator[bytes], size: int) -> list[bytes]:
    batch, total = [], 0
    for line in lines:
        batch.append(line)
        total += len(line)
        if total >= size:
            break
    return batch


class _FileReader(io.RawIOBase):
    """Reads an open file from its start without moving the file's own position."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read the next bytes."""
        count = os.preadv(self._file.fileno(), [buffer], self._at)
        self._at += count
        return count


class _GzipReader(io.RawIOBase):
    """Reads the plain bytes of a gzip file that is known to be whole."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._unpacker = zlib.decompressobj(wbits=31)

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read the next bytes."""
        plain = b""
        while not plain and not self._unpacker.eof:
            packed = self._unpacker.unconsumed_tail or self._raw.read(READ_BYTES)
            if not packed:
                break
            plain = self._unpacker.decompress(packed, len(buffer))
        buffer[: len(plain)] = plain
        return len(plain)


def open_content(file: io.FileIO, content: Content) -> io.RawIOBase:
    """Return a reader of the plain bytes of one form of a package, from its start."""
    raw = _FileReader(file)
    if content.encoding == "gzip":
        return _GzipReader(raw)
    if content.encoding == "zstd":
        unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW_MAX)
        reader: io.RawIOBase = unpacker.stream_reader(io.BufferedReader(raw))  # type: ignore[assignment]  # reads like one, without the base class
        return reader
    return raw


def compress(plain: BinaryIO, packed: BinaryIO, encoding: Encoding) -> Content:
    """Write one form of a package as it is kept; return what it is."""
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


async def open_in_thread(
    open_package: Callable[[CacheKey], CachedPackage], key: CacheKey
) -> CachedPackage:
    """Open a package in a thread; one that nobody waits for any more is closed again."""
    opening = asyncio.get_running_loop().run_in_executor(None, open_package, key)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(_close)
        raise


def _close(opening: asyncio.Future[CachedPackage]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def open_uncached(key: CacheKey, staging: Staging, facts: Facts) -> CachedPackage:
    """Return a package that lives in its staging folder, which may go at once.

    Raises:
        StorageError: its forms cannot be read.
    """
    with contextlib.ExitStack() as on_error:
        try:
            files = [
                on_error.enter_context(open_file(p)) for p in (staging.stream, staging.objects)
            ]
            hashes = [hash_file(file) for file in files]
        except OSError as error:
            raise StorageError(f"cannot read {error.filename}: {error.strerror}") from error
        on_error.pop_all()
    record = Record(key, facts, *(Content(*known, *known, "") for known in hashes))
    return CachedPackage(record, stream=files[0], objects=files[1], cached=False)


async def keep_uncached(key: CacheKey, staging: Staging, facts: Facts) -> CachedPackage:
    """Return a package that is gone when it is closed; its staging folder may go at once.

    Args:
        key: which package.
        staging: holds both its forms.
        facts: about it.

    Raises:
        StorageError: its forms cannot be read.
    """
    return await asyncio.to_thread(open_uncached, key, staging, facts)
