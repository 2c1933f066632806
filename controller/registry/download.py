"""The bytes of a blob on their way to a file: counted, timed, hashed, and kept only when right.

Source: the OCI distribution specification ("Pulling blobs").
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import secrets
import zlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from controller.registry.failures import (
    IntegrityError,
    RegistryError,
    RegistryUnavailable,
    StorageError,
)
from controller.registry.media import Descriptor
from controller.registry.outcome import LOW_LEVEL
from controller.registry.wire import Answer, Limits, exceeded

WRITE_BYTES = 1024 * 1024
PACE_SAMPLES = 64
PARTIAL = 206
_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII)
_STRONG_TAG = re.compile(r'"[\x21\x23-\x7e]{1,256}"', re.ASCII)


class Pace:
    """Tells when bytes come too slowly to be worth waiting for. Pure.

    Args:
        rate: bytes a second that are needed at least.
        window: seconds over which they are averaged.
        now: clock time at which the transfer starts.
    """

    def __init__(self, *, rate: int, window: float, now: float) -> None:
        self._rate = rate
        self._window = window
        self._samples: deque[tuple[float, int]] = deque([(now, 0)])

    def is_stalled(self, received: int, now: float) -> bool:
        """Note how many bytes there are; tell whether the last window brought too few."""
        step = self._window / PACE_SAMPLES
        if now - self._samples[-1][0] >= step:
            self._samples.append((now, received))
        while len(self._samples) > 1 and now - self._samples[1][0] >= self._window:
            self._samples.popleft()
        since, before = self._samples[0]
        elapsed = now - since
        return elapsed >= self._window and (received - before) < self._rate * self._window


def blob_seconds(size: int, limits: Limits) -> float:
    """Return the deadline of a whole transfer."""
    return min(limits.blob_seconds_max, limits.blob_seconds + size / limits.blob_rate)


def check_declared(descriptor: Descriptor, limits: Limits) -> None:
    """Refuse a blob by what its descriptor says, before anything is asked for.

    Raises:
        LimitExceeded: it is larger than blobs may be.
    """
    if descriptor.size > limits.blob_bytes:
        raise exceeded(
            f"layer {descriptor.digest} has {descriptor.size} bytes; "
            f"at most {limits.blob_bytes} are read",
            "blob_bytes",
        )


class BlobWriter:
    """Writes a blob beside its destination and renames it there when it is complete and right.

    Args:
        descriptor: what the blob must be.
        destination: file that does not exist before it is right; its folder exists.
    """

    def __init__(self, descriptor: Descriptor, destination: Path) -> None:
        self._descriptor = descriptor
        self._destination = destination
        name = f".{destination.name}.{secrets.token_hex(8)}.part"
        self._part = destination.with_name(name)
        self._file: BinaryIO | None = None
        self._hash = hashlib.new(descriptor.digest.partition(":")[0])
        self.size = 0

    def open(self) -> None:
        """Start anew."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self.discard()
        self._file = os.fdopen(os.open(self._part, flags, 0o600), "wb")
        self._hash = hashlib.new(self._descriptor.digest.partition(":")[0])
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append bytes."""
        if self._file is None:
            raise AssertionError("open comes first")
        self._hash.update(data)
        self._file.write(data)
        self.size += len(data)

    def commit(self) -> None:
        """Compare the bytes with the descriptor, then give the file its name.

        Raises:
            IntegrityError: size or digest differ; nothing is left.
        """
        check_content(self._descriptor, size=self.size, hexdigest=self._hash.hexdigest())
        if self._file is None:
            raise AssertionError("open comes first")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self._destination)

    def discard(self) -> None:
        """Remove what was written and not committed."""
        if self._file is not None:
            self._file.close()
            self._file = None
        with contextlib.suppress(FileNotFoundError):
            self._part.unlink()

    def unpack(self, limit: int) -> None:
        """Replace what was written by its content without gzip, for the comparison.

        Raises:
            IntegrityError: it is no gzip, or its content is larger than ``limit``.
        """
        if self._file is None:
            raise AssertionError("open comes first")
        self._file.flush()
        packed = self._part.with_suffix(".packed")
        self._part.rename(packed)
        unpacker = zlib.decompressobj(wbits=31)
        try:
            self.open()
            with packed.open("rb") as source:
                while chunk := source.read(WRITE_BYTES):
                    while chunk and self.size <= limit:
                        self.write(unpacker.decompress(chunk, WRITE_BYTES))
                        chunk = unpacker.unconsumed_tail
        except zlib.error:
            raise IntegrityError(
                f"layer {self._descriptor.digest} does not match its digest", transient=True
            ) from None
        finally:
            packed.unlink()


def check_content(descriptor: Descriptor, *, size: int, hexdigest: str) -> None:
    """Compare what was received with what was promised.

    Raises:
        RegistryUnavailable: bytes are missing.
        IntegrityError: too many or other bytes.
    """
    if size < descriptor.size:
        raise RegistryUnavailable(f"layer {descriptor.digest} broke off", transient=True)
    algorithm = descriptor.digest.partition(":")[0]
    if size != descriptor.size or descriptor.digest != f"{algorithm}:{hexdigest}":
        raise IntegrityError(
            f"layer {descriptor.digest} does not match its digest: "
            f"got {size} bytes with {algorithm}:{hexdigest}",
            remedy="the registry or something before it serves other content; push it again",
            transient=True,
            attempts=2,
        )


class Stalled(RegistryUnavailable):
    """Bytes come so slowly that going on where they stopped would be no progress."""


def range_fits(text: str, *, start: int, size: int) -> bool:
    """Tell whether a ``Content-Range`` is exactly the rest of a blob.

    Args:
        text: value of the header.
        start: first byte that was asked for.
        size: of the whole blob.

    Source: RFC 9110 section 14.4.
    """
    match = _RANGE.fullmatch(text.strip())
    return match is not None and (
        (int(match[1]), int(match[2])) == (start, size - 1)
        and (match[3] == "*" or int(match[3]) == size)
    )


def strong_tag(answer: Answer) -> str:
    """Return the entity tag that proves that bytes belong to the same content, empty for none."""
    tag = answer.header("ETag")
    return tag if _STRONG_TAG.fullmatch(tag) else ""


async def receive(
    answer: Answer,
    descriptor: Descriptor,
    writer: BlobWriter,
    *,
    limits: Limits,
    clock: Callable[[], float],
) -> None:
    """Read a blob, or the rest of it, from an answer into a file.

    Afterwards the file is right and has its name; after an error the writer keeps what came.

    Args:
        answer: status 200 with all of the blob, or 206 with what the writer does not have yet.
        descriptor: what the blob must be.
        writer: of the file; opened here for a whole blob.
        limits: of pace.
        clock: monotonic seconds.

    Raises:
        IntegrityError: other content than promised.
        RegistryUnavailable: bytes are missing or come too slowly.
        StorageError: the file cannot be written.
    """
    encoded = answer.header("Content-Encoding").lower() in ("gzip", "x-gzip")
    before = writer.size if answer.status == PARTIAL else 0
    declared = answer.header("Content-Length")
    if declared.isdecimal() and int(declared) != descriptor.size - before and not encoded:
        raise IntegrityError(
            f"layer {descriptor.digest} has {int(declared) + before} bytes in the registry, "
            f"not {descriptor.size} as its manifest says",
            transient=True,
            attempts=2,
        )
    if answer.status != PARTIAL:
        await _locally(writer.open)
    await _copy(answer, descriptor, writer, limits, clock)
    if encoded and writer.size != descriptor.size:
        # Some object stores label gzip files as gzip-encoded and some really encode: the
        # digest decides which bytes were meant.
        await _locally(writer.unpack, descriptor.size)
    await _locally(writer.commit)


async def discard(writer: BlobWriter) -> None:
    """Remove what was written and not committed, even while being cancelled."""
    await asyncio.shield(asyncio.to_thread(writer.discard))


async def _locally(work: Callable[..., None], *arguments: object) -> None:
    """Run work on a local file in a thread.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        await asyncio.to_thread(work, *arguments)
    except OSError as error:
        raise storage_error(error) from error


