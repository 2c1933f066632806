"""Connections that are used again only after an answer that ended where it said it would.

Bytes behind the end of an answer would be taken as the answer to the next request. A connection
with such bytes, or with an answer that declares no length, looks closed to the pool that keeps it.

Source: RFC 9112 section 6.3 (message body length).
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from typing import Any

import httpcore

HEAD_MAX = 128 * 1024
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*(?=\r\n)", re.IGNORECASE)
_CODED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_EMPTY = frozenset({b"204", b"304"})


class Framing:
    """Compares the bytes of an answer with the length that it declares. Pure."""

    def __init__(self) -> None:
        self._method = b""
        self._head = bytearray()
        self._left: int | None = None
        self._in_head = False

    @property
    def is_clean(self) -> bool:
        """Tell whether all of the answer came, and nothing else."""
        return not self._in_head and self._left == 0

    def sent(self, data: bytes) -> None:
        """Note bytes of a request; the first ones after an answer start a new exchange."""
        if not self._in_head:
            self._method = bytes(data[:5]).partition(b" ")[0]
            self._head.clear()
            self._in_head, self._left = True, None

    def received(self, data: bytes) -> None:
        """Note bytes of an answer."""
        if not self._in_head:
            if self._left is not None:
                self._left -= len(data)
            return
        self._head += data
        while (end := self._head.find(b"\r\n\r\n")) >= 0:
            head, rest = bytes(self._head[: end + 2]), bytes(self._head[end + 4 :])
            status = head.partition(b" ")[2][:3]
            if status[:1] == b"1":
                self._head[:] = rest
                continue
            self._in_head, self._left = False, self._length(head, status)
            self._head.clear()
            self.received(rest)
            return
        if len(self._head) > HEAD_MAX:
            self._in_head, self._left = False, None
            self._head.clear()

    def _length(self, head: bytes, status: bytes) -> int | None:
        if self._method == b"HEAD" or status in _EMPTY:
            return 0
        lengths = set(_LENGTH.findall(head))
        return int(lengths.pop()) if len(lengths) == 1 and not _CODED.search(head) else None


class FramedStream(httpcore.AsyncNetworkStream):
    """A connection that looks closed after an answer that did not end cleanly."""

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self._framing = Framing()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - the library's signature
        """Receive bytes."""
        data = await self._inner.read(max_bytes, timeout)
        self._framing.received(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as above
        """Send bytes."""
        self._framing.sent(buffer)
        await self._inner.write(buffer, timeout)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._inner.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
    ) -> httpcore.AsyncNetworkStream:
        """Go on encrypted."""
        return FramedStream(await self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """Return what is known; a connection that must not be used again is "readable" when idle.

        The pool reads that as closed by the peer.
        """
        if info == "is_readable" and not self._framing.is_clean:
            return True
        return self._inner.get_extra_info(info)


class FramedBackend(httpcore.AsyncNetworkBackend):
    """Gives framed connections instead of those of another backend."""

    def __init__(self, inner: httpcore.AsyncNetworkBackend) -> None:
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - as above
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a host."""
        return FramedStream(
            await self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        )

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._inner.sleep(seconds)
