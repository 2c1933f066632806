"""A server in front of the real API server that answers in its place when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from tests.fakes.apiserver import refusal
from tests.lab.lab import Lab

_NOT_PASSED = frozenset({"host", "connection", "transfer-encoding", "content-length"})
TRICKLE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as it came; ``time`` is the event loop's, ``status`` what the front answered."""

    time: float
    method: str
    path: str
    watch: bool
    status: int  # 0: passed on


class Front:
    """Passes HTTP on to the API server of a lab, with the client's own token."""

    def __init__(self, lab: Lab, http: aiohttp.ClientSession) -> None:
        self._server = lab.server
        self._http = http
        self._refusal: tuple[int, int] | None = None
        self._trickling = False
        self._streams: set[asyncio.Task[None]] = set()
        self.no_streaming_lists = False
        self.pages_before = asyncio.Event()  # set: pages after the first are passed on
        self.pages_before.set()
        self.page_asked = asyncio.Event()
        self.arrivals: list[Arrival] = []
        self.url = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, lab: Lab) -> AsyncIterator[Front]:
        """Serve on a free port for as long as the context lasts."""
        trust = ssl.create_default_context(cafile=str(lab.authority))
        connector = aiohttp.TCPConnector(ssl=trust, limit=0)
        limits = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, timeout=limits) as http:
            front = cls(lab, http)
            app = web.Application(client_max_size=2**26)
            app.router.add_route("*", "/{path:.*}", front._handle)
            runner = web.AppRunner(app, shutdown_timeout=0.05, access_log=None)
            await runner.setup()
            try:
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                host, port = runner.addresses[0][:2]
                front.url = f"http://{host}:{port}"
                yield front
            finally:
                front.end_streams()
                await runner.cleanup()

    # ---- faults ------------------------------------------------------------------------------

    def refuse(self, status: int, *, retry_after: int) -> None:
        """Answer everything with a status and ``Retry-After`` seconds, and end all streams."""
        self._refusal = (status, retry_after)
        self.end_streams()

    def trickle(self) -> None:
        """Let all answers go on for ever with a space now and then, open streams too."""
        self._trickling = True
        self.end_streams()

    def mend(self) -> None:
        """Pass everything on."""
        self._refusal = None
        self._trickling = False

    def end_streams(self) -> None:
        """End the answers that are under way."""
        for task in self._streams:
            task.cancel()

    # ---- passing -----------------------------------------------------------------------------

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        status = self._answers(request)
        watch = request.query.get("watch") in {"1", "true"}
        self.arrivals.append(
            Arrival(asyncio.get_running_loop().time(), request.method, request.path, watch, status)
        )
        if status:
            return self._refuse(status)
        if request.query.get("continue"):
            self.page_asked.set()
            await self.pages_before.wait()
        response = web.StreamResponse()
        if self._trickling:
            await response.prepare(request)
            await self._trickle(response)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _NOT_PASSED}
        async with self._http.request(
            request.method,
            self._server + request.raw_path,
            headers=headers,
            data=body,
            allow_redirects=False,
        ) as answer:
            response.set_status(answer.status)
            for name, value in answer.headers.items():
                if name.lower() not in _NOT_PASSED:
                    response.headers[name] = value
            await response.prepare(request)
            await self._pass(answer, response)
        if self._trickling:
            await self._trickle(response)
        return response

    def _answers(self, request: web.Request) -> int:
        """Return the status that this front answers with itself, 0 for none."""
        if self._refusal is not None:
            return self._refusal[0]
        streaming_list = "sendInitialEvents" in request.query
        return 422 if streaming_list and self.no_streaming_lists else 0

    def _refuse(self, status: int) -> web.Response:
        reasons = {429: "TooManyRequests", 503: "ServiceUnavailable", 422: "Invalid"}
        text = "sendInitialEvents is forbidden" if status == 422 else "come again later"
        headers = {"Retry-After": str(self._refusal[1])} if self._refusal else {}
        value = refusal(status, reasons[status], text)
        return web.json_response(value, status=status, headers=headers)

    async def _pass(self, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        """Pass an answer on until it ends or is ended."""
        task = asyncio.ensure_future(self._chunks(answer, response))
        self._streams.add(task)
        try:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                await asyncio.wait({task})
                if not task.cancelled():
                    task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._streams.discard(task)

    async def _chunks(self, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        async for chunk in answer.content.iter_any():
            await response.write(chunk)

    async def _trickle(self, response: web.StreamResponse) -> None:
        with contextlib.suppress(ConnectionError):
            while self._trickling:
                await response.write(b" ")
                await asyncio.sleep(TRICKLE_SECONDS)
