"""Archives: the images in ``.xpkg`` files, in other archives of images and in OCI layouts.

A ``.xpkg`` file is an archive of ``docker save`` with one untagged image. One that came from a
registry also is an OCI layout when its manifest is another one than a push would make of it.

Source: Docker image specification v1.2; OCI image specification ("Image Layout"); Crossplane's
``xpkg build`` (entry names and order).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import orjson

from controller.model.kinds import is_meta
from controller.model.manifest import ManifestError, iter_documents
from controller.model.objects import JsonObject
from controller.xpkg import image, layout, tar
from controller.xpkg.compression import STEP_BYTES
from controller.xpkg.contents import INDEX_FILE, docker_images, read_docker_archive
from controller.xpkg.errors import MalformedPackage, PackageNotFound, XpkgError
from controller.xpkg.files import Hashing
from controller.xpkg.folder import Folder
from controller.xpkg.image import Blob, PushManifest
from controller.xpkg.locate import STREAM_FILE, Search, examples_search
from controller.xpkg.members import Members

EXTENSION: Final = ".xpkg"

_HASHED: Final = "blobs/sha256/"


def find_xpkg(folder: Path) -> Path:
    """Return the only package file of a folder; subfolders are not searched.

    Raises:
        PackageNotFound: there is none, or more than one.
        OSError: the folder cannot be read.
    """
    found = sorted(p for p in folder.iterdir() if p.name.endswith(EXTENSION) and p.is_file())
    if not found:
        raise PackageNotFound("directory does not contain a compiled crossplane package")
    if len(found) > 1:
        raise PackageNotFound("directory contains multiple compiled crossplane packages")
    return found[0]


def build_path(folder: Path, name: str, extension: str = EXTENSION) -> Path:
    """Return a path with an extension in the place of the one it has, if any.

    Args:
        folder: where the file goes.
        name: its name; empty for the folder's own path.
        extension: with the dot.

    Source: Crossplane's BuildPath.
    """
    path = folder / name if name else folder
    return path.with_name(path.stem + extension)


def write_archive(
    out: BinaryIO,
    config: bytes,
    layers: Iterable[tuple[Blob, BinaryIO]],
    manifest: PushManifest | None = None,
) -> None:
    """Write an image as an archive whose bytes depend on the image alone.

    Args:
        out: takes the archive.
        config: the image's configuration.
        layers: each layer with a stream of its stored bytes, the lowest first.
        manifest: the image's own, to be kept in an OCI layout in the same archive; None for none.
    """
    described = Blob(image.digest_of(config), len(config), image.MEDIA_TYPE_CONFIG)
    config_name = f"{_HASHED}{described.hex}" if manifest else described.digest
    _write_entry(out, config_name, len(config), [config])
    names: list[str] = []
    for blob, stream in layers:
        name = f"{_HASHED}{blob.hex}" if manifest else f"{blob.hex}.tar{_extension(blob)}"
        if name not in names:
            _write_entry(out, name, blob.size, _parts(stream))
        names.append(name)
    if manifest is not None:
        hexdigest = manifest.digest.removeprefix("sha256:")
        _write_entry(out, f"{_HASHED}{hexdigest}", len(manifest.raw), [manifest.raw])
        index = image.push_index([(manifest, {})]).raw
        _write_entry(out, layout.LAYOUT_INDEX, len(index), [index])
        _write_entry(out, layout.LAYOUT_FILE, len(_LAYOUT), [_LAYOUT])
    entries = image.archive_index(config_name, names)
    _write_entry(out, INDEX_FILE, len(entries), [entries])
    out.write(tar.END)


_LAYOUT: Final = orjson.dumps({"imageLayoutVersion": "1.0.0"})


def _extension(blob: Blob) -> str:
    return {"+gzip": ".gz", ".gzip": ".gz", "+zstd": ".zst"}.get(blob.media_type[-5:], "")


def _parts(stream: BinaryIO) -> Iterator[bytes]:
    while part := stream.read(STEP_BYTES):
        yield part


def _write_entry(out: BinaryIO, name: str, size: int, content: Iterable[bytes]) -> None:
    out.write(tar.header(name, size))
    out.writelines(content)
    out.write(tar.padding(size))


def images_in(path: Path) -> tuple[str, ...]:
    """Return what to call each image of a file or folder, for ``Archive``. Blocks.

    Raises:
        MalformedPackage: it holds no images.
        OSError: it cannot be read.
    """
    members = _members(path)
    try:
        members.index()
        is_layout = layout.is_layout(members)
        return layout.layout_images(members) if is_layout else docker_images(members)
    except MalformedPackage as error:
        raise _no_package(path, error) from error
    finally:
        members.close()


def _members(path: Path) -> Members:
    return Folder(path) if path.is_dir() else Members(path)


def _no_package(path: Path, error: MalformedPackage) -> MalformedPackage:
    return type(error)(f"{path.name} is no package file: {error}; {error.remedy}")


class Archive:
    """One image in a file or folder, every blob of it checked. A context manager.

    Attributes:
        path: the file.
        config: its configuration blob.
        config_raw: that blob's bytes.
        config_json: what they say.
        layers: the lowest first, with the annotations they get at push time.
    """

    def __init__(self, path: Path, choice: str = "") -> None:
        """Read and check a file. Blocks; call it in a thread.

        Args:
            path: an archive of ``docker save`` or an OCI layout, plain or compressed, or the folder
                of an OCI layout.
            choice: which of its images: a digest, a tag or a platform (``os/architecture``); empty
                for the only one, or that of linux/amd64.

        Raises:
            MalformedPackage: it is nothing of the kind, or what it says about its blobs is not
                true.
            OSError: it cannot be read.
        """
        self.path = path
        self._members = _members(path)
        try:
            self._members.index()
            is_layout = layout.is_layout(self._members)
            read = layout.read_layout if is_layout else read_docker_archive
            contents = read(self._members, choice)
        except MalformedPackage as error:
            self.close()
            raise _no_package(path, error) from error
        except BaseException:
            self.close()
            raise
        self.config = contents.config
        self.config_raw = contents.config_raw
        self.config_json: Mapping[str, Any] = contents.config_json
        self.layers = contents.layers
        self._places = contents.places
        self._stored = contents.manifest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._members.close()

    @property
    def blobs(self) -> tuple[Blob, ...]:
        """Layers and configuration, each once, in the order in which to push them."""
        return tuple({blob.digest: blob for blob in (*self.layers, self.config)}.values())

    @property
    def platform(self) -> dict[str, str]:
        """What the image runs on, by OCI's names; empty for any."""
        return image.platform_of(self.config_json)

    def manifest(self, *, docker: bool = False) -> PushManifest:
        """Return the manifest under which this image is pushed.

        The one that is stored with the image stays as it is when its layers carry the annotations
        that its configuration asks for.

        Args:
            docker: with Docker's media types instead of OCI's.

        Raises:
            XpkgError: Docker's manifests have no type for a layer.
        """
        if docker:
            try:
                return image.docker_manifest(self.config, self.layers)
            except KeyError as error:
                raise XpkgError(
                    f"{self.path.name} has a layer of the type {error.args[0]}, for which Docker "
                    "has no type; push it with OCI's media types"
                ) from error
        if self._stored is not None:
            return image.with_layer_annotations(self._stored, self.layers)
        return image.push_manifest(self.config, self.layers)

    def extract(self, blob: Blob, destination: Path) -> None:
        """Write a blob to a file. Blocks; call it in a thread.

        Raises:
            MalformedPackage: the archive changed since it was opened.
            OSError: a file cannot be read or written.
        """
        with destination.open("wb") as out:
            hashing = Hashing(out)
            for part in self._members.chunks(self._places[blob.digest]):
                hashing.write(part)
        if hashing.digest != blob.digest:
            destination.unlink()
            raise MalformedPackage(f"{self.path.name} changed while it was read")

    def stream(self, destination: Path) -> None:
        """Write the package's package.yaml to a file. Blocks; call it in a thread.

        Raises:
            XpkgError: there is none, or it is damaged.
            OSError: a file cannot be read or written.
        """
        search = Search(self.layers)
        if not self._search(search, destination):
            raise search.missing()

    def examples(self, destination: Path) -> bool:
        """Write the package's examples to a file, if it has any. Blocks; call it in a thread.

        Returns:
            Whether there are any.

        Raises:
            XpkgError: they are damaged.
            OSError: a file cannot be read or written.
        """
        search = examples_search(self.layers)
        try:
            return search is not None and self._search(search, destination)
        except PackageNotFound:
            return False

    def _search(self, search: Search[Blob], destination: Path) -> bool:
        with tempfile.TemporaryDirectory(prefix="crossdock-") as scratch:
            layer_file = Path(scratch) / "layer"
            for layer in search.layers:
                self.extract(layer, layer_file)
                if search.read(layer, layer_file, destination) is not None:
                    return True
        return False

    def meta(self) -> JsonObject:
        """Return the metadata object of the package. Blocks; call it in a thread.

        Raises:
            XpkgError: no or a damaged package.yaml, or no metadata in it.
            OSError: a file cannot be read or written.
        """
        with tempfile.TemporaryDirectory(prefix="crossdock-") as scratch:
            stream_file = Path(scratch) / STREAM_FILE
            self.stream(stream_file)
            with stream_file.open("rb") as stream:
                return first_meta(stream)


def first_meta(stream: BinaryIO) -> JsonObject:
    """Return the first metadata object of a package.yaml.

    Raises:
        XpkgError: there is none, or the YAML before it is damaged.
    """
    try:
        for document in iter_documents(stream, source=STREAM_FILE):
            value = document.value
            if is_meta(str(value.get("apiVersion")), str(value.get("kind"))):
                return value
    except ManifestError as error:
        raise MalformedPackage(str(error)) from error
    raise XpkgError(f"{STREAM_FILE} holds no package metadata")
