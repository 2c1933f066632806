"""Locating package.yaml: which layers of an image are read, and what a layer says about the file.

The layer annotated as the package's base is read alone; without one, layers are read from the top
until one holds the file or deletes it. Examples are looked for in the same way, in a layer of
their own. Only verified layers may be given to these functions.

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
EXAMPLES_FILE: Final = ".up/examples.yaml"

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
    """A file as it was read: its bytes and their SHA-256 (hex)."""

    size: int
    sha256: str


class Search(Generic[_L]):
    """The search for one file of a package, package.yaml unless told otherwise, in one image.

    Read ``layers`` in their order, each with ``read``, until one returns something; when none does,
    raise what ``missing`` returns.

    Attributes:
        layers: those that may have to be read, in reading order.
        annotated: whether the image names the layer that holds the file.
        warnings: what is odd about the image.
    """

    def __init__(
        self,
        layers: Sequence[_L],
        *,
        file: str = STREAM_FILE,
        role: str = BASE,
        package_limit: int = PACKAGE_BYTES_MAX,
        image_limit: int = IMAGE_BYTES_MAX,
    ) -> None:
        """Decide which layers to read.

        Args:
            layers: the image's layers, the lowest first.
            file: the path to look for, from the image's root.
            role: what the annotation of the layer that holds it says.
            package_limit: bytes of the file.
            image_limit: uncompressed bytes of all layers that are read.

        Raises:
            MalformedPackage: a layer to read is of a type that no image layer has.
        """
        base = [layer for layer in layers if layer.annotations.get(LAYER_ANNOTATION) == role]
        self.annotated = bool(base)
        self.layers: tuple[_L, ...] = (base[0],) if base else tuple(reversed(layers))
        self.warnings: tuple[str, ...] = ()
        if len(base) > 1:
            self.warnings = (f"{len(base)} layers are annotated as {role}; the first is used",)
        for layer in self.layers:
            if layer.media_type.partition(";")[0].strip() not in LAYER_TYPES:
                raise MalformedPackage(
                    f"has a layer of the type {layer.media_type[:100]!r}, which is no image layer; "
                    "is this image a Crossplane package?"
                )
        self._file = file
        self._role = role
        self._package_limit = package_limit
        self._left = image_limit
        self._limit = f"{image_limit} bytes, uncompressed and with the layers above it"
        self._nested: list[bytes] = []

    def read(self, layer: _L, blob: Path, destination: Path) -> Found | None:
        """Look for the file in one layer and write it out. Blocks; call it in a thread.

        Args:
            layer: one of ``layers``.
            blob: its file; size and digest already verified.
            destination: where the file goes; replaced, and absent when nothing is returned.

        Returns:
            What was found; None when a lower layer has to be asked.

        Raises:
            PackageNotFound: this layer deletes the file.
            MalformedPackage: the layer is damaged, or the file in it is ambiguous, empty or not
                regular.
            LimitExceeded: the file or the image is too large.
            OSError: a file cannot be read or written.
        """
        number = len(self.layers) - self.layers.index(layer)
        try:
            with blob.open("rb") as stream:
                reader = Reader(stream, budget=self._left, limit=self._limit)
                scan = _Scan(self._file, destination, self._package_limit)
                scan.run(TarReader(reader))
            self._left -= reader.position
            self._nested += scan.nested[: _NESTED_MAX - len(self._nested)]
        except MalformedPackage as error:
            destination.unlink(missing_ok=True)
            raise type(error)(self._where(number, f"{error}; {error.remedy}")) from error
        if scan.found is None and scan.deleted:
            raise PackageNotFound(self._where(number, f"{self._file} is deleted by this layer"))
        return scan.found

    def _where(self, number: int, cause: str) -> str:
        return f"{f'{self._role} layer' if self.annotated else f'layer {number}'}: {cause}"

    def missing(self) -> PackageNotFound:
        """Return the error for an image none of whose layers holds the file."""
        if not self.layers:
            return PackageNotFound(
                f"no {self._file}: the image is entirely empty, it has no layers; "
                "was a package pushed here?"
            )
        root = "the image's root directory"
        where = f"the layer annotated as {self._role}" if self.annotated else root
        text = f"no {self._file} in {where}"
        if self._nested:
            names = ", ".join(shown_name(name) for name in self._nested)
            text += f"; found elsewhere, where it does not count: {names}"
        return PackageNotFound(f"{text}; is this image a Crossplane package?")


def examples_search(layers: Sequence[_L]) -> Search[_L] | None:
    """Return the search for a package's examples; None when the image says that it has none.

    ``Search.read`` raises PackageNotFound where a layer deletes them: there are none, then.

    Args:
        layers: the image's layers, the lowest first.

    Raises:
        MalformedPackage: a layer to read is of a type that no image layer has.
    """
    roles = {layer.annotations.get(LAYER_ANNOTATION) for layer in layers}
    if BASE in roles and EXAMPLES not in roles:
        return None
    return Search(layers, file=EXAMPLES_FILE, role=EXAMPLES)


class _Scan:
    """One pass over a layer: everything it says about one file, in whatever order."""

    def __init__(self, file: str, destination: Path, limit: int) -> None:
        self.found: Found | None = None
        self.deleted = False
        self.nested: list[bytes] = []
        self._file = file
        self._name = file.encode()
        parts = self._name.split(b"/")
        self._folders = frozenset(b"/".join(parts[:count]) for count in range(len(parts)))
        self._base = parts[-1]
        self._destination = destination
        self._limit = limit
        self._other = ""

    def run(self, archive: TarReader) -> None:
        for entry in archive:
            name = clean_name(entry.name)
            if name == self._name:
                self._take(entry, archive)
            else:
                self._note(entry, name)
        if self._other and self.found is None:
            raise MalformedPackage(f"{self._file} is a {self._other}, must be a regular file")

    def _note(self, entry: Entry, name: bytes) -> None:
        folder, _, base = name.rpartition(b"/")
        if base == _WHITEOUT:
            raise MalformedPackage("holds a deletion mark without a name")
        if base == self._base and entry.is_file and len(self.nested) < _NESTED_MAX:
            self.nested.append(name)
        if base == _OPAQUE:
            self.deleted |= folder in self._folders
        elif base.startswith(_WHITEOUT):
            hidden = base.removeprefix(_WHITEOUT)
            hidden = folder + b"/" + hidden if folder else hidden
            self.deleted |= hidden == self._name or hidden in self._folders
        elif name in self._folders and name:
            self.deleted |= entry.type_name != "directory"

    def _take(self, entry: Entry, archive: TarReader) -> None:
        if not entry.is_file:
            self._other = entry.type_name
            return
        if entry.size > self._limit:
            raise LimitExceeded(
                f"{self._file} has {entry.size} bytes, more than the {self._limit} that are read"
            )
        if entry.size == 0:
            raise MalformedPackage(f"{self._file} is empty")
        if self.found is None:
            with self._destination.open("wb") as out:
                self.found = _copy(archive, out)
                out.flush()
                os.fsync(out.fileno())
        elif self.found != _copy(archive, None):
            raise MalformedPackage(f"{self._file} occurs twice with different content")


def _copy(archive: TarReader, out: BinaryIO | None) -> Found:
    digest = hashlib.sha256()
    size = 0
    for chunk in archive.chunks():
        digest.update(chunk)
        size += len(chunk)
        if out is not None:
            out.write(chunk)
    return Found(size, digest.hexdigest())
