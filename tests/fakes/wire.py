"""A TCP connection that a test can cut, silence and mend, between a client and a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit


class Wire:
    """Passes bytes between a port of its own and a server."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
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
        tasks_before = asyncio.all_tasks()
        try:
            yield wire
        finally:
            listener.close()
            wire.mend()
            wire.cut()
            wire._refusing = True
            ours = [
                task
                for task in asyncio.all_tasks() - tasks_before
                if "Wire._accept" in repr(task.get_coro())
            ]
            if ours:
                await asyncio.wait(ours, timeout=5)

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        self._refusing = True
        for writer in list(self._writers):
            writer.transport.abort()

    def silence(self) -> None:
        """Pass nothing on in either direction; connections stay open."""
        self._passing.clear()

    def mend(self) -> None:
        """Pass everything on, and take new connections."""
        self._refusing = False
        self._passing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with contextlib.suppress(OSError):
            if self._refusing:
                writer.transport.abort()
                return
            self.connections += 1
            far_reader, far_writer = await asyncio.open_connection(*self._server)
            self._writers.add(far_writer)
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pass(reader, far_writer))
                    tasks.create_task(self._pass(far_reader, writer))
            finally:
                self._writers -= {writer, far_writer}
                for each in (writer, far_writer):
                    each.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
        writer.close()
