"""Connections to one registry and to the hosts that it names: TLS, proxies, vetted addresses.

A name is resolved once, its addresses are judged, and one of the judged addresses is dialled: what
the name resolves to later does not matter.

Source: RFC 8305 (addresses of both families in turn, each a moment after the one before).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import httpcore
import httpx

from controller.registry.failures import PolicyViolation, printable
from controller.registry.framing import FramedBackend
from controller.registry.guard import (
    Network,
    Policy,
    Reach,
    Verdict,
    farthest,
    is_within,
    judge,
    parse_address,
    reach_of,
)
from controller.registry.proxies import Proxies
from controller.registry.reference import split_host_port
from controller.registry.trust import Trust, tls_context

__all__ = ["ConnectionPool", "GuardedBackend", "Peer", "Resolve", "resolve_name", "tls_context"]

Resolve: TypeAlias = Callable[[str, int], Awaitable[list[str]]]

DIALLED_MAX = 4
DIAL_SECONDS = 0.25  # head start of an address before the next one is tried too
CONNECTIONS_MAX = 8
IDLE_CONNECTIONS = 4
IDLE_SECONDS = 60.0
POOLS_MAX = 16


@dataclass(slots=True)
class Peer:
    """A registry that somebody named, and the rule for the hosts that it names in turn.

    Attributes:
        host: host and port as references name it, in lower case.
        http_allowed: it may be spoken to over plain HTTP.
        policy: about private addresses.
        warn: told about hosts that are only just allowed.
        allowed: private address ranges that any registry may name.
        reach: from where the registry can be reached; public until it was resolved.
    """

    host: str
    http_allowed: bool
    policy: Policy
    warn: Callable[[str], None]
    allowed: tuple[Network, ...] = ()
    reach: Reach = Reach.PUBLIC
    _warned: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        address = parse_address(self.name)
        if address is not None:
            self.reach = reach_of(address)

    @property
    def name(self) -> str:
        """The registry's host without port and brackets."""
        return split_host_port(self.host)[0]

    def check_target(self, url: httpx.URL, *, came_from: httpx.URL | None) -> None:
        """Refuse a URL that the registry must not send us to.

        Args:
            url: a redirect's target, an upload location or a token server.
            came_from: the URL whose answer named it, None when there is none.

        Raises:
            PolicyViolation: not HTTP, a user name in it, less safe than where it came from, or an
                address that is not allowed.
        """
        shown = printable(f"{url.scheme}://{url.host}", limit=300)
        if url.scheme not in {"http", "https"} or not url.host or not 0 < (url.port or 1) < 2**16:
            raise PolicyViolation(f"registry {self.host} redirects to {shown}, which is no web URL")
        if url.userinfo:
            raise PolicyViolation(f"registry {self.host} redirects to a URL with a user name")
        if url.scheme == "http" and (came_from is None or came_from.scheme == "https"):
            raise PolicyViolation(
                f"registry {self.host} redirects from https to {shown}",
                remedy="configure the registry to use https throughout",
            )
        address = parse_address(url.host)
        if address is not None:
            self.check_addresses(url.host, [str(address)])

    def check_addresses(self, host: str, addresses: Iterable[str]) -> None:
        """Judge the addresses behind a host before any of them is dialled.

        Raises:
            PolicyViolation: one of them must not be connected to.
        """
        found = [address for text in addresses if (address := parse_address(text))]
        reach = farthest(reach_of(address) for address in found)
        if host.lower() == self.name.lower():
            self.reach = reach
            return
        if reach is Reach.PRIVATE:
            reach = farthest(
                reach_of(address) for address in found if not is_within(address, self.allowed)
            )
        verdict = judge(reach, registry=self.reach, policy=self.policy)
        if verdict is Verdict.REFUSE:
            raise PolicyViolation(
                f"registry {self.host} sends requests to {printable(host, limit=280)}, "
                f"which is a {reach.value} address",
                remedy="allow its range with --allow-private-redirects, or --registry-policy=warn"
                if reach is Reach.PRIVATE
                else "use a registry that serves its content itself, or from public addresses",
            )
        if verdict is Verdict.WARN and host not in self._warned:
            self._warned.add(host)
            self.warn(f"registry sends requests to {printable(host, limit=280)}, a private address")


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name, judges its addresses and dials the judged ones only."""

    def __init__(
        self,
        peer: Peer,
        resolve: Resolve | None = None,
        dialler: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._peer = peer
        self._resolve = resolve or resolve_name
        self._inner = dialler or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to one of the addresses of a host.

        Raises:
            PolicyViolation: an address that must not be connected to.
            httpcore.ConnectError: no address answers.
            httpcore.ConnectTimeout: not in time.
        """
        options: dict[str, Any] = {
            "local_address": local_address,
            "socket_options": socket_options,
        }
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._resolve(host, port)
                self._peer.check_addresses(host, addresses)
                return await self._dial(addresses[:DIALLED_MAX], port, options)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error

    async def _dial(
        self, addresses: list[str], port: int, options: dict[str, Any]
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the address that answers first; each has a head start before the next."""
        dials = _Dials(lambda address: self._inner.connect_tcp(address, port, **options))
        try:
            async with asyncio.TaskGroup() as tasks:
                started = []
                for address in addresses:
                    dials.changed.clear()
                    started.append(tasks.create_task(dials.dial(address)))
                    await dials.next_event(DIAL_SECONDS)
                    if dials.stream is not None:
                        break
                while dials.stream is None and len(dials.errors) < len(started):
                    dials.changed.clear()
                    await dials.next_event(None)
                for task in started:
                    task.cancel()
        except BaseException:
            if dials.stream is not None:
                await dials.stream.aclose()
            raise
        if dials.stream is None:
            raise dials.errors[-1] if dials.errors else httpcore.ConnectError("no address")
        return dials.stream

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class _Dials:
    """Connections that are tried side by side; the first one stays."""

    def __init__(self, connect: Callable[[str], Awaitable[httpcore.AsyncNetworkStream]]) -> None:
        self._connect = connect
        self.changed = asyncio.Event()
        self.stream: httpcore.AsyncNetworkStream | None = None
        self.errors: list[Exception] = []

    async def dial(self, address: str) -> None:
        """Try one address."""
        try:
            stream = await self._connect(address)
        except (httpcore.ConnectError, httpcore.ConnectTimeout, OSError) as error:
            self.errors.append(error)
        else:
            if self.stream is None:
                self.stream = stream
            else:
                await stream.aclose()
        self.changed.set()

    async def next_event(self, seconds: float | None) -> None:
        """Wait until an address answered or failed, or for some seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.changed.wait()


async def resolve_name(host: str, port: int) -> list[str]:
    """Return the addresses of a name, IPv6 and IPv4 in turn, as the system orders them.

    Raises:
        socket.gaierror: there are none.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    first = [address for address in addresses if (":" in address) == (":" in addresses[0])]
    second = [address for address in addresses if address not in first]
    mixed = [address for pair in zip(first, second, strict=False) for address in pair]
    return mixed + first[len(second) :] + second[len(first) :]


class ConnectionPool(httpx.AsyncBaseTransport):
    """The connections of one registry; a proxy has its own, and so has each set of certificates.

    Args:
        peer: the registry.
        trust: how TLS is spoken.
        proxies: which hosts are reached through a proxy.
        resolve: finds the addresses of a name; None asks the system.
        dialler: connects to addresses; None opens sockets.
    """

    def __init__(
        self,
        *,
        peer: Peer,
        trust: Trust,
        proxies: Proxies,
        resolve: Resolve | None = None,
        dialler: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._trust = trust
        self._proxies = proxies
        self._backend = FramedBackend(GuardedBackend(peer, resolve, dialler))
        self._plain = FramedBackend(dialler or httpcore.AnyIOBackend())
        self._pools: dict[tuple[str, str], _Pool] = {}

    def proxy_of(self, url: httpx.URL) -> str | None:
        """Return the proxy that a URL is reached through, None for none."""
        return self._proxies.select(url.scheme, url.host, url.port)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the answer's body is read from the connection.

        Raises:
            TLSError: the certificates to believe cannot be read.
        """
        url = request.url
        pool = await self._pool(url)
        pool.users += 1
        try:
            answer = await pool.inner.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(
                        scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except BaseException:
            await pool.release()
            raise
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_Stream(answer, pool), request=request
        )

    async def _pool(self, url: httpx.URL) -> _Pool:
        host = url.netloc.decode("ascii") if url.scheme == "https" else ""
        context = await self._trust.context(host)
        key = (self.proxy_of(url) or "", host if self._trust.folder is not None else "")
        known = self._pools.get(key)
        if known is not None and known.context is context:
            return known
        self._pools[key] = fresh = _Pool(self._connections(key[0], context), context)
        if known is not None:
            await known.retire()
        while len(self._pools) > POOLS_MAX:
            await self._pools.pop(next(iter(self._pools))).retire()
        return fresh

    def _connections(self, proxy: str, context: ssl.SSLContext) -> httpcore.AsyncConnectionPool:
        options: dict[str, Any] = {
            "ssl_context": context,
            "max_connections": CONNECTIONS_MAX,
            "max_keepalive_connections": IDLE_CONNECTIONS,
            "keepalive_expiry": IDLE_SECONDS,
            "network_backend": self._plain if proxy else self._backend,
        }
        return _proxy_pool(proxy, options) if proxy else httpcore.AsyncConnectionPool(**options)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        while self._pools:
            _, pool = self._pools.popitem()
            await pool.inner.aclose()


@dataclass(slots=True)
class _Pool:
    """Connections that believe the same certificates, and how many answers are being read."""

    inner: httpcore.AsyncConnectionPool
    context: ssl.SSLContext
    users: int = 0
    retired: bool = False

    async def retire(self) -> None:
        """Close the connections, after the last answer that is still read."""
        self.retired = True
        if self.users == 0:
            await self.inner.aclose()

    async def release(self) -> None:
        """Note that an answer was read."""
        self.users -= 1
        if self.retired and self.users == 0:
            await self.inner.aclose()


def _proxy_pool(proxy: str, options: dict[str, Any]) -> httpcore.AsyncConnectionPool:
    parts = urlsplit(proxy)
    user = (unquote(parts.username or ""), unquote(parts.password or ""))
    url = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return httpcore.AsyncHTTPProxy(
        proxy_url=url.geturl(), proxy_auth=user if parts.username else None, **options
    )


class _Stream(httpx.AsyncByteStream):
    """The body of an answer, as httpx reads it."""

    def __init__(self, answer: httpcore.Response, pool: _Pool) -> None:
        self._answer = answer
        self._pool: _Pool | None = pool

    def __aiter__(self) -> Any:
        return self._answer.aiter_stream()

    async def aclose(self) -> None:
        try:
            await self._answer.aclose()
        finally:
            if self._pool is not None:
                pool, self._pool = self._pool, None
                await pool.release()
