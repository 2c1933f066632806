"""Probe: single requests to the lab's own servers, without blocking the loop that asks."""

from __future__ import annotations

import asyncio
import ssl
from urllib.parse import urlsplit


class UnreachableError(Exception):
    """No complete answer came within the deadline."""


async def request(
    method: str,
    url: str,
    *,
    tls: ssl.SSLContext | None = None,
    token: str | None = None,
    body: bytes = b"",
    seconds: float = 2.0,
) -> tuple[int, bytes]:
    """Send one request to a server on loopback and read its whole answer.

    Args:
        method: HTTP method.
        url: full URL; the host is an address.
        tls: how to check the server of an https URL.
        token: bearer token, None for an anonymous request.
        body: JSON to send.
        seconds: deadline of the whole exchange.

    Returns:
        The status code and the body.

    Raises:
        UnreachableError: nothing listens, the answer is no HTTP or comes too late.
    """
    parts = urlsplit(url)
    # HTTP/1.0 keeps the answer free of chunks and ends it with the connection.
    head = f"{method} {parts.path or '/'} HTTP/1.0\r\nHost: {parts.netloc}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    head += f"Authorization: Bearer {token}\r\n" if token else ""
    message = head.encode() + b"\r\n" + body
    context = tls if parts.scheme == "https" else None
    try:
        async with asyncio.timeout(seconds):
            answer = await _exchange(str(parts.hostname), parts.port or 80, context, message)
        status, _, rest = answer.partition(b"\r\n")
        return int(status.split()[1]), rest.partition(b"\r\n\r\n")[2]
    except (OSError, TimeoutError, ValueError, IndexError) as error:
        reason = f"{method} {url}: {str(error) or 'no answer'}"
        raise UnreachableError(reason) from error


async def _exchange(host: str, port: int, context: ssl.SSLContext | None, message: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        writer.write(message)
        await writer.drain()
        return await reader.read()
    finally:
        writer.transport.abort()  # all of the answer is there, or none is wanted any more


def trusting(authority: str) -> ssl.SSLContext:
    """Trust the servers signed by the authority (PEM) and no others."""
    return ssl.create_default_context(cadata=authority)


def trusting_any() -> ssl.SSLContext:
    """Trust any server: for health of components that make their own certificate at each start."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
