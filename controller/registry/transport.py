"""One request to a registry: connection, redirects, limits, deadlines and retries.

Every registry has connections of its own, shared with no other: what is left over on one of them
can only ever reach the registry that sent it. Redirects are followed here, hop by hop, and carry
``Authorization`` to the registry's own origin alone. Errors of the network library end here.

Source: the OCI distribution specification; RFC 9110 (redirects, Retry-After).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

import anyio.lowlevel
import httpcore
import httpx
import structlog

from controller.registry.connection import ConnectionPool, Peer, Resolve, tls_context
from controller.registry.endpoint import Endpoint, origin_of
from controller.registry.failures import (
    PolicyViolation,
    RateLimited,
    RegistryError,
    RegistryUnavailable,
)
from controller.registry.guard import InsecureHosts, Policy
from controller.registry.outcome import LOW_LEVEL, next_delay, says_no_tls, translate
from controller.registry.proxies import DIRECT, Proxies
from controller.registry.wire import DEFAULT_LIMITS, Answer, Ask, Limits

log = structlog.get_logger(__name__)

T = TypeVar("T")
Observe: TypeAlias = Callable[[str, str, int, float], None]
"""Called after each request: registry, operation, HTTP status (0: no answer), seconds."""

REDIRECTS = frozenset({301, 302, 303, 307, 308})
REDIRECTS_WITH_BODY = frozenset({307, 308})
REGISTRIES_MAX = 32
DRAINED_BYTES = 16 * 1024
DRAIN_SECONDS = 1.0
USER_AGENT = "User-Agent"


class Transport:
    """All connections to registries, and the limits that they share.

    Args:
        user_agent: how requests name their sender.
        ca_bundle: certificates that are trusted beside the system's.
        insecure: registries that may be spoken to over plain HTTP.
        proxies: which requests go through a proxy.
        policy: about private addresses and foreign token servers.
        limits: sizes, times and counts.
        observe: called after each request.
        clock: monotonic seconds.
        sleep: waits.
        resolve: finds the addresses of a name; None asks the system.
        dialler: connects to addresses; None opens sockets.
    """

    def __init__(
        self,
        *,
        user_agent: str,
        ca_bundle: Path | None = None,
        insecure: Iterable[str] = (),
        proxies: Proxies = DIRECT,
        policy: Policy = "warn",
        limits: Limits = DEFAULT_LIMITS,
        observe: Observe | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        resolve: Resolve | None = None,
        dialler: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        self.policy: Policy = policy
        self.limits = limits
        self.clock = clock
        self._user_agent = user_agent
        self._ca_bundle = ca_bundle
        self._insecure = InsecureHosts.of(insecure)
        self._proxies = proxies
        self._observe = observe
        self._sleep = sleep
        self._resolve = resolve
        self._dialler = dialler
        self._total = asyncio.Semaphore(limits.total)
        self._endpoints: OrderedDict[str, Endpoint] = OrderedDict()

    async def __aenter__(self) -> Self:
        self._tls = await asyncio.to_thread(tls_context, self._ca_bundle)
        # Loads what the network library imports at first use; later it would hold the event loop.
        await anyio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        while self._endpoints:
            _, endpoint = self._endpoints.popitem()
            await endpoint.pool.aclose()

    async def endpoint(self, host: str) -> Endpoint:
        """Return the registry of a host; connections of the one unused longest are closed."""
        known = self._endpoints.get(host)
        if known is None:
            known = self._open(host)
            self._endpoints[host] = known
        self._endpoints.move_to_end(host)
        idle = [
            name for name, other in self._endpoints.items() if other.users == 0 and name != host
        ]
        for name in idle[: max(0, len(self._endpoints) - REGISTRIES_MAX)]:
            await self._endpoints.pop(name).retire()
        return known

    def _open(self, host: str) -> Endpoint:
        peer = Peer(
            host=host,
            http_allowed=self._insecure.allow_http(host),
            policy=self.policy,
            warn=lambda text: log.warning(text, registry=host),
        )
        pool = ConnectionPool(
            peer=peer,
            tls=self._tls,
            proxies=self._proxies,
            resolve=self._resolve,
            dialler=self._dialler,
        )
        return Endpoint(host, peer=peer, pool=pool, slots=self.limits.per_registry)

    async def retrying(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run an operation again after transient failures, with growing pauses.

        Raises:
            RegistryError: the last failure; no longer transient.
        """
        attempt = 1
        while True:
            try:
                return await operation()
            except RegistryError as error:
                pause = next_delay(error, attempt, self.limits, random.random())  # noqa: S311 - jitter
                if pause is None:
                    raise _exhausted(error, attempt) from error.__cause__
            attempt += 1
            await self._sleep(pause)

    async def exchange(
        self,
        endpoint: Endpoint,
        ask: Ask,
        consume: Callable[[Answer], Awaitable[T]],
        *,
        authorization: str | None = None,
        seconds: float | None = None,
    ) -> T:
        """Send one request, follow its redirects and hand the answer over.

        Args:
            endpoint: the registry.
            ask: the request.
            consume: reads the answer while the connection is held; its result is returned.
            authorization: header value; only the registry's own origin sees it.
            seconds: deadline for everything once a slot is free; None for the usual one.

        Raises:
            RegistryError: no answer, or what ``consume`` raised.
        """
        await self._pause(endpoint)
        seconds = self.limits.metadata_seconds if seconds is None else seconds
        async with (
            endpoint.use(),
            _slot(endpoint.slots, self.limits),
            _slot(self._total, self.limits),
        ):
            try:
                async with asyncio.timeout(seconds):
                    return await self._follow(endpoint, ask, consume, authorization)
            except TimeoutError:
                raise RegistryUnavailable(
                    f"no complete answer from {endpoint.host} within {seconds:g} s", transient=True
                ) from None

    async def _pause(self, endpoint: Endpoint) -> None:
        """Wait while the registry asked not to be asked."""
        remaining = endpoint.blocked_until - self.clock()
        if remaining > self.limits.wait_seconds:
            raise RateLimited(
                f"registry {endpoint.host} asked to wait {remaining:.0f} s more",
                retry_after=remaining,
            )
        if remaining > 0:
            await self._sleep(remaining)

    def block(self, endpoint: Endpoint, seconds: float) -> None:
        """Let nobody ask a registry before some time has passed."""
        endpoint.blocked_until = max(endpoint.blocked_until, self.clock() + seconds)

    async def _follow(
        self,
        endpoint: Endpoint,
        ask: Ask,
        consume: Callable[[Answer], Awaitable[T]],
        authorization: str | None,
    ) -> T:
        url = httpx.URL(ask.target) if "://" in ask.target else None
        seen: set[str] = set()
        for _ in range(self.limits.redirects + 1):
            response, url = await self._first(endpoint, ask, url, authorization)
            try:
                target = _redirect(response, url, ask)
                if target is None:
                    answer = Answer(response, url, foreign=not endpoint.is_own(url))
                    return await self._consumed(endpoint, answer, consume)
            finally:
                await _let_go(response)
            endpoint.peer.check_target(target, came_from=url)
            if str(target) in seen:
                raise PolicyViolation(f"registry {endpoint.host} redirects in a circle")
            seen.add(str(target))
            url = target
        raise PolicyViolation(
            f"registry {endpoint.host} redirects more than {self.limits.redirects} times"
        )

    async def _consumed(
        self, endpoint: Endpoint, answer: Answer, consume: Callable[[Answer], Awaitable[T]]
    ) -> T:
        try:
            return await consume(answer)
        except LOW_LEVEL as error:
            raise translate(error, host=endpoint.host) from error

    async def _first(
        self, endpoint: Endpoint, ask: Ask, url: httpx.URL | None, authorization: str | None
    ) -> tuple[httpx.Response, httpx.URL]:
        """Send to a URL, or to the registry by the scheme that it understands."""
        if url is None and endpoint.scheme is None:
            try:
                secure = httpx.URL(f"https://{endpoint.host}{ask.target}")
                response = await self._send(endpoint, ask, secure, authorization)
            except RegistryError as error:
                if not says_no_tls(error, host=endpoint.host):
                    raise
            else:
                endpoint.settle("https")
                return response, secure
            url = httpx.URL(f"http://{endpoint.host}{ask.target}")
            response = await self._send(endpoint, ask, url, authorization)
            endpoint.settle("http")
            return response, url
        actual = url or httpx.URL(f"{endpoint.scheme}://{endpoint.host}{ask.target}")
        return await self._send(endpoint, ask, actual, authorization), actual

    async def _send(
        self, endpoint: Endpoint, ask: Ask, url: httpx.URL, authorization: str | None
    ) -> httpx.Response:
        headers = {USER_AGENT: self._user_agent, "Accept-Encoding": "identity", **ask.headers}
        if authorization is not None and endpoint.is_own(url):
            headers["Authorization"] = authorization
        elif ask.secret is not None and origin_of(httpx.URL(ask.target)) == origin_of(url):
            headers["Authorization"] = ask.secret
        limits = self.limits
        request = httpx.Request(
            ask.method,
            url,
            headers=headers,
            content=ask.body() if callable(ask.body) else ask.body,
            extensions={
                "timeout": {
                    "connect": limits.connect_seconds,
                    "read": limits.read_seconds,
                    "write": limits.write_seconds,
                    "pool": limits.slot_seconds,
                }
            },
        )
        started, status = time.perf_counter(), 0
        try:
            response = await endpoint.pool.handle_async_request(request)
            status = response.status_code
            return response
        except LOW_LEVEL as error:
            raise translate(error, host=url.netloc.decode("ascii")) from error
        finally:
            if self._observe is not None:
                spent = time.perf_counter() - started
                self._observe(endpoint.host, ask.operation, status, spent)


