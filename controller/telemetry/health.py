"""Health: an HTTP server that tells probes whether the process is well, and serves its metrics.

Guarantees: an answer names every check that fails; no check keeps the server from answering.
Assumptions: checks are plain functions that return at once.

Source: Kubernetes' health endpoints of the API server.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

Check = Callable[[], str | None]
Address = tuple[str, int]


_Handler = Callable[[web.Request], Awaitable[web.Response]]
_CLOSE_DEADLINE = 1.0  # seconds for requests in flight at the stop


class ListenError(Exception):
    """An address cannot be listened on; the message says why and what to do."""


def run_checks(checks: Mapping[str, Check]) -> dict[str, str | None]:
    """Return by name what is wrong, None for what is well.

    A check that raises has failed; its exception's text is the reason.
    """
    found: dict[str, str | None] = {}
    for name, check in checks.items():
        try:
            found[name] = check()
        except Exception as error:  # noqa: BLE001 - health is told, never raised
            found[name] = f"the check itself failed: {error!r}"
    return found


class HealthServer:
    """Serves ``/healthz`` and ``/readyz`` on one address, ``/metrics`` on another.

    Health answers are 200 or 503, one line a check: ``[+]name ok`` or ``[-]name failed: reason``;
    JSON where the request accepts only that.

    Args:
        health: host and port of the health endpoints; None for none; port 0 for any free one.
        metrics: host and port of the metrics; may be the same; None for none.
        render: returns the metrics in the text format of Prometheus.

    Source: Kubernetes' health endpoints of the API server.
    """

    def __init__(
        self, *, health: Address | None, metrics: Address | None, render: Callable[[], bytes]
    ) -> None:
        self._health = health
        self._metrics = metrics
        self._render = render
        self._live: dict[str, Check] = {"ping": lambda: None}
        self._ready: dict[str, Check] = {"ping": lambda: None}
        self._runners: list[web.AppRunner] = []
        self.health_port = 0
        self.metrics_port = 0

    def add_liveness(self, name: str, check: Check) -> None:
        """Let ``/healthz`` fail while check returns a reason: only a new process can help."""
        self._live[name] = check

    def add_readiness(self, name: str, check: Check) -> None:
        """Let ``/readyz`` fail while check returns a reason: waiting can help."""
        self._ready[name] = check

    async def __aenter__(self) -> Self:
        """Start listening.

        Raises:
            ListenError: an address is taken, or cannot be listened on.
        """
        health: dict[str, _Handler] = {
            "/healthz": self._answer(self._live),
            "/readyz": self._answer(self._ready),
        }
        metrics: dict[str, _Handler] = {"/metrics": self._answer_metrics}
        try:
            if self._health is not None and self._health == self._metrics and self._health[1]:
                self.health_port = await self._listen("health", self._health, health | metrics)
                self.metrics_port = self.health_port
                return self
            if self._health is not None:
                self.health_port = await self._listen("health", self._health, health)
            if self._metrics is not None:
                self.metrics_port = await self._listen("metrics", self._metrics, metrics)
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._close()

    async def _listen(self, purpose: str, address: Address, routes: Mapping[str, _Handler]) -> int:
        """Serve routes on an address; return the port."""
        app = web.Application()
        app.add_routes([web.get(path, handler) for path, handler in routes.items()])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_DEADLINE)
        await runner.setup()
        self._runners.append(runner)
        try:
            await web.TCPSite(runner, *address).start()
        except (OSError, OverflowError, UnicodeError) as error:
            raise ListenError(
                f"cannot listen on {address[0]}:{address[1]} for {purpose}: {_cause(error)};"
                f" free it or choose another with --{purpose}-address"
            ) from error
        port: int = runner.addresses[0][1]
        return port

    async def _close(self) -> None:
        while self._runners:
            await self._runners.pop().cleanup()

    def _answer(self, checks: Mapping[str, Check]) -> _Handler:
        async def answer(request: web.Request) -> web.Response:
            found = run_checks(checks)
            failing = {name: reason for name, reason in found.items() if reason is not None}
            status = 503 if failing else 200
            if request.headers.get("Accept", "").startswith("application/json"):
                return web.json_response({"ok": not failing, "failing": failing}, status=status)
            lines = [
                f"[+]{name} ok" if reason is None else f"[-]{name} failed: {reason}"
                for name, reason in found.items()
            ]
            lines.append(f"{request.path[1:]} check {'failed' if failing else 'passed'}")
            return web.Response(text="\n".join(lines) + "\n", status=status)

        return answer

    async def _answer_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _cause(error: Exception) -> str:
    """Return why an address cannot be listened on, in a few words."""
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno).lower()
    return str(getattr(error, "strerror", None) or error).lower()
