"""Pieces out of the chunks of an answer that goes on: lines of a watch, items of a list.

Guarantees:
    It does not matter how an answer is cut into chunks. What waits for its end has a limit.
"""

from __future__ import annotations

import re
from typing import Protocol

LINE_MAX = 64 * 1024 * 1024  # bytes
ENVELOPE_MAX = 1024 * 1024  # bytes of a list besides its items

_ITEMS = re.compile(rb'"items"\s*+:\s*+\[')  # as a string's content its quotes were escaped
_BRACE = re.compile(rb'[^"{}]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"{}]*+)*+[{}]', re.DOTALL)
_GAP = re.compile(rb"[\s,]*+")
_OPEN = ord("{")


class LineLimitError(ValueError):
    """A line or an object is longer than the limit."""


class Splitter(Protocol):
    """Cuts a stream of bytes into pieces."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the pieces that a chunk ends.

        Raises:
            LineLimitError: the piece that has begun is longer than the limit.
        """


class LineSplitter:
    """Cut a stream of bytes into lines; what is not ended yet waits for the next chunk.

    Args:
        limit: most bytes of one line.
    """

    def __init__(self, *, limit: int = LINE_MAX) -> None:
        self._limit = limit
        self._begun: list[bytes] = []
        self._begun_size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that a chunk ends, without their ends; empty lines are left out.

        Raises:
            LineLimitError: the line that has begun is longer than the limit.
        """
        first, *rest = chunk.split(b"\n")
        self._begun.append(first)
        self._begun_size += len(first)
        if self._begun_size > self._limit:
            raise LineLimitError(f"a line of a watch is longer than {self._limit} bytes")
        if not rest:
            return []
        lines = [b"".join(self._begun), *rest[:-1]]
        self._begun = [rest[-1]]
        self._begun_size = len(rest[-1])
        return [line for line in lines if line.strip()]


class ListSplitter:
    """Cut a list of the API server into its items, while it arrives.

    No answer is held as a whole, and each item is decoded by itself, so that a list of any size
    holds up nothing.

    Args:
        limit: most bytes of one item.

    Attributes:
        envelope: the list without its items, once the answer has ended; no JSON when the answer
            is torn or no list.
    """

    def __init__(self, *, limit: int = LINE_MAX) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._envelope = bytearray()
        self._within = False  # the array of items
        self._over = False
        self._at = 0  # cut so far, from the buffer's start
        self._depth = 0

    @property
    def envelope(self) -> bytes:
        """The list without its items, once the answer has ended."""
        return bytes(self._envelope + self._buffer)

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the items that a chunk ends.

        Raises:
            LineLimitError: an item, or all besides the items, is longer than the limit.
        """
        buffer = self._buffer
        buffer += chunk
        if not self._within and not self._over:
            head = _ITEMS.search(buffer)
            if head is not None:
                self._envelope += buffer[: head.end()]
                del buffer[: head.end()]
                self._within = True
        items = self._cut() if self._within else []
        limit = self._limit if self._within else ENVELOPE_MAX
        if len(buffer) > limit:
            what = "an item of a list" if self._within else "a list without its items"
            raise LineLimitError(f"{what} is longer than {limit} bytes")
        return items

    def _cut(self) -> list[bytes]:
        """Take all whole items from the buffer; braces within strings do not count."""
        buffer, items = self._buffer, []
        at, depth, start = self._at, self._depth, 0
        while True:
            if depth == 0:
                gap = _GAP.match(buffer, at)
                start = at = gap.end() if gap is not None else at
                if at == len(buffer):
                    break
                if buffer[at] != _OPEN:  # the end of the items, or no list of objects
                    self._within, self._over = False, True
                    break
            brace = _BRACE.match(buffer, at)
            if brace is None:
                break
            at = brace.end()
            depth += 1 if buffer[at - 1] == _OPEN else -1
            if depth == 0:
                items.append(bytes(buffer[start:at]))
        del buffer[:start]
        self._at, self._depth = at - start, depth
        return items
