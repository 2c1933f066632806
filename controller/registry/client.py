"""The client of OCI registries: resolve, read, download, list and push.

Every byte that is handed out was compared with the digest it was asked for. A tag is only ever
turned into a digest; content is fetched by digest.

Source: the OCI distribution specification.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from controller.registry import download as transfer
from controller.registry.authorized import Authorized
from controller.registry.credentials import Keychain
from controller.registry.failures import (
    AuthError,
    CacheUnavailable,
    IntegrityError,
    InvalidReference,
    LimitExceeded,
    MalformedManifest,
    NotFound,
    PolicyViolation,
    RateLimited,
    RegistryError,
    RegistryUnavailable,
    StorageError,
    TLSError,
    UnsupportedMedia,
)
from controller.registry.guard import Policy
from controller.registry.media import (
    ACCEPT,
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Index,
    Manifest,
    decode_manifest,
    digest_of,
    load_json,
    select,
)
from controller.registry.outcome import broke_protocol
from controller.registry.proxies import DIRECT, Proxies
from controller.registry.reference import Reference, is_digest, is_tag
from controller.registry.tokens import TokenBook
from controller.registry.transport import Observe, Transport
from controller.registry.upload import Uploads
from controller.registry.wire import DEFAULT_LIMITS, Answer, Ask, Limits

__all__ = [
    "AuthError",
    "CacheUnavailable",
    "Descriptor",
    "IntegrityError",
    "InvalidReference",
    "LimitExceeded",
    "Limits",
    "MalformedManifest",
    "Manifest",
    "NotFound",
    "PolicyViolation",
    "RateLimited",
    "RegistryClient",
    "RegistryError",
    "RegistryUnavailable",
    "StorageError",
    "TLSError",
    "UnsupportedMedia",
]

log = structlog.get_logger(__name__)

DECODED_INLINE = 64 * 1024  # bytes of JSON that are decoded without a thread
TAGS_ASKED = 1000


class RegistryClient:
    """Speaks to any number of registries; one for the whole process.

    Args:
        user_agent: how requests name their sender.
        ca_bundle: PEM file of authorities that are trusted beside the system's.
        insecure_registries: ``host``, ``host:port`` or address ranges that may be spoken to over
            plain HTTP; loopback always may.
        observe: called after each request with registry, operation, status and seconds.
        proxies: which requests go through a proxy.
        policy: ``warn`` or ``strict`` about private addresses and foreign token servers.
        trusted_token_realms: token servers that may see any registry's credentials.
        limits: sizes, times and counts.
        transport: the connections; made from the other arguments when None.
    """

    def __init__(
        self,
        *,
        user_agent: str,
        ca_bundle: Path | None = None,
        insecure_registries: Sequence[str] = (),
        observe: Observe | None = None,
        proxies: Proxies = DIRECT,
        policy: Policy = "warn",
        trusted_token_realms: Sequence[str] = (),
        limits: Limits = DEFAULT_LIMITS,
        transport: Transport | None = None,
    ) -> None:
        self._limits = limits if transport is None else transport.limits
        self._transport = transport or Transport(
            user_agent=user_agent,
            ca_bundle=ca_bundle,
            insecure=insecure_registries,
            proxies=proxies,
            policy=policy,
            limits=limits,
            observe=observe,
        )
        tokens = TokenBook(self._transport, trusted_realms=trusted_token_realms)
        authorized = Authorized(self._transport, tokens)
        self._pull = authorized.call
        self._uploads = Uploads(self._transport, authorized)

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._transport.__aexit__(kind, error, tb)

    async def resolve(self, reference: Reference, keychain: Keychain) -> str:
        """Return the digest that a reference names now.

        Args:
            reference: one with a digest needs no request.
            keychain: credentials for its registry.

        Raises:
            NotFound: there is no such tag.
            RegistryError: the registry could not tell.

        Source: the OCI distribution specification ("Checking if content exists").
        """
        if reference.digest is not None:
            return reference.digest
        headers = {"Accept": ACCEPT}
        target = f"/v2/{reference.repository}/manifests/{reference.tag}"
        head = Ask("manifest_head", "HEAD", target, headers)
        try:
            digest = await self._pull(reference, head, keychain, _digest_header)
        except (RateLimited, PolicyViolation, TLSError, LimitExceeded):
            raise
        except RegistryError as error:
            # Some registries do not answer HEAD properly; the GET's error text is better, too.
            # Without any answer, or with credentials refused, a GET would only say the same.
            if not _worth_a_get(error):
                raise
            digest = ""
        if digest:
            return digest
        get = Ask("manifest_get", "GET", target, headers)

        async def read(answer: Answer) -> str:
            raw = await answer.content(self._limits.manifest_bytes, "manifest")
            await _decode(raw, answer.header("Content-Type"), Descriptor("", "", -1))
            return digest_of(raw)

        return await self._pull(reference, get, keychain, read)

    async def manifest(self, reference: Reference, digest: str, keychain: Keychain) -> Manifest:
        """Return the image manifest of a digest; of an index the package's image.

        Args:
            reference: names the repository.
            digest: of the manifest or index.
            keychain: credentials for its registry.

        Raises:
            IntegrityError: the content does not match the digest.
            MalformedManifest: it breaks the format; nested indexes go three levels deep at most.
            UnsupportedMedia: it is no image.
            RegistryError: the registry could not give it.
        """
        wanted = Descriptor("", digest, -1)
        warnings: list[str] = []
        seen: set[str] = set()
        for _ in range(self._limits.index_depth + 1):
            if wanted.digest in seen:
                raise MalformedManifest("the index contains itself").about(reference)
            seen.add(wanted.digest)
            found = await self._document(reference, wanted, keychain)
            if isinstance(found, Manifest):
                index = digest if found.descriptor.digest != digest else None
                return replace(found, index_digest=index, warnings=tuple(warnings))
            try:
                wanted, warning = select(found)
            except RegistryError as error:
                raise error.about(reference.with_digest(digest)) from None
            if warning is not None:
                warnings.append(warning)
        depth = self._limits.index_depth
        raise MalformedManifest(f"indexes are nested deeper than {depth} levels").about(reference)

    async def _document(
        self, reference: Reference, wanted: Descriptor, keychain: Keychain
    ) -> Manifest | Index:
        pinned = reference.with_digest(wanted.digest)
        target = f"/v2/{reference.repository}/manifests/{wanted.digest}"
        ask = Ask("manifest_get", "GET", target, {"Accept": ACCEPT})
        limit = self._limits.manifest_bytes

        async def read(answer: Answer) -> Manifest | Index:
            raw = await answer.read(limit, "manifest")
            if digest_of(raw, like=wanted.digest) != wanted.digest:
                raw = answer.plain(raw, limit, "manifest")
            actual = digest_of(raw, like=wanted.digest)
            if actual != wanted.digest:
                raise IntegrityError(
                    f"the registry serves other content: {actual}",
                    remedy="push the package again",
                    transient=True,
                    attempts=2,
                )
            return await _decode(raw, answer.header("Content-Type"), wanted)

        return await self._pull(pinned, ask, keychain, read)

    async def download(
        self,
        reference: Reference,
        descriptor: Descriptor,
        keychain: Keychain,
        destination: Path,
    ) -> None:
        """Write a blob to a file; afterwards the file has exactly the bytes of the descriptor.

        Args:
            reference: names the repository.
            descriptor: digest and size of the blob.
            keychain: credentials for its registry.
            destination: file in an existing folder; replaced when it exists, untouched on errors.

        Raises:
            IntegrityError: the content does not match.
            LimitExceeded: the blob is larger than blobs may be.
            StorageError: the file cannot be written.
            RegistryError: the registry could not give it.
        """
        transfer.check_declared(descriptor, self._limits)
        writer = transfer.BlobWriter(descriptor, destination)
        if descriptor.size == 0:
            await transfer.write_empty(writer)
            return
        target = f"/v2/{reference.repository}/blobs/{descriptor.digest}"
        ask = Ask("blob_get", "GET", target, {"Accept": "*/*"})
        clock = self._transport.clock

        async def read(answer: Answer) -> None:
            await transfer.receive(answer, descriptor, writer, limits=self._limits, clock=clock)

        seconds = transfer.blob_seconds(descriptor.size, self._limits)
        await self._pull(reference, ask, keychain, read, seconds=seconds)

    async def tags(self, reference: Reference, keychain: Keychain) -> list[str]:
        """Return the tags of a repository in the registry's order, without repetitions.

        Raises:
            NotFound: there is no such repository.
            LimitExceeded: there are more pages or tags than are read.
            RegistryError: the registry could not tell.

        Source: the OCI distribution specification ("Listing Tags").
        """
        found: dict[str, None] = {}
        target: str | None = f"/v2/{reference.repository}/tags/list?n={TAGS_ASKED}"
        seen: set[str] = set()
        while target is not None:
            if target in seen or len(seen) >= self._limits.tags_pages:
                what = "in a circle" if target in seen else f"{self._limits.tags_pages} pages long"
                raise LimitExceeded(f"the list of tags is {what}").about(reference.source)
            seen.add(target)
            ask = Ask("tags", "GET", target, {"Accept": "application/json"})
            page, target = await self._pull(reference, ask, keychain, self._tags_page)
            found.update(dict.fromkeys(tag for tag in page if is_tag(tag)))
            if len(found) > self._limits.tags:
                limit = self._limits.tags
                raise LimitExceeded(f"more than {limit} tags").about(reference.source)
        return list(found)

    async def _tags_page(self, answer: Answer) -> tuple[list[str], str | None]:
        body = await answer.content(self._limits.tags_page_bytes, "list of tags")
        page = await asyncio.to_thread(load_json, body, "list of tags")
        tags = page.get("tags") if isinstance(page, dict) else page
        if tags is not None and not isinstance(tags, list):
            raise MalformedManifest("the list of tags is no list")
        return [tag for tag in tags or () if isinstance(tag, str)], answer.next_page()

    async def push_blob(
        self,
        reference: Reference,
        content: bytes | Path,
        keychain: Keychain,
        *,
        media_type: str = "application/octet-stream",
        mount_from: str | None = None,
    ) -> Descriptor:
        """Store a blob in a repository, unless it is there.

        Args:
            reference: names the repository.
            content: bytes, or a file that does not change meanwhile.
            keychain: credentials for its registry.
            media_type: of the descriptor that is returned.
            mount_from: another repository of the registry that may have the blob.

        Returns:
            The blob's descriptor.

        Raises:
            RegistryError: the registry did not take it.
        """
        return await self._uploads.blob(
            reference, content, keychain, media_type=media_type, mount_from=mount_from
        )

    async def push_manifest(
        self, reference: Reference, body: bytes, media_type: str, keychain: Keychain
    ) -> str:
        """Store a manifest or index under a reference; its blobs are there already.

        Args:
            reference: names repository and tag, or the digest that the body must have.
            body: exact bytes.
            media_type: the one that the body declares.
            keychain: credentials for its registry.

        Returns:
            The digest of the body.

        Raises:
            IntegrityError: the reference or the registry has another digest.
            LimitExceeded: the body is larger than manifests may be.
            RegistryError: the registry did not take it.
        """
        return await self._uploads.manifest(reference, body, media_type, keychain)


async def _digest_header(answer: Answer) -> str:
    """Return the digest that a HEAD answer names, empty when it cannot be trusted to."""
    digest = answer.header("Docker-Content-Digest")
    kind = answer.header("Content-Type").partition(";")[0].strip().lower()
    return digest if is_digest(digest) and kind in INDEX_TYPES | MANIFEST_TYPES else ""


def _worth_a_get(error: RegistryError) -> bool:
    """Tell whether a GET may succeed or say more where a HEAD failed."""
    if error.status is None:
        return broke_protocol(error)
    return not (isinstance(error, AuthError) and error.status == 401)


async def _decode(raw: bytes, content_type: str, wanted: Descriptor) -> Manifest | Index:
    """Decode a manifest and compare it with the index entry that named it."""
    if wanted.size not in (-1, len(raw)):
        raise MalformedManifest(f"the index says {wanted.size} bytes, not {len(raw)}")
    work = partial(decode_manifest, raw, content_type=content_type, digest=wanted.digest)
    found = await asyncio.to_thread(work) if len(raw) > DECODED_INLINE else work()
    declared = wanted.media_type
    if declared and (
        found.descriptor.media_type != declared
        if isinstance(found, Manifest)
        else declared not in INDEX_TYPES
    ):
        raise MalformedManifest("the index calls the manifest something else than it is")
    return found
