"""An indexed store of one kind that a watch keeps up to date, and who is told of changes.

Guarantees:
    The store changes first, then handlers are called, one change after the other in the API
    server's order. A handler sees the whole first list before ``synced`` is true. Objects that
    vanished while the watch was down are delivered as deletions with their last known state,
    before anything else of a new list; an object that was deleted and made again is delivered as
    both. A handler that raises is logged and hurts nobody else.
Assumptions:
    Stored objects are read only; who changes one copies it first. Handlers, transforms and index
    functions are plain functions that take microseconds.

Source: the promises of client-go's shared informers and indexers.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import structlog

from controller.kube.client import KubeClient
from controller.kube.reflector import Pacer, Reflector
from controller.kube.requests import Selection
from controller.model.objects import JsonObject, Resource

_log = structlog.get_logger("controller.kube")

ObjectKey: TypeAlias = tuple[str, str]  # namespace (empty for cluster-scoped kinds), name
IndexFunction: TypeAlias = Callable[[JsonObject], Iterable[str]]
Objects: TypeAlias = list[JsonObject]


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one object.

    Attributes:
        old: the state before; of a deletion the last known one; None for a new object.
        new: the state after; None for a deletion.
    """

    old: JsonObject | None
    new: JsonObject | None


class Store:
    """Objects of one kind by name and by index values. Read only for all but its informer.

    Args:
        indexes: functions by index name; each returns the values that an object is found under.
        namespace: used where ``get`` is given none.

    Attributes:
        resource_version: all changes up to it are in the store; empty before the first list.
    """

    def __init__(
        self, indexes: Mapping[str, IndexFunction] | None = None, *, namespace: str | None = None
    ) -> None:
        self._objects: dict[ObjectKey, JsonObject] = {}
        self._functions = dict(indexes or {})
        self._indexes: dict[str, dict[str, dict[ObjectKey, None]]] = {
            name: {} for name in self._functions
        }
        self._namespace = namespace or ""
        self.resource_version = ""

    def get(self, name: str, namespace: str | None = None) -> JsonObject | None:
        """Return an object, None when it does not exist.

        Args:
            name: its name.
            namespace: its namespace; by default the one that the informer watches.
        """
        return self._objects.get((self._namespace if namespace is None else namespace, name))

    def list(self) -> Objects:
        """Return all objects."""
        return [*self._objects.values()]

    def by_index(self, index: str, value: str) -> Objects:
        """Return the objects under a value of an index; KeyError for an unknown index."""
        return [self._objects[key] for key in self._indexes[index].get(value, ())]

    def __len__(self) -> int:
        return len(self._objects)

    def keys(self) -> set[ObjectKey]:
        """Return the namespace and name of all objects."""
        return set(self._objects)

    def lookup(self, key: ObjectKey) -> JsonObject | None:
        """Return an object by namespace and name."""
        return self._objects.get(key)

    def put(self, key: ObjectKey, obj: JsonObject | None) -> JsonObject | None:
        """Store an object, or remove it for None, in all indexes at once; return the old state."""
        old = self._objects.get(key)
        if obj is None:
            self._objects.pop(key, None)
        else:
            self._objects[key] = obj
        for name, function in self._functions.items():
            before = _values(function, old) if old is not None else frozenset()
            after = _values(function, obj) if obj is not None else frozenset()
            self._reindex(self._indexes[name], key, before, after)
        return old

    @staticmethod
    def _reindex(
        index: dict[str, dict[ObjectKey, None]],
        key: ObjectKey,
        before: frozenset[str],
        after: frozenset[str],
    ) -> None:
        for value in before - after:
            keys = index.get(value, {})
            keys.pop(key, None)
            if not keys:
                index.pop(value, None)
        for value in after - before:
            index.setdefault(value, {})[key] = None


def _values(function: IndexFunction, obj: JsonObject) -> frozenset[str]:
    try:
        return frozenset(function(obj))
    except Exception:  # noqa: BLE001 - an object without index values is better than none
        _log.exception("index function failed", name=obj["metadata"].get("name"))
        return frozenset()


class Informer:
    """A store that a watch keeps up to date.

    Args:
        client: the API server.
        resource: the kind.
        namespace: None for all.
        label_selector: Kubernetes' label selector.
        field_selector: Kubernetes' field selector.
        metadata_only: objects hold nothing but ``apiVersion``, ``kind`` and ``metadata``.
        transform: returns a received object as it is stored; called once for each.
        indexes: index functions by name; a function returns the values of an object.

    Attributes:
        store: the objects, with ``apiVersion`` and ``kind`` of the resource.
        synced: the first list is in the store and all handlers have seen it.
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
    ) -> None:
        self.resource = resource
        self.store = Store(indexes, namespace=namespace)
        self.last_activity = float("-inf")
        self._selection = Selection(
            resource, namespace, label_selector, field_selector, metadata_only
        )
        self._transform = transform
        self._handlers: list[Callable[[Change], None]] = []
        self._synced = asyncio.Event()
        self._reflector = Reflector(client, self._selection, self)

    @property
    def synced(self) -> bool:
        """Whether the first list is in the store and all handlers have seen it."""
        return self._synced.is_set()

    def add_handler(self, handler: Callable[[Change], None]) -> None:
        """Call a plain function after each change; at once for all objects that are stored.

        Raises:
            TypeError: the function is a coroutine function, which nobody would await.
        """
        if inspect.iscoroutinefunction(handler):
            raise TypeError(f"{handler!r} is a coroutine function: handlers are plain functions")
        self._handlers.append(handler)
        for obj in self.store.list():
            self._call(handler, Change(None, obj))

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._reflector.run()

    async def wait_synced(self) -> None:
        """Wait until ``synced``."""
        await self._synced.wait()

    # ---- what the reflector delivers ---------------------------------------------------------

    def prepare(self, obj: JsonObject) -> JsonObject | None:
        """Return a received object as it is stored; None for one without a name."""
        metadata = obj.get("metadata")
        if not isinstance(metadata, dict) or not metadata.get("name"):
            _log.warning("object without a name skipped", kind=self.resource.kind)
            return None
        obj["apiVersion"], obj["kind"] = self.resource.api_version, self.resource.kind
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
        for key in self.store.keys() - objects.keys():
            self._delete(key, None)
            await pacer.pause()
        for key, obj in objects.items():
            self._upsert(key, obj)
            await pacer.pause()
        self.progress(version)
        self._synced.set()

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

    def _upsert(self, key: ObjectKey, obj: JsonObject) -> None:
        known = self.store.lookup(key)
        if known is not None and _identity(known, "uid") != _identity(obj, "uid"):
            self._delete(key, None)
            known = None
        self.store.put(key, obj)
        unchanged = known is not None and (
            _identity(known, "resourceVersion") == _identity(obj, "resourceVersion") != ""
        )
        if not unchanged:
            self._notify(Change(known, obj))

    def _delete(self, key: ObjectKey, final: JsonObject | None) -> None:
        known = self.store.put(key, None)
        last = final if final is not None else known
        if last is not None:
            self._notify(Change(last, None))

    def _notify(self, change: Change) -> None:
        for handler in self._handlers:
            self._call(handler, change)

    def _call(self, handler: Callable[[Change], None], change: Change) -> None:
        try:
            handler(change)
        except Exception:  # noqa: BLE001 - other handlers and the watch go on
            obj = change.new if change.new is not None else change.old
            name = obj["metadata"].get("name") if obj is not None else None
            _log.exception("handler failed", kind=self.resource.kind, name=name)


def _identity(obj: JsonObject, field: str) -> str:
    value: str = obj["metadata"].get(field, "")
    return value
