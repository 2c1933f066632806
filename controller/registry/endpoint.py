"""One registry as this process knows it: connections, scheme, challenge and health."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncIterator

import httpx

from controller.registry.challenge import Challenge
from controller.registry.circuit import Circuits
from controller.registry.connection import ConnectionPool, Peer
from controller.registry.proxies import DEFAULT_PORTS
from controller.registry.wire import Limits


class Endpoint:
    """A registry as this process knows it: connections, scheme, challenge and health.

    Attributes:
        host: host and port as references name it, in lower case.
        peer: where it is and what it may name.
        scheme: how it is spoken to, None while unknown.
        challenge: how it asked for credentials last, None while it did not.
        pins: which of several credentials a repository accepted, by what was tried.
        circuits: the health of this host and of those that it leads to.
    """

    def __init__(self, host: str, *, peer: Peer, pool: ConnectionPool, limits: Limits) -> None:
        self.host = host
        self.peer = peer
        self.pool = pool
        self.slots = asyncio.Semaphore(limits.per_registry)
        self.users = 0
        self._retired = False
        self.scheme: str | None = None if peer.http_allowed else "https"
        self.challenge: Challenge | None = None
        self.pins: OrderedDict[str, int] = OrderedDict()
        self.circuits = Circuits(limits)

    async def retire(self) -> None:
        """Close the connections, after the last request that still uses them."""
        self._retired = True
        if self.users == 0:
            await self.pool.aclose()

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[None]:
        """Keep the connections open for a request."""
        self.users += 1
        try:
            yield
        finally:
            self.users -= 1
            if self._retired and self.users == 0:
                await self.pool.aclose()

    def settle(self, scheme: str) -> None:
        """Note how the registry is spoken to; what was once spoken safely stays safe."""
        if self.scheme != "https":
            self.scheme = scheme

    def is_own(self, url: httpx.URL) -> bool:
        """Tell whether a URL is of the registry's own origin: scheme, host and port."""
        return self.scheme is not None and origin_of(url) == origin_of(
            httpx.URL(f"{self.scheme}://{self.host}")
        )


def origin_of(url: httpx.URL) -> tuple[str, str, int]:
    """Return scheme, host and port of a URL."""
    return url.scheme, url.host, url.port or DEFAULT_PORTS.get(url.scheme, 0)
