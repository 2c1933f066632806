"""A TCP connection that a test can cut, silence and mend, between a client and a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit


class Wire:
    """Passes bytes between a port of its own and a server."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self._refusing = False
        self.connections = 0
        self.port = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def to(cls, url: str) -> AsyncIterator[Wire]:
        """Lead to the server of a URL for as long as the context lasts."""
        address = urlsplit(url)
        wire = cls(str(address.hostname), int(address.port or 443))
        listener = await asyncio.start_server(wire._accept, "127.0.0.1", 0)
        wire.port = listener.sockets[0].getsockname()[1]
        try:
            yield wire
        finally:
            listener.close()
            wire.cut()
            for task in wire._tasks:
                task.cancel()
            await asyncio.gather(*wire._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        self._refusing = True
        for writer in self._writers:
            writer.transport.abort()

    def silence(self) -> None:
        """Pass nothing on in either direction; connections stay open."""
        self._passing.clear()

    def mend(self) -> None:
        """Pass everything on, and take new connections."""
        self._refusing = False
        self._passing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        ends = [writer]
        try:
            if not self._refusing:
                self.connections += 1
                far_reader, far_writer = await asyncio.open_connection(*self._server)
                ends.append(far_writer)
                self._writers.update(ends)
                await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass  # the end of this connection is all that is to be done
        finally:
            self._writers.difference_update(ends)
            for each in ends:
                each.transport.abort()
                with contextlib.suppress(OSError):
                    await each.wait_closed()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._passing.wait()
            writer.write(data)
            await writer.drain()
        writer.close()
