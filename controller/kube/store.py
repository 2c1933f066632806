"""Objects of one kind by name and by index values, and how far the API server's history they are.

Guarantees:
    An object leaves its old index values and enters its new ones in one step; an index value
    without objects takes no memory. Whoever wrote an object can wait until the store has seen it.
Assumptions:
    Stored objects are read only; who changes one copies it first. Index functions are plain
    functions that take microseconds and depend on their object alone.

Source: client-go's indexer, and the Kubernetes rule that resource versions of one resource can be
compared as integers (KEP-5504).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, KeysView, Mapping
from typing import TypeAlias

import structlog

from controller.kube.mutation import MutationDetector
from controller.model.objects import JsonObject

WAITERS_MAX = 1000  # that wait for a resource version at the same time

ObjectKey: TypeAlias = tuple[str, str]  # namespace (empty for cluster-scoped kinds), name
IndexFunction: TypeAlias = Callable[[JsonObject], Iterable[str]]
Objects: TypeAlias = list[JsonObject]
_Index: TypeAlias = dict[str, dict[ObjectKey, None]]

_log = structlog.get_logger("controller.kube")


class Store:
    """Objects of one kind by name and by index values. Read only for all but its informer.

    Args:
        indexes: functions by index name; each returns the values that an object is found under.
        namespace: used where ``get`` is given none.
        detector: looks for changes of stored objects.
    """

    def __init__(
        self,
        indexes: Mapping[str, IndexFunction] | None = None,
        *,
        namespace: str | None = None,
        detector: MutationDetector | None = None,
    ) -> None:
        self._objects: dict[ObjectKey, JsonObject] = {}
        self._functions: dict[str, IndexFunction] = {}
        self._indexes: dict[str, _Index] = {}
        self._namespace = namespace or ""
        self._detector = detector
        self._version = ""
        self._waiters: dict[asyncio.Future[None], int] = {}
        for name, function in (indexes or {}).items():
            self.add_index(name, function)

    # ---- reading -----------------------------------------------------------------------------

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

    def keys(self) -> KeysView[ObjectKey]:
        """Return the namespace and name of all objects, as a view of the store."""
        return self._objects.keys()

    def snapshot(self) -> dict[ObjectKey, JsonObject]:
        """Return a copy: what is stored now, whatever is stored later."""
        return self._objects.copy()

    def lookup(self, key: ObjectKey) -> JsonObject | None:
        """Return an object by namespace and name."""
        return self._objects.get(key)

    # ---- writing -----------------------------------------------------------------------------

    def put(self, key: ObjectKey, obj: JsonObject | None) -> JsonObject | None:
        """Store an object, or remove it for None, in all indexes at once; return the old state."""
        if self._detector is not None:
            self._detector.put(key, obj)
        old = self._objects.get(key)
        if obj is None:
            self._objects.pop(key, None)
        else:
            self._objects[key] = obj
        for name, function in self._functions.items():
            before = _values(function, old) if old is not None else frozenset()
            after = _values(function, obj) if obj is not None else frozenset()
            _reindex(self._indexes[name], key, before, after)
        return old

    def add_index(self, name: str, function: IndexFunction) -> None:
        """Find objects by further values, those that are stored included.

        Args:
            name: of the index.
            function: returns the values that an object is found under.

        Raises:
            ValueError: there is an index of this name.
        """
        if name in self._functions:
            raise ValueError(f"there is an index {name!r} already")
        index: _Index = {}
        for key, obj in self._objects.items():
            _reindex(index, key, frozenset(), _values(function, obj))
        self._functions[name] = function
        self._indexes[name] = index

    # ---- how far it is -----------------------------------------------------------------------

    @property
    def resource_version(self) -> str:
        """All changes up to it are in the store; empty before the first list."""
        return self._version

    @resource_version.setter
    def resource_version(self, version: str) -> None:
        self._version = version
        if self._waiters:
            reached = _number(version)
            for waiter, wanted in self._waiters.items():
                if wanted <= reached and not waiter.done():
                    waiter.set_result(None)

    def seen(self, version: str) -> bool:
        """Tell whether all changes up to a resource version are in the store."""
        return 0 < _number(version) <= _number(self._version)

    async def wait_seen(self, version: str, deadline: float) -> bool:
        """Wait until a write is in the store and its handlers have been called.

        Args:
            version: resource version that the write returned, a whole number.
            deadline: longest wait, seconds.

        Returns:
            Whether it is there. False at once where 1,000 others wait already, and for a version
            that is no whole number.

        Source: the Kubernetes rule that resource versions of one resource can be compared.
        """
        if self.seen(version):
            return True
        wanted = _number(version)
        if wanted == 0 or len(self._waiters) >= WAITERS_MAX:
            return False
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = wanted
        try:
            async with asyncio.timeout(deadline):
                await waiter
        except TimeoutError:
            return self.seen(version)
        finally:
            del self._waiters[waiter]
        return True


def _number(version: str) -> int:
    return int(version) if version.isdecimal() else 0


def _values(function: IndexFunction, obj: JsonObject) -> frozenset[str]:
    try:
        return frozenset(function(obj))
    except Exception:  # noqa: BLE001 - an object without index values is better than none
        _log.exception("index function failed", name=obj["metadata"].get("name"))
        return frozenset()


def _reindex(index: _Index, key: ObjectKey, before: frozenset[str], after: frozenset[str]) -> None:
    for value in before - after:
        keys = index.get(value, {})
        keys.pop(key, None)
        if not keys:
            index.pop(value, None)
    for value in after - before:
        index.setdefault(value, {})[key] = None
