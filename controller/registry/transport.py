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

from controller.registry.circuit import Circuit, is_absence
from controller.registry.connection import ConnectionPool, Peer, Resolve
from controller.registry.endpoint import Endpoint, origin_of
from controller.registry.failures import PolicyViolation, RegistryError, RegistryUnavailable
from controller.registry.guard import InsecureHosts, Policy, networks_of
from controller.registry.outcome import (
    LOW_LEVEL,
    next_delay,
    proxy_refusal,
    says_no_tls,
    shown_proxy,
    translate,
)
from controller.registry.proxies import DIRECT, Proxies
from controller.registry.responses import let_go, redirect_of
from controller.registry.trust import Trust
from controller.registry.wire import DEFAULT_LIMITS, Answer, Ask, Limits

log = structlog.get_logger(__name__)

T = TypeVar("T")
Observe: TypeAlias = Callable[[str, str, int, float], None]
"""Called after each request: registry, operation, HTTP status (0: no answer), seconds."""

REGISTRIES_MAX = 32
USER_AGENT = "User-Agent"
PROXY_REFUSES = 407


class Transport:
    """All connections to registries, and the limits that they share.

    Args:
        user_agent: how requests name their sender.
        ca_bundle: certificates that are trusted beside the system's; read again when they change.
        certificates: folder with a folder of certificates for each registry that needs some.
        insecure: registries that may be spoken to over plain HTTP.
        proxies: which requests go through a proxy.
        policy: about private addresses, foreign token servers and headers that contradict content.
        private_redirects: private address ranges that any registry may lead to.
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
        certificates: Path | None = None,
        insecure: Iterable[str] = (),
        proxies: Proxies = DIRECT,
        policy: Policy = "warn",
        private_redirects: Iterable[str] = (),
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
        self._trust = Trust(ca_bundle, certificates, clock=clock)
        self._private = networks_of(private_redirects)
        self._insecure = InsecureHosts.of(insecure)
        self._proxies = proxies
        self._observe = observe
        self._sleep = sleep
        self._resolve = resolve
        self._dialler = dialler
        self._total = asyncio.Semaphore(limits.total)
        self._endpoints: OrderedDict[str, Endpoint] = OrderedDict()

    async def __aenter__(self) -> Self:
        await self._trust.context("")
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
            allowed=self._private,
        )
        pool = ConnectionPool(
            peer=peer,
            trust=self._trust,
            proxies=self._proxies,
            resolve=self._resolve,
            dialler=self._dialler,
        )
        return Endpoint(host, peer=peer, pool=pool, limits=self.limits)

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
            await self.sleep(pause)

    async def sleep(self, seconds: float) -> None:
        """Wait, by the clock of this transport."""
        await self._sleep(seconds)

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
        seconds = self.limits.metadata_seconds if seconds is None else seconds
        circuit = endpoint.circuits.of(self._first_host(endpoint, ask))
        async with endpoint.use(), self._turn(endpoint, circuit):
            try:
                async with asyncio.timeout(seconds):
                    return await self._follow(endpoint, ask, consume, authorization)
            except TimeoutError:
                late = f"no complete answer from {endpoint.host} within {seconds:g} s"
                error = RegistryUnavailable(late, transient=True)
                circuit.failed(error, self.clock())
                raise error from None

    def _first_host(self, endpoint: Endpoint, ask: Ask) -> str:
        return httpx.URL(ask.target).netloc.decode() if "://" in ask.target else endpoint.host

    @contextlib.asynccontextmanager
    async def _turn(self, endpoint: Endpoint, circuit: Circuit) -> AsyncIterator[None]:
        """Hold a place among the requests that are under way, once the host may be asked.

        Whoever waited for a place looks again: the host may have asked for a pause meanwhile.
        """
        while True:
            await self._sleep_out(circuit)
            async with _slot(endpoint.slots, self.limits), _slot(self._total, self.limits):
                if circuit.wait(self.clock()) <= 0:
                    yield
                    return

    async def _sleep_out(self, circuit: Circuit) -> None:
        while (pause := circuit.wait(self.clock())) > 0:
            await self._sleep(pause)

    def block(self, endpoint: Endpoint, url: httpx.URL, seconds: float) -> None:
        """Let nobody ask the host of a URL before some time has passed."""
        host = endpoint.host if endpoint.is_own(url) else url.netloc.decode("ascii")
        endpoint.circuits.of(host).pause(seconds, self.clock())

    async def _follow(
        self,
        endpoint: Endpoint,
        ask: Ask,
        consume: Callable[[Answer], Awaitable[T]],
        authorization: str | None,
    ) -> T:
        url = httpx.URL(ask.target) if "://" in ask.target else None
        seen: set[str] = set()
        hops = self.limits.redirects if ask.redirects is None else ask.redirects
        for _ in range(hops + 1):
            response, url = await self._hop(endpoint, ask, url, authorization)
            try:
                target = redirect_of(response, url, ask)
                if target is None:
                    answer = Answer(response, url, foreign=not endpoint.is_own(url))
                    return await self._consumed(endpoint, answer, consume)
            finally:
                await let_go(response)
            endpoint.peer.check_target(target, came_from=url)
            if str(target) in seen:
                raise PolicyViolation(f"registry {endpoint.host} redirects in a circle")
            seen.add(str(target))
            url = target
        raise PolicyViolation(f"registry {endpoint.host} redirects more than {hops} times")

    async def _hop(
        self, endpoint: Endpoint, ask: Ask, url: httpx.URL | None, authorization: str | None
    ) -> tuple[httpx.Response, httpx.URL]:
        """Send to one host, unless it failed too often lately, and note how it goes."""
        own = url is None or endpoint.is_own(url)
        host = endpoint.host if own or url is None else url.netloc.decode("ascii")
        circuit = endpoint.circuits.of(host)
        probe = circuit.admit(self.clock())
        # The head of an answer is small whatever its body is; a request's body takes its time.
        seconds = self.limits.metadata_seconds if ask.body is None else None
        try:
            async with asyncio.timeout(seconds):
                response, actual = await self._first(endpoint, ask, url, authorization)
        except TimeoutError:
            late = f"no answer from {host} within {seconds:g} s"
            error = RegistryUnavailable(late, transient=True)
            circuit.failed(error, self.clock())
            raise error from None
        except RegistryError as error:
            if is_absence(error):
                circuit.failed(error, self.clock())
            raise
        finally:
            circuit.ended(probe=probe)
        self._judge(circuit, response)
        return response, actual

    def _judge(self, circuit: Circuit, response: httpx.Response) -> None:
        """Note whether a host answered or something before it said that it is away."""
        answered = f"{circuit.host} answered HTTP {response.status_code}"
        error = RegistryUnavailable(answered, status=response.status_code)
        if is_absence(error):
            circuit.failed(error, self.clock())
        else:
            circuit.succeeded()

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

    def _request(
        self, endpoint: Endpoint, ask: Ask, url: httpx.URL, authorization: str | None
    ) -> httpx.Request:
        headers = {USER_AGENT: self._user_agent, "Accept-Encoding": "identity", **ask.headers}
        if authorization is not None and endpoint.is_own(url):
            headers["Authorization"] = authorization
        elif ask.secret is not None and origin_of(httpx.URL(ask.target)) == origin_of(url):
            headers["Authorization"] = ask.secret
        limits = self.limits
        timeouts = {
            "connect": limits.connect_seconds,
            "read": limits.read_seconds,
            "write": limits.write_seconds,
            "pool": limits.slot_seconds,
        }
        content = ask.body() if callable(ask.body) else ask.body
        extensions = {"timeout": timeouts}
        return httpx.Request(
            ask.method, url, headers=headers, content=content, extensions=extensions
        )

    async def _send(
        self, endpoint: Endpoint, ask: Ask, url: httpx.URL, authorization: str | None
    ) -> httpx.Response:
        request = self._request(endpoint, ask, url, authorization)
        started, status = time.perf_counter(), 0
        host, proxy = url.netloc.decode("ascii"), endpoint.pool.proxy_of(url)
        through = f"{host} (through the proxy {shown_proxy(proxy)})" if proxy else host
        try:
            response = await endpoint.pool.handle_async_request(request)
            status = response.status_code
            if proxy and status == PROXY_REFUSES:
                await response.aclose()
                raise proxy_refusal(host, proxy, "it asks for credentials (HTTP 407)")
            return response
        except httpcore.ProxyError as error:
            raise proxy_refusal(host, proxy or "", str(error)) from error
        except LOW_LEVEL as error:
            raise translate(error, host=through) from error
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


def _exhausted(error: RegistryError, attempts: int) -> RegistryError:
    """Return a failure that is not tried again, with the number of attempts in its text."""
    if error.transient and attempts > 1:
        error.cause = f"{error.cause} (after {attempts} attempts)"
    error.transient = False
    return error
