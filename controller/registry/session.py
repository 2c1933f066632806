"""One upload of a blob: where it goes on, whole or in chunks, and from where after a failure.

Source: the OCI distribution specification ("Pushing a blob monolithically", "Pushing a blob in
chunks", "Mounting a blob").
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import httpx
import structlog

from controller.registry import download
from controller.registry.authorized import PUSH, Authorized
from controller.registry.credentials import Keychain
from controller.registry.endpoint import Endpoint
from controller.registry.failures import RegistryError, RegistryUnavailable, StorageError
from controller.registry.media import Descriptor
from controller.registry.outcome import next_delay
from controller.registry.reference import Reference
from controller.registry.transport import Transport
from controller.registry.wire import MIB, NO_RANGE, Answer, Ask, joined

log = structlog.get_logger(__name__)

T = TypeVar("T")

READ_BYTES = MIB
CHUNK_MAX = 512 * MIB
CREATED = frozenset({200, 201, 202, 204})
_COMMITTED = re.compile(r"(?:bytes=)?0-(\d{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an upload goes on.

    Attributes:
        url: for the next request.
        size: bytes that the registry has; None when it does not say.
        chunk: smallest chunk that it takes, as it says.
    """

    url: httpx.URL
    size: int | None = None
    chunk: str = ""


class Session:
    """Sends one blob.

    Args:
        transport: connections and limits.
        endpoint: the registry.
        authorized: sends the requests.
        reference: names the repository.
        keychain: credentials for the registry.
    """

    def __init__(
        self,
        transport: Transport,
        endpoint: Endpoint,
        authorized: Authorized,
        reference: Reference,
        keychain: Keychain,
    ) -> None:
        self._transport = transport
        self._endpoint = endpoint
        self._authorized = authorized
        self._reference = reference
        self._keychain = keychain
        self._limits = transport.limits

    async def start(self, descriptor: Descriptor, mount_from: str | None) -> Place | None:
        """Start an upload; return None when the blob could be mounted instead.

        Raises:
            RegistryError: the registry takes no upload.
        """

        async def read(answer: Answer) -> Place | None:
            return None if answer.status == 201 else self._place(answer)

        ask = start_ask(self._reference.repository, descriptor.digest, mount_from)
        return await self._send(ask, read)

    async def put(self, place: Place, descriptor: Descriptor, content: bytes | Path) -> None:
        """Send all of a blob at once, or end its chunks with no bytes.

        Raises:
            RegistryError: the registry did not take it.
        """

        async def done(_: Answer) -> None:
            return None

        ask = put_ask(place.url, descriptor, content)
        await self._send(ask, done, seconds=download.blob_seconds(descriptor.size, self._limits))

    async def chunks(self, place: Place, descriptor: Descriptor, content: bytes | Path) -> None:
        """Send a blob piece by piece; after a failure go on behind what the registry has.

        Raises:
            RegistryError: the registry did not take it; it was told to forget what it has.
        """
        size, sent, failures, resumes = chunk_size(place.chunk, self._limits.chunk_bytes), 0, 0, 0
        try:
            while sent < descriptor.size:
                step = min(size, descriptor.size - sent)
                try:
                    place = await self._chunk(place, content, sent, step)
                    sent, failures = sent + step, 0
                except RegistryError as error:
                    failures, resumes = failures + 1, resumes + 1
                    jitter = random.random()  # noqa: S311 - jitter
                    pause = _pause_of(error, next_delay(error, failures, self._limits, jitter))
                    if pause is None or resumes > self._limits.resumes:
                        raise
                    await self._transport.sleep(pause)
                    place = await self._resumed(place, error)
                    sent = min(place.size or 0, descriptor.size)
            await self.put(place, descriptor, b"")
        except RegistryError:
            await self._forget(place)
            raise

    async def _chunk(self, place: Place, content: bytes | Path, start: int, size: int) -> Place:
        async def read(answer: Answer) -> Place:
            return self._place(answer)

        ask = patch_ask(place.url, content, start, size)
        return await self._send(ask, read, seconds=download.blob_seconds(size, self._limits))

    async def _resumed(self, place: Place, failure: RegistryError) -> Place:
        """Ask how much of an upload there is.

        Raises:
            RegistryError: the registry does not know it any more.
        """

        async def read(answer: Answer) -> Place:
            return self._place(answer)

        try:
            found = await self._send(Ask("upload_status", "GET", str(place.url)), read)
        except RegistryError as error:
            # The failure of the chunk is what people should see; a new upload starts at its front.
            log.debug("an upload cannot go on", error=str(error), host=self._endpoint.host)
            raise failure from error
        if found.size is None:
            raise failure
        return found

    async def _forget(self, place: Place) -> None:
        """Tell the registry that an upload ended, if it listens."""

        async def done(_: Answer) -> None:
            return None

        with contextlib.suppress(RegistryError):
            await self._send(Ask("upload_end", "DELETE", str(place.url)), done)

    async def _send(
        self,
        ask: Ask,
        read: Callable[[Answer], Awaitable[T]],
        *,
        seconds: float | None = None,
    ) -> T:
        return await self._authorized.call(
            self._reference,
            ask,
            self._keychain,
            read,
            actions=PUSH,
            accept=CREATED,
            seconds=seconds,
            again=False,
        )

    def _place(self, answer: Answer) -> Place:
        return Place(
            location_of(answer, self._endpoint),
            committed(answer.header("Range")),
            answer.header("OCI-Chunk-Min-Length"),
        )


