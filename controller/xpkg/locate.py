"""Locating package.yaml: which layers of an image are read, and what a layer says about the file.

The layer annotated as the package's base is read alone; without one, layers are read from the top
until one holds the file or deletes it. Only verified layers may be given to these functions.

Source: Crossplane's xpkg specification (annotation ``io.crossplane.xpkg: base``); the OCI image
specification, "Filesystem changeset" (whiteouts hide files of lower layers only).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Generic, Protocol, TypeVar

from controller.xpkg.compression import Reader
from controller.xpkg.errors import LimitExceeded, MalformedPackage, PackageNotFound
from controller.xpkg.tar import Entry, TarReader, clean_name, shown_name

STREAM_FILE: Final = "package.yaml"
LAYER_ANNOTATION: Final = "io.crossplane.xpkg"
BASE: Final = "base"
EXAMPLES: Final = "upbound"

_OCI: Final = "application/vnd.oci.image.layer."
_DOCKER: Final = "application/vnd.docker.image.rootfs."
LAYER_TYPES: Final = frozenset(
    {
        *(f"{_OCI}{a}v1.tar{b}" for a in ("", "nondistributable.") for b in ("", "+gzip", "+zstd")),
        *(f"{_DOCKER}{a}diff.tar{b}" for a in ("", "foreign.") for b in ("", ".gzip")),
    }
)

PACKAGE_BYTES_MAX: Final = 200 * 2**20
IMAGE_BYTES_MAX: Final = 4 * 2**30
_NESTED_MAX: Final = 5

_STREAM_NAME: Final = STREAM_FILE.encode()
_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"


class Layer(Protocol):
    """What is known of a layer before it is read."""

    @property
    def media_type(self) -> str:
        """The type that the manifest states."""

    @property
    def annotations(self) -> Mapping[str, str]:
        """The annotations of its descriptor."""


_L = TypeVar("_L", bound=Layer)


@dataclass(frozen=True, slots=True)
class Found:
    """package.yaml as it was read: its bytes and their SHA-256 (hex)."""

    size: int
    sha256: str


class Search(Generic[_L]):
    """The search for package.yaml in one image.

    Read ``layers`` in their order, each with ``read``, until one returns something; when none does,
    raise what ``missing`` returns.

    Attributes:
        layers: those that may have to be read, in reading order.
        annotated: whether the image names its package layer.
        warnings: what is odd about the image.
    """

    def __init__(
        self,
        layers: Sequence[_L],
        *,
        package_limit: int = PACKAGE_BYTES_MAX,
        image_limit: int = IMAGE_BYTES_MAX,
    ) -> None:
        """Decide which layers to read.

        Args:
            layers: the image's layers, the lowest first.
            package_limit: bytes of package.yaml.
            image_limit: uncompressed bytes of all layers that are read.

        Raises:
            MalformedPackage: a layer to read is of a type that no image layer has.
        """
        base = [layer for layer in layers if layer.annotations.get(LAYER_ANNOTATION) == BASE]
        self.annotated = bool(base)
        self.layers: tuple[_L, ...] = (base[0],) if base else tuple(reversed(layers))
        self.warnings: tuple[str, ...] = ()
        if len(base) > 1:
            self.warnings = (f"{len(base)} layers are annotated as base; the first is used",)
        for layer in self.layers:
            if layer.media_type.partition(";")[0].strip() not in LAYER_TYPES:
                raise MalformedPackage(
                    f"has a layer of the type {layer.media_type[:100]!r}, which is no image layer; "
                    "is this image a Crossplane package?"
                )
        self._package_limit = package_limit
        self._left = image_limit
        self._limit = f"{image_limit} bytes, uncompressed and with the layers above it"
        self._nested: list[bytes] = []

    def read(self, layer: _L, blob: Path, destination: Path) -> Found | None:
        """Look for package.yaml in one layer and write it out. Blocks; call it in a thread.

        Args:
            layer: one of ``layers``.
            blob: its file; size and digest already verified.
            destination: where package.yaml goes; replaced, and absent when nothing is returned.

        Returns:
            What was found; None when a lower layer has to be asked.

        Raises:
            PackageNotFound: this layer deletes the file.
            MalformedPackage: the layer is damaged, or its package.yaml is ambiguous, empty or no
                regular file.
            LimitExceeded: the file or the image is too large.
            OSError: a file cannot be read or written.
        """
        number = len(self.layers) - self.layers.index(layer)
        try:
            with blob.open("rb") as stream:
                reader = Reader(stream, budget=self._left, limit=self._limit)
                scan = _Scan(destination, self._package_limit)
                scan.run(TarReader(reader))
            self._left -= reader.position
            self._nested += scan.nested[: _NESTED_MAX - len(self._nested)]
        except MalformedPackage as error:
            destination.unlink(missing_ok=True)
            raise type(error)(self._where(number, str(error))) from error
        if scan.found is None and scan.deleted:
            raise PackageNotFound(self._where(number, f"{STREAM_FILE} is deleted by this layer"))
        return scan.found

    def _where(self, number: int, cause: str) -> str:
        return f"{'base layer' if self.annotated else f'layer {number}'}: {cause}"

    def missing(self) -> PackageNotFound:
        """Return the error for an image none of whose layers holds the file."""
        if not self.layers:
            return PackageNotFound(
                f"no {STREAM_FILE}: the image is entirely empty, it has no layers; "
                "was a package pushed here?"
            )
        where = "the layer annotated as base" if self.annotated else "the image's root directory"
        text = f"no {STREAM_FILE} in {where}"
        if self._nested:
            names = ", ".join(shown_name(name) for name in self._nested)
            text += f"; found elsewhere, where it does not count: {names}"
        return PackageNotFound(f"{text}; is this image a Crossplane package?")


class _Scan:
    """One pass over a layer: everything it says about package.yaml, in whatever order."""

    def __init__(self, destination: Path, limit: int) -> None:
        self.found: Found | None = None
        self.deleted = False
        self.nested: list[bytes] = []
        self._destination = destination
        self._limit = limit
        self._other = ""

    def run(self, archive: TarReader) -> None:
        for entry in archive:
            name = clean_name(entry.name)
            if name == _STREAM_NAME:
                self._take(entry, archive)
            else:
                self._note(entry, name)
        if self._other and self.found is None:
            raise MalformedPackage(f"{STREAM_FILE} is a {self._other}, must be a regular file")

    def _note(self, entry: Entry, name: bytes) -> None:
        folder, _, base = name.rpartition(b"/")
        if base == _WHITEOUT:
            raise MalformedPackage("holds a deletion mark without a name")
        if base == _STREAM_NAME and entry.is_file and len(self.nested) < _NESTED_MAX:
            self.nested.append(name)
        if not folder and base in (_OPAQUE, _WHITEOUT + _STREAM_NAME):
            self.deleted = True

    def _take(self, entry: Entry, archive: TarReader) -> None:
        if not entry.is_file:
            self._other = entry.type_name
            return
        if entry.size > self._limit:
            raise LimitExceeded(
                f"{STREAM_FILE} has {entry.size} bytes, more than the {self._limit} that are read"
            )
        if entry.size == 0:
            raise MalformedPackage(f"{STREAM_FILE} is empty")
        if self.found is None:
            with self._destination.open("wb") as out:
                self.found = _copy(archive, out)
                out.flush()
                os.fsync(out.fileno())
        elif self.found != _copy(archive, None):
            raise MalformedPackage(f"{STREAM_FILE} occurs twice with different content")


def _copy(archive: TarReader, out: BinaryIO | None) -> Found:
    digest = hashlib.sha256()
    size = 0
    for chunk in archive.chunks():
        digest.update(chunk)
        size += len(chunk)
        if out is not None:
            out.write(chunk)
    return Found(size, digest.hexdigest())
