"""The HTTP session to one API server: its connections, their TLS, and the proxy on the way.

Guarantees:
    Nothing of the environment is read at a request. New connections use the newest certificates,
    open answers go on with theirs. A proxy of the environment is never used for a server on
    loopback.

Source: the Kubernetes rules for ``proxy-url`` and ``tls-server-name``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import ssl
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

import aiohttp
from yarl import URL

from controller.kube.credentials import ConfigError
from controller.kube.tls import TlsContexts, TlsSettings

CONNECTIONS_MAX = 512  # one per watch and one per request under way
CLOSING_ROUNDS = 3  # of the event loop
READ_BUFFER = 256 * 1024  # bytes; the watch's reader is paused beyond twice of it


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server, the way to it, and the TLS settings of now."""

    server: str
    server_name: str | None
    proxy: str | None = field(repr=False)
    tls: Callable[[], TlsSettings]
    look_again: Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Session:
    """An HTTP session and what each of its requests is sent with."""

    http: aiohttp.ClientSession
    options: dict[str, Any] = field(repr=False)  # a proxy's password among them
    server: str
    contexts: TlsContexts | None = None  # None for plain HTTP

    async def request(self, method: str, url: URL, **more: Any) -> aiohttp.ClientResponse:
        """Send a request over a connection with the newest certificates.

        Nothing was sent when the handshake failed: with other certificates on disk by then, it is
        tried once more.

        Raises:
            aiohttp.ClientError: no answer.
        """
        if self.contexts is None:
            return await self.http.request(method, url, **self.options, **more)
        context = await self.contexts.current()
        try:
            return await self.http.request(method, url, ssl=context, **self.options, **more)
        except aiohttp.ClientSSLError:
            if not await self.contexts.renew(context):
                raise
        context = await self.contexts.current()
        return await self.http.request(method, url, ssl=context, **self.options, **more)


@contextlib.asynccontextmanager
async def open_session(
    endpoint: Endpoint, *, origin: str, user_agent: str
) -> AsyncIterator[Session]:
    """Open the HTTP session of an endpoint, with its TLS settings.

    Raises:
        ConfigError: certificates or proxy cannot be used.
    """
    server = endpoint.server
    options = _proxy(endpoint.proxy, server, origin)
    if endpoint.server_name:
        options["server_hostname"] = endpoint.server_name
    contexts = None
    if urlsplit(server).scheme == "https":
        contexts = TlsContexts(endpoint.tls, look_again=endpoint.look_again, origin=origin)
        try:
            await contexts.open()
        except (OSError, ValueError) as error:
            kind = "TLS" if isinstance(error, ssl.SSLError) else "file"
            text = f"{origin}: its certificates cannot be used ({kind}: {error})"
            raise ConfigError(text) from None
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={
            "User-Agent": user_agent,
            "Accept-Encoding": "identity" if _is_loopback(server) else "gzip",
        },
        read_bufsize=READ_BUFFER,
    ) as http:
        try:
            yield Session(http, options, server, contexts)
        finally:
            await http.close()
            # What was aborted, in the middle of a handshake too, ends in the loop's next rounds.
            for _ in range(CLOSING_ROUNDS):
                await asyncio.sleep(0)


def _is_loopback(server: str) -> bool:
    host = urlsplit(server).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_bypassed(server: SplitResult) -> bool:
    """Return whether NO_PROXY lists a server: addresses and ranges too, as Go reads it."""
    if urllib.request.proxy_bypass(server.netloc):
        return True
    try:
        address = ipaddress.ip_address(server.hostname or "")
    except ValueError:
        return False
    for entry in urllib.request.getproxies().get("no", "").split(","):
        with contextlib.suppress(ValueError):  # a name
            if address in ipaddress.ip_network(entry.strip().strip("[]"), strict=False):
                return True
    return False


def _is_address(url: SplitResult) -> bool:
    """Return whether a URL is a host with a port: a raw ``/`` in a password cuts it short."""
    try:
        _ = url.port
    except ValueError:
        return False
    return bool(url.hostname) and url.path in {"", "/"}


def _proxy(configured: str | None, server: str, origin: str) -> dict[str, Any]:
    """Return the request options of the proxy to use: the kubeconfig's, else the environment's."""
    proxy, source = configured, origin
    parts = urlsplit(server)
    if not proxy and not _is_loopback(server) and not _is_bypassed(parts):
        proxy = urllib.request.getproxies().get(parts.scheme)
        source = f"the environment ({parts.scheme.upper()}_PROXY)"
    if not proxy:
        return {}
    address = urlsplit(proxy)
    if address.scheme not in {"http", "https"} or not _is_address(address):
        raise ConfigError(
            f"the proxy of {source} is no http or https URL; unset it, or list "
            f"{parts.hostname} in NO_PROXY; in a password, write '/' as %2F"
        )
    location = address.netloc.rpartition("@")[2]
    options: dict[str, Any] = {"proxy": urlunsplit((address.scheme, location, "", "", ""))}
    if address.username:
        pair = f"{unquote(address.username)}:{unquote(address.password or '')}"
        value = "Basic " + base64.b64encode(pair.encode()).decode()
        options["proxy_headers"] = {"Proxy-Authorization": value}
    return options