async def _copy(
    answer: Answer,
    descriptor: Descriptor,
    writer: BlobWriter,
    limits: Limits,
    clock: Callable[[], float],
) -> None:
    pace = Pace(rate=limits.stall_rate, window=limits.stall_seconds, now=clock())
    buffer, before, received = bytearray(), writer.size, 0
    try:
        async for chunk in answer.chunks():
            received += len(chunk)
            if before + received > descriptor.size:
                raise IntegrityError(
                    f"layer {descriptor.digest} is larger than the {descriptor.size} bytes "
                    "that its manifest says",
                    transient=True,
                    attempts=2,
                )
            buffer += chunk
            if len(buffer) >= WRITE_BYTES:
                await _locally(writer.write, bytes(buffer))
                buffer.clear()
            if pace.is_stalled(received, clock()):
                raise Stalled(
                    f"layer {descriptor.digest} comes slower than {limits.stall_rate} "
                    "bytes a second",
                    transient=True,
                )
    except (RegistryError, *LOW_LEVEL):
        # What came is kept: the transfer can go on behind it.
        await _locally(writer.write, bytes(buffer))
        raise
    await _locally(writer.write, bytes(buffer))


async def write_empty(writer: BlobWriter) -> None:
    """Write the blob of no bytes, which nobody needs to be asked for.

    Raises:
        IntegrityError: the descriptor names other content.
        StorageError: the file cannot be written.
    """
    try:
        await _locally(writer.open)
        await _locally(writer.commit)
    finally:
        await discard(writer)


def storage_error(error: OSError, what: str = "write") -> StorageError:
    """Return the error of this room for a file that cannot be written or read."""
    place = f" {error.filename}" if error.filename else ""
    remedy = "free space there, or set TMPDIR to a folder with more" if what == "write" else ""
    return StorageError(f"cannot {what}{place}: {error.strerror or error}", remedy=remedy)
