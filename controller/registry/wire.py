"""What is asked of a registry, what it answers, and how much of it is read. Values only.

Source: the OCI distribution specification.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TypeAlias

import httpcore
import httpx

from controller.registry.failures import LimitExceeded, RegistryUnavailable

Body: TypeAlias = bytes | Callable[[], AsyncIterator[bytes]] | None

MIB = 1024 * 1024
NO_RANGE = 416  # its body is not what its headers say, in some registries
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
    index_entries: int = 1024
    layers: int = 127
    blob_bytes: int = 1024 * MIB
    monolithic_bytes: int = 64 * MIB  # larger blobs are pushed in chunks
    chunk_bytes: int = 16 * MIB
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
    resumes: int = 5  # of one transfer
    resume_bytes: int = 64 * 1024  # that a transfer must bring to count as progress
    circuit_failures: int = 5  # in a row, after which a host is not asked for a while
    circuit_seconds: float = 30.0
    redirects: int = 5
    token_redirects: int = 3
    per_registry: int = 4
    total: int = 16

    @classmethod
    def of(cls, settings: Iterable[str]) -> Limits:
        """Return the usual limits, changed as people write it.

        Args:
            settings: entries ``<name>=<number>``; names with dashes, as ``manifest-bytes``.

        Raises:
            ValueError: no such limit, or no positive number of its kind.
        """
        limits = cls()
        kinds = {entry.name: type(getattr(limits, entry.name)) for entry in fields(cls)}
        for setting in settings:
            name, _, text = setting.partition("=")
            kind = kinds.get(name.strip().replace("-", "_"))
            if kind is None:
                known = ", ".join(sorted(entry.replace("_", "-") for entry in kinds))
                raise ValueError(f'there is no limit "{name}": there are {known}')
            try:
                value = kind(text)
            except ValueError:
                value = kind()
            if not 0 < value < math.inf:
                raise ValueError(f'limit {name} needs a number above 0, not "{text}"')
            limits = replace(limits, **{name.strip().replace("-", "_"): value})
        return limits


DEFAULT_LIMITS = Limits()


def exceeded(cause: str, limit: str) -> LimitExceeded:
    """Return the error of a limit that was reached, with the flag that raises it.

    Args:
        cause: what was too much, and for which limit.
        limit: name of the field of ``Limits``.
    """
    flag = limit.replace("_", "-")
    return LimitExceeded(cause, remedy=f"raise the limit with --registry-limit={flag}=N")


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
        redirects: how many are followed at most; None for the usual number.
        scopes: token scopes that the request needs beside its repository's own.
    """

    operation: str
    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    follow: bool = True
    redirects: int | None = None
    scopes: tuple[str, ...] = ()


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

    async def read(self, limit: int, what: str, *, name: str) -> bytes:
        """Return the whole body as it is on the wire.

        Args:
            limit: greatest number of bytes.
            what: names the body in errors.
            name: names the limit, a field of ``Limits``.

        Raises:
            LimitExceeded: more bytes.
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
        raise exceeded(f"the {what} is larger than {limit} bytes", name)

    async def error_body(self, limit: int) -> bytes:
        """Return what an error answer says, nothing when it cannot be read or is too long."""
        if self.response.request.method == "HEAD" or self.status == NO_RANGE:
            return b""
        try:
            return await self.read(limit, "error", name="error_bytes")
        except (LimitExceeded, httpcore.TimeoutException, httpcore.NetworkError):
            return b""
        except (httpcore.ProtocolError, OSError):
            return b""

    async def content(self, limit: int, what: str, *, name: str) -> bytes:
        """Return the whole body, decompressed where the answer says that it is compressed."""
        body = await self.read(limit, what, name=name)
        return self.plain(body, limit, what, name=name)

    def plain(self, body: bytes, limit: int, what: str, *, name: str) -> bytes:
        """Return a body that was read, decompressed where the answer says that it is compressed."""
        return decoded(body, self.header("Content-Encoding"), limit, what, name=name)

    def next_page(self) -> str | None:
        """Return path and query of the next page, None when there is none on this registry.

        Source: RFC 8288; the OCI distribution specification ("Listing Tags").
        """
        match = _NEXT.search(", ".join(self.response.headers.get_list("Link")))
        if match is None:
            return None
        url, here = joined(self.url, match[1]), self.url
        if url is None or (url.scheme, url.host, url.port) != (here.scheme, here.host, here.port):
            return None
        return url.raw_path.decode("ascii")


def joined(base: httpx.URL, text: str) -> httpx.URL | None:
    """Return the URL that a text of an answer names; None when it names none.

    Args:
        base: of the answer.
        text: an absolute or relative URL, by which nothing is promised.
    """
    try:
        url = base.join(text)
        # The host is decoded only now; an international name may be none.
        return url if url.host or url.is_relative_url else None
    except (httpx.InvalidURL, ValueError, TypeError):
        return None


def decoded(body: bytes, encoding: str, limit: int, what: str, *, name: str) -> bytes:
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
        raise exceeded(f"the {what} is larger than {limit} bytes", name)
    if not unpacker.eof or unpacker.unused_data:
        raise RegistryUnavailable(f"the {what} is damaged: no valid gzip")
    return plain
