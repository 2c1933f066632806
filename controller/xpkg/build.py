"""Build: one package file from a folder of YAML files.

The same files give the same bytes wherever and by whomever they are built, with the same zlib.

Source: Crossplane's ``xpkg build`` and xpkg specification.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from controller.model import lint
from controller.model.content import ERROR_ONE_META, identify
from controller.model.kinds import is_meta
from controller.model.manifest import Document, ManifestError, iter_documents
from controller.model.objects import JsonObject
from controller.xpkg import image, tar
from controller.xpkg.archive import EXTENSION, write_archive
from controller.xpkg.compression import STEP_BYTES, GzipWriter
from controller.xpkg.errors import BuildError
from controller.xpkg.image import Blob
from controller.xpkg.locate import BASE, EXAMPLES, PACKAGE_BYTES_MAX, STREAM_FILE
from controller.xpkg.sources import Ignore, SourceFile, yaml_files

META_FILE: Final = "crossplane.yaml"
EXAMPLES_FOLDER: Final = "examples"
EXAMPLES_FILE: Final = ".up/examples.yaml"

_NAME_LENGTH_MAX: Final = 253
_FILE_NAME_PART: Final = 50
_DIGEST_PART: Final = 12
_LABEL: Final = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_SEPARATOR: Final = b"---\n"


@dataclass(frozen=True, slots=True)
class Built:
    """A package that was built.

    Attributes:
        path: its file.
        digest: the digest that a registry shows for it after a push.
        name: the name that its file begins with.
        warnings: what its author should know.
    """

    path: Path
    digest: str
    name: str
    warnings: tuple[str, ...] = ()


def build(
    root: Path,
    *,
    kind: str | None = None,
    name: str | None = None,
    ignore: Sequence[str] = (),
    output: Path | None = None,
) -> Built:
    """Make a package file from the YAML files of a folder. Blocks; call it in a thread.

    Takes every ``.yaml`` and ``.yml`` file below the root; those in ``examples`` are kept apart, as
    the package's examples. The file appears complete or not at all.

    Args:
        root: the folder.
        kind: Provider, Configuration or Function: what the package has to be; None for any.
        name: the file name's first part; None for the package's own name.
        ignore: paths or patterns to leave out, relative to the root; a folder with all it holds.
        output: the file to write; None for ``<root>/<name>-<12 digits of the digest>.xpkg``.

    Returns:
        The file and its digest.

    Raises:
        BuildError: what is wrong with the folder, all of it, or with the arguments.
    """
    root = root.absolute()
    ignored = Ignore(ignore, root)
    _check_name(name, "--name")
    files = yaml_files(root, Ignore([*ignore, EXAMPLES_FOLDER], root))
    has_examples = (root / EXAMPLES_FOLDER).is_dir() and not ignored.matches(EXAMPLES_FOLDER)
    examples = yaml_files(root, ignored, below=EXAMPLES_FOLDER) if has_examples else []
    try:
        with tempfile.TemporaryDirectory(prefix="crossdock-build-") as scratch:
            contents = _Contents(Path(scratch))
            contents.read_package(files)
            contents.read_examples(examples)
            meta = contents.check(kind, root, named=name is not None)
            layers = contents.layers(Path(scratch))
            return _write(root, name or _own_name(meta), output, layers, tuple(contents.warnings))
    except OSError as error:
        where = f"{tempfile.gettempdir()} (set TMPDIR to use another folder)"
        raise BuildError(f"cannot work in {where}: {error.strerror}") from error


def _check_name(name: str | None, what: str) -> None:
    if name is None:
        return
    if len(name) > _NAME_LENGTH_MAX or _NAME.fullmatch(name) is None:
        raise BuildError(
            f'{what} "{name}" is no name for a package: use lower-case letters, digits, "-" and '
            f'".", with a letter or digit at both ends of each part'
        )


def _own_name(meta: JsonObject) -> str:
    name = (meta.get("metadata") or {}).get("name") or ""
    if not name:
        raise BuildError(f"the package has no name: set metadata.name in {META_FILE}, or --name")
    _check_name(name, "metadata.name")
    return str(name)


class _Contents:
    """The documents of a package: read one by one, checked, and kept in files."""

    def __init__(self, scratch: Path) -> None:
        self.warnings: list[str] = []
        self._examples = scratch / "examples.yaml"
        self._has_examples = False
        self._objects = scratch / "objects.yaml"
        self._meta_file = scratch / "meta.yaml"
        self._metas: list[tuple[str, Document]] = []
        self._kinded: list[tuple[str, lint.Kinded]] = []
        self._places: dict[tuple[str, str, str], str] = {}
        self._faults: list[str] = []

    def read_package(self, files: Iterable[SourceFile]) -> None:
        with self._objects.open("wb") as objects:
            for file in files:
                self._read(file, objects)

    def _read(self, file: SourceFile, objects: BinaryIO) -> None:
        """Take the documents of one file; a fault ends that file, not the build."""
        try:
            with file.path.open("rb") as stream:
                for document in iter_documents(stream, source=file.relative):
                    self._take(file.relative, document, objects)
        except ManifestError as error:
            self._faults.append(str(error))
        except OSError as error:
            self._faults.append(f"{file.relative}: cannot read it: {error.strerror}")

    def _take(self, source: str, document: Document, objects: BinaryIO) -> None:
        self._faults += [f"{source}: {duplicate}" for duplicate in document.duplicates]
        api_version, kind, name = identify(document, source=source)
        if is_meta(api_version, kind):
            self._metas.append((source, document))
            return
        place = f"{source}: document {document.number}, line {document.line}"
        first = self._places.setdefault((api_version.partition("/")[0], kind, name), place)
        if first is not place:
            self._faults.append(f"{place}: {kind} {name} is already in {first}")
        self._kinded.append((place, lint.Kinded(api_version, kind)))
        objects.write(_normalised(document.text) + _SEPARATOR)

    def read_examples(self, files: Iterable[SourceFile]) -> None:
        with self._examples.open("wb") as examples:
            for file in files:
                try:
                    with file.path.open("rb") as stream:
                        for document in iter_documents(stream, source=file.relative):
                            examples.write(_SEPARATOR + _normalised(document.text))
                            self._has_examples = True
                except ManifestError as error:
                    self._faults.append(f"failed to parse examples: {error}")
                except OSError as error:
                    self._faults.append(f"{file.relative}: cannot read it: {error.strerror}")

    def check(self, kind: str | None, root: Path, *, named: bool) -> JsonObject:
        """Return the metadata object when nothing is wrong with the package."""
        if len(self._metas) == 1:
            source, document = self._metas[0]
            self._lint(source, document.value, kind or document.value["kind"])
            self._meta_file.write_bytes(_SEPARATOR + _normalised(document.text) + _SEPARATOR)
        elif not self._faults:
            self._faults.append(self._meta_fault(root, named=named))
        if self._faults:
            raise BuildError(*self._faults)
        if not self._kinded and self._metas[0][1].value["kind"] != "Function":
            self.warnings.append("the package holds no objects: nothing will be installed")
        size = self._meta_file.stat().st_size + self._objects.stat().st_size
        if size > PACKAGE_BYTES_MAX:
            raise BuildError(f"{STREAM_FILE} has {size} bytes, more than {PACKAGE_BYTES_MAX}")
        return self._metas[0][1].value

    def _lint(self, source: str, meta: JsonObject, kind: str) -> None:
        faults = [*lint.validate(kind, meta), *lint.dependency_faults(meta)]
        self._faults += [f"failed to lint package: {source}: {fault}" for fault in faults]
        if meta["kind"] != kind:
            return
        for place, kinded in self._kinded:
            fault = lint.lint_object(kind, kinded)
            if fault is not None:
                text = f"{place}: {kinded.kind} does not belong into a {kind} package"
                self._faults.append(f"failed to lint package: {text}: {fault}")

    def _meta_fault(self, root: Path, *, named: bool) -> str:
        fault = f"failed to lint package: {ERROR_ONE_META}"
        if self._metas:
            found = ", ".join(f"{source} document {d.number}" for source, d in self._metas)
            return f"{fault}: {found}"
        path = root / META_FILE
        if path.exists():
            return f"{fault}: {META_FILE} describes no Provider, Configuration or Function"
        if named:
            return f"{fault}: {path} does not exist"
        return f"failed to get name from {META_FILE}: open {path}: no such file or directory"

    def layers(self, scratch: Path) -> list[_Layer]:
        parts = [self._meta_file, self._objects]
        layers = [_Layer(scratch / "base", STREAM_FILE, parts, BASE)]
        if self._has_examples:
            parts = [self._examples]
            layers.append(_Layer(scratch / "examples", EXAMPLES_FILE, parts, EXAMPLES))
        return layers


def _normalised(text: bytes) -> bytes:
    """Return a document with line feeds alone, the last line ended."""
    text = text.replace(b"\r\n", b"\n")
    return text if text.endswith(b"\n") else text + b"\n"


class _Layer:
    """A layer with one file in it, written and described."""

    def __init__(self, path: Path, name: str, parts: Sequence[Path], role: str) -> None:
        self.path = path
        self.role = role
        size = sum(part.stat().st_size for part in parts)
        with path.open("wb") as out:
            self._stored = _Hashing(out)
            self._gzip = GzipWriter(self._stored)
            self._plain = _Hashing(self._gzip)
            self._plain.write(tar.header(name, size))
            for part in parts:
                with part.open("rb") as stream:
                    shutil.copyfileobj(stream, self._plain, STEP_BYTES)
            self._plain.write(tar.padding(size) + tar.END)
            self._gzip.finish()
        media_type = f"{image.MEDIA_TYPE_LAYER}+gzip"
        annotations = {image.LAYER_LABEL: role}
        self.blob = Blob(self._stored.digest, path.stat().st_size, media_type, annotations)
        self.diff_id = self._plain.digest


class _Hashing:
    """Passes bytes on and hashes them."""

    def __init__(self, sink: BinaryIO | GzipWriter | _Hashing) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self._sink.write(data)
        return len(data)


def _write(
    root: Path,
    name: str,
    output: Path | None,
    layers: Sequence[_Layer],
    warnings: tuple[str, ...],
) -> Built:
    """Write the archive under a temporary name, then under its own."""
    config = image.config_bytes((layer.blob.digest, layer.diff_id, layer.role) for layer in layers)
    described = Blob(image.digest_of(config), len(config), image.MEDIA_TYPE_CONFIG)
    digest = image.push_manifest(described, [layer.blob for layer in layers]).digest
    short = digest.removeprefix("sha256:")[:_DIGEST_PART]
    path = output or root / f"{name[:_FILE_NAME_PART].rstrip('-.')}-{short}{EXTENSION}"
    try:
        _write_file(path, config, layers)
    except OSError as error:
        raise BuildError(f"failed to create package file: {path}: {error.strerror}") from error
    return Built(path, digest, name, warnings)


def _write_file(path: Path, config: bytes, layers: Sequence[_Layer]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with temporary.open("xb") as out:
            streams = [layer.path.open("rb") for layer in layers]
            try:
                pairs = zip((layer.blob for layer in layers), streams, strict=True)
                write_archive(out, config, pairs)
            finally:
                for stream in streams:
                    stream.close()
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
