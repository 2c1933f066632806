"""A registry that answers as the distribution specification says, but where a test has it lie.

It speaks HTTP over raw sockets, so that answers may break the protocol, and keeps every request:
what was asked, by which credentials, is what tests look at.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

TLS_HANDSHAKE = b"\x16"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass(frozen=True, slots=True)
class Request:
    """What a client sent; header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answers.

    ``raw`` replaces the whole answer; ``write`` sends the body by hand after the headers, or goes
    on after ``raw``; with ``close`` the connection ends after it.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    raw: bytes | None = None
    write: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None
    close: bool = False

    def with_header(self, name: str, value: str) -> Reply:
        return replace(self, headers=(*self.headers, (name, value)))

    def without(self, name: str) -> Reply:
        kept = tuple(pair for pair in self.headers if pair[0].lower() != name.lower())
        return replace(self, headers=kept)


Handler = Callable[[Request], Awaitable[Reply]]


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Server:
    """An HTTP/1.1 server on loopback that remembers what it was asked."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.requests: list[Request] = []
        self.connections = 0
        self.open_now = 0
        self.most_open = 0
        self.address = ""

    @property
    def seen(self) -> list[str]:
        return [f"{request.method} {request.target}" for request in self.requests]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while request := await _read(reader, writer):
                    self.requests.append(request)
                    reply = await self._handler(request)
                    await _write(writer, request, reply)
                    if reply.close or reply.raw is not None:
                        break
        finally:
            self.open_now -= 1
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await writer.wait_closed()


@contextlib.asynccontextmanager
async def serve(
    handler: Handler, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    """Run a server for as long as the context lasts."""
    server = Server(handler)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(server._serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = await asyncio.start_server(accept, host, 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    server.address = f"{host}:{port}"
    try:
        yield server
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    first_byte = await reader.readexactly(1)
    if first_byte == TLS_HANDSHAKE:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        return None
    head = first_byte + await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    pairs = (line.split(":", 1) for line in lines if line)
    headers = {name.lower(): value.strip() for name, value in pairs}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int((await reader.readline()).strip(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, target, headers, body)


async def _write(writer: asyncio.StreamWriter, request: Request, reply: Reply) -> None:
    if reply.raw is not None:
        writer.write(reply.raw)
        if reply.write is not None:
            await reply.write(writer)
        await writer.drain()
        return
    names = {name.lower() for name, _ in reply.headers}
    headers = list(reply.headers)
    if not names & {"content-length", "transfer-encoding"}:
        headers.append(("Content-Length", str(len(reply.body))))
    if reply.close:
        headers.append(("Connection", "close"))
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    writer.write(f"HTTP/1.1 {reply.status} Answer\r\n{head}\r\n".encode("latin-1"))
    if reply.write is not None:
        await reply.write(writer)
    elif request.method != "HEAD":
        writer.write(reply.body)
    await writer.drain()


@dataclass
class _Rule:
    method: str
    pattern: re.Pattern[str]
    change: Callable[[Request, Reply], Reply | Awaitable[Reply]]
    times: int | None


@dataclass
class FakeRegistry:
    """Content of a registry, and the rules by which its answers are changed."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, list[str]] = field(default_factory=dict)
    rules: list[_Rule] = field(default_factory=list)
    uploads: int = 0
    parts: dict[str, bytes] = field(default_factory=dict)  # of uploads that are under way
    referrers: dict[str, list[dict[str, Any]]] | None = None  # None: the API is not there

    def on(
        self,
        method: str,
        pattern: str,
        change: Callable[[Request, Reply], Reply | Awaitable[Reply]] | Reply,
        *,
        times: int | None = None,
    ) -> None:
        """Change the answers to matching requests, to the first ``times`` of them at most."""
        function = (lambda _request, _reply: change) if isinstance(change, Reply) else change
        self.rules.insert(0, _Rule(method, re.compile(pattern), function, times))

    def add_blob(self, content: bytes) -> str:
        digest = digest_of(content)
        self.blobs[digest] = content
        return digest

    def add_manifest(
        self, repository: str, document: Any, *, tag: str | None = None, kind: str = OCI_MANIFEST
    ) -> str:
        raw = document if isinstance(document, bytes) else json.dumps(document).encode()
        digest = digest_of(raw)
        for name in filter(None, (tag, digest)):
            self.manifests[f"{repository}/{name}"] = (kind, raw)
        if tag:
            self.tags.setdefault(repository, []).append(tag)
        return digest

    def add_image(
        self, repository: str, *layers: bytes, tag: str | None = "v1", **changes: Any
    ) -> str:
        """Store an image whose first layer is annotated as the package's own."""
        config = b"{}"
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": OCI_CONFIG,
                "digest": self.add_blob(config),
                "size": len(config),
            },
            "layers": [
                {"mediaType": OCI_LAYER, "digest": self.add_blob(layer), "size": len(layer)}
                | ({"annotations": {"io.crossplane.xpkg": "base"}} if at == 0 else {})
                for at, layer in enumerate(layers)
            ],
        }
        return self.add_manifest(repository, document | changes, tag=tag)

    async def __call__(self, request: Request) -> Reply:
        reply = self._answer(request)
        for rule in self.rules:
            if rule.times == 0 or rule.method not in (request.method, "*"):
                continue
            if rule.pattern.search(request.target):
                if rule.times is not None:
                    rule.times -= 1
                changed = rule.change(request, reply)
                return changed if isinstance(changed, Reply) else await changed
        return reply

    def _answer(self, request: Request) -> Reply:
        path = request.target.partition("?")[0].removeprefix("/v2/")
        if match := re.fullmatch(r"(.+)/manifests/([^/]+)", path):
            return self._manifest(request, f"{match[1]}/{match[2]}", match[1], match[2])
        if re.fullmatch(r"(.+)/blobs/uploads/.*", path):
            return self._upload(request)
        if match := re.fullmatch(r"(.+)/blobs/([^/]+)", path):
            return self._blob(request, match[2])
        if match := re.fullmatch(r"(.+)/referrers/([^/]+)", path):
            return self._referrers(match[2])
        if match := re.fullmatch(r"(.+)/tags/list", path):
            return self._list(match[1])
        return Reply(200, body=b"{}")

    def _manifest(self, request: Request, key: str, repository: str, name: str) -> Reply:
        if request.method == "PUT":
            kind = request.headers["content-type"]
            tag = None if name.startswith("sha256:") else name
            digest = self.add_manifest(repository, request.body, tag=tag, kind=kind)
            return Reply(201, (("Docker-Content-Digest", digest),))
        if key not in self.manifests:
            return error(404, "MANIFEST_UNKNOWN", "manifest unknown")
        kind, raw = self.manifests[key]
        headers = (("Content-Type", kind), ("Docker-Content-Digest", digest_of(raw)))
        length = (("Content-Length", str(len(raw))),) if request.method == "HEAD" else ()
        return Reply(200, headers + length, raw)

    def _blob(self, request: Request, digest: str) -> Reply:
        if digest not in self.blobs:
            return error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        content, tag = self.blobs[digest], f'"{digest}"'
        headers = (
            ("Content-Type", "application/octet-stream"),
            ("ETag", tag),
            ("Accept-Ranges", "bytes"),
        )
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if asked is None or request.headers.get("if-range", tag) != tag:
            return Reply(200, headers, content)
        start, size = int(asked[1]), len(content)
        if start >= size:
            return Reply(416, (*headers, ("Content-Range", f"bytes */{size}")))
        part = ("Content-Range", f"bytes {start}-{size - 1}/{size}")
        return Reply(206, (*headers, part), content[start:])

    def _upload(self, request: Request) -> Reply:
        path, _, query = request.target.partition("?")
        if request.method == "POST":
            self.uploads += 1
            path = f"{path}{self.uploads}"
            self.parts[path] = b""
            return self._place(path)
        if request.method == "DELETE":
            self.parts.pop(path, None)
            return Reply(204)
        if request.method == "GET":
            known = path in self.parts
            return self._place(path, 204) if known else error(404, "BLOB_UPLOAD_UNKNOWN", "gone")
        if request.method == "PATCH":
            first = int(request.headers["content-range"].partition("-")[0])
            if first != len(self.parts[path]):
                return Reply(416, (("Location", request.target),))
            self.parts[path] += request.body
            return self._place(path)
        content = self.parts.pop(path, b"") + request.body
        digest = query.partition("digest=")[2]
        if digest_of(content) != digest:
            return error(400, "DIGEST_INVALID", "provided digest did not match")
        self.blobs[digest] = content
        return Reply(201)

    def _place(self, path: str, status: int = 202) -> Reply:
        last = max(0, len(self.parts[path]) - 1)
        return Reply(status, (("Location", f"{path}?_state=a%2Bb"), ("Range", f"0-{last}")))

    def _referrers(self, digest: str) -> Reply:
        if self.referrers is None:
            return Reply(404, (("Content-Type", "text/plain"),), b"404 page not found")
        return index_reply(self.referrers.get(digest, []))

    def _list(self, repository: str) -> Reply:
        if repository not in self.tags:
            return error(404, "NAME_UNKNOWN", "repository name not known to registry")
        body = {"name": repository, "tags": self.tags[repository]}
        return Reply(200, (("Content-Type", "application/json"),), json.dumps(body).encode())


def error(status: int, code: str, message: str, *headers: tuple[str, str]) -> Reply:
    """Return an error as registries phrase it."""
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    return Reply(status, (("Content-Type", "application/json"), *headers), body)


def index_reply(entries: list[dict[str, Any]], *headers: tuple[str, str]) -> Reply:
    """Return an image index of some descriptors."""
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()
    return Reply(200, (("Content-Type", OCI_INDEX), *headers), body)


def bearer(realm: str, scope: str = "") -> Reply:
    """Return the refusal that asks for a token."""
    challenge = f'Bearer realm="{realm}",service="fake"' + (f',scope="{scope}"' if scope else "")
    return error(401, "UNAUTHORIZED", "authentication required", ("WWW-Authenticate", challenge))


def basic() -> Reply:
    """Return the refusal that asks for a password."""
    challenge = ("WWW-Authenticate", 'Basic realm="fake"')
    return error(401, "UNAUTHORIZED", "authentication required", challenge)
