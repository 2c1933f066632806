"""Manifests: YAML streams of Kubernetes objects, read document by document as JSON values.

The only reader of YAML. Documents are separated by lines that hold ``---`` alone; what an unquoted
word means is decided in ``scalars``. A document never becomes more than JSON can say, and what it
may cost is limited: its bytes, its depth, and what its aliases expand to.

Source: the Kubernetes API machinery's YAMLReader (separators); YAML 1.1 as libyaml parses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, TypeAlias

import yaml

from controller.model.objects import JsonObject
from controller.model.scalars import (
    LETTERS,
    MERGE,
    TAG_PREFIX,
    WORDS,
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
_PREAMBLE: Final = frozenset({yaml.StreamStartEvent, yaml.DocumentStartEvent})
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
        builder = _Builder(parser)
        builder.run()
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


_MERGE_KEY: Final[Any] = object()
_OPEN: Final[Any] = object()


class _Builder:
    """Builds one document's value from parser events; recursion ends at ``DEPTH_MAX``."""

    __slots__ = ("_anchors", "_budget", "_collections", "_next", "duplicates", "value")

    def __init__(self, parser: Any) -> None:
        self.value: Value = None
        self.duplicates: list[tuple[str, int]] = []
        self._next: Callable[[], Any] = parser.get_event
        self._anchors: dict[str, Any] = {}
        self._budget = _Budget()
        self._collections = {
            yaml.MappingStartEvent: self._mapping,
            yaml.SequenceStartEvent: self._sequence,
            yaml.AliasEvent: self._alias,
        }

    def run(self) -> None:
        """Take the events of one document; refuse a second one."""
        event: Any = self._next()
        while event.__class__ in _PREAMBLE:
            event = self._next()
        if event.__class__ is yaml.StreamEndEvent:
            return
        self.value = self._value(event, 0)
        self._next()  # the document's end
        event = self._next()
        if event.__class__ is not yaml.StreamEndEvent:
            raise _Fault(_SECOND, event.start_mark.line)

    def _value(self, event: Any, depth: int) -> Value:
        if event.__class__ is yaml.ScalarEvent:
            return self._scalar(event)
        return self._collections[event.__class__](event, depth)

    def _scalar(self, event: Any) -> Value:
        value: Value = event.value
        try:
            if event.tag is not None:
                value = resolve_tagged(value, event.tag, plain=not event.style)
            elif not event.style:
                value = resolve(value)
        except ScalarError as error:
            raise _Fault(shown(str(error), 200), event.start_mark.line) from None
        if event.anchor is not None:
            self._anchors[event.anchor] = value
        return value

    def _key(self, event: Any, depth: int) -> Any:
        """Return a key as text, or the mark for a merge."""
        single = isinstance(event, (yaml.ScalarEvent, yaml.AliasEvent))
        if not single:
            raise _Fault("a key must be a single value", event.start_mark.line)
        line: int = event.start_mark.line
        value = self._value(event, depth)
        if isinstance(value, str):
            merges = value == MERGE and event.__class__ is yaml.ScalarEvent and event.implicit[0]
            return _MERGE_KEY if merges else value
        if isinstance(value, (dict, list)):
            raise _Fault("a key must be a single value", line)
        try:
            return key_text(value)
        except ScalarError as error:
            raise _Fault(str(error), line) from None

    def _mapping(self, start: Any, depth: int) -> JsonObject:
        self._enter(start, depth)
        mapping: JsonObject = {}
        merged: set[str] = set()
        take, scalar = self._next, yaml.ScalarEvent
        while (event := take()).__class__ is not yaml.MappingEndEvent:
            # Nearly all keys are plain text; for them no function is called.
            key = event.value if event.__class__ is scalar else ""
            if key[:1] not in LETTERS or key in WORDS or event.tag or event.anchor:
                key = self._key(event, depth + 1)
            following = take()
            if following.__class__ is scalar:
                value = self._scalar(following)
            else:
                value = self._collections[following.__class__](following, depth + 1)
            if key is _MERGE_KEY:
                self._merge(mapping, value, merged, event)
                continue
            if key in mapping:
                self._repeated(key, merged, event)
            mapping[key] = value
        if start.anchor is not None:
            self._anchors[start.anchor] = mapping
        return mapping

    def _sequence(self, start: Any, depth: int) -> list[Value]:
        self._enter(start, depth)
        items: list[Value] = []
        take, scalar = self._next, yaml.ScalarEvent
        while (event := take()).__class__ is not yaml.SequenceEndEvent:
            if event.__class__ is scalar:
                items.append(self._scalar(event))
            else:
                items.append(self._collections[event.__class__](event, depth + 1))
        if start.anchor is not None:
            self._anchors[start.anchor] = items
        return items

    def _enter(self, start: Any, depth: int) -> None:
        if start.tag not in _COLLECTION_TAGS:
            cause = f"the tag {shown(shown_tag(start.tag))} has no meaning in a Kubernetes object"
            raise _Fault(cause, start.start_mark.line)
        if depth >= DEPTH_MAX:
            raise _Fault(f"is nested deeper than {DEPTH_MAX} levels", start.start_mark.line)
        if start.anchor is not None:
            self._anchors[start.anchor] = _OPEN

    def _repeated(self, key: str, merged: set[str], event: Any) -> None:
        """Note a key that its mapping has already, unless it came there by merging."""
        if key in merged:
            merged.discard(key)
        else:
            self.duplicates.append((f'key "{shown(key)}" occurs twice', event.start_mark.line))

    def _merge(self, mapping: JsonObject, value: Value, merged: set[str], event: Any) -> None:
        """Add what a ``<<`` key names; the first of several mappings wins."""
        sources = value[::-1] if isinstance(value, list) else [value]
        if not all(isinstance(source, dict) for source in sources):
            raise _Fault('"<<" needs a mapping or a list of mappings', event.start_mark.line)
        for source in sources:
            for key, item in source.items():
                if key in mapping and key not in merged:
                    self._repeated(key, merged, event)
                mapping[key] = item
                merged.add(key)

    def _alias(self, event: Any, depth: int) -> Value:
        if event.anchor not in self._anchors:
            raise _Fault(f"unknown anchor {shown(event.anchor)}", event.start_mark.line)
        value = self._anchors[event.anchor]
        if value is _OPEN:
            raise _Fault(f"anchor {shown(event.anchor)} contains itself", event.start_mark.line)
        try:
            return self._budget.copy(value, depth)
        except OverflowError as error:
            raise _Fault(str(error), event.start_mark.line) from None


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
