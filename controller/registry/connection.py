"""Connections to one registry and to the hosts that it names: TLS, proxies, vetted addresses.

A name is resolved once, its addresses are judged, and one of the judged addresses is dialled: what
the name resolves to later does not matter.

Source: RFC 8305 (addresses of both families in turn), one after the other.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import certifi
import httpcore
import httpx

from controller.registry.failures import PolicyViolation, TLSError, printable
from controller.registry.guard import (
    Policy,
    Reach,
    Verdict,
    farthest,
    judge,
    parse_address,
    reach_of,
)
from controller.registry.proxies import Proxies
from controller.registry.reference import split_host_port

Resolve: TypeAlias = Callable[[str, int], Awaitable[list[str]]]

DIALLED_MAX = 4
DIAL_SECONDS = 3.0  # for every address but the last
CONNECTIONS_MAX = 8
IDLE_CONNECTIONS = 4
IDLE_SECONDS = 60.0


def tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    """Return how TLS is spoken: version 1.2 or newer, the system's authorities and a bundle.

    Args:
        ca_bundle: file of PEM certificates that are trusted too; None for none.

    Raises:
        TLSError: the bundle cannot be read or holds no certificate.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not system_has_authorities():
        context.load_verify_locations(certifi.where())
    if ca_bundle is None:
        return context
    try:
        context.load_verify_locations(cafile=ca_bundle)
    except ssl.SSLError:
        raise TLSError(
            f"no certificates could be read from {ca_bundle}",
            remedy="--ca-bundle-path needs a file of PEM certificates",
        ) from None
    except OSError as error:
        raise TLSError(
            f"cannot read {ca_bundle}: {error.strerror}", remedy="check --ca-bundle-path"
        ) from None
    return context


def system_has_authorities() -> bool:
    """Tell whether the system brings certificate authorities; minimal images do not."""
    paths = ssl.get_default_verify_paths()
    return (
        Path(paths.cafile or "/nonexistent").is_file()
        or Path(paths.capath or "/nonexistent").is_dir()
    )


@dataclass(slots=True)
class Peer:
    """A registry that somebody named, and the rule for the hosts that it names in turn.

    Attributes:
        host: host and port as references name it, in lower case.
        http_allowed: it may be spoken to over plain HTTP.
        policy: about private addresses.
        warn: told about hosts that are only just allowed.
        reach: from where the registry can be reached; public until it was resolved.
    """

    host: str
    http_allowed: bool
    policy: Policy
    warn: Callable[[str], None]
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
        reach = farthest(reach_of(found) for text in addresses if (found := parse_address(text)))
        if host.lower() == self.name.lower():
            self.reach = reach
            return
        verdict = judge(reach, registry=self.reach, policy=self.policy)
        if verdict is Verdict.REFUSE:
            raise PolicyViolation(
                f"registry {self.host} sends requests to {printable(host, limit=280)}, "
                f"which is a {reach.value} address",
                remedy="use a registry that serves its content itself, or from public addresses",
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
        """Try the addresses in order, IPv4 and IPv6 in turn, each for a bounded time."""
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, timeout=DIAL_SECONDS, **options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(addresses[-1], port, **options)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


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
    """The connections of one registry; a proxy has its own.

    Args:
        peer: the registry.
        tls: how TLS is spoken.
        proxies: which hosts are reached through a proxy.
        resolve: finds the addresses of a name; None asks the system.
        dialler: connects to addresses; None opens sockets.
    """

    def __init__(
        self,
        *,
        peer: Peer,
        tls: ssl.SSLContext,
        proxies: Proxies,
        resolve: Resolve | None = None,
        dialler: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self._tls = tls
        self._proxies = proxies
        self._backend = GuardedBackend(peer, resolve, dialler)
        self._pools: dict[str | None, httpcore.AsyncConnectionPool] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the answer's body is read from the connection."""
        url = request.url
        proxy = self._proxies.select(url.scheme, url.host, url.port)
        answer = await self._pool(proxy).handle_async_request(
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
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_Stream(answer), request=request
        )

    def _pool(self, proxy: str | None) -> httpcore.AsyncConnectionPool:
        if proxy not in self._pools:
            options: dict[str, Any] = {
                "ssl_context": self._tls,
                "max_connections": CONNECTIONS_MAX,
                "max_keepalive_connections": IDLE_CONNECTIONS,
                "keepalive_expiry": IDLE_SECONDS,
            }
            self._pools[proxy] = (
                httpcore.AsyncConnectionPool(network_backend=self._backend, **options)
                if proxy is None
                else _proxy_pool(proxy, options)
            )
        return self._pools[proxy]

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        for pool in self._pools.values():
            await pool.aclose()
        self._pools.clear()


def _proxy_pool(proxy: str, options: dict[str, Any]) -> httpcore.AsyncConnectionPool:
    parts = urlsplit(proxy)
    user = (unquote(parts.username or ""), unquote(parts.password or ""))
    url = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return httpcore.AsyncHTTPProxy(
        proxy_url=url.geturl(), proxy_auth=user if parts.username else None, **options
    )


class _Stream(httpx.AsyncByteStream):
    """The body of an answer, as httpx reads it."""

    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __aiter__(self) -> Any:
        return self._answer.aiter_stream()

    async def aclose(self) -> None:
        await self._answer.aclose()
