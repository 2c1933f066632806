"""List and watch of one kind: acts as ``watchstate`` decides, and delivers.

Guarantees:
    The receiver is given whole lists and single changes in the API server's order, and never a
    state older than one it has seen. A broken watch goes on where it ended; only an expired
    version or an error that the watch itself reports leads to a new list. A peer that sends
    nothing for 130 s is given up. Nothing but cancellation ends it.
Assumptions:
    The receiver takes changes without waiting; whole lists it may take in slices.

Source: client-go's Reflector.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol

import orjson
import structlog

from controller.kube.apierror import ApiError, status_error
from controller.kube.client import PAGE_FULL, PAGE_METADATA, KubeClient
from controller.kube.requests import Selection
from controller.kube.watchstate import End, Outcome, Phase, State, decide, end_of
from controller.model.objects import JsonObject

WATCH_SECONDS = (300, 600)  # the API server ends a watch after a random time in between
SLICE_SECONDS = 0.01  # of work between two chances for other tasks
INITIAL_EVENTS_END = "k8s.io/initial-events-end"

_log = structlog.get_logger("controller.kube")


class Receiver(Protocol):
    """Where a reflector delivers; see ``Informer``."""

    def prepare(self, obj: JsonObject) -> JsonObject | None:
        """Return a received object as it is kept; None for one that cannot be kept."""

    def key(self, obj: JsonObject) -> tuple[str, str]:
        """Return the namespace and name of a prepared object."""

    async def replace(self, objects: dict[tuple[str, str], JsonObject], version: str) -> None:
        """Take a whole list."""

    def apply(self, kind: str, obj: JsonObject) -> None:
        """Take an event: ``ADDED``, ``MODIFIED`` or ``DELETED``."""

    def progress(self, version: str | None) -> None:
        """Note a sign of life, with the resource version that all changes before have."""


class Pacer:
    """Lets other tasks run during long work, a slice at a time."""

    def __init__(self, seconds: float = SLICE_SECONDS) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()

    async def pause(self) -> None:
        """Give other tasks a chance when this one has worked for a slice."""
        if self._loop.time() - self._began >= self._seconds:
            await asyncio.sleep(0)
            self._began = self._loop.time()


class Reflector:
    """Keeps a receiver up to date with one kind.

    Args:
        client: the API server.
        selection: which objects, and how much of them.
        receiver: takes lists and changes.
        sleep: waits; for tests.
    """

    def __init__(
        self,
        client: KubeClient,
        selection: Selection,
        receiver: Receiver,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._selection = selection
        self._receiver = receiver
        self._sleep = sleep
        self._told = ""
        self._log = _log.bind(kind=selection.resource.kind)
        self.state = State()

    async def run(self) -> None:
        """List and watch until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                outcome = await (self._list() if self.state.phase is Phase.PAGES else self._watch())
            except Exception as error:  # noqa: BLE001 - one odd answer must not end the watch
                self._log.exception("watch failed unexpectedly")
                outcome = Outcome(End.FAILED, error=repr(error))
            step = decide(self.state, replace(outcome, seconds=loop.time() - began))
            self._tell(outcome, step.pause)
            self.state = step.state
            if step.pause:
                await self._sleep(step.pause * (1 + random.random()))  # noqa: S311 - jitter

    def _tell(self, outcome: Outcome, pause: float) -> None:
        """Log an error once, however often it comes back."""
        if outcome.error and outcome.error != self._told:
            report = self._log.warning if pause else self._log.info
            report(
                "watch interrupted",
                end=outcome.end.name.lower(),
                act=self.state.phase.name.lower(),
                pause=round(pause, 1),
                error=outcome.error,
            )
            self._told = outcome.error

    def _works(self) -> None:
        if self._told:
            self._log.info("watch works again")
            self._told = ""

    async def _list(self) -> Outcome:
        """Read the list in pages and hand it over."""
        objects: dict[tuple[str, str], JsonObject] = {}
        selection, pacer = self._selection, Pacer()
        token: str | None = None
        try:
            while True:
                page = await self._client.list_page(
                    selection.resource,
                    namespace=selection.namespace,
                    label_selector=selection.label_selector,
                    field_selector=selection.field_selector,
                    metadata_only=selection.metadata_only,
                    limit=PAGE_METADATA if selection.metadata_only else PAGE_FULL,
                    continue_token=token,
                    tries=1,
                )
                if not str(page.get("kind")).endswith("List"):
                    return Outcome(End.FAILED, error=f"the answer is a {page.get('kind')}")
                for item in page.get("items") or ():
                    self._collect(objects, item)
                    await pacer.pause()
                self._receiver.progress(None)
                metadata = page.get("metadata") or {}
                version, token = metadata.get("resourceVersion", ""), metadata.get("continue")
                if not token:
                    break
        except ApiError as error:
            end = end_of(error, streaming_list=False, in_stream=False)
            return Outcome(end, retry_after=error.retry_after, error=str(error))
        self._works()
        await self._receiver.replace(objects, version)
        return Outcome(End.LISTED, version=version, listed=True)

    def _collect(self, objects: dict[tuple[str, str], JsonObject], item: JsonObject) -> None:
        kept = self._receiver.prepare(item)
        if kept is not None:
            objects[self._receiver.key(kept)] = kept

    async def _watch(self) -> Outcome:
        """Watch until the stream ends; a streaming list collects all objects first."""
        state, selection = self.state, self._selection
        listing = state.phase is Phase.STREAM
        reader = _Reader(self._receiver, listing=listing)
        opened = False
        try:
            async with self._client.watch(
                selection.resource,
                namespace=selection.namespace,
                label_selector=selection.label_selector,
                field_selector=selection.field_selector,
                metadata_only=selection.metadata_only,
                resource_version=state.list_version if listing else state.version,
                timeout_seconds=random.randint(*WATCH_SECONDS),  # noqa: S311 - spreads the load
                send_initial_events=listing,
            ) as lines:
                opened = True
                self._works()
                self._receiver.progress(None)
                pacer = Pacer()
                async for line in lines:
                    await reader.take(line)
                    await pacer.pause()
        except ApiError as error:
            end = end_of(error, streaming_list=reader.listing, in_stream=opened)
            return reader.outcome(end, error)
        return reader.outcome(End.CLOSED)


