"""The image backend: from a package's source to its parsed content, cache first, registry next.

Guarantees:
    Content is opened only after size and digest of every byte were verified; the digest is the one
    that named the revision. One fetch per content runs at a time, whoever asks. A cache that cannot
    be used never keeps a package from being installed.

Source: Crossplane's package client (rewrite, pull secrets, pull by digest) and image layout.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from controller.kube.client import ApiError, KubeClient
from controller.model.content import Entry, ParsedPackage, from_details, to_details
from controller.model.imageconfig import locate, runtime_config
from controller.model.lint import lint
from controller.model.objects import (
    ANNOTATION_DIGEST,
    SECRET,
    SERVICE_ACCOUNT,
    JsonObject,
    Resource,
    annotations_of,
    uid_of,
)
from controller.registry.cache import CacheUnavailable, PackageCache
from controller.registry.cached import CachedPackage, CacheKey, Facts, keep_uncached
from controller.registry.client import RegistryClient
from controller.registry.credentials import Keychain
from controller.registry.media import Descriptor, Manifest
from controller.registry.reference import Reference, parse_reference
from controller.registry.staging import Staging
from controller.stages.cluster import Cluster
from controller.xpkg.locate import Search
from controller.xpkg.parse import parse_in_process

STREAM = "package.yaml"  # what errors call the stream


@dataclass(frozen=True, slots=True)
class Location:
    """Where an image is fetched from, and with what.

    ``applied`` are entries of ``status.appliedImageConfigRefs``; ``verification`` names the
    ImageConfig that asks for signatures, None when none does.
    """

    original: Reference
    resolved: Reference
    pull_secret: str | None
    verification: str | None
    applied: tuple[JsonObject, ...]


class PackageContent:
    """The opened content of a package.

    Attributes:
        parsed: metadata and index of the objects.
        uncached: why the content is not in the cache; None when it is.
    """

    def __init__(
        self, package: CachedPackage, parsed: ParsedPackage, *, uncached: str | None
    ) -> None:
        self.parsed = parsed
        self.uncached = uncached
        self._package = package

    @property
    def meta(self) -> JsonObject:
        """The package's metadata object."""
        return self.parsed.meta

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The objects that are installed."""
        return self.parsed.entries

    @property
    def findings(self) -> list[str]:
        """What is doubtful about the package, or not installed from it."""
        return lint(self.parsed)

    async def objects(self) -> AsyncGenerator[tuple[Entry, bytes], None]:
        """Yield the objects that are installed, with their JSON, in the order of the package."""
        entries = {entry.offset: entry for entry in self.parsed.entries}
        offset = 0
        async for batch in self._package.batches():
            for line in batch:
                entry = entries.get(offset)
                offset += len(line) + 1
                if entry is not None:
                    yield entry, line


class ImageBackend:
    """Opens packages.

    Args:
        cluster: ImageConfigs.
        client: the API server, for pull secrets.
        registry: OCI registries.
        cache: parsed packages on disk.
        namespace: where pull secrets and the ServiceAccount are.
        service_account: whose pull secrets are used too.
        ambient: credentials of the process itself, asked where no pull secret has any.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        client: KubeClient,
        registry: RegistryClient,
        cache: PackageCache,
        namespace: str,
        service_account: str,
        ambient: Keychain,
    ) -> None:
        self._ambient = ambient
        self._cluster = cluster
        self._client = client
        self._registry = registry
        self._cache = cache
        self._namespace = namespace
        self._service_account = service_account
        self._fetching: dict[CacheKey, asyncio.Lock] = {}

    def locate(self, image: str) -> Location:
        """Return where a package's image is fetched from.

        Raises:
            ImageConfigError: an ImageConfig that applies is incomplete.
            InvalidReference: the text, or what it is rewritten to, names no image.
        """
        configs = self._cluster.image_configs()
        located = locate(configs, image)
        original, resolved = parse_reference(image), parse_reference(located.image)
        shaped = runtime_config(configs, located.image)
        applied = located.applied
        if shaped is not None:
            _, match = shaped
            applied = (*applied, {"name": match.name, "reason": "ConfigureRuntime"})
        return Location(
            original=original,
            resolved=resolved,
            pull_secret=located.pull_secret,
            verification=located.verification,
            applied=applied,
        )

    async def digest(self, location: Location, spec: Mapping[str, Any]) -> str:
        """Return the manifest digest that an image has now.

        Args:
            location: of the image.
            spec: of the package; names its pull secrets.

        Raises:
            RegistryError: the registry could not tell.
        """
        if location.resolved.digest is not None:
            return location.resolved.digest
        keychain = await self._keychain(location.pull_secret, spec)
        return await self._registry.resolve(location.resolved, keychain)

    async def tags(self, source: str) -> list[str]:
        """Return the tags of a package's repository.

        Args:
            source: the repository with its registry, without tag.

        Raises:
            ImageConfigError: an ImageConfig that applies is incomplete.
            RegistryError: the registry could not tell.
        """
        located = locate(self._cluster.image_configs(), source)
        reference = parse_reference(located.image, strict=False)
        keychain = await self._keychain(located.pull_secret, {})
        return await self._registry.tags(reference, keychain)

    async def metadata(self, revision: JsonObject) -> JsonObject:
        """Return the metadata object of a revision's package; errors as for ``open``."""
        async with self.open(revision) as content:
            return content.meta

    @asynccontextmanager
    async def open(self, revision: JsonObject) -> AsyncIterator[PackageContent]:
        """Open the content of a revision's image, fetching it where the cache lacks it.

        Raises:
            ImageConfigError: an ImageConfig that applies is incomplete.
            RegistryError: the image could not be fetched.
            XpkgError: the image is no package.
            ManifestError: its package.yaml cannot be read.
        """
        location = self.locate(revision["spec"]["image"])
        digest = annotations_of(revision).get(ANNOTATION_DIGEST) or location.resolved.digest
        if not digest:
            digest = await self.digest(location, revision["spec"])
        key = CacheKey(location.resolved.source, digest)
        await self._cache.lease(uid_of(revision), key)
        package, uncached = await self._package(key, location, revision["spec"])
        async with package:
            try:
                parsed = from_details(package.details)
            except ValueError:
                await self._discard(key)
                raise
            yield PackageContent(package, parsed, uncached=uncached)

    async def _package(
        self, key: CacheKey, location: Location, spec: Mapping[str, Any]
    ) -> tuple[CachedPackage, str | None]:
        """Open a package from the cache, else fetch it; one fetch at a time for each content."""
        lock = self._fetching.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                cached = await self._cache.get(key)
                if cached is not None:
                    return cached, None
                return await self._fetch(key, location, spec)
        finally:
            if not lock.locked():
                self._fetching.pop(key, None)

    async def _discard(self, key: CacheKey) -> None:
        """Remove an entry of another version of the parsed form, so that it is made anew."""
        with contextlib.suppress(CacheUnavailable):
            await self._cache.delete(key)

    async def _fetch(
        self, key: CacheKey, location: Location, spec: Mapping[str, Any]
    ) -> tuple[CachedPackage, str | None]:
        """Download, verify, extract and parse a package, and keep it in the cache."""
        async with self._cache.ingest() as staging:
            origin = await self._fill(key, location, spec, staging)
            parsed = await parse_in_process(staging.stream, staging.objects, source=STREAM)
            facts = replace(origin, meta=parsed.meta, details=to_details(parsed))
            try:
                return await self._cache.store(key, staging, facts), None
            except CacheUnavailable as error:
                return await keep_uncached(key, staging, facts), str(error)

    async def _fill(
        self, key: CacheKey, location: Location, spec: Mapping[str, Any], staging: Staging
    ) -> Facts:
        """Put the image's package.yaml into the staging folder; return where it comes from.

        A folder that somebody filled beforehand, for clusters without a registry, comes first.
        """
        if await self._cache.seed(key, staging, sources=[location.original.source]):
            return Facts(meta={}, selected_digest=key.digest)
        keychain = await self._keychain(location.pull_secret, spec)
        reference = location.resolved
        manifest = await self._registry.manifest(reference, key.digest, keychain)
        layer = await self._extract(reference, manifest, keychain, staging)
        return Facts(
            meta={},
            selected_digest=manifest.descriptor.digest,
            layer_digest=layer.digest,
            layer_size=layer.size,
            manifest=manifest.raw,
        )

    async def _extract(
        self, reference: Reference, manifest: Manifest, keychain: Keychain, staging: Staging
    ) -> Descriptor:
        """Put the image's package.yaml into the staging folder; return the layer that held it."""
        search = Search(manifest.layers)
        for layer in search.layers:
            await self._registry.download(reference, layer, keychain, staging.layer)
            found = await asyncio.to_thread(search.read, layer, staging.layer, staging.stream)
            await asyncio.to_thread(staging.layer.unlink)
            if found is not None:
                return layer
        raise search.missing()

    async def _keychain(self, secret: str | None, spec: Mapping[str, Any]) -> Keychain:
        """Return the credentials of pull secrets, then those of the process.

        Pull secrets are the package's, the ImageConfig's and the account's, in this order.

        Source: Crossplane's order of keychains.
        """
        named = [entry.get("name") for entry in spec.get("packagePullSecrets") or ()]
        names = [name for name in named if name]
        if secret:
            names.append(secret)
        account = await self._read(SERVICE_ACCOUNT, self._service_account)
        names += [entry["name"] for entry in (account or {}).get("imagePullSecrets") or ()]
        secrets, missing = [], []
        for name in dict.fromkeys(names):
            found = await self._read(SECRET, name)
            if found is not None:
                secrets.append(found)
            else:
                missing.append(f"{self._namespace}/{name}")
        named_ones = Keychain.from_pull_secrets(secrets, missing=missing)
        return Keychain.combine(named_ones, self._ambient)

    async def _read(self, resource: Resource, name: str) -> JsonObject | None:
        try:
            return await self._client.get(resource, name, namespace=self._namespace)
        except ApiError as error:
            if error.not_found:
                return None
            raise
