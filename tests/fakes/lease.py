"""One Lease as an API server keeps it, with lines to it that can be slow, lossy or silent.

Guarantees: a write at another resource version than the stored one is a conflict, as is one for
an object of another uid; a watch delivers every change in order.
Assumptions: it stands in for the API server only where time itself is tested, in virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import orjson

from controller.kube.apierror import ApiError
from controller.kube.client import KubeClient
from controller.kube.informer import Change
from controller.kube.transport import Request, Response, Transport
from controller.model.objects import Resource

Json = dict[str, Any]


@dataclass(frozen=True)
class Sent:
    """One request as the server handled it; status 0 for one that never arrived."""

    time: float
    sender: str
    method: str
    status: int
    body: Json | None


class LeaseServer:
    """Keeps the Lease, and a log of all requests for it."""

    def __init__(self) -> None:
        self.lease: Json | None = None
        self.sent: list[Sent] = []
        self._version = 100
        self._made = 0
        self._watches: list[asyncio.Queue[Change]] = []

    def line(self, sender: str) -> Line:
        """Return a connection of its own for one candidate."""
        return Line(self, sender)

    def write(self, spec: Json | None, **metadata: Any) -> Json:
        """Store a record as somebody else writes it; None leaves the Lease without one."""
        known = self.lease or self._new()
        changed: Json = {**known, "metadata": {**known["metadata"], **metadata}}
        if spec is None:
            changed.pop("spec", None)
        else:
            changed["spec"] = spec
        return self._store(changed)

    def delete(self) -> None:
        """Remove the Lease."""
        assert self.lease is not None
        gone, self.lease = self.lease, None
        self._version += 1
        gone["metadata"]["resourceVersion"] = str(self._version)
        self._tell(Change(gone, None))

    @property
    def spec(self) -> Json:
        """The stored record."""
        assert self.lease is not None
        return self.lease["spec"]

    def count(self, method: str, *, sender: str | None = None, since: float = 0) -> int:
        """Count requests."""
        return sum(
            each.method == method and sender in {None, each.sender} and each.time >= since
            for each in self.sent
        )

    def handle(self, method: str, body: Json | None) -> Json:
        """Read or change the Lease.

        Raises:
            ApiError: as the API server refuses.
        """
        if method == "GET":
            if self.lease is None:
                raise refusal(404, "NotFound")
            return self.lease
        assert body is not None
        metadata = body["metadata"]
        if method == "POST":
            if self.lease is not None:
                raise refusal(409, "AlreadyExists")
            assert "resourceVersion" not in metadata
            return self._store({**self._new(), **body, "metadata": self._new()["metadata"]})
        stored = self.lease["metadata"] if self.lease is not None else {}
        same = all(metadata[key] == stored.get(key) for key in ("uid", "resourceVersion"))
        if not same:
            raise refusal(409, "Conflict")
        return self._store(body)

    def _new(self) -> Json:
        self._made += 1
        metadata = {"name": "core", "namespace": "ns", "uid": f"uid-{self._made}"}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}

    def _store(self, lease: Json) -> Json:
        before = self.lease
        self._version += 1
        self.lease = copy.deepcopy(lease)
        self.lease["metadata"]["resourceVersion"] = str(self._version)
        self._tell(Change(before, self.lease))
        return self.lease

    def _tell(self, change: Change) -> None:
        for each in self._watches:
            each.put_nowait(change)

    @contextlib.contextmanager
    def watch(self) -> Iterator[asyncio.Queue[Change]]:
        """Collect all changes, beginning with the present state."""
        changes: asyncio.Queue[Change] = asyncio.Queue()
        if self.lease is not None:
            changes.put_nowait(Change(None, self.lease))
        self._watches.append(changes)
        try:
            yield changes
        finally:
            self._watches.remove(changes)


class Line:
    """A candidate's way to the server, in place of ``Transport``.

    Attributes:
        there: seconds that a request needs.
        back: seconds that an answer needs.
        silent: requests are not read, answers and watched changes do not arrive.
        lost: so many next answers to writes get lost.
        failure: raised in place of sending.
        watching: the API server accepts watches.
        garbage: answers are no JSON.
        late: answers are taken after the deadline too, as when the process was stopped in between.
    """

    def __init__(self, server: LeaseServer, sender: str) -> None:
        self._server = server
        self._sender = sender
        self.there = 0.001
        self.back = 0.001
        self.silent = False
        self.lost = 0
        self.failure: Exception | None = None
        self.watching = True
        self.garbage = False
        self.late = False

    @property
    def client(self) -> KubeClient:
        """A client that sends through this line."""
        return KubeClient(cast("Transport", self), server="https://fake", namespace="ns")

    async def request(self, request: Request, *, deadline: float = 60.0) -> Response:
        """Exchange a request for an answer, once."""
        assert deadline <= 60
        try:
            async with asyncio.timeout(None if self.late else deadline):
                return await self._exchange(request)
        except TimeoutError:
            self._log(request, 0)
            raise ApiError(status=0, reason="Timeout", message="not answered") from None

    async def _exchange(self, request: Request) -> Response:
        if self.failure is not None:
            self._log(request, 0)
            raise self.failure
        await asyncio.sleep(self.there)
        if self.silent:
            await asyncio.Event().wait()
        body = orjson.loads(request.body) if request.body else None
        assert body is None or request.headers == {"Content-Type": "application/json"}
        try:
            answer = orjson.dumps(self._server.handle(request.method, body))
        except ApiError as error:
            self._log(request, error.status)
            await asyncio.sleep(self.back)
            raise
        self._log(request, 200)
        await asyncio.sleep(self.back)
        if self.silent:
            await asyncio.Event().wait()
        if request.method != "GET" and self.lost:
            self.lost -= 1
            raise ApiError(status=0, reason="ConnectionLost", message="answer lost")
        return Response(200, {}, b"<html>" if self.garbage else answer)

    def _log(self, request: Request, status: int) -> None:
        now = asyncio.get_running_loop().time()
        body = orjson.loads(request.body) if request.body else None
        self._server.sent.append(Sent(now, self._sender, request.method, status, body))

    async def watch(self, deliver: Callable[[Change], None]) -> None:
        """Deliver changes while the line works; begin anew after each failure."""
        while True:
            await asyncio.sleep(0.5)
            if self.failure is None and self.watching and not self.silent:
                with self._server.watch() as changes:
                    await self._delivered(changes, deliver)

    async def _delivered(
        self, changes: asyncio.Queue[Change], deliver: Callable[[Change], None]
    ) -> None:
        while self.failure is None and self.watching:
            change = await changes.get()
            await asyncio.sleep(self.back)
            while self.silent:  # noqa: ASYNC110 - a test switches it
                await asyncio.sleep(0.01)
            deliver(change)


class LineInformer:
    """The informer of the one Lease, in place of ``Informer``."""

    def __init__(
        self, client: KubeClient, resource: Resource, *, namespace: str, field_selector: str
    ) -> None:
        assert (resource.kind, namespace) == ("Lease", "ns")
        assert field_selector == "metadata.name=core"
        self._line = cast("Line", client._transport)
        self._handlers: list[Callable[[Change], None]] = []

    def add_handler(self, handler: Callable[[Change], None]) -> None:
        """Call a function after each change."""
        self._handlers.append(handler)

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._line.watch(self._deliver)

    def _deliver(self, change: Change) -> None:
        for each in self._handlers:
            each(change)


def refusal(status: int, reason: str) -> ApiError:
    """Return an error of the API server."""
    return ApiError(status=status, reason=reason, message=reason)
