"""Lines out of the chunks of a stream, of any size up to a limit."""

from __future__ import annotations

LINE_MAX = 64 * 1024 * 1024  # bytes


class LineLimitError(ValueError):
    """A line is longer than the limit."""


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
