"""Manifests: YAML streams of Kubernetes objects, read document by document as JSON values.

The only reader of YAML. Documents are separated by lines that hold ``---`` alone; what an unquoted
word means is decided in ``scalars``. A document never becomes more than JSON can say, and what it
may cost is limited: its bytes, its depth, and what its aliases expand to.

Source: the Kubernetes API machinery's YAMLReader (separators); YAML 1.1 as libyaml parses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, TypeAlias

import yaml

from controller.model.objects import JsonObject
from controller.model.scalars import (
    MERGE,
    TAG_PREFIX,
    ScalarError,
    key_text,
    resolve,
    resolve_tagged,
    shown_tag,
)

if not yaml.__with_libyaml__:
    raise ImportError("PyYAML lacks libyaml; install one of its wheels, which bring it along")

DOCUMENT_BYTES_MAX: Final = 10 * 2**20
DOCUMENTS_MAX: Final = 20_000
DEPTH_MAX: Final = 250  # orjson writes 254 levels
ALIASES_MAX: Final = 1_000
ALIAS_NODES_MAX: Final = 1_000_000
ALIAS_CHARACTERS_MAX: Final = DOCUMENT_BYTES_MAX

_BLOCK_BYTES: Final = 2**20
_BOM: Final = b"\xef\xbb\xbf"
_SEPARATOR = re.compile(rb"\n---(?:[ \t]+#[^\n]*|[ \t\r]*)(?=\n)")
_CONTENT = re.compile(rb"^(?![ \t\r]*(?:#|$)|(?:---|\.\.\.)[ \t\r]*$)", re.MULTILINE)
_COLLECTION_TAGS: Final = frozenset({None, "!", TAG_PREFIX + "map", TAG_PREFIX + "seq"})

Value: TypeAlias = Any  # a JSON value


class ManifestError(ValueError):
    """A manifest that cannot be read, or holds what it must not.

    Attributes:
        source: the name of the file or stream.
        document: the document's number, from 1, of those with content; 0 for the whole stream.
        line: the line in the source, from 1; 0 for the whole document.
        cause: what is wrong.
    """

    def __init__(self, source: str, document: int, line: int, cause: str) -> None:
        self.source = source
        self.document = document
        self.line = line
        self.cause = cause
        where = [shown(source)]
        if document:
            where.append(f"document {document}" + (f", line {line}" if line else ""))
        super().__init__(": ".join([*where, cause]))


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Something that a manifest says twice; the later one holds."""

    what: str
    document: int
    line: int

    def __str__(self) -> str:
        return f"document {self.document}, line {self.line}: {self.what}"


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a stream: an object, where it begins, and its bytes as written."""

    number: int
    line: int
    value: JsonObject
    text: bytes
    duplicates: tuple[Duplicate, ...] = ()


def shown(text: str, limit: int = 100) -> str:
    """Return a text from a manifest for a message: printable, cut at ``limit`` characters."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else "?" for c in cut)


def iter_documents(stream: BinaryIO, *, source: str) -> Iterator[Document]:
    """Return the documents of a YAML stream, one at a time.

    Documents that hold nothing but blanks, comments and markers are passed over. A key that occurs
    twice in a mapping is noted in ``duplicates``; the later value holds. Memory is bounded by the
    largest document.

    Args:
        stream: UTF-8; a byte order mark before a document is tolerated.
        source: what errors call the stream.

    Yields:
        Documents whose value is a mapping; keys are text, values are of JSON's types.

    Raises:
        ManifestError: syntax, encoding, a value that JSON lacks, a document that is no mapping, or
            one beyond the limits.

    Source: Kubernetes' YAMLReader; sigs.k8s.io/yaml.
    """
    number = 0
    for line, text in _split(stream, source):
        if _CONTENT.search(text) is None:
            continue
        number += 1
        if number > DOCUMENTS_MAX:
            raise ManifestError(source, 0, 0, f"holds more than {DOCUMENTS_MAX} documents")
        if len(text) > DOCUMENT_BYTES_MAX:
            raise ManifestError(source, number, line, _TOO_LONG)
        try:
            value, duplicates = _read(text)
        except _Fault as fault:
            raise ManifestError(source, number, line + fault.line, fault.cause) from None
        if not isinstance(value, dict):
            cause = f"is {_type_name(value)}, not an object"
            raise ManifestError(source, number, line, cause)
        noted = tuple(Duplicate(what, number, line + at) for what, at in duplicates)
        yield Document(number, line, value, text, noted)