@contextlib.asynccontextmanager
async def _slot(slots: asyncio.Semaphore, limits: Limits) -> AsyncIterator[None]:
    """Hold one of the places of a semaphore."""
    try:
        async with asyncio.timeout(limits.slot_seconds):
            await slots.acquire()
    except TimeoutError:
        raise RegistryUnavailable(
            f"all connections were busy for {limits.slot_seconds:g} s"
        ) from None
    try:
        yield
    finally:
        slots.release()


async def _let_go(response: httpx.Response) -> None:
    """Give a connection back; one whose answer ends soon can be used again, others are closed."""
    length = response.headers.get("Content-Length", "")
    is_short = response.request.method == "HEAD" or (
        length.isdecimal() and int(length) <= DRAINED_BYTES
    )
    if is_short and not response.is_stream_consumed:
        with contextlib.suppress(TimeoutError, *LOW_LEVEL):
            async with asyncio.timeout(DRAIN_SECONDS):
                async for _ in response.aiter_raw():
                    pass
    await response.aclose()


def _exhausted(error: RegistryError, attempts: int) -> RegistryError:
    """Return a failure that is not tried again, with the number of attempts in its text."""
    if error.transient and attempts > 1:
        error.cause = f"{error.cause} (after {attempts} attempts)"
    error.transient = False
    return error


def _redirect(response: httpx.Response, url: httpx.URL, ask: Ask) -> httpx.URL | None:
    """Return where an answer redirects to, None when it does not.

    Raises:
        RegistryUnavailable: the target is no URL.
    """
    allowed = REDIRECTS if ask.method in {"GET", "HEAD"} else REDIRECTS_WITH_BODY
    location = response.headers.get("Location")
    if response.status_code not in allowed or not location or not ask.follow:
        return None
    try:
        return url.join(location).copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError, TypeError):
        raise RegistryUnavailable(f"{url.host} redirects to something that is no URL") from None