def _pause_of(error: RegistryError, pause: float | None) -> float | None:
    """Return the seconds before an upload goes on; at once when only the place was wrong."""
    return 0.0 if error.status == NO_RANGE else pause


def start_ask(repository: str, digest: str, mount_from: str | None) -> Ask:
    """Return the request that starts an upload, or mounts a blob of another repository."""
    query = f"?mount={quote(digest, safe=':')}&from={quote(mount_from)}" if mount_from else ""
    target = f"/v2/{repository}/blobs/uploads/{query}"
    scopes = (f"repository:{mount_from}:pull",) if mount_from else ()
    return Ask("upload_start", "POST", target, {"Content-Length": "0"}, scopes=scopes)


def put_ask(location: httpx.URL, descriptor: Descriptor, content: bytes | Path) -> Ask:
    """Return the request that sends a blob, or with no bytes the one that ends its chunks."""
    length = descriptor.size if content else 0
    headers = {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
    # The query is the registry's own state, signed as it is: it is added to, not taken apart.
    target = f"{location}{'&' if location.query else '?'}digest={descriptor.digest}"
    body = content if isinstance(content, bytes) else _reader(content, 0, descriptor.size)
    return Ask("upload", "PUT", target, headers, body)


def patch_ask(location: httpx.URL, content: bytes | Path, start: int, size: int) -> Ask:
    """Return the request that sends one chunk of a blob."""
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(size),
        "Content-Range": f"{start}-{start + size - 1}",
    }
    if isinstance(content, bytes):
        return Ask("upload_chunk", "PATCH", str(location), headers, content[start : start + size])
    return Ask("upload_chunk", "PATCH", str(location), headers, _reader(content, start, size))


def committed(text: str) -> int | None:
    """Return how many bytes an upload has, by its ``Range`` header; None when it does not say."""
    match = _COMMITTED.fullmatch(text.strip())
    if match is None:
        return None
    # "0-0" stands for nothing and for one byte; sending the byte again is refused, not wrong.
    return int(match[1]) + 1 if int(match[1]) else 0


def chunk_size(text: str, usual: int) -> int:
    """Return the size of chunks, at least what the registry asks for within reason."""
    text = text.strip()
    wanted = int(text) if text.isascii() and text.isdecimal() and len(text) <= 12 else 0
    return max(usual, wanted) if wanted <= CHUNK_MAX else usual


def location_of(answer: Answer, endpoint: Endpoint) -> httpx.URL:
    """Return where an upload goes on, as the registry says.

    Raises:
        RegistryUnavailable: it does not say, or names no URL.
        PolicyViolation: it names a place that must not be used.
    """
    text = answer.header("Location")
    location = joined(answer.url, text) if text else None
    if location is None:
        raise RegistryUnavailable(f"{endpoint.host} does not say where to upload to")
    same_host = location.host == answer.url.host
    if same_host and (location.scheme, answer.url.scheme) == ("http", "https"):
        # Registries behind a proxy that ends TLS do not know their own scheme.
        log.warning("the registry says http for its own https", registry=endpoint.host)
        location = location.copy_with(scheme="https")
    endpoint.peer.check_target(location, came_from=answer.url)
    return location


def _reader(path: Path, start: int, size: int) -> Callable[[], AsyncIterator[bytes]]:
    """Return what reads a part of a file, anew at each try."""

    async def read() -> AsyncIterator[bytes]:
        left = size
        try:
            file = await asyncio.to_thread(path.open, "rb")
            with file:
                await asyncio.to_thread(file.seek, start)
                while left and (chunk := await asyncio.to_thread(file.read, min(left, READ_BYTES))):
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise download.storage_error(error, "read") from error
        if left:
            raise StorageError(f"{path} became shorter while it was read")

    return read