_SECOND: Final = "another document begins here; put a line with --- alone before it"
_NO_START: Final = "did not find expected <document start>"  # libyaml's words for it
_TOO_LONG: Final = f"is longer than {DOCUMENT_BYTES_MAX // 2**20} MiB"


def _split(stream: BinaryIO, source: str) -> Iterator[tuple[int, bytes]]:
    """Yield each document's first line number and its bytes, without separators."""
    line = 1
    pending = b"\n"  # always begins with the newline before the next line
    searched = 0
    while True:
        found = _SEPARATOR.search(pending, searched)
        if found is not None:
            yield line, _without_mark(pending[1 : found.start() + 1])
            line += pending.count(b"\n", 1, found.end()) + 1
            pending = pending[found.end() :]
            searched = 0
            continue
        if len(pending) > DOCUMENT_BYTES_MAX + 1:
            raise ManifestError(source, 0, 0, f"the document at line {line} {_TOO_LONG}")
        searched = pending.rfind(b"\n")
        block = stream.read(_BLOCK_BYTES)
        if block:
            pending += block
            continue
        last = pending + b"\n"
        found = _SEPARATOR.search(last, searched)
        yield line, _without_mark(pending[1:] if found is None else last[1 : found.start() + 1])
        return


def _without_mark(text: bytes) -> bytes:
    return text.removeprefix(_BOM)


class _Fault(Exception):  # noqa: N818 - becomes a ManifestError
    """What is wrong with a document, at a line of it (from 0)."""

    def __init__(self, cause: str, line: int = 0) -> None:
        super().__init__(cause)
        self.cause = cause
        self.line = line


