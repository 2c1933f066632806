"""An indexed store of one kind that a watch keeps up to date, and who is told of changes.

Guarantees:
    The store changes first, then handlers are called, one change after the other in the API
    server's order. Each handler is given every stored object once before its changes, and says by
    a flag of its own when it has seen the whole first list. Objects that vanished while the watch
    was down are delivered as deletions with their last known state, before anything else of a new
    list; an object that was deleted and made again is delivered as both. A handler that raises is
    logged, counted, and hurts nobody else. Long deliveries happen in slices.
Assumptions:
    Stored objects are read only; who changes one copies it first. Handlers, transforms and index
    functions are plain functions that take microseconds.

Source: the promises of client-go's shared informers and indexers.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from controller.kube import mutation
from controller.kube.client import KubeClient
from controller.kube.reflector import Pacer, Reflector
from controller.kube.requests import Selection
from controller.kube.store import IndexFunction, ObjectKey, Store
from controller.model.objects import JsonObject, Resource

__all__ = ["Change", "Figures", "Handler", "Informer", "Registration", "Store"]

DELIVERY_SECONDS = 0.002  # of calls to one handler between two chances for other tasks
RESYNC_JITTER = 0.1  # of the time between two resyncs, up and down

_log = structlog.get_logger("controller.kube")


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one object.

    Attributes:
        old: the state before; of a deletion the last known one; None for a new object.
        new: the state after; None for a deletion. A resync has the same object as old and new.
        initial: it belongs to the handler's first delivery: the first list, or what was stored
            when the handler came.
    """

    old: JsonObject | None
    new: JsonObject | None
    initial: bool = False


Handler = Callable[[Change], None]


@dataclass(frozen=True, slots=True)
class Figures:
    """What an informer tells about itself.

    Attributes:
        objects: in the store.
        silent_seconds: since the last sign of life from the API server.
        handler_failures: calls of handlers that raised, so far.
        violations: stored objects that were found changed in place; 0 where nobody looks.
    """

    objects: int
    silent_seconds: float
    handler_failures: int
    violations: int


class Registration:
    """A handler of an informer; made by ``Informer.add_handler``.

    Objects that are stored already are given to the handler in slices. Until an object's turn
    comes its changes are not delivered: the handler then gets its newest state, or never hears of
    it when it is gone. So no queue of changes grows, and a handler is never behind the store.
    """

    def __init__(
        self,
        store: Store,
        handler: Handler,
        *,
        listed: bool,
        failed: Callable[[Change], None],
        removed: Callable[[Registration], None],
    ) -> None:
        self._store = store
        self._handler = handler
        self._listed = listed
        self._failed = failed
        self._tell_removed = removed
        self._removed = False
        self._synced = asyncio.Event()
        self._due = store.snapshot()
        self._order = iter(tuple(self._due))
        self._next: asyncio.Handle | None = None
        self._deliver()

    @property
    def synced(self) -> bool:
        """Whether the handler has seen the whole first list."""
        return self._synced.is_set()

    async def wait_synced(self) -> None:
        """Wait until ``synced``; without end for a handler that was removed before."""
        await self._synced.wait()

    def remove(self) -> None:
        """Call the handler no more."""
        self._removed = True
        self._due.clear()
        if self._next is not None:
            self._next.cancel()
        self._tell_removed(self)

    # ---- for the informer --------------------------------------------------------------------

    def take(self, key: ObjectKey, change: Change) -> None:
        """Deliver a change of an object that the handler has seen, or that is new to all."""
        if key in self._due:
            if change.new is None:
                del self._due[key]
            return
        self._call(change)

    def listed(self) -> None:
        """Note that the first list is in the store."""
        self._listed = True
        self._settle()

    def _deliver(self) -> None:
        """Give the handler a slice of what it has not seen, and plan the next slice."""
        self._next = None
        if self._due:
            loop = asyncio.get_running_loop()
            end = loop.time() + DELIVERY_SECONDS
            for key in self._order:
                if self._due.pop(key, None) is not None:
                    self._call(Change(None, self._store.lookup(key), initial=True))
                if loop.time() >= end:
                    break
            if self._due:
                self._next = loop.call_soon(self._deliver)
        self._settle()

    def _settle(self) -> None:
        if self._listed and not self._due and not self._removed:
            self._synced.set()

    def _call(self, change: Change) -> None:
        if self._removed:
            return
        try:
            self._handler(change)
        except Exception:  # noqa: BLE001 - other handlers and the watch go on
            self._failed(change)


