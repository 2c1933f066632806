"""The way of a blob to a registry: where it is sent and what is sent. Values and small steps.

Source: the OCI distribution specification ("Pushing a blob monolithically", "Mounting a blob").
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from urllib.parse import quote

import httpx
import structlog

from controller.registry import download
from controller.registry.authorized import PUSH, Authorized
from controller.registry.credentials import Keychain
from controller.registry.endpoint import Endpoint
from controller.registry.failures import (
    IntegrityError,
    LimitExceeded,
    NotFound,
    PolicyViolation,
    RateLimited,
    RegistryError,
    RegistryUnavailable,
    TLSError,
)
from controller.registry.media import Descriptor, digest_of
from controller.registry.reference import Reference
from controller.registry.transport import Transport
from controller.registry.wire import Answer, Ask

log = structlog.get_logger(__name__)

READ_BYTES = 1024 * 1024
CREATED = frozenset({200, 201, 202, 204})
NO_MOUNT = frozenset({400, 404, 405, 501})


class Uploads:
    """Stores blobs and manifests in registries.

    Args:
        transport: connections and limits.
        authorized: sends the requests.
    """

    def __init__(self, transport: Transport, authorized: Authorized) -> None:
        self._transport = transport
        self._limits = transport.limits
        self._push = partial(authorized.call, actions=PUSH, accept=CREATED)

    async def blob(
        self,
        reference: Reference,
        content: bytes | Path,
        keychain: Keychain,
        *,
        media_type: str,
        mount_from: str | None,
    ) -> Descriptor:
        """Store a blob unless it is there; see ``RegistryClient.push_blob``."""
        try:
            descriptor = await describe_blob(content, media_type)
        except OSError as error:
            raise download.storage_error(error, "read").about(reference) from error
        exists = Ask("blob_head", "HEAD", f"/v2/{reference.repository}/blobs/{descriptor.digest}")
        try:
            if await self._push(reference, exists, keychain, _exists):
                return descriptor
        except NotFound:
            pass
        except (RateLimited, RegistryUnavailable, TLSError, PolicyViolation):
            raise
        except RegistryError as error:
            # Some registries forbid looking before pushing; whether pushing is allowed shows then.
            log.debug("cannot look for a blob", reference=str(reference), error=str(error))

        async def send() -> None:
            await self._upload(reference, descriptor, content, keychain, mount_from)

        await self._transport.retrying(send)
        return descriptor

    async def _upload(
        self,
        reference: Reference,
        descriptor: Descriptor,
        content: bytes | Path,
        keychain: Keychain,
        mount_from: str | None,
    ) -> None:
        endpoint = await self._transport.endpoint(reference.host)

        async def location(answer: Answer) -> httpx.URL | None:
            if answer.status == 201:
                return None
            return location_of(answer, endpoint)

        async def start(mounted: str | None) -> httpx.URL | None:
            ask = start_ask(reference.repository, descriptor.digest, mounted)
            return await self._push(reference, ask, keychain, location, again=False)

        try:
            target = await start(mount_from)
        except RegistryError as error:
            if mount_from is None or error.status not in NO_MOUNT:
                raise
            target = await start(None)
        if target is not None:
            ask = put_ask(target, descriptor, content)
            seconds = download.blob_seconds(descriptor.size, self._limits)
            await self._push(reference, ask, keychain, _nothing, seconds=seconds, again=False)

    async def manifest(
        self, reference: Reference, body: bytes, media_type: str, keychain: Keychain
    ) -> str:
        """Store a manifest; see ``RegistryClient.push_manifest``."""
        digest = digest_of(body, like=reference.digest or "sha256:")
        if reference.digest is not None and reference.digest != digest:
            raise IntegrityError(f"the manifest has the digest {digest}").about(reference)
        if len(body) > self._limits.manifest_bytes:
            limit = self._limits.manifest_bytes
            raise LimitExceeded(f"the manifest is larger than {limit} bytes").about(reference)
        target = f"/v2/{reference.repository}/manifests/{reference.tag or digest}"
        headers = {"Content-Type": media_type, "Content-Length": str(len(body))}

        async def check(answer: Answer) -> None:
            check_pushed(answer, digest)

        ask = Ask("manifest_put", "PUT", target, headers, body)
        await self._push(reference, ask, keychain, check)
        return digest


async def _exists(answer: Answer) -> bool:
    return answer.status == 200


async def _nothing(_: Answer) -> None:
    return None


def start_ask(repository: str, digest: str, mount_from: str | None) -> Ask:
    """Return the request that starts an upload, or mounts a blob of another repository."""
    query = f"?mount={quote(digest, safe=':')}&from={quote(mount_from)}" if mount_from else ""
    target = f"/v2/{repository}/blobs/uploads/{query}"
    return Ask("upload_start", "POST", target, {"Content-Length": "0"})


def put_ask(location: httpx.URL, descriptor: Descriptor, content: bytes | Path) -> Ask:
    """Return the request that sends a whole blob; a file is opened anew at each try."""
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(descriptor.size),
    }
    # The query is the registry's own state, signed as it is: it is added to, not taken apart.
    target = f"{location}{'&' if location.query else '?'}digest={descriptor.digest}"
    body = content if isinstance(content, bytes) else _reader(content)
    return Ask("upload", "PUT", target, headers, body)


def location_of(answer: Answer, endpoint: Endpoint) -> httpx.URL:
    """Return where an upload goes on, as the registry says.

    Raises:
        RegistryUnavailable: it does not say, or names no URL.
        PolicyViolation: it names a place that must not be used.
    """
    text = answer.header("Location")
    try:
        location = answer.url.join(text) if text else None
    except (httpx.InvalidURL, ValueError, TypeError):
        location = None
    if location is None:
        raise RegistryUnavailable(f"{endpoint.host} does not say where to upload to")
    same_host = location.host == answer.url.host
    if same_host and (location.scheme, answer.url.scheme) == ("http", "https"):
        # Registries behind a proxy that ends TLS do not know their own scheme.
        location = location.copy_with(scheme="https")
    endpoint.peer.check_target(location, came_from=answer.url)
    return location


async def describe_blob(content: bytes | Path, media_type: str) -> Descriptor:
    """Return the descriptor of bytes or of a file, which is read in a thread."""
    return await asyncio.to_thread(_describe, content, media_type)


def _describe(content: bytes | Path, media_type: str) -> Descriptor:
    if isinstance(content, bytes):
        return Descriptor(media_type, digest_of(content), len(content))
    with content.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Descriptor(media_type, f"sha256:{digest}", file.tell())


def _reader(path: Path) -> Callable[[], AsyncIterator[bytes]]:
    async def read() -> AsyncIterator[bytes]:
        try:
            file = await asyncio.to_thread(path.open, "rb")
            with file:
                while chunk := await asyncio.to_thread(file.read, READ_BYTES):
                    yield chunk
        except OSError as error:
            raise download.storage_error(error, "read") from error

    return read


def check_pushed(answer: Answer, digest: str) -> None:
    """Compare the digest that a registry gives a manifest with ours.

    Raises:
        IntegrityError: it is another one.
    """
    theirs = answer.header("Docker-Content-Digest")
    if theirs and theirs.partition(":")[0] == digest.partition(":")[0] and theirs != digest:
        raise IntegrityError(
            f"the registry stored another manifest than was sent: {theirs[:140]!r}, not {digest}"
        )
