"""Assemble: layers and a runtime image put together to a package image, and its file.

Source: Crossplane's ``xpkg build`` (layers of the package above those of the runtime image, labels
in the configuration); OCI image specification.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from controller.xpkg import image, tar
from controller.xpkg.archive import EXTENSION, Archive, write_archive
from controller.xpkg.compression import GZIP, PLAIN, STEP_BYTES, GzipWriter, Reader
from controller.xpkg.contents import LAYERS_MAX, diff_ids_of
from controller.xpkg.errors import BuildError
from controller.xpkg.files import Hashing, replacing
from controller.xpkg.image import Blob, PushManifest
from controller.xpkg.locate import IMAGE_BYTES_MAX

_FILE_NAME_PART: Final = 50
_DIGEST_PART: Final = 12
_PACKAGE_LAYERS: Final = 2


@dataclass(frozen=True, slots=True)
class NewLayer:
    """A layer in a file of its own.

    Attributes:
        path: its file.
        blob: digest, size, type and annotations.
        diff_id: the digest of its plain bytes.
        role: what it is for the package, empty for a layer of the runtime image.
    """

    path: Path
    blob: Blob
    diff_id: str
    role: str = ""


def file_name(name: str, digest: str) -> str:
    """Return what the file of a package is called: ``<name>-<12 digits of the digest>.xpkg``."""
    short = digest.removeprefix("sha256:")[:_DIGEST_PART]
    return f"{name[:_FILE_NAME_PART].rstrip('-.')}-{short}{EXTENSION}"


def write_layer(
    path: Path, name: str, parts: Sequence[Path], role: str, compression: str
) -> NewLayer:
    """Write a layer with one file in it, whose content is that of other files in a row."""
    size = sum(part.stat().st_size for part in parts)
    with path.open("wb") as out:
        writer = _LayerWriter(out, compression)
        writer.write(tar.header(name, size))
        for part in parts:
            with part.open("rb") as stream:
                shutil.copyfileobj(stream, writer, STEP_BYTES)
        writer.write(tar.padding(size) + tar.END)
        return writer.finish(path, role)


class _LayerWriter:
    """Stores plain bytes as a layer and notes both digests."""

    def __init__(self, out: BinaryIO, compression: str) -> None:
        self._stored = Hashing(out)
        self._gzip = GzipWriter(self._stored) if compression == GZIP else None
        self._plain = Hashing(self._gzip or self._stored)

    def write(self, data: bytes, /) -> int:
        return self._plain.write(data)

    def finish(self, path: Path, role: str) -> NewLayer:
        suffix = image.LAYER_SUFFIXES[PLAIN]
        if self._gzip is not None:
            self._gzip.finish()
            suffix = image.LAYER_SUFFIXES[GZIP]
        annotations = {image.LAYER_LABEL: role} if role else {}
        media_type = image.MEDIA_TYPE_LAYER + suffix
        blob = Blob(self._stored.digest, self._stored.size, media_type, annotations)
        return NewLayer(path, blob, self._plain.digest, role)


def runtime_layers(runtime: Archive, scratch: Path, compression: str) -> list[NewLayer]:
    """Return the layers of a runtime image, all of one compression, in files.

    Those that are compressed in another way are written anew: readers of archives expect all layers
    to be like the first.

    Args:
        runtime: the image.
        scratch: an existing folder for the files.
        compression: ``gzip`` or ``plain``.

    Raises:
        BuildError: it has too many layers.
        XpkgError: it changed meanwhile.
        OSError: a file cannot be read or written.
    """
    if len(runtime.layers) > LAYERS_MAX - _PACKAGE_LAYERS:
        raise BuildError(
            f"{runtime.path.name} has {len(runtime.layers)} layers, more than the "
            f"{LAYERS_MAX - _PACKAGE_LAYERS} that leave room for the package; merge some of them"
        )
    layers = []
    diff_ids = diff_ids_of(runtime.config_json, len(runtime.layers))
    for number, (blob, diff_id) in enumerate(zip(runtime.layers, diff_ids, strict=True)):
        path = scratch / f"runtime-{number}"
        runtime.extract(blob, path)
        layers.append(_runtime_layer(path, blob, str(diff_id), compression))
    return layers


def _runtime_layer(path: Path, blob: Blob, diff_id: str, compression: str) -> NewLayer:
    with path.open("rb") as stream:
        reader = Reader(stream, budget=IMAGE_BYTES_MAX, limit=f"{IMAGE_BYTES_MAX} bytes")
        if reader.compression == compression:
            media_type = image.MEDIA_TYPE_LAYER + image.LAYER_SUFFIXES[compression]
            return NewLayer(path, Blob(blob.digest, blob.size, media_type), diff_id)
        other = path.with_suffix(".new")
        with other.open("wb") as out:
            writer = _LayerWriter(out, compression)
            while part := reader.read(STEP_BYTES):
                writer.write(part)
            layer = writer.finish(other, "")
    path.unlink()
    return layer


class PackageImage:
    """The image of a package: its layers above those of a runtime image.

    Attributes:
        manifest: the one that a push makes of it.
    """

    def __init__(
        self,
        layers: Sequence[NewLayer],
        below: Sequence[NewLayer] = (),
        runtime: Mapping[str, Any] | None = None,
    ) -> None:
        """Put layers together.

        Args:
            layers: of the package.
            below: of the runtime image, the lowest first.
            runtime: its configuration; None for no runtime image.
        """
        self._layers = [*below, *layers]
        described = ((layer.blob.digest, layer.diff_id, layer.role) for layer in layers)
        self._config = image.config_bytes(described, runtime)
        digest = image.digest_of(self._config)
        config = Blob(digest, len(self._config), image.MEDIA_TYPE_CONFIG)
        blobs = [layer.blob for layer in self._layers]
        self.manifest: PushManifest = image.push_manifest(config, blobs)

    def write(self, path: Path) -> None:
        """Write the package's file.

        Raises:
            BuildError: it cannot be written.
        """
        try:
            with replacing(path) as out, ExitStack() as stack:
                streams = [stack.enter_context(each.path.open("rb")) for each in self._layers]
                pairs = zip((each.blob for each in self._layers), streams, strict=True)
                write_archive(out, self._config, pairs)
        except OSError as error:
            raise BuildError(f"failed to create package file: {path}: {error.strerror}") from error
