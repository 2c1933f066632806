"""Images in registries as the command line reads them: a package, or a runtime image for one."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from controller.cli.render import size
from controller.cli.session import CommandError, UsageError
from controller.model.lock import split_source
from controller.xpkg.archive import write_archive
from controller.xpkg.contents import labels_of, parse_config
from controller.xpkg.errors import PackageNotFound, XpkgError
from controller.xpkg.files import replacing
from controller.xpkg.image import (
    MEDIA_TYPE_CONFIG,
    Blob,
    PushManifest,
    layer_annotations,
    push_manifest,
)
from controller.xpkg.locate import BASE, LAYER_ANNOTATION, Search, examples_search
from controller.xpkg.members import ARCHIVE_BYTES_MAX, SMALL_BYTES_MAX

if TYPE_CHECKING:
    from controller.cli.session import Progress
    from controller.registry.client import Descriptor, Manifest, RegistryClient
    from controller.registry.credentials import Keychain
    from controller.registry.reference import Reference

_EXAMPLE: Final = "for example registry.example.com/repo/package:v1.0.0"


def image_source(text: str) -> Reference:
    """Return the reference of an image that is read.

    Raises:
        UsageError: the registry is missing, or both tag and digest.
    """
    from controller.registry.failures import InvalidReference  # noqa: PLC0415 - loads no client
    from controller.registry.reference import parse_reference  # noqa: PLC0415 - as above

    start = f'failed to parse image reference "{text}"'
    host, path = split_source(text)
    if not host:
        raise UsageError(
            f"{start}: it names no registry: write registry/repository:tag, {_EXAMPLE}"
        )
    if ":" not in path and "@" not in path:
        raise UsageError(f"{start}: it names no tag or digest: add one, {_EXAMPLE}")
    try:
        return parse_reference(text, strict=False)
    except InvalidReference as error:
        raise UsageError(f"{start}: {error.cause}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteImage:
    """An image in a registry.

    Attributes:
        reference: where it is.
        digest: what the reference names: the image, or the index that lists it.
        manifest: of the image.
    """

    reference: Reference
    digest: str
    manifest: Manifest
    client: RegistryClient
    keychain: Keychain
    line: Progress

    async def download(self, descriptor: Descriptor, path: Path) -> None:
        """Write one of its blobs to a file."""
        self.line.show(f"pulling {self.reference}: {size(descriptor.size)}")
        await self.client.download(self.reference, descriptor, self.keychain, path)

    async def configuration(self, scratch: Path) -> bytes:
        """Return the image's configuration."""
        descriptor = self.manifest.config
        if descriptor.size > SMALL_BYTES_MAX:
            raise CommandError(
                f"{self.reference}: the configuration has {descriptor.size} bytes, more than the "
                f"{SMALL_BYTES_MAX} that are read; name an image with a smaller one"
            )
        path = scratch / "config"
        await self.download(descriptor, path)
        return await asyncio.to_thread(path.read_bytes)


async def find_image(
    reference: Reference, client: RegistryClient, keychain: Keychain, line: Progress
) -> RemoteImage:
    """Return the image that a reference names.

    Raises:
        RegistryError: the registry does not have it, or could not tell.
    """
    line.show(f"asking for {reference}")
    digest = await client.resolve(reference, keychain)
    manifest = await client.manifest(reference, digest, keychain)
    return RemoteImage(
        reference=reference,
        digest=digest,
        manifest=manifest,
        client=client,
        keychain=keychain,
        line=line,
    )


async def save_image(found: RemoteImage, path: Path) -> None:
    """Write an image to an archive; equal images give equal files.

    The archive keeps the image's manifest when a push would make another one of it.

    Args:
        found: the image.
        path: appears complete or not at all.

    Raises:
        CommandError: no archive can hold the image.
        RegistryError: the registry could not give it.
        OSError: the file cannot be written.
    """
    unique = {layer.digest: layer for layer in found.manifest.layers}
    total = sum(layer.size for layer in unique.values())
    if total > ARCHIVE_BYTES_MAX:
        raise CommandError(
            f"{found.reference} has {total} bytes, more than the {ARCHIVE_BYTES_MAX} that an "
            "archive may have; copy it from registry to registry instead"
        )
    with tempfile.TemporaryDirectory(prefix="crossdock-pull-") as folder:
        scratch = Path(folder)
        config = await found.configuration(scratch)
        for layer in unique.values():
            await found.download(layer, scratch / _file_name(layer.digest))
        await asyncio.to_thread(_write, found.manifest, config, scratch, path)


def _file_name(digest: str) -> str:
    algorithm, _, hexdigest = digest.partition(":")
    if algorithm != "sha256":
        raise CommandError(f"{digest[:20]}… is no digest that an archive can have (sha256)")
    return hexdigest


def _write(manifest: Manifest, config: bytes, scratch: Path, path: Path) -> None:
    try:
        labels = labels_of(parse_config(config))
    except XpkgError as error:
        raise CommandError(f"{error}; is this an image?") from error
    layers = [
        Blob(each.digest, each.size, each.media_type, layer_annotations(labels, each.digest))
        for each in manifest.layers
    ]
    described = Blob(manifest.config.digest, len(config), MEDIA_TYPE_CONFIG)
    kept: PushManifest | None = None
    if push_manifest(described, layers).digest != manifest.descriptor.digest:
        of_image = manifest.descriptor
        kept = PushManifest(manifest.raw, of_image.digest, of_image.media_type)
    with replacing(path) as out, ExitStack() as stack:
        files = [scratch / _file_name(layer.digest) for layer in layers]
        streams = [stack.enter_context(file.open("rb")) for file in files]
        write_archive(out, config, zip(layers, streams, strict=True), kept)


async def save_contents(found: RemoteImage, stream: Path, examples: Path | None) -> bool:
    """Write what a package holds to files, without the layers that hold none of it.

    Args:
        found: the image.
        stream: where package.yaml goes.
        examples: where its examples go; None to leave them.

    Returns:
        Whether there were examples.

    Raises:
        XpkgError: the image is no package.
        RegistryError: the registry could not give it.
    """
    with tempfile.TemporaryDirectory(prefix="crossdock-pull-") as folder:
        scratch = Path(folder)
        layers = await _annotated(found, scratch)
        search = Search(layers)
        if not await _search(found, search, scratch, stream):
            raise search.missing()
        more = examples_search(layers) if examples is not None else None
        if more is None or examples is None:
            return False
        try:
            return await _search(found, more, scratch, examples)
        except PackageNotFound:
            return False


async def _annotated(found: RemoteImage, scratch: Path) -> Sequence[Descriptor]:
    """Return the layers with the annotations that other tools may have lost on their way."""
    layers = found.manifest.layers
    if any(layer.annotations.get(LAYER_ANNOTATION) == BASE for layer in layers):
        return layers
    try:
        labels = labels_of(parse_config(await found.configuration(scratch)))
    except XpkgError:
        return layers
    return [
        replace(layer, annotations={**layer.annotations, **layer_annotations(labels, layer.digest)})
        for layer in layers
    ]


async def _search(
    found: RemoteImage, search: Search[Descriptor], scratch: Path, destination: Path
) -> bool:
    blob = scratch / "layer"
    for layer in search.layers:
        await found.download(layer, blob)
        if await asyncio.to_thread(search.read, layer, blob, destination) is not None:
            return True
    return False
