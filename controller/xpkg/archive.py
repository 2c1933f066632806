"""Archives: ``.xpkg`` files, which are archives of ``docker save`` with one untagged image.

Source: Docker image specification v1.2; Crossplane's ``xpkg build`` (entry names and order).
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self

import orjson

from controller.model.kinds import is_meta
from controller.model.manifest import ManifestError, iter_documents, shown
from controller.model.objects import JsonObject
from controller.xpkg import image, tar
from controller.xpkg.compression import STEP_BYTES, Reader
from controller.xpkg.errors import MalformedPackage, PackageNotFound, XpkgError
from controller.xpkg.image import Blob, PushManifest
from controller.xpkg.locate import IMAGE_BYTES_MAX, STREAM_FILE, Search
from controller.xpkg.members import Member, Members

EXTENSION: Final = ".xpkg"
INDEX_FILE: Final = "manifest.json"
LAYERS_MAX: Final = 127

_NAMED_BY_HASH = re.compile(
    r"(?:sha256:|blobs/sha256/)(?P<a>[0-9a-f]{64})|(?P<b>[0-9a-f]{64})\.(?:tar|json)[.a-z]*"
)


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


def write_archive(out: BinaryIO, config: bytes, layers: Iterable[tuple[Blob, BinaryIO]]) -> None:
    """Write an image as an archive whose bytes depend on the image alone.

    Args:
        out: takes the archive.
        config: the image's configuration.
        layers: each layer with a stream of its stored bytes, the lowest first.
    """
    described = Blob(image.digest_of(config), len(config), image.MEDIA_TYPE_CONFIG)
    _write_entry(out, described.digest, len(config), [config])
    names: list[str] = []
    for blob, stream in layers:
        name = f"{blob.hex}.tar{_EXTENSIONS[blob.media_type]}"
        if name not in names:
            _write_entry(out, name, blob.size, _parts(stream))
        names.append(name)
    index = image.archive_index(described, names)
    _write_entry(out, INDEX_FILE, len(index), [index])
    out.write(tar.END)


_EXTENSIONS: Final = {
    image.MEDIA_TYPE_LAYER: "",
    image.MEDIA_TYPE_LAYER + "+gzip": ".gz",
    image.MEDIA_TYPE_LAYER + "+zstd": ".zst",
}


def _parts(stream: BinaryIO) -> Iterator[bytes]:
    while part := stream.read(STEP_BYTES):
        yield part


def _write_entry(out: BinaryIO, name: str, size: int, content: Iterable[bytes]) -> None:
    out.write(tar.header(name, size))
    out.writelines(content)
    out.write(tar.padding(size))


class Archive:
    """One image in a ``.xpkg`` file, every blob of it checked. A context manager.

    Attributes:
        path: the file.
        config: its configuration blob.
        config_raw: that blob's bytes.
        layers: the lowest first, with the annotations they get at push time.
    """

    def __init__(self, path: Path) -> None:
        """Read and check a file. Blocks; call it in a thread.

        Args:
            path: an archive of ``docker save``, plain or compressed.

        Raises:
            MalformedPackage: it is no such archive, or what it says about its blobs is not true.
            OSError: it cannot be read.
        """
        self.path = path
        self._members = Members(path)
        try:
            self._read()
        except MalformedPackage as error:
            self.close()
            raise type(error)(f"{path.name} is no package file: {error}") from error
        except BaseException:
            self.close()
            raise

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

    def manifest(self) -> PushManifest:
        """Return the manifest under which this image is pushed."""
        return image.push_manifest(self.config, self.layers)

    def extract(self, blob: Blob, destination: Path) -> None:
        """Write a blob to a file. Blocks; call it in a thread.

        Raises:
            MalformedPackage: the archive changed since it was opened.
            OSError: a file cannot be read or written.
        """
        digest = hashlib.sha256()
        with destination.open("wb") as out:
            for part in self._members.chunks(self._places[blob.digest]):
                digest.update(part)
                out.write(part)
        if f"sha256:{digest.hexdigest()}" != blob.digest:
            destination.unlink()
            raise MalformedPackage(f"{self.path.name} changed while it was read")

    def meta(self) -> JsonObject:
        """Return the metadata object of the package. Blocks; call it in a thread.

        Raises:
            XpkgError: no or a damaged package.yaml, or no metadata in it.
            OSError: a file cannot be read or written.
        """
        with tempfile.TemporaryDirectory(prefix="crossdock-") as scratch:
            layer_file, stream_file = Path(scratch) / "layer", Path(scratch) / STREAM_FILE
            search = Search(self.layers)
            for layer in search.layers:
                self.extract(layer, layer_file)
                if search.read(layer, layer_file, stream_file) is not None:
                    break
            else:
                raise search.missing()
            with stream_file.open("rb") as stream:
                return _first_meta(stream)

    def _read(self) -> None:
        self._members.index()
        entry = self._index_entry()
        self.config_raw = self._members.bytes_of(_text(entry, "Config"))
        self.config = Blob(
            self._checked_digest(entry["Config"], self.config_raw),
            len(self.config_raw),
            image.MEDIA_TYPE_CONFIG,
        )
        config = _json(self.config_raw, "the configuration")
        names = entry.get("Layers") or []
        diff_ids = _dict(_dict(config).get("rootfs")).get("diff_ids") or []
        if not isinstance(names, list) or len(names) > LAYERS_MAX:
            raise MalformedPackage(f"{INDEX_FILE} lists no layers, or more than {LAYERS_MAX}")
        if not isinstance(diff_ids, list) or len(diff_ids) != len(names):
            raise MalformedPackage("the configuration does not list the layers of the archive")
        labels = _dict(_dict(config.get("config")).get("Labels"))
        self._places: dict[str, Member] = {self.config.digest: self._members.find(entry["Config"])}
        pairs = zip(names, diff_ids, strict=True)
        self.layers = tuple(self._layer(name, diff_id, labels) for name, diff_id in pairs)

    def _index_entry(self) -> Mapping[str, Any]:
        if INDEX_FILE not in self._members:
            hint = ""
            if "oci-layout" in self._members:
                hint = "; an OCI layout is not read, save it as a docker archive"
            raise MalformedPackage(f"file {INDEX_FILE} not found in tar{hint}")
        index = _json(self._members.bytes_of(INDEX_FILE), INDEX_FILE)
        if not isinstance(index, list) or len(index) != 1 or not isinstance(index[0], dict):
            raise MalformedPackage("it must contain exactly one image")
        return index[0]

    def _layer(self, name: Any, diff_id: Any, labels: Mapping[str, str]) -> Blob:
        if not isinstance(name, str):
            raise MalformedPackage(f"{INDEX_FILE} has a layer without a name")
        member = self._members.find(name)
        stored = hashlib.sha256()
        for part in self._members.chunks(member):
            stored.update(part)
        _same_hash(name, stored.hexdigest())
        plain = hashlib.sha256()
        try:
            stream = self._members.open(member)
            reader = Reader(stream, budget=IMAGE_BYTES_MAX, limit=f"{IMAGE_BYTES_MAX} bytes")
            while part := reader.read(STEP_BYTES):
                plain.update(part)
        except MalformedPackage as error:
            raise type(error)(f"layer {shown(name)} {error}") from error
        if diff_id != f"sha256:{plain.hexdigest()}":
            raise MalformedPackage(f"layer {shown(name)} is not the one the configuration lists")
        digest = f"sha256:{stored.hexdigest()}"
        self._places[digest] = member
        media_type = image.MEDIA_TYPE_LAYER + image.LAYER_SUFFIXES[reader.compression]
        return Blob(digest, member.size, media_type, image.layer_annotations(labels, digest))

    def _checked_digest(self, name: str, data: bytes) -> str:
        digest = image.digest_of(data)
        _same_hash(name, digest.removeprefix("sha256:"))
        return digest


def _same_hash(name: str, hexdigest: str) -> None:
    """Refuse content that is not what a name made of a hash promises."""
    found = _NAMED_BY_HASH.fullmatch(name)
    if found is not None and hexdigest not in (found["a"], found["b"]):
        raise MalformedPackage(f"file {shown(name)} does not have the content its name promises")


def _json(data: bytes, what: str) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise MalformedPackage(f"{what} is no JSON: {error}") from error


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(entry: Mapping[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise MalformedPackage(f"{INDEX_FILE} has no {key}")
    return value


def _first_meta(stream: BinaryIO) -> JsonObject:
    try:
        for document in iter_documents(stream, source=STREAM_FILE):
            value = document.value
            if is_meta(str(value.get("apiVersion")), str(value.get("kind"))):
                return value
    except ManifestError as error:
        raise MalformedPackage(str(error)) from error
    raise XpkgError(f"{STREAM_FILE} holds no package metadata")