class _Reader:
    """Takes the lines of one watch."""

    def __init__(self, receiver: Receiver, *, listing: bool) -> None:
        self._receiver = receiver
        self._objects: dict[tuple[str, str], JsonObject] = {}
        self.listing = listing  # all objects are being collected
        self._listed = False
        self._version = ""
        self._events = 0

    def outcome(self, end: End, error: ApiError | None = None) -> Outcome:
        return Outcome(
            end,
            version=self._version,
            listed=self._listed,
            events=self._events,
            retry_after=error.retry_after if error else None,
            error=str(error) if error else "",
        )

    async def take(self, line: bytes) -> None:
        """Take one line.

        Raises:
            ApiError: an ERROR event, or a line that is no event.
        """
        kind, obj = _event(line)
        if kind == "ERROR":
            raise status_error(obj, verb="watch", path="")
        self._events += 1
        if kind == "BOOKMARK":
            await self._bookmark(obj)
            return
        prepared = self._receiver.prepare(obj)
        if prepared is None:
            self._receiver.progress(None)
            return
        if self.listing:
            key = self._receiver.key(prepared)
            if kind == "DELETED":
                self._objects.pop(key, None)
            else:
                self._objects[key] = prepared
            self._receiver.progress(None)
            return
        self._receiver.apply(kind, prepared)
        self._advance(prepared)

    async def _bookmark(self, obj: JsonObject) -> None:
        metadata = obj.get("metadata") or {}
        if not self.listing:
            self._advance(obj)
        elif (metadata.get("annotations") or {}).get(INITIAL_EVENTS_END) == "true":
            objects, self._objects = self._objects, {}
            self._version = metadata["resourceVersion"]
            await self._receiver.replace(objects, self._version)
            self.listing, self._listed = False, True
        else:
            self._receiver.progress(None)

    def _advance(self, obj: JsonObject) -> None:
        version = obj["metadata"].get("resourceVersion")
        if version:
            self._version = version
        self._receiver.progress(version)


def _event(line: bytes) -> tuple[str, JsonObject]:
    """Decode a line of a watch.

    Raises:
        ApiError: it is no watch event.
    """
    try:
        event: Any = orjson.loads(line)
        kind, obj = event["type"], event["object"]
        if kind in {"ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"} and isinstance(obj, dict):
            return kind, obj
    except (orjson.JSONDecodeError, KeyError, TypeError):
        pass
    raise ApiError(
        status=500, reason="", message="a line of the watch is no watch event", verb="watch"
    )
