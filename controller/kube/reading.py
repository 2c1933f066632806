"""What the answers to lists and watches bring, and to whom it is delivered.

Guarantees:
    Only objects of the selected kind are delivered; anything else is skipped, and a table refused.
    Versions are taken from events that are in order, and from whole lists, never from an item.

Source: Kubernetes' watch events, bookmarks and streaming lists; client-go's Reflector.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import orjson
import structlog

from controller.kube import requests
from controller.kube.apierror import ApiError, status_error
from controller.kube.client import KubeClient
from controller.kube.requests import Selection
from controller.kube.stream import ListSplitter
from controller.kube.watchstate import End, Outcome, Page
from controller.model.objects import JsonObject

PAGE_SIZE = 500  # objects
SLICE_SECONDS = 0.01  # of work between two chances for other tasks
INITIAL_EVENTS_END = "k8s.io/initial-events-end"

_METADATA_KIND = "PartialObjectMetadata"
_TABLE_KIND = "Table"
_EVENTS = frozenset({"ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"})

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

    @property
    def due(self) -> bool:
        """Whether this task has worked for a slice."""
        return self._loop.time() - self._began >= self._seconds

    async def pause(self) -> None:
        """Give other tasks a chance when this one has worked for a slice."""
        if self.due:
            await asyncio.sleep(0)
            self._began = self._loop.time()


class ObjectFilter:
    """Tells objects of the selected kind from anything else."""

    def __init__(self, selection: Selection) -> None:
        self._kind = selection.resource.kind
        self._told = False

    def fits(self, obj: Any) -> bool:
        """Return whether it may be an object of the kind: items of a list need not name it.

        Raises:
            ApiError: it is a table, which has no objects.
        """
        if isinstance(obj, dict):
            kind = obj.get("kind", self._kind)
            if kind in (self._kind, _METADATA_KIND):
                return True
        else:
            kind = type(obj).__name__
        if kind == _TABLE_KIND:
            raise _refused("the API server answers with a table")
        if not self._told:
            _log.warning("unexpected object skipped", kind=self._kind, found=kind)
            self._told = True
        return False


class Listing:
    """Takes the items of a plain list, one after the other as they arrive."""

    def __init__(
        self,
        receiver: Receiver,
        selection: Selection,
        objects: dict[tuple[str, str], JsonObject],
    ) -> None:
        self._receiver = receiver
        self._selection = selection
        self._kind = ObjectFilter(selection)
        self._objects = objects
        self.opened = False  # the answer has begun

    async def read(self, client: KubeClient, page: Page) -> JsonObject:
        """Read a page; return its metadata.

        Raises:
            ApiError: a refusal, a lost connection, or an answer that is no list.
        """
        request = requests.list_page(
            self._selection,
            resource_version=None if page.token else page.version or None,
            limit=PAGE_SIZE if page.paged else None,
            continue_token=page.token or None,
            tries=1,
        )
        splitter, pacer = ListSplitter(), Pacer()
        async with client.stream(request, splitter) as items:
            self.opened = True
            async for item in items:
                self._take(item)
                if pacer.due:
                    self._receiver.progress(None)
                    await pacer.pause()
        self._receiver.progress(None)
        return _metadata(splitter.envelope)

    def _take(self, item: bytes) -> None:
        try:
            obj = orjson.loads(item)
        except orjson.JSONDecodeError:
            raise _refused("an item of the list is no JSON") from None
        prepared = self._receiver.prepare(obj) if self._kind.fits(obj) else None
        if prepared is not None:
            self._objects[self._receiver.key(prepared)] = prepared


def _metadata(envelope: bytes) -> JsonObject:
    """Return a list's metadata.

    Raises:
        ApiError: the answer is no list.
    """
    try:
        value: Any = orjson.loads(envelope)
    except orjson.JSONDecodeError:
        raise _refused("the answer to the list is no whole JSON") from None
    kind = value.get("kind") if isinstance(value, dict) else type(value).__name__
    metadata = value.get("metadata") if isinstance(value, dict) else None
    if not str(kind).endswith("List") or not isinstance(metadata, dict):
        raise _refused(f"the answer to the list is a {kind}")
    return metadata


class WatchReader:
    """Takes the lines of one watch.

    Attributes:
        listing: all objects are being collected.
        listed: they were handed over.
        version: resource version of the last event; empty before it.
    """

    def __init__(
        self, receiver: Receiver, selection: Selection, *, listing: bool, ordered: bool
    ) -> None:
        self._receiver = receiver
        self._kind = ObjectFilter(selection)
        self._objects: dict[tuple[str, str], JsonObject] = {}
        # A watch from no version begins with all objects in no order: their versions say nothing.
        self._ordered = ordered or listing
        self._events = 0
        self.listing = listing
        self.listed = False
        self.version = ""

    def outcome(self, end: End, error: ApiError | None = None) -> Outcome:
        """Return how the watch ended, and what it brought."""
        return Outcome(
            end,
            version=self.version,
            listed=self.listed,
            events=self._events,
            retry_after=error.retry_after if error else None,
            error=str(error) if error else "",
        )

    def take(self, line: bytes) -> bool:
        """Take one line; return whether all objects are there now, to be delivered.

        Raises:
            ApiError: an ERROR event, or a line that is no event.
        """
        event, obj = _event(line)
        if event == "BOOKMARK":
            return self._bookmark(obj)
        if event == "ERROR":
            raise status_error(obj, verb="watch", path="")
        version = self._version(obj)  # before a transform can drop it
        prepared = self._receiver.prepare(obj) if self._kind.fits(obj) else None
        if prepared is None:
            self._receiver.progress(None)
            return False
        self._events += 1
        if self.listing:
            key = self._receiver.key(prepared)
            if event == "DELETED":
                self._objects.pop(key, None)
            else:
                self._objects[key] = prepared
            self._receiver.progress(None)
            return False
        self._receiver.apply(event, prepared)
        self._ordered = self._ordered or event != "ADDED"
        self._advance(version)
        return False

    async def deliver(self) -> None:
        """Hand over all objects."""
        objects, self._objects = self._objects, {}
        await self._receiver.replace(objects, self.version)
        self.listing, self.listed = False, True

    def _bookmark(self, obj: JsonObject) -> bool:
        self._events += 1
        version = self._version(obj)
        if not self.listing:
            self._ordered = True
            self._advance(version)
            return False
        annotations = obj["metadata"].get("annotations") if version else None
        if (annotations or {}).get(INITIAL_EVENTS_END) == "true":
            self.version = version
            return True
        self._receiver.progress(None)
        return False

    @staticmethod
    def _version(obj: JsonObject) -> str:
        metadata = obj.get("metadata")
        version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
        return version if isinstance(version, str) else ""

    def _advance(self, version: str) -> None:
        if version and self._ordered:
            self.version = version
            self._receiver.progress(version)
        else:
            self._receiver.progress(None)


def _event(line: bytes) -> tuple[str, JsonObject]:
    """Decode a line of a watch.

    Raises:
        ApiError: it is no watch event.
    """
    try:
        event: Any = orjson.loads(line)
        kind, obj = event["type"], event["object"]
        if kind in _EVENTS and isinstance(obj, dict):
            return kind, obj
    except (orjson.JSONDecodeError, KeyError, TypeError):
        pass
    raise _refused("a line of the watch is no watch event")


def _refused(message: str) -> ApiError:
    return ApiError(status=500, reason="", message=message, verb="watch")
