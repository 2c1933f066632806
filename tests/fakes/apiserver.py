"""A peer on loopback that answers what a test tells it to: refusals, torn streams, lost answers.

It has no objects and no rules of its own; whatever a real API server can do is tested with one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web


@dataclass(frozen=True)
class Reply:
    """One answer: a whole one; with ``chunks`` a stream that ends, is torn or stays silent."""

    status: int = 200
    body: Any = None  # bytes, or a value that is sent as JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: tuple[bytes, ...] | None = None
    then: str = "end"  # after the chunks: end, tear or silence
    lost: bool = False  # the request is read and the connection torn


@dataclass(frozen=True)
class Received:
    """One request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes


class ScriptedServer:
    """Answers requests with the replies it was given, in order; the last one again and again."""

    def __init__(self) -> None:
        self.url = ""
        self.received: list[Received] = []
        self._replies: list[Reply] = []

    def answer(self, *replies: Reply) -> None:
        """Say what the next requests are answered with."""
        self._replies = list(replies)

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls) -> AsyncIterator[ScriptedServer]:
        """Serve on a free port for as long as the context lasts."""
        server = cls()
        async with serving(server._handle) as server.url:
            yield server

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.received.append(
            Received(
                request.method, request.path, dict(request.query), request.headers.copy(), body
            )
        )
        reply = self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]
        if reply.lost:
            tear(request)
            return web.Response()
        if reply.chunks is None:
            content = reply.body if isinstance(reply.body, bytes) else orjson.dumps(reply.body)
            return web.Response(status=reply.status, body=content, headers=reply.headers)
        response = web.StreamResponse(status=reply.status, headers=reply.headers)
        await response.prepare(request)
        for chunk in reply.chunks:
            await response.write(chunk)
        if reply.then == "tear":
            tear(request)
        elif reply.then == "silence":
            await asyncio.Event().wait()
        return response


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[str]:
    """Answer all requests on a free port of loopback by a handler; give the server's URL."""
    app = web.Application(client_max_size=2**26)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.05, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    try:
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


def tear(request: web.Request) -> None:
    """End a connection at once, in the middle of whatever is sent."""
    if request.transport is not None:
        request.transport.abort()


def refusal(status: int, reason: str, message: str, **details: Any) -> dict[str, Any]:
    """Return a Kubernetes ``Status`` of a failure."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": message,
        "code": status,
        "details": details,
    }
