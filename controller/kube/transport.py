"""One exchange with the API server: its deadline, its retries and its errors.

Guarantees:
    Every failure, of the network too, is an ``ApiError``; its text holds no credentials. Every
    wait has a deadline. A request whose effect is unknown is sent again only when that is safe.
    Redirects are not followed. All requests leave through ``Transport._send``. A guarded write is
    asked about twice: before it is sent, and as its body goes to the socket.

Source: the Kubernetes API conventions ("Response Status Kind"); client-go's rules for retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote, urlencode

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from controller.kube.apierror import ApiError, api_error
from controller.kube.connection import ConfigError, Credentials, Session
from controller.kube.contact import Contact, failure, translated
from controller.kube.stream import LineLimitError, LineSplitter, Splitter

DEADLINE = 60.0  # seconds for a request with all its tries
TRY_DEADLINE = 40.0  # seconds for one try; the API server ends writes after 34
CONNECT_DEADLINE = 10.0
IDLE_DEADLINE = 130.0  # seconds without a whole line on a watch; bookmarks come each minute
TRIES_MAX = 6
BACKOFF_BASE = 0.1
BACKOFF_CAP = 5.0
BODY_MAX = 256 * 1024 * 1024  # bytes of one answer

_KEEP_ALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}  # 50 s to notice

_NO_LINGER = struct.pack("ii", 1, 0)
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})  # methods that change nothing

Observe = Callable[[str, str, int, float], None]
Guard = Callable[[], None]
Query = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Response:
    """An answer of status 200 to 399, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is sent, and how it may be retried.

    ``label`` is (verb, resource) for metrics; ``repeatable`` says that sending it twice has the
    effect of sending it once.
    """

    method: str
    path: str
    label: tuple[str, str]
    query: Query = ()
    headers: Mapping[str, str] | None = None
    body: bytes | None = None
    repeatable: bool = True
    tries: int = TRIES_MAX

    @property
    def target(self) -> tuple[str, str]:
        """Verb and path, as errors name them."""
        return self.label[0], self.path


def retry_delay(error: ApiError, *, tries: int, tries_max: int, repeatable: bool) -> float | None:
    """Decide whether a failed request is sent again, and after how many seconds.

    Args:
        error: of the last try.
        tries: how many there were.
        tries_max: how many there may be.
        repeatable: sending the request twice has the effect of sending it once.

    Returns:
        Seconds without jitter; None to give up.

    Source: client-go retries what carries Retry-After; beyond it, what surely had no effect.
    """
    if tries >= tries_max or not error.retryable or error.too_large_version:
        return None
    surely_no_effect = error.status == HTTPStatus.TOO_MANY_REQUESTS or error.reason == "Unreachable"
    if not surely_no_effect and not repeatable:
        return None
    if error.status == HTTPStatus.INTERNAL_SERVER_ERROR and error.retry_after is None:
        return None
    backoff = min(BACKOFF_CAP, BACKOFF_BASE * 2.0 ** (tries - 1))
    return max(backoff, error.retry_after or 0.0)


class Transport:
    """Requests to one API server.

    Args:
        session: the open HTTP session.
        credentials: who the requests come from.
        observe: called after each try with verb, resource, HTTP status (0: none) and seconds.
        guard: called before each write; raises ``ApiError`` where it may not be sent.
        contact: told of answers and of failures to reach the server.
    """

    def __init__(
        self,
        session: Session,
        credentials: Credentials,
        *,
        observe: Observe | None = None,
        guard: Guard | None = None,
        contact: Contact | None = None,
    ) -> None:
        self._session = session
        self._credentials = credentials
        self._observe = observe
        self._guard = guard
        self._contact = contact
        self._loop = asyncio.get_running_loop()

    def guarded(self, guard: Guard) -> Transport:
        """Return the same way to the API server, with a guard over its writes."""
        return Transport(
            self._session,
            self._credentials,
            observe=self._observe,
            guard=guard,
            contact=self._contact,
        )

    async def request(self, request: Request, *, deadline: float = DEADLINE) -> Response:
        """Send a request, again where that is right, and read the answer.

        Args:
            request: what to send.
            deadline: seconds for all tries together.

        Raises:
            ApiError: an answer of status 400 and above, or none.
        """
        try:
            async with asyncio.timeout(deadline):
                return await self._persist(request, self._loop.time() + deadline)
        except TimeoutError:
            verb, path = request.target
            text = f"the API server did not answer {verb} {path} within {deadline:g} s"
            raise failure(verb, path, "Timeout", text) from None

    async def _persist(self, request: Request, end: float) -> Response:
        """Send a request until it is answered, refused for good, or its time is over."""
        tries, renewed = 0, False
        while True:
            tries += 1
            authorization = await self._credentials.authorization()
            try:
                return await self._try(request, authorization, end - self._loop.time())
            except ApiError as error:
                if error.status == HTTPStatus.UNAUTHORIZED and not renewed:
                    renewed = True
                    if await self._renewed(authorization):
                        continue
                delay = retry_delay(
                    error, tries=tries, tries_max=request.tries, repeatable=request.repeatable
                )
                if delay is None:
                    raise
                delay *= 1 + random.random() / 2  # noqa: S311 - jitter
                if self._loop.time() + delay >= end:
                    raise
            await asyncio.sleep(delay)

    @contextlib.asynccontextmanager
    async def stream(
        self, request: Request, splitter: Splitter | None = None
    ) -> AsyncIterator[Lines]:
        """Open an answer that goes on, and give its lines; one try, and one more after a 401.

        Args:
            request: what to send.
            splitter: cuts the answer into other pieces than lines.

        Raises:
            ApiError: as ``request``; also from the lines.
        """
        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_DEADLINE, sock_read=IDLE_DEADLINE
        )
        authorization = await self._credentials.authorization()
        try:
            response = await self._open(request, authorization, limits)
        except ApiError as error:
            refused = error.status == HTTPStatus.UNAUTHORIZED
            if not refused or not await self._renewed(authorization):
                raise
            authorization = await self._credentials.authorization()
            response = await self._open(request, authorization, limits)
        try:
            keep_alive(response)
            yield Lines(response, request, splitter or LineSplitter())
        finally:
            response.close()

    async def _renewed(self, refused: str | None) -> bool:
        try:
            return await self._credentials.renew(refused)
        except (ApiError, ConfigError):
            return False  # the caller reports the refusal itself

    async def _try(self, request: Request, authorization: str | None, seconds: float) -> Response:
        limits = aiohttp.ClientTimeout(
            total=max(0.001, min(TRY_DEADLINE, seconds)), sock_connect=CONNECT_DEADLINE
        )
        response = await self._open(request, authorization, limits)
        async with response:
            with translated(*request.target):
                body = await _read(response, request)
            return Response(response.status, response.headers, body)

    async def _open(
        self, request: Request, authorization: str | None, limits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        """Send and look at the status: an error's answer is read and raised."""
        started, status = self._loop.time(), 0
        try:
            with translated(*request.target):
                response = await self._send(request, authorization, limits)
            status = response.status
            if self._contact is not None:
                self._contact.answered()
        except ApiError as error:
            if self._contact is not None:
                self._contact.failed(error)
            raise
        finally:
            if self._observe is not None:
                self._observe(*request.label, status, self._loop.time() - started)
        if 200 <= status < 400:
            return response
        async with response:
            with translated(*request.target):
                body = await _read(response, request)
            raise api_error(
                status=status,
                headers=response.headers,
                body=body,
                verb=request.label[0],
                path=request.path,
            )

    async def _send(
        self, request: Request, authorization: str | None, limits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        headers = dict(request.headers or {})
        headers.setdefault("Accept", "application/json")
        if authorization is not None:
            headers["Authorization"] = authorization
        url = self._session.server + quote(request.path, safe="/:")
        if request.query:
            url += "?" + urlencode(request.query)
        body: bytes | _GuardedBody | None = request.body
        if self._guard is not None and request.method not in _SAFE:
            self._guard()
            body = _GuardedBody(request.body or b"", guard=self._guard)
        try:
            return await self._session.request(
                request.method,
                URL(url, encoded=True),
                headers=headers,
                data=body,
                timeout=limits,
                allow_redirects=False,
            )
        except BaseException:
            if isinstance(body, _GuardedBody):
                body.withdraw()
            raise


class _GuardedBody(aiohttp.BytesPayload):
    """A body that asks its guard when it goes to the socket.

    Waiting for a connection, or a process that was stopped in between, can take longer than the
    right to write lasts. The head of a request leaves with its body, and without a body that is
    whole the API server does nothing.
    """

    def __init__(self, value: bytes, *, guard: Guard) -> None:
        super().__init__(b"")
        # Not by the constructor, which warns of bodies above 1 MiB; the API server takes 3 MiB.
        self._value, self._size = value, len(value)
        self._guard = guard
        self._sent_by: asyncio.Transport | None = None

    async def write_with_length(
        self, writer: AbstractStreamWriter, content_length: int | None
    ) -> None:
        self._guard()
        self._sent_by = getattr(writer, "transport", None)
        await super().write_with_length(writer, content_length)

    def withdraw(self) -> None:
        """Drop what has not left this machine; a connection that is only closed still sends it."""
        if self._sent_by is None:
            return
        sock = self._sent_by.get_extra_info("socket")
        with contextlib.suppress(OSError):
            if sock is not None:  # the kernel forgets its part too
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._sent_by.abort()


class Lines:
    """The lines of an answer that goes on, as they arrive; ends with the answer."""

    def __init__(
        self, response: aiohttp.ClientResponse, request: Request, splitter: Splitter
    ) -> None:
        self._response = response
        self._request = request
        self._splitter = splitter
        self._ready: list[bytes] = []

    def __aiter__(self) -> Lines:
        return self

    async def __anext__(self) -> bytes:
        if not self._ready:
            # Whole lines are waited for: a peer that sends bytes and no line is dead as well.
            with translated(*self._request.target):
                async with asyncio.timeout(IDLE_DEADLINE):
                    await self._fill()
        return self._ready.pop()

    async def _fill(self) -> None:
        while not self._ready:
            chunk = await self._response.content.readany()
            if not chunk:
                raise StopAsyncIteration  # a line without its end was torn: it is dropped
            try:
                self._ready = self._splitter.feed(chunk)
            except LineLimitError as error:
                raise failure(*self._request.target, "TooLarge", str(error)) from None
            self._ready.reverse()


async def _read(response: aiohttp.ClientResponse, request: Request) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while chunk := await response.content.readany():
        size += len(chunk)
        if size > BODY_MAX:
            response.close()
            text = f"the answer to {request.path} is larger than {BODY_MAX // 2**20} MiB"
            raise failure(*request.target, "TooLarge", text)
        chunks.append(chunk)
    return b"".join(chunks)


def keep_alive(response: aiohttp.ClientResponse) -> None:
    """Let the system ask a silent peer for a sign of life, so that a dead one is noticed."""
    connection = response.connection
    transport = connection.transport if connection is not None else None
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
