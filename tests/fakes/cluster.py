"""An API server in miniature on loopback: it keeps the rules of lists and watches, and breaks them.

It serves objects with growing resource versions, from a history that can be compacted. It runs in
virtual time too. What a real API server can be made to do is tested with one.

Source: Kubernetes' rules of resource versions, lists in chunks, watches and bookmarks.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import orjson
from aiohttp import web

from controller.model.objects import JsonObject, Resource
from tests.fakes.apiserver import refusal, serving, tear

BOOKMARK_SECONDS = 60.0
_PATH = re.compile(r"(/api/v1|/apis/[^/]+/[^/]+)(?:/namespaces/([^/]+))?/([^/]+)")

ObjectKey: TypeAlias = tuple[str, str]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with an answer.

    ``status`` is an answer of ``code``; ``reset`` and ``torn`` end the connection, before or within
    what is sent; ``close`` ends the answer well; ``silent`` sends no more, ``slow`` a
    byte a second, ``endless`` never ends; ``line`` sends ``body`` as a last line, ``body``
    sends it instead of all else; ``none`` lets an answer pass.
    """

    kind: str
    code: int = 500
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    after: int = 0  # events sent before it strikes


@dataclass(frozen=True)
class Seen:
    """A request as it came."""

    at: float  # event-loop time
    verb: str  # list, watch, or stream: a watch that begins with all objects
    query: dict[str, str]

    @property
    def version(self) -> str:
        return self.query.get("resourceVersion", "")


@dataclass(frozen=True)
class _Change:
    version: int
    resource: Resource
    key: ObjectKey
    old: JsonObject | None
    new: JsonObject | None