def _read(text: bytes) -> tuple[Value, list[tuple[str, int]]]:
    """Return a document's value and the keys that occur twice, with their lines from 0."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        cause = f"is not UTF-8 at byte {error.start} of the document"
        raise _Fault(cause, text.count(b"\n", 0, error.start)) from None
    parser = yaml.CLoader(text)
    try:
        builder = _Builder()
        builder.run(parser)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        cause = " ".join(part for part in (error.problem, error.context) if part)
        if error.problem == _NO_START and not text.startswith(b"%"):
            cause = _SECOND
        raise _Fault(shown(cause, 300), mark.line if mark is not None else 0) from None
    except yaml.reader.ReaderError as error:
        cause = f"{error.reason} at byte {error.position} of the document"
        raise _Fault(shown(cause), text.count(b"\n", 0, error.position)) from None
    finally:
        parser.dispose()
    return builder.value, builder.duplicates


_NO_KEY: Final[Any] = object()
_MERGE_KEY: Final[Any] = object()
_OPEN: Final[Any] = object()


class _Builder:
    """Builds one document's value from parser events, without recursion."""

    __slots__ = (
        "_anchors",
        "_container",
        "_key",
        "_merged",
        "_spent",
        "_stack",
        "duplicates",
        "value",
    )

    def __init__(self) -> None:
        self.value: Value = None
        self.duplicates: list[tuple[str, int]] = []
        self._container: Any = None  # the innermost open collection
        self._key: Any = _NO_KEY  # of it, when it is a mapping that waits for a value
        self._stack: list[tuple[Any, Any, str | None]] = []
        self._anchors: dict[str, Any] = {}
        self._merged: dict[int, set[str]] = {}  # keys that came by merging, by id of the mapping
        self._spent = _Budget()

    def run(self, parser: Any) -> None:
        """Take the events of one document; refuse a second one."""
        get_event = parser.get_event
        handlers = self._handlers()
        scalar_event, scalar = yaml.ScalarEvent, self._scalar
        try:
            while True:
                event = get_event()
                if event.__class__ is scalar_event:
                    scalar(event)
                elif event.__class__ is yaml.DocumentEndEvent:
                    break
                elif event.__class__ is yaml.StreamEndEvent:
                    return
                elif event.__class__ in handlers:
                    handlers[event.__class__](event)
        except ScalarError as error:
            raise _Fault(shown(str(error), 200), event.start_mark.line) from None
        event = get_event()
        if event.__class__ is not yaml.StreamEndEvent:
            raise _Fault(_SECOND, event.start_mark.line)

    def _handlers(self) -> dict[type, Any]:
        return {
            yaml.MappingStartEvent: lambda event: self._open(event, {}),
            yaml.SequenceStartEvent: lambda event: self._open(event, []),
            yaml.MappingEndEvent: self._close,
            yaml.SequenceEndEvent: self._close,
            yaml.AliasEvent: self._alias,
        }

    def _scalar(self, event: Any) -> None:
        text: str = event.value
        value: Value = text
        if event.implicit[0]:
            if text == MERGE and self._key is _NO_KEY and self._container.__class__ is dict:
                self._key = _MERGE_KEY
                return
            value = resolve(text)
        elif event.tag is not None:
            value = resolve_tagged(text, event.tag, plain=event.style is None)
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        self._place(value, event)

    def _place(self, value: Value, event: Any) -> None:
        """Put a value where the innermost collection expects one: item, key or value."""
        container = self._container
        key = self._key
        if container.__class__ is list:
            container.append(value)
        elif container is None:
            self.value = value
        elif key is _NO_KEY:
            if isinstance(value, (dict, list)):
                raise _Fault("a key must be a single value", event.start_mark.line)
            self._key = value if value.__class__ is str else key_text(value)
        elif key is _MERGE_KEY:
            self._key = _NO_KEY
            self._merge(value, event)
        else:
            if key in container:
                self._repeated(key, event)
            container[key] = value
            self._key = _NO_KEY

    def _repeated(self, key: str, event: Any) -> None:
        merged = self._merged.get(id(self._container), set())
        if key in merged:
            merged.discard(key)
        else:
            self.duplicates.append((f'key "{shown(key)}" occurs twice', event.start_mark.line))

    def _merge(self, value: Value, event: Any) -> None:
        """Add what a ``<<`` key names; the first of several mappings wins."""
        sources = value[::-1] if isinstance(value, list) else [value]
        if not all(isinstance(source, dict) for source in sources):
            raise _Fault('"<<" needs a mapping or a list of mappings', event.start_mark.line)
        container = self._container
        merged = self._merged.setdefault(id(container), set())
        for source in sources:
            for key, item in source.items():
                if key in container and key not in merged:
                    self._repeated(key, event)
                container[key] = item
                merged.add(key)

    def _open(self, event: Any, collection: Any) -> None:
        if event.tag not in _COLLECTION_TAGS:
            cause = f"the tag {shown(shown_tag(event.tag))} has no meaning in a Kubernetes object"
            raise _Fault(cause, event.start_mark.line)
        if len(self._stack) >= DEPTH_MAX:
            raise _Fault(f"is nested deeper than {DEPTH_MAX} levels", event.start_mark.line)
        if event.anchor is not None:
            self._anchors[event.anchor] = _OPEN
        if self._container.__class__ is dict and self._key is _NO_KEY:
            raise _Fault("a key must be a single value", event.start_mark.line)
        self._stack.append((self._container, self._key, event.anchor))
        self._container = collection
        self._key = _NO_KEY

    def _close(self, event: Any) -> None:
        value = self._container
        self._container, self._key, anchor = self._stack.pop()
        if anchor is not None:
            self._anchors[anchor] = value
        self._place(value, event)

    def _alias(self, event: Any) -> None:
        if event.anchor not in self._anchors:
            raise _Fault(f"unknown anchor {shown(event.anchor)}", event.start_mark.line)
        value = self._anchors[event.anchor]
        if value is _OPEN:
            raise _Fault(f"anchor {shown(event.anchor)} contains itself", event.start_mark.line)
        try:
            copied = self._spent.copy(value, len(self._stack))
        except OverflowError as error:
            raise _Fault(str(error), event.start_mark.line) from None
        self._place(copied, event)


class _Budget:
    """What the aliases of one document may expand to."""

    __slots__ = ("_aliases", "_characters", "_nodes")

    def __init__(self) -> None:
        self._aliases = ALIASES_MAX
        self._nodes = ALIAS_NODES_MAX
        self._characters = ALIAS_CHARACTERS_MAX

    def copy(self, value: Value, depth: int) -> Value:
        """Return a copy of an anchor's value; OverflowError when the budget does not allow it."""
        self._aliases -= 1
        if self._aliases < 0:
            raise OverflowError(f"uses more than {ALIASES_MAX} aliases")
        return self._copied(value, depth)

    def _copied(self, value: Value, depth: int) -> Value:
        self._nodes -= 1
        if isinstance(value, str):
            self._characters -= len(value)
        if self._nodes < 0 or self._characters < 0:
            raise OverflowError("its aliases expand to more than a document may hold")
        if not isinstance(value, (dict, list)):
            return value
        if depth >= DEPTH_MAX:
            raise OverflowError(f"is nested deeper than {DEPTH_MAX} levels")
        if isinstance(value, list):
            return [self._copied(item, depth + 1) for item in value]
        self._characters -= sum(map(len, value))
        return {key: self._copied(item, depth + 1) for key, item in value.items()}


def _type_name(value: Value) -> str:
    if value is None:
        return "empty"
    if isinstance(value, list):
        return "a list"
    return "a single value"
