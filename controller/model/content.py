"""Content: what a package holds, and its parsed form.

The parsed form is a file of lines: each object as one compact JSON object, and as the last line an
index of them with the package's metadata. It is read back object by object, without YAML.

Source: Crossplane's package parser (known kinds, filter by kind of package).
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, Final

import orjson

from controller.model.kinds import group_of, is_installed, is_known, is_meta
from controller.model.manifest import (
    Document,
    Duplicate,
    ManifestError,
    iter_documents,
    shown,
)
from controller.model.objects import JsonObject

ERROR_ONE_META: Final = "not exactly one package meta type"

_INDEX_VERSION: Final = 1
_INDEX_BYTES_MAX: Final = 64 * 2**20
_TAIL_BYTES: Final = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a package, and where its line stands in the parsed form.

    Attributes:
        sha256: hex digest of the line without its newline.
        offset: of the line's first byte.
        length: bytes of the line, without its newline.
        document: the object's document in package.yaml, from 1.
    """

    kind: str
    api_version: str
    name: str
    sha256: str
    offset: int
    length: int
    document: int

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class ParsedPackage:
    """The content of a package: its metadata, and which objects its parsed form holds.

    Attributes:
        meta: the one metadata object.
        entries: the objects that are installed from a package of this kind, in its order.
        dropped: known objects that are not.
        duplicates: keys and objects that occur twice; the later one holds.
    """

    meta: JsonObject
    entries: tuple[Entry, ...] = ()
    dropped: tuple[Entry, ...] = ()
    duplicates: tuple[Duplicate, ...] = ()

    @property
    def kind(self) -> str:
        """The kind of package: Provider, Configuration or Function."""
        kind: str = self.meta["kind"]
        return kind

    @property
    def objects(self) -> tuple[Entry, ...]:
        """All objects, installed or not."""
        return self.entries + self.dropped


def identify(document: Document, *, source: str) -> tuple[str, str, str]:
    """Return the apiVersion, kind and name of a document of a package.

    Raises:
        ManifestError: one is missing or no text, the kind is unknown in packages, or an object
            that is not metadata has no name.

    Source: Crossplane's package parser: an unknown kind fails the whole package.
    """

    def fault(cause: str) -> ManifestError:
        return ManifestError(source, document.number, document.line, cause)

    value = document.value
    for field in ("apiVersion", "kind"):
        if not isinstance(value.get(field), str) or not value[field]:
            raise fault(f"{field} is missing" if not value.get(field) else f"{field} is not text")
    api_version, kind = value["apiVersion"], value["kind"]
    metadata = value.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise fault("metadata is not an object")
    name = (metadata or {}).get("name") or ""
    if not isinstance(name, str):
        raise fault("metadata.name is not text; quote it")
    if is_meta(api_version, kind):
        return api_version, kind, name
    if not is_known(api_version, kind):
        raise fault(
            f'no kind "{shown(kind)}" is registered for version "{shown(api_version)}" in packages'
        )
    if not name and not kind.endswith("List"):
        raise fault(f"{kind} has no metadata.name")
    return api_version, kind, name


def parse_to_lines(stream: BinaryIO, lines: BinaryIO, *, source: str) -> ParsedPackage:
    """Read a package's YAML stream and write its parsed form.

    Args:
        stream: package.yaml.
        lines: takes the parsed form, from its current position 0 on.
        source: what errors call the stream.

    Returns:
        What the index line says.

    Raises:
        ManifestError: not readable (see ``iter_documents``), a kind that no package may hold, an
            object without a name, or not exactly one metadata object.
    """
    metas: list[Document] = []
    duplicates: list[Duplicate] = []
    entries: dict[tuple[str, str, str], Entry] = {}
    offset = 0
    for document in iter_documents(stream, source=source):
        api_version, kind, name = identify(document, source=source)
        duplicates += document.duplicates
        if is_meta(api_version, kind):
            metas.append(document)
            continue
        line = orjson.dumps(document.value)
        digest = hashlib.sha256(line).hexdigest()
        entry = Entry(kind, api_version, name, digest, offset, len(line), document.number)
        identity = (group_of(api_version), kind, name)
        if entries.pop(identity, None) is not None:
            what = f"{kind} {shown(name)} occurs twice"
            duplicates.append(Duplicate(what, document.number, document.line))
        entries[identity] = entry
        lines.write(line + b"\n")
        offset += len(line) + 1
    package = _package(metas, list(entries.values()), duplicates, source)
    lines.write(_index_line(package) + b"\n")
    return package


def _package(
    metas: list[Document], objects: list[Entry], duplicates: list[Duplicate], source: str
) -> ParsedPackage:
    if len(metas) != 1:
        found = ", ".join(f"document {meta.number}" for meta in metas[:5])
        cause = f"{ERROR_ONE_META} (found {len(metas)}{': ' if found else ''}{found})"
        raise ManifestError(source, 0, 0, cause)
    meta = metas[0].value
    kept = [e for e in objects if is_installed(meta["kind"], e.api_version, e.kind)]
    dropped = [e for e in objects if not is_installed(meta["kind"], e.api_version, e.kind)]
    return ParsedPackage(meta, tuple(kept), tuple(dropped), tuple(duplicates))


def to_details(package: ParsedPackage) -> JsonObject:
    """Return what a parsed package says as a JSON value; ``from_details`` reads it back."""
    return {
        "crossdockIndex": _INDEX_VERSION,
        "meta": package.meta,
        "entries": [asdict(entry) for entry in package.entries],
        "dropped": [asdict(entry) for entry in package.dropped],
        "duplicates": [asdict(duplicate) for duplicate in package.duplicates],
    }


def from_details(details: JsonObject) -> ParsedPackage:
    """Return the parsed package that ``to_details`` wrote.

    Raises:
        ValueError: it was written by another version, or is damaged.
    """
    try:
        if details["crossdockIndex"] != _INDEX_VERSION:
            raise ValueError("the parsed package has another version")
        return ParsedPackage(
            details["meta"],
            tuple(Entry(**entry) for entry in details["entries"]),
            tuple(Entry(**entry) for entry in details["dropped"]),
            tuple(Duplicate(**duplicate) for duplicate in details["duplicates"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError("the parsed package is damaged") from error


def _index_line(package: ParsedPackage) -> bytes:
    return orjson.dumps(to_details(package))


def read_index(lines: BinaryIO) -> ParsedPackage:
    """Return what the index line of a parsed form says.

    Args:
        lines: a seekable stream of the parsed form.

    Raises:
        ValueError: it is no complete parsed form of this version.
    """
    try:
        index: Any = orjson.loads(_last_line(lines))
    except orjson.JSONDecodeError as error:
        raise ValueError("the parsed package is damaged") from error
    return from_details(index)


def _last_line(lines: BinaryIO) -> bytes:
    """Return the last line, which a newline ends; ValueError when there is none."""
    start = lines.seek(0, io.SEEK_END)
    tail = b""
    while start > 0 and b"\n" not in tail[:-1] and len(tail) < _INDEX_BYTES_MAX:
        step = min(max(_TAIL_BYTES, len(tail)), start)
        start -= step
        lines.seek(start)
        tail = lines.read(step) + tail
    if not tail.endswith(b"\n"):
        raise ValueError("the parsed package is cut short")
    return tail[:-1].rpartition(b"\n")[2]
