"""Blobs and manifests on their way to a registry.

Source: the OCI distribution specification ("Pushing a blob monolithically", "Mounting a blob",
"Pushing a blob in chunks", "Pushing Manifests").
"""

from __future__ import annotations

import asyncio
import hashlib
from functools import partial
from pathlib import Path

import structlog

from controller.registry import download
from controller.registry.authorized import PUSH, Authorized
from controller.registry.credentials import Keychain
from controller.registry.failures import (
    IntegrityError,
    NotFound,
    PolicyViolation,
    RateLimited,
    RegistryError,
    RegistryUnavailable,
    TLSError,
)
from controller.registry.media import Descriptor, digest_of
from controller.registry.reference import Reference
from controller.registry.session import CREATED, Session
from controller.registry.transport import Transport
from controller.registry.wire import Answer, Ask, exceeded

log = structlog.get_logger(__name__)

NO_MOUNT = frozenset({400, 404, 405, 501})
TOO_LARGE = frozenset({411, 413})


class Uploads:
    """Stores blobs and manifests in registries.

    Args:
        transport: connections and limits.
        authorized: sends the requests.
    """

    def __init__(self, transport: Transport, authorized: Authorized) -> None:
        self._transport = transport
        self._limits = transport.limits
        self._authorized = authorized
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
        session = Session(self._transport, endpoint, self._authorized, reference, keychain)
        try:
            target = await session.start(descriptor, mount_from)
        except RegistryError as error:
            if mount_from is None or error.status not in NO_MOUNT:
                raise
            target = await session.start(descriptor, None)
        if target is None:
            return
        if descriptor.size <= self._limits.monolithic_bytes:
            try:
                await session.put(target, descriptor, content)
                return
            except RegistryError as error:
                if error.status not in TOO_LARGE or descriptor.size == 0:
                    raise
                log.info("the registry takes no whole blob, sending chunks", host=endpoint.host)
                target = await session.start(descriptor, None)
        if target is not None:
            await session.chunks(target, descriptor, content)

    async def manifest(
        self, reference: Reference, body: bytes, media_type: str, keychain: Keychain
    ) -> str:
        """Store a manifest; see ``RegistryClient.push_manifest``."""
        digest = digest_of(body, like=reference.digest or "sha256:")
        if reference.digest is not None and reference.digest != digest:
            raise IntegrityError(f"the manifest has the digest {digest}").about(reference)
        if len(body) > self._limits.manifest_bytes:
            limit = self._limits.manifest_bytes
            cause = f"the manifest is larger than {limit} bytes"
            raise exceeded(cause, "manifest_bytes").about(reference)
        target = f"/v2/{reference.repository}/manifests/{reference.tag or digest}"
        headers = {"Content-Type": media_type, "Content-Length": str(len(body))}

        async def check(answer: Answer) -> None:
            check_pushed(answer, digest)

        ask = Ask("manifest_put", "PUT", target, headers, body)
        await self._push(reference, ask, keychain, check)
        return digest


async def _exists(answer: Answer) -> bool:
    return answer.status == 200


async def describe_blob(content: bytes | Path, media_type: str) -> Descriptor:
    """Return the descriptor of bytes or of a file, which is read in a thread."""
    return await asyncio.to_thread(_describe, content, media_type)


def _describe(content: bytes | Path, media_type: str) -> Descriptor:
    if isinstance(content, bytes):
        return Descriptor(media_type, digest_of(content), len(content))
    with content.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Descriptor(media_type, f"sha256:{digest}", file.tell())


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
