"""What is asked of a registry, what it answers, and how much of it is read. Values only.

Source: the OCI distribution specification.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import httpx

from controller.registry.failures import LimitExceeded, RegistryUnavailable

Body: TypeAlias = bytes | Callable[[], AsyncIterator[bytes]] | None

MIB = 1024 * 1024
_NEXT = re.compile(r'<([^<>]+)>\s*;(?:[^,]*;)?\s*rel="?next"?', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is read, waited for and tried. Sizes in bytes, times in seconds."""

    manifest_bytes: int = 4 * MIB
    token_bytes: int = 128 * 1024
    error_bytes: int = 64 * 1024
    tags_page_bytes: int = 4 * MIB
    tags_pages: int = 200
    tags: int = 100_000
    index_depth: int = 3
    blob_bytes: int = 1024 * MIB
    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    write_seconds: float = 30.0
    metadata_seconds: float = 60.0
    blob_seconds: float = 60.0
    blob_seconds_max: float = 1800.0
    blob_rate: int = 32 * 1024  # bytes a second that a whole blob needs at least
    stall_seconds: float = 60.0
    stall_rate: int = 4 * 1024  # bytes a second within stall_seconds
    slot_seconds: float = 600.0
    wait_seconds: float = 60.0  # longest Retry-After that is waited for in place
    backoff_seconds: float = 1.0
    backoff_seconds_max: float = 30.0
    attempts: int = 4
    redirects: int = 5
    per_registry: int = 4
    total: int = 16


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to a registry, before scheme and authorization are known.

    Attributes:
        operation: what it is for, in metrics and messages.
        method: HTTP method.
        target: path and query on the registry, or an absolute URL.
        headers: further headers; the length of a streamed body among them.
        body: bytes, or what gives them anew at each try.
        secret: value of ``Authorization`` for the origin of an absolute target, and no other.
        follow: redirects are followed.
    """

    operation: str
    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    follow: bool = True


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and headers of an answer, and its body to be read.

    Attributes:
        response: the answer; its body is read at most once.
        url: that answered, after redirects.
        foreign: another origin than the registry answered.
    """

    response: httpx.Response
    url: httpx.URL
    foreign: bool

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.response.status_code

    def header(self, name: str) -> str:
        """Return a header, empty when there is none or it is repeated with different values."""
        values = set(self.response.headers.get_list(name))
        return values.pop() if len(values) == 1 else ""

    def chunks(self) -> AsyncIterator[bytes]:
        """Return the body as it is on the wire, in pieces."""
        return self.response.aiter_raw()

    async def read(self, limit: int, what: str) -> bytes:
        """Return the whole body as it is on the wire.

        Raises:
            LimitExceeded: more than ``limit`` bytes; ``what`` names the limit.
        """
        declared = self.header("Content-Length")
        body = bytearray()
        if not (declared.isdecimal() and int(declared) > limit):
            async for chunk in self.chunks():
                body += chunk
                if len(body) > limit:
                    break
            else:
                return bytes(body)
        raise LimitExceeded(f"the {what} is larger than {limit} bytes")

    async def content(self, limit: int, what: str) -> bytes:
        """Return the whole body, decompressed where the answer says that it is compressed."""
        return self.plain(await self.read(limit, what), limit, what)

    def plain(self, body: bytes, limit: int, what: str) -> bytes:
        """Return a body that was read, decompressed where the answer says that it is compressed."""
        return decoded(body, self.header("Content-Encoding"), limit, what)

    def next_page(self) -> str | None:
        """Return path and query of the next page, None when there is none on this registry.

        Source: RFC 8288; the OCI distribution specification ("Listing Tags").
        """
        match = _NEXT.search(", ".join(self.response.headers.get_list("Link")))
        if match is None:
            return None
        try:
            url = self.url.join(match[1])
        except (httpx.InvalidURL, ValueError, TypeError):
            return None
        here = self.url
        same = (url.scheme, url.host, url.port) == (here.scheme, here.host, here.port)
        return url.raw_path.decode("ascii") if same else None


def decoded(body: bytes, encoding: str, limit: int, what: str) -> bytes:
    """Return a body without its content encoding, which was not asked for.

    Raises:
        LimitExceeded: it grows beyond ``limit``.
        RegistryUnavailable: it is damaged, or encoded in another way than gzip.
    """
    if encoding.lower() in ("", "identity"):
        return body
    if encoding.lower() not in ("gzip", "x-gzip"):
        raise RegistryUnavailable(f"the {what} has the unknown content encoding {encoding[:40]!r}")
    unpacker = zlib.decompressobj(wbits=31)
    try:
        plain = unpacker.decompress(body, limit + 1)
    except zlib.error:
        raise RegistryUnavailable(f"the {what} is damaged: no valid gzip") from None
    if len(plain) > limit:
        raise LimitExceeded(f"the {what} is larger than {limit} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise RegistryUnavailable(f"the {what} is damaged: no valid gzip")
    return plain
