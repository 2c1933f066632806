"""Build: one package file from a folder of YAML files.

The same files give the same bytes wherever and by whomever they are built, with the same zlib.

Source: Crossplane's ``xpkg build`` and xpkg specification.
"""

from __future__ import annotations

import re
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
from controller.xpkg.archive import Archive
from controller.xpkg.assemble import (
    NewLayer,
    PackageImage,
    file_name,
    runtime_layers,
    write_layer,
)
from controller.xpkg.compression import GZIP
from controller.xpkg.errors import BuildError
from controller.xpkg.locate import BASE, EXAMPLES, EXAMPLES_FILE, PACKAGE_BYTES_MAX, STREAM_FILE
from controller.xpkg.sources import Ignore, SourceFile, escaped, yaml_files

META_FILE: Final = "crossplane.yaml"
EXAMPLES_FOLDER: Final = "examples"

_NAME_LENGTH_MAX: Final = 253
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
    examples_root: Path | None = None,
    runtime: Archive | None = None,
    compression: str = GZIP,
) -> Built:
    """Make a package file from the YAML files of a folder. Blocks; call it in a thread.

    Takes every ``.yaml`` and ``.yml`` file below the root; those of the folder of examples are kept
    apart. The file appears complete or not at all.

    Args:
        root: the folder.
        kind: Provider, Configuration or Function: what the package has to be; None for any.
        name: the file name's first part; None for the package's own name.
        ignore: paths or patterns to leave out, relative to the root; a folder with all it holds.
        output: the file to write; None for ``<root>/<name>-<12 digits of the digest>.xpkg``.
        examples_root: the folder of examples; None for ``examples`` in the root, if it is there.
        runtime: an image that the package is put upon, so that it can be run as well.
        compression: of the layers, ``gzip`` or ``plain``; the latter gives the same digest with any
            zlib.

    Returns:
        The file and its digest.

    Raises:
        BuildError: what is wrong with the folder, all of it, or with the arguments.
        XpkgError: the runtime image cannot be read.
    """
    root = root.absolute()
    ignored = Ignore(ignore, root)
    check_name(name, "--name")
    apart, examples = _examples(root, examples_root, ignored)
    files = yaml_files(root, Ignore([*ignore, *apart], root))
    try:
        with tempfile.TemporaryDirectory(prefix="crossdock-build-") as folder:
            scratch = Path(folder)
            contents = _Contents(scratch)
            contents.read_package(files)
            contents.read_examples(examples)
            meta = contents.check(kind, root, named=name is not None)
            layers = contents.layers(scratch, compression)
            chosen = name or own_name(meta)
            if runtime is not None and meta["kind"] == "Configuration":
                contents.warnings.append("a Configuration is never run: its runtime is of no use")
            below = runtime_layers(runtime, scratch, compression) if runtime is not None else ()
            image = PackageImage(layers, below, runtime.config_json if runtime else None)
            path = output or root / file_name(chosen, image.manifest.digest)
            image.write(path)
            return Built(path, image.manifest.digest, chosen, tuple(contents.warnings))
    except OSError as error:
        where = f"{tempfile.gettempdir()} (set TMPDIR to use another folder)"
        raise BuildError(f"cannot work in {where}: {error.strerror}") from error


def _examples(
    root: Path, chosen: Path | None, ignored: Ignore
) -> tuple[list[str], list[SourceFile]]:
    """Return what to leave out of the package, and the examples."""
    folder = root / EXAMPLES_FOLDER if chosen is None else chosen.absolute()
    inside = folder.is_relative_to(root)
    relative = folder.relative_to(root).as_posix() if inside else ""
    if relative == ".":
        raise BuildError(f"--examples-root {folder} is the package root: it would hold no package")
    if not folder.is_dir() or (relative and ignored.matches(relative)):
        if chosen is not None and not folder.is_dir():
            raise BuildError(f"--examples-root {folder} is no folder")
        return [escaped(relative)] if relative else [], []
    if inside:
        return [escaped(relative)], yaml_files(root, ignored, below=relative)
    return [], yaml_files(folder, Ignore([], folder))


def check_name(name: str | None, what: str) -> None:
    """Refuse a name that no package may have.

    Raises:
        BuildError: the name is none; ``what`` says where it stands.
    """
    if name is None:
        return
    if len(name) > _NAME_LENGTH_MAX or _NAME.fullmatch(name) is None:
        raise BuildError(
            f'{what} "{name}" is no name for a package: use lower-case letters, digits, "-" and '
            f'".", with a letter or digit at both ends of each part'
        )


def own_name(meta: JsonObject) -> str:
    """Return the name in a package's metadata.

    Raises:
        BuildError: there is none, or it is no name.
    """
    name = (meta.get("metadata") or {}).get("name") or ""
    if not name:
        raise BuildError(f"the package has no name: set metadata.name in {META_FILE}, or --name")
    check_name(name, "metadata.name")
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

    def layers(self, scratch: Path, compression: str) -> list[NewLayer]:
        parts = [self._meta_file, self._objects]
        layers = [write_layer(scratch / "base", STREAM_FILE, parts, BASE, compression)]
        if self._has_examples:
            parts, path = [self._examples], scratch / "examples"
            layers.append(write_layer(path, EXAMPLES_FILE, parts, EXAMPLES, compression))
        return layers


def _normalised(text: bytes) -> bytes:
    """Return a document with line feeds alone, the last line ended."""
    text = text.replace(b"\r\n", b"\n")
    return text if text.endswith(b"\n") else text + b"\n"