class Informer:
    """A store that a watch keeps up to date.

    Args:
        client: the API server.
        resource: the kind.
        namespace: None for all.
        label_selector: Kubernetes' label selector.
        field_selector: Kubernetes' field selector.
        metadata_only: objects hold nothing but ``apiVersion``, ``kind`` and ``metadata``.
        transform: returns a received object as it is stored; called once for each. Twice the same
            as once.
        indexes: index functions by name; a function returns the values of an object.
        resync: seconds between two deliveries of the whole store, 10 % more or less; None: never.

    Attributes:
        resource: the kind.
        store: the objects, with ``apiVersion`` and ``kind`` of the resource.
        last_activity: event-loop time of the last sign of life from the API server.
    """

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        metadata_only: bool = False,
        transform: Callable[[JsonObject], JsonObject] | None = None,
        indexes: Mapping[str, IndexFunction] | None = None,
        resync: float | None = None,
    ) -> None:
        self.resource = resource
        self._detector = mutation.detector(resource.kind)
        self.store = Store(indexes, namespace=namespace, detector=self._detector)
        self.last_activity = float("-inf")
        self._began = float("inf")  # event-loop time of the start
        self._type = (resource.api_version, resource.kind)  # one text for all objects
        self._transform = transform
        self._resync = resync
        self._registrations: tuple[Registration, ...] = ()
        self._handler_failures = 0
        self._synced = asyncio.Event()
        selection = Selection(resource, namespace, label_selector, field_selector, metadata_only)
        self._reflector = Reflector(client, selection, self)

    @property
    def synced(self) -> bool:
        """Whether the first list is in the store; each handler has a flag of its own."""
        return self._synced.is_set()

    def add_handler(self, handler: Handler) -> Registration:
        """Call a plain function for each object that is stored, and after each change from now on.

        What is stored comes at once as far as that takes 2 ms, the rest in slices of as much.

        Returns:
            The registration: whether the handler has seen the whole first list, and its end.

        Raises:
            TypeError: the function is a coroutine function, which nobody would await.
        """
        if inspect.iscoroutinefunction(handler):
            raise TypeError(f"{handler!r} is a coroutine function: handlers are plain functions")
        registration = Registration(
            self.store,
            handler,
            listed=self.synced,
            failed=self._handler_failed,
            removed=self._handler_removed,
        )
        self._registrations = (*self._registrations, registration)
        return registration

    async def run(self) -> None:
        """Watch until cancelled."""
        self._began = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            if self._resync is not None:
                tasks.create_task(self._redeliver(self._resync))
            if self._detector is not None:
                tasks.create_task(self._detector.run())
            await self._reflector.run()

    @property
    def served(self) -> bool:
        """Whether the API server serves the kind, as far as the last answer tells."""
        return self._reflector.served

    async def wait_synced(self) -> None:
        """Wait until ``synced``."""
        await self._synced.wait()

    def silent_seconds(self) -> float:
        """Return the time since the last event, bookmark or list, or since the start; seconds.

        0 before the start: nothing is expected then.
        """
        return max(0.0, asyncio.get_running_loop().time() - max(self.last_activity, self._began))

    def figures(self) -> Figures:
        """Return what metrics tell about this informer."""
        return Figures(
            objects=len(self.store),
            silent_seconds=self.silent_seconds(),
            handler_failures=self._handler_failures,
            violations=self._detector.violations if self._detector is not None else 0,
        )

    # ---- what the reflector delivers ---------------------------------------------------------

    def prepare(self, obj: JsonObject) -> JsonObject | None:
        """Return a received object as it is stored; None for one without a name."""
        metadata = obj.get("metadata")
        if not isinstance(metadata, dict) or not metadata.get("name"):
            _log.warning("object without a name skipped", kind=self.resource.kind)
            return None
        obj["apiVersion"], obj["kind"] = self._type
        if self._transform is not None:
            try:
                return self._transform(obj)
            except Exception:  # noqa: BLE001 - a whole object is better than none
                _log.exception("transform failed", kind=self.resource.kind, name=metadata["name"])
        return obj

    def key(self, obj: JsonObject) -> ObjectKey:
        """Return the namespace and name of a prepared object."""
        metadata = obj["metadata"]
        return metadata.get("namespace") or "", metadata["name"]

    async def replace(self, objects: dict[ObjectKey, JsonObject], version: str) -> None:
        """Take a whole list: deletions first, then what is new or changed."""
        pacer = Pacer()
        initial = not self.synced
        for key in self.store.keys() - objects.keys():
            self._delete(key, None)
            await pacer.pause()
        for key, obj in objects.items():
            self._upsert(key, obj, initial=initial)
            await pacer.pause()
        self.progress(version)
        self._synced.set()
        for registration in self._registrations:
            registration.listed()

    def apply(self, kind: str, obj: JsonObject) -> None:
        """Take an event ``ADDED``, ``MODIFIED`` or ``DELETED`` of a prepared object."""
        if kind == "DELETED":
            self._delete(self.key(obj), obj)
        else:
            self._upsert(self.key(obj), obj)

    def progress(self, version: str | None) -> None:
        """Note a sign of life, with the resource version that all changes before have."""
        self.last_activity = asyncio.get_running_loop().time()
        if version:
            self.store.resource_version = version

    def _upsert(self, key: ObjectKey, obj: JsonObject, *, initial: bool = False) -> None:
        known = self.store.lookup(key)
        if known is not None and _identity(known, "uid") != _identity(obj, "uid"):
            self._delete(key, None)
            known = None
        self.store.put(key, obj)
        unchanged = known is not None and (
            _identity(known, "resourceVersion") == _identity(obj, "resourceVersion") != ""
        )
        if not unchanged:
            self._notify(key, Change(known, obj, initial))

    def _delete(self, key: ObjectKey, final: JsonObject | None) -> None:
        known = self.store.put(key, None)
        last = final if final is not None else known
        if last is not None:
            self._notify(key, Change(last, None))

    # ---- who is told -------------------------------------------------------------------------

    def _notify(self, key: ObjectKey, change: Change) -> None:
        for registration in self._registrations:
            registration.take(key, change)

    async def _redeliver(self, seconds: float) -> None:
        """Deliver the whole store as updates that change nothing, again and again."""
        while True:
            jitter = random.uniform(-RESYNC_JITTER, RESYNC_JITTER)  # noqa: S311 - spreads the work
            await asyncio.sleep(seconds * (1 + jitter))
            pacer = Pacer()
            for key in tuple(self.store.keys()):
                obj = self.store.lookup(key)
                if obj is not None:
                    self._notify(key, Change(obj, obj))
                await pacer.pause()

    def _handler_removed(self, registration: Registration) -> None:
        self._registrations = tuple(r for r in self._registrations if r is not registration)

    def _handler_failed(self, change: Change) -> None:
        self._handler_failures += 1
        obj = change.new if change.new is not None else change.old
        name = obj["metadata"].get("name") if obj is not None else None
        _log.exception("handler failed", kind=self.resource.kind, name=name)


def _identity(obj: JsonObject, field: str) -> str:
    value: str = obj["metadata"].get(field, "")
    return value
