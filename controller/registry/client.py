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
from controller.registry.listing import Lists
from controller.registry.media import (
    ACCEPT,
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Index,
    Manifest,
    check_entry,
    decode_manifest,
    digest_of,
    select,
)
from controller.registry.outcome import worth_a_get
from controller.registry.proxies import DIRECT, Proxies
from controller.registry.reference import Reference, is_digest
from controller.registry.tokens import TokenBook
from controller.registry.transfer import Downloads
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


class RegistryClient:
    """Speaks to any number of registries; one for the whole process.

    Args:
        user_agent: how requests name their sender.
        ca_bundle: PEM file of authorities that are trusted beside the system's; read again when
            it changes.
        certificates: folder with a folder for each registry that needs certificates of its own:
            ``<host>_<port>_``, ``<host>:<port>`` or ``<host>``, as containerd and Docker have it.
        insecure_registries: ``host``, ``host:port`` or address ranges that may be spoken to over
            plain HTTP; loopback always may.
        observe: called after each request with registry, operation, status and seconds.
        proxies: which requests go through a proxy.
        registry_policy: ``warn`` or ``strict`` about private addresses, foreign token servers and
            digests in headers that contradict the content.
        private_redirects: private address ranges that any registry may lead to.
        trusted_token_realms: token servers that may see any registry's credentials.
        limits: sizes, times and counts.
        transport: the connections; made from the other arguments when None.
    """

    def __init__(
        self,
        *,
        user_agent: str,
        ca_bundle: Path | None = None,
        certificates: Path | None = None,
        insecure_registries: Sequence[str] = (),
        observe: Observe | None = None,
        proxies: Proxies = DIRECT,
        registry_policy: Policy = "warn",
        private_redirects: Sequence[str] = (),
        trusted_token_realms: Sequence[str] = (),
        limits: Limits = DEFAULT_LIMITS,
        transport: Transport | None = None,
    ) -> None:
        self._limits = limits if transport is None else transport.limits
        self._transport = transport or Transport(
            user_agent=user_agent,
            ca_bundle=ca_bundle,
            certificates=certificates,
            insecure=insecure_registries,
            proxies=proxies,
            policy=registry_policy,
            private_redirects=private_redirects,
            limits=limits,
            observe=observe,
        )
        tokens = TokenBook(self._transport, trusted_realms=trusted_token_realms)
        authorized = Authorized(self._transport, tokens)
        self._pull = authorized.call
        self._downloads = Downloads(self._transport, authorized)
        self._uploads = Uploads(self._transport, authorized)
        self._lists = Lists(self._limits, authorized)

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
        again = True
        try:
            digest = await self._pull(reference, head, keychain, _digest_header)
        except (RateLimited, PolicyViolation, TLSError, LimitExceeded):
            raise
        except RegistryError as error:
            # Some registries do not answer HEAD properly; the GET's error text is better, too.
            # Without any answer, or with credentials refused, a GET would only say the same.
            if not worth_a_get(error):
                raise
            # A registry that is in trouble was asked often enough.
            again = error.status is not None and error.status < 500
            digest = ""
        if digest:
            return digest
        get = Ask("manifest_get", "GET", target, headers)

        async def read(answer: Answer) -> str:
            limit = self._limits.manifest_bytes
            raw = await answer.content(limit, "manifest", name="manifest_bytes")
            await self._decode(raw, answer.header("Content-Type"), Descriptor("", "", -1))
            return self._agreed(reference, answer.header("Docker-Content-Digest"), raw)

        return await self._pull(reference, get, keychain, read, again=again)

    def _agreed(self, reference: Reference, named: str, raw: bytes) -> str:
        """Return the digest of a manifest that was asked for by tag.

        Raises:
            IntegrityError: the registry names another one, and the policy is ``strict``.
        """
        if not is_digest(named):
            return digest_of(raw)
        actual = digest_of(raw, like=named)
        if named != actual:
            cause = f"the registry calls the manifest {named}, but its content is {actual}"
            if self._transport.policy == "strict":
                remedy = "push the package again, or use --registry-policy=warn"
                raise IntegrityError(cause, remedy=remedy)
            log.warning(cause, reference=str(reference))
        return digest_of(raw)

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
            raw = await answer.read(limit, "manifest", name="manifest_bytes")
            if digest_of(raw, like=wanted.digest) != wanted.digest:
                raw = answer.plain(raw, limit, "manifest", name="manifest_bytes")
            actual = digest_of(raw, like=wanted.digest)
            if actual != wanted.digest:
                raise IntegrityError(
                    f"the registry serves other content: {actual}",
                    remedy="push the package again",
                    transient=True,
                    attempts=2,
                )
            return await self._decode(raw, answer.header("Content-Type"), wanted)

        return await self._pull(pinned, ask, keychain, read)

    async def _decode(self, raw: bytes, content_type: str, wanted: Descriptor) -> Manifest | Index:
        """Decode a manifest and compare it with the index entry that named it."""
        if wanted.size not in (-1, len(raw)):
            raise MalformedManifest(f"the index says {wanted.size} bytes, not {len(raw)}")
        work = partial(
            decode_manifest,
            raw,
            content_type=content_type,
            digest=wanted.digest,
            limits=self._limits,
        )
        found = await asyncio.to_thread(work) if len(raw) > DECODED_INLINE else work()
        check_entry(found, wanted)
        return found

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
        await self._downloads.blob(reference, descriptor, keychain, destination)

    async def tags(self, reference: Reference, keychain: Keychain) -> list[str]:
        """Return the tags of a repository in the registry's order, without repetitions.

        Raises:
            NotFound: there is no such repository.
            LimitExceeded: there are more pages or tags than are read.
            RegistryError: the registry could not tell.

        Source: the OCI distribution specification ("Listing Tags").
        """
        return await self._lists.tags(reference, keychain)

    async def referrers(
        self, reference: Reference, digest: str, keychain: Keychain, *, artifact_type: str = ""
    ) -> list[Descriptor]:
        """Return what refers to a manifest: signatures, attestations and the like.

        Args:
            reference: names the repository.
            digest: of the manifest.
            keychain: credentials for its registry.
            artifact_type: only those of this type; empty for all.

        Raises:
            LimitExceeded: there are more than are read.
            RegistryError: the registry could not tell.

        Source: the OCI distribution specification ("Listing Referrers", "Unavailable Referrers
        API").
        """
        return await self._lists.referrers(reference, digest, keychain, artifact_type)

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
