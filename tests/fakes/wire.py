"""A TCP connection that a test can break in many ways, and mend, between a client and a server."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

CHUNK = 65536  # bytes
TEAR_PAUSE = 0.05  # seconds between the last bytes and the reset, so that the client reads them
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST instead of FIN
# A packet filter of one instruction, "return 0": the system drops what arrives, unanswered.
_ATTACH_FILTER, _DETACH_FILTER = 26, 27  # of Linux; the socket module does not name them
_DROP_ALL = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
_DROP_PROGRAM = struct.pack("HP", 1, ctypes.addressof(_DROP_ALL))


def _unacknowledged(sock: Any) -> int:
    """Return how many bytes of a socket its peer has not acknowledged; 0 of a closed one."""
    if sock.fileno() < 0:
        return 0
    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    return int.from_bytes(answer, sys.byteorder)


@dataclass(eq=False)
class _Link:
    """One connection of a client, and the one to the server that belongs to it."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    dead: bool = False  # what is read goes nowhere, for ever
    down_left: int | None = None  # bytes to the client before the reset

    def end(self, *, reset: bool) -> None:
        for writer in (self.near, self.far):
            sock = writer.get_extra_info("socket")
            if reset and sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class Wire:
    """Passes bytes between a port of its own and a server.

    Attributes:
        port: where clients connect, on loopback.
        connections: how many were passed on to the server.
        bytes_up: bytes from clients to the server.
        bytes_down: bytes from the server to clients.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._links: set[_Link] = set()
        self._listening: tuple[Any, ...] = ()
        self._passing = asyncio.Event()
        self._passing.set()
        self._refusing = False
        self._swallowing = False
        self._rate: float | None = None
        self.connections = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.port = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[Wire]:
        """Lead to the server of a URL for as long as the context lasts."""
        address = urlsplit(url)
        wire = cls(str(address.hostname), int(address.port or 443))
        listener = await asyncio.start_server(wire._accept, "127.0.0.1", 0)
        wire._listening = tuple(listener.sockets)
        wire.port = listener.sockets[0].getsockname()[1]
        try:
            yield wire
        finally:
            listener.close()
            wire.cut()
            for task in wire._tasks:
                task.cancel()
            await asyncio.gather(*wire._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """Where a client finds the server behind the wire."""
        return f"https://127.0.0.1:{self.port}"

    # ---- faults ------------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset all connections (RST); new ones are passed on."""
        for link in self._links:
            link.end(reset=True)

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        self._refusing = True
        self.reset()

    def tear(self, after: int) -> None:
        """Reset each connection of this moment when so many more bytes came to its client."""
        for link in self._links:
            link.down_left = after

    def silence(self) -> None:
        """Read no connection; both systems acknowledge until their buffers are full."""
        self._passing.clear()

    def swallow(self) -> None:
        """Read and acknowledge everything and pass nothing on; these connections never recover."""
        self._swallowing = True
        for link in self._links:
            link.dead = True

    async def drop(self) -> None:
        """Drop all packets of clients unanswered: no ACK, no FIN, no RST, no new connection.

        These connections never recover; new ones can be made after ``mend``. What was sent to
        clients is let arrive first: sent again for want of an ACK, it would be a sign of life.
        """
        self.swallow()
        sockets = [link.near.get_extra_info("socket") for link in self._links]
        async with asyncio.timeout(5):
            while any(map(_unacknowledged, sockets)):  # noqa: ASYNC110 - the system tells nobody
                await asyncio.sleep(0.01)
        for sock in (*self._listening, *sockets):
            if sock.fileno() >= 0:  # its client may have closed it meanwhile
                sock.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, _DROP_PROGRAM)

    def slow(self, rate: float) -> None:
        """Pass so many bytes a second on each connection, in each direction."""
        self._rate = rate

    def mend(self) -> None:
        """Pass everything on, and take new connections."""
        self._refusing = False
        self._swallowing = False
        self._rate = None
        self._passing.set()
        for sock in self._listening:
            with contextlib.suppress(OSError):  # there is no filter
                sock.setsockopt(socket.SOL_SOCKET, _DETACH_FILTER, 0)

    # ---- passing -----------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        link: _Link | None = None
        try:
            if not self._refusing:
                self.connections += 1
                far_reader, far_writer = await asyncio.open_connection(*self._server)
                link = _Link(writer, far_writer, dead=self._swallowing)
                self._links.add(link)
                await asyncio.gather(self._up(link, reader), self._down(link, far_reader))
        except (OSError, asyncio.CancelledError):
            pass  # the end of this connection is all that is to be done
        finally:
            await self._end(link or _Link(writer, writer))
            self._tasks.discard(task)

    async def _end(self, link: _Link) -> None:
        self._links.discard(link)
        link.end(reset=self._refusing or link.dead)
        for writer in (link.near, link.far):
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _up(self, link: _Link, reader: asyncio.StreamReader) -> None:
        while data := await self._read(reader):
            if not link.dead:
                self.bytes_up += len(data)
                await self._write(link.far, data)
        if link.dead:
            await asyncio.Event().wait()  # an end that is not passed on either
        link.far.close()

    async def _down(self, link: _Link, reader: asyncio.StreamReader) -> None:
        while data := await self._read(reader):
            if link.dead:
                continue
            if link.down_left is not None:
                data = data[: link.down_left]
                link.down_left -= len(data)
            self.bytes_down += len(data)
            await self._write(link.near, data)
            if link.down_left == 0:
                await asyncio.sleep(TEAR_PAUSE)
                link.end(reset=True)
                return
        if link.dead:
            await asyncio.Event().wait()
        link.near.close()

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        """Read what may be passed on now; the socket itself is not read while there is silence."""
        await self._passing.wait()
        data = await reader.read(CHUNK)
        await self._passing.wait()
        return data

    async def _write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        while data:
            rate = self._rate
            size = len(data) if rate is None else max(1, int(rate / 10))
            writer.write(data[:size])
            await writer.drain()
            if rate is not None:
                await asyncio.sleep(min(size, len(data)) / rate)
            data = data[size:]