@dataclass
class _Watcher:
    """An open watch."""

    response: web.StreamResponse
    request: web.Request
    fault: Fault | None
    sent: int = 0

    async def send(self, data: bytes) -> bool:
        """Send a line, or what a fault makes of it; return whether to go on."""
        fault = self.fault if self.fault is not None and self.sent >= self.fault.after else None
        self.sent += 1
        if fault is None or fault.kind == "endless":
            await self.response.write(data)
            return True
        if fault.kind == "line":
            await self.response.write(fault.body + b"\n")
        elif fault.kind == "torn":
            await self.response.write(data[: len(data) // 2])
            await asyncio.sleep(0.1)
            tear(self.request)
        elif fault.kind == "reset":
            tear(self.request)
        elif fault.kind == "slow":
            for at in range(len(data)):
                await self.response.write(data[at : at + 1])
                await asyncio.sleep(1)
            return True
        elif fault.kind == "silent":
            await asyncio.sleep(1e9)
        return False


class Cluster:
    """Objects of some kinds, served on loopback.

    Args:
        resources: the kinds.
    """

    def __init__(self, *resources: Resource) -> None:
        self.url = ""
        self.requests: list[Seen] = []
        self.streaming = True  # it has streaming lists
        self.cached = True  # it answers lists that need not be the newest whole, from a cache
        self.expired_in_stream = True  # an expired watch is told by an event, not by a status
        self.open: list[_Watcher] = []
        self._resources = {(r.path().rsplit("/", 1)[0], r.plural): r for r in resources}
        self._history: list[_Change] = []
        self._version = 1
        self._compacted = 0
        self._changed = asyncio.Event()
        self._faults: list[tuple[str, Fault]] = []

    @property
    def version(self) -> str:
        """The resource version of the last change."""
        return str(self._version)

    def objects(self, resource: Resource, *, at: int | None = None) -> dict[ObjectKey, JsonObject]:
        """Return all objects of a kind, now or at a version."""
        found: dict[ObjectKey, JsonObject] = {}
        for change in self._history:
            if change.resource == resource and (at is None or change.version <= at):
                found.pop(change.key, None)
                if change.new is not None:
                    found[change.key] = change.new
        return found

    def put(self, resource: Resource, name: str, namespace: str = "", **more: Any) -> JsonObject:
        """Create an object, or change it; ``labels`` go to its metadata."""
        key = (namespace, name)
        old = self.objects(resource).get(key)
        uid = old["metadata"]["uid"] if old else f"uid-{self._version + 1}"
        metadata = {"name": name, "uid": uid, "labels": more.pop("labels", {})}
        if namespace:
            metadata["namespace"] = namespace
        new = {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
        self._commit(resource, key, old, {**new, **more})
        return self.objects(resource)[key]

    def delete(self, resource: Resource, name: str, namespace: str = "") -> None:
        """Delete an object."""
        self._commit(resource, (namespace, name), self.objects(resource)[namespace, name], None)

    def advance(self, to: int) -> None:
        """Let the version grow, as changes of other kinds do."""
        self._version = max(self._version, to)

    def compact(self) -> None:
        """Forget all versions before this one: watches and pages from them expire."""
        self._compacted = self._version

    def fail(self, verb: str, *faults: Fault) -> None:
        """Let the next answers to a verb go wrong, one fault each; ``*`` is any verb."""
        self._faults += [(verb, fault) for fault in faults]

    def strike(self, fault: Fault) -> None:
        """Let open watches go wrong: now for ``reset`` and ``close``, else with the next line."""
        for watcher in self.open:
            watcher.fault = fault
            if fault.kind == "reset":
                tear(watcher.request)
        self._wake()

    def versions(self, *verbs: str) -> list[str]:
        """Return the resource versions that requests of some verbs asked for."""
        return [seen.version for seen in self.requests if seen.verb in verbs]

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, *resources: Resource) -> AsyncIterator[Cluster]:
        """Serve on a free port for as long as the context lasts."""
        cluster = cls(*resources)
        async with serving(cluster._handle) as cluster.url:
            yield cluster

    def _commit(
        self, resource: Resource, key: ObjectKey, old: JsonObject | None, new: JsonObject | None
    ) -> None:
        self._version += 1
        if new is not None:
            new["metadata"]["resourceVersion"] = self.version
        self._history.append(_Change(self._version, resource, key, old, new))
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        watching = "watch" in query
        verb = ("stream" if "sendInitialEvents" in query else "watch") if watching else "list"
        self.requests.append(Seen(asyncio.get_running_loop().time(), verb, query))
        fault = self._next_fault(verb)
        if fault is not None and fault.kind == "status":
            return _json(fault.body, fault.code, fault.headers)
        if fault is not None and fault.kind == "reset" and fault.after == 0:
            tear(request)
        match = _PATH.fullmatch(request.path)
        resource = self._resources.get((match[1], match[3])) if match else None
        if match is None or resource is None:
            return _refuse(404, "NotFound", "the server could not find the requested resource")
        chosen = _Chosen(resource, match[2], query, "PartialObject" in request.headers["Accept"])
        if watching:
            return await self._watch(request, chosen, fault)
        return await _answer(request, self._list(chosen), fault)

    def _next_fault(self, verb: str) -> Fault | None:
        found = next((each for each in self._faults if each[0] in (verb, "*")), None)
        if found is None:
            return None
        self._faults.remove(found)
        return found[1] if found[1].kind != "none" else None

    def _list(self, chosen: _Chosen) -> web.Response:
        query = chosen.query
        version, exact = query.get("resourceVersion", ""), self._version
        limit, start = int(query.get("limit", "0")), 0
        if version not in {"", "0"} and int(version) > self._version:
            return _too_large()
        if query.get("resourceVersionMatch") == "Exact":
            exact = int(version)
        if "continue" in query:
            exact, start = orjson.loads(base64.b64decode(query["continue"]))
        if exact < self._compacted:
            return _refuse(410, "Expired", "The provided continue parameter is too old")
        if version != "" and self.cached and "resourceVersionMatch" not in query:
            limit = 0
        found = self.objects(chosen.resource, at=exact).values()
        items = [chosen.shown(each) for each in found if chosen.matches(each)]
        end = start + limit if limit else len(items)
        metadata = {"resourceVersion": str(exact)}
        if end < len(items):
            metadata["continue"] = base64.b64encode(orjson.dumps([exact, end])).decode()
        body = {"kind": f"{chosen.kind}List", "metadata": metadata, "items": items[start:end]}
        return _json(body)

    async def _watch(
        self, request: web.Request, chosen: _Chosen, fault: Fault | None
    ) -> web.StreamResponse:
        version = chosen.query.get("resourceVersion", "")
        initial = "sendInitialEvents" in chosen.query
        since = int(version or 0)
        if initial and not self.streaming:
            return _refuse(422, "Invalid", "sendInitialEvents is forbidden for watch")
        if since > self._version:
            return _too_large()
        expired = not initial and 0 < since < self._compacted
        if expired and not self.expired_in_stream:
            return _refuse(410, "Expired", f"too old resource version: {since}")
        response = web.StreamResponse()
        await response.prepare(request)
        watcher = _Watcher(response, request, fault)
        self.open.append(watcher)
        try:
            if expired:
                await watcher.send(line("ERROR", refusal(410, "Expired", "too old")))
            else:
                await self._serve(watcher, chosen, since, initial=initial)
        finally:
            self.open.remove(watcher)
        return response

    async def _serve(
        self, watcher: _Watcher, chosen: _Chosen, since: int, *, initial: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        endless = watcher.fault is not None and watcher.fault.kind == "endless"
        end = loop.time() + (1e9 if endless else float(chosen.query["timeoutSeconds"]))
        bookmark = loop.time() + BOOKMARK_SECONDS
        at = len(self._history)
        lines: list[bytes] = []
        if initial or since == 0:
            found = self.objects(chosen.resource).values()
            lines = [line("ADDED", chosen.shown(obj)) for obj in found if chosen.matches(obj)]
        else:
            at = next((n for n, c in enumerate(self._history) if c.version > since), at)
        lines += [_bookmark(chosen, self._version, end=True)] if initial else []
        for each in lines:
            if not await watcher.send(each):
                return
        while loop.time() < end:
            changed = self._changed
            while at < len(self._history):
                event = chosen.event(self._history[at])
                at += 1
                if event is not None and not await watcher.send(event):
                    return
            if loop.time() >= bookmark:
                bookmark = loop.time() + BOOKMARK_SECONDS
                if not await watcher.send(_bookmark(chosen, self._version)):
                    return
            fault = watcher.fault
            if fault is not None and fault.kind == "close" and watcher.sent >= fault.after:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(end, bookmark)):
                    await changed.wait()


@dataclass(frozen=True)
class _Chosen:
    """What a request is about."""

    resource: Resource
    namespace: str | None
    query: dict[str, str]
    metadata_only: bool

    @property
    def kind(self) -> str:
        return "PartialObjectMetadata" if self.metadata_only else self.resource.kind

    def matches(self, obj: JsonObject | None) -> bool:
        if obj is None:
            return False
        metadata = obj["metadata"]
        if self.namespace is not None and metadata.get("namespace") != self.namespace:
            return False
        labels = _pairs(self.query.get("labelSelector", ""))
        fields = _pairs(self.query.get("fieldSelector", ""))
        fields = {name.removeprefix("metadata."): value for name, value in fields.items()}
        return labels.items() <= metadata["labels"].items() and fields.items() <= metadata.items()

    def shown(self, obj: JsonObject) -> JsonObject:
        if not self.metadata_only:
            return obj
        return {"kind": self.kind, "apiVersion": "meta.k8s.io/v1", "metadata": obj["metadata"]}

    def event(self, change: _Change) -> bytes | None:
        """Return the event of a change: what leaves a selection is deleted for its watchers."""
        if change.resource != self.resource:
            return None
        before, after = self.matches(change.old), self.matches(change.new)
        last = change.new or change.old
        if last is None or not (before or after):
            return None
        kind = ("MODIFIED" if before else "ADDED") if after else "DELETED"
        metadata = {**last["metadata"], "resourceVersion": str(change.version)}
        return line(kind, self.shown({**last, "metadata": metadata}))


def _pairs(selector: str) -> dict[str, str]:
    return dict(part.replace("==", "=").split("=", 1) for part in selector.split(",") if part)


def _bookmark(chosen: _Chosen, version: int, *, end: bool = False) -> bytes:
    annotations = {"annotations": {"k8s.io/initial-events-end": "true"}} if end else {}
    metadata = {"resourceVersion": str(version), **annotations}
    return line("BOOKMARK", {"kind": chosen.kind, "metadata": metadata})


def line(kind: str, obj: JsonObject) -> bytes:
    return orjson.dumps({"type": kind, "object": obj}) + b"\n"


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return web.Response(status=status, body=content, headers=headers)


def _refuse(status: int, reason: str, message: str) -> web.Response:
    return _json(refusal(status, reason, message), status)


def _too_large() -> web.Response:
    return _refuse(504, "Timeout", "Too large resource version: 1, current: 0")


async def _answer(
    request: web.Request, answer: web.Response, fault: Fault | None
) -> web.StreamResponse:
    """Send the answer to a list, or what a fault makes of it."""
    body = answer.body if isinstance(answer.body, bytes) else b""
    if fault is None or answer.status != 200:
        return answer
    if fault.kind == "body":
        return _json(fault.body)
    response = web.StreamResponse()
    await response.prepare(request)
    if fault.kind == "endless":
        for _ in range(10_000):
            await response.write(b" ")
            await asyncio.sleep(1)
    await _Watcher(response, request, fault).send(body)
    return response
