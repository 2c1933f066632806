"""Metadata of the objects that packages install, watched from the first time a kind is needed.

Guarantees:
    ``get`` answers with the newer of what the watch delivered and what our own last write
    returned, so that a stage never repeats a write that the watch has not shown yet. A kind whose
    first list does not come, and one whose definition is deleted, is watched no more.
    What nobody reads of the metadata is not kept, and what repeats is kept once.

Source: the Kubernetes rule that resource versions of one resource can be compared as integers
(KEP-5504) and metadata-only watches (PartialObjectMetadata).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from controller.kube.apierror import ApiError
from controller.kube.client import KubeClient
from controller.kube.informer import Change, Figures, Informer
from controller.kube.requests import label
from controller.kube.store import Store
from controller.model.objects import CRD, JsonObject, Resource, name_of

SYNC_DEADLINE = 60.0  # seconds for the first list of a kind
SHARED_MAX = 1000  # different owners of objects that are remembered

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"  # up to 256 KiB an object


def resource_version(obj: JsonObject) -> int:
    """Return ``metadata.resourceVersion`` as a number, 0 where there is none."""
    return int(obj["metadata"].get("resourceVersion") or 0)


@dataclass(slots=True)
class _Watch:
    """A kind that is watched, and how many wait for its first list."""

    informer: Informer
    task: asyncio.Task[None]
    waiting: int = 0


class MetadataInformers:
    """One metadata-only informer per kind, started on demand.

    Args:
        client: the API server.
        start: runs a coroutine as a task whose parent outlives this object.
        on_change: called after each change of any watched object, with its kind.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        on_change: Callable[[Resource, Change], None],
    ) -> None:
        self._client = client
        self._start = start
        self._on_change = on_change
        self._watches: dict[Resource, _Watch] = {}
        self._written: dict[tuple[Resource, str], JsonObject] = {}
        self._shared: dict[bytes, Any] = {}
        self._clearing: dict[Resource, asyncio.Task[None]] = {}  # kinds whose definition went

    async def ensure(self, resource: Resource) -> None:
        """Watch a kind and wait until its first list is in.

        Raises:
            ApiError: the API server did not deliver the list within 60 s; the kind is not watched
                then, unless somebody else still waits for it.
        """
        clearing = self._clearing.get(resource)
        if clearing is not None:  # what it tells of the objects before comes first
            _ = await asyncio.wait([clearing])
        watch = self._watches.get(resource) or self._begin(resource)
        watch.waiting += 1
        try:
            async with asyncio.timeout(SYNC_DEADLINE):
                await watch.informer.wait_synced()
        except TimeoutError:
            raise ApiError(
                status=0,
                reason="Timeout",
                message=f"the API server did not list {label(resource)} in {SYNC_DEADLINE:g} s",
                verb="list",
                path=resource.path(),
            ) from None
        finally:
            watch.waiting -= 1
            self._give_up(resource, watch)

    def silent(self, seconds: float) -> list[str]:
        """Return the kinds that had neither event, bookmark nor list for so long.

        Of a kind that is not served nothing can be heard: it counts as alive.

        Returns:
            Names as ``<plural>.<group>``.
        """
        return [
            label(resource)
            for resource, watch in self._watches.items()
            if watch.informer.served and watch.informer.silent_seconds() >= seconds
        ]

    def figures(self) -> dict[str, Figures]:
        """Return what the informers tell about themselves, by ``<plural>.<group>``."""
        return {label(kind): watch.informer.figures() for kind, watch in self._watches.items()}

    def get(self, resource: Resource, name: str) -> JsonObject | None:
        """Return the newest known metadata of an object, None when it does not exist.

        The kind must have been ensured before; one whose definition is gone has no objects.
        """
        watch = self._watches.get(resource)
        if watch is None:
            return None
        stored = watch.informer.store.get(name)
        written = self._written.get((resource, name))
        if written is None:
            return stored
        if _shows(watch.informer.store, written):
            del self._written[resource, name]
            return stored
        return written

    def note(self, resource: Resource, obj: JsonObject) -> None:
        """Remember the metadata that our own write returned until the watch shows it."""
        watch = self._watches.get(resource)
        if watch is None or _shows(watch.informer.store, obj):
            return
        kept = {"apiVersion": resource.api_version, "kind": resource.kind}
        self._written[resource, name_of(obj)] = self._compact(
            {**kept, "metadata": {**obj["metadata"]}}
        )

    # ---- what is watched ---------------------------------------------------------------------

    def _begin(self, resource: Resource) -> _Watch:
        informer = Informer(self._client, resource, metadata_only=True, transform=self._compact)
        _ = informer.add_handler(lambda change: self._changed(resource, change))
        watch = _Watch(informer, self._start(informer.run()))
        self._watches[resource] = watch
        return watch

    def _give_up(self, resource: Resource, watch: _Watch) -> None:
        """Watch a kind no more whose first list nobody waits for and that did not come."""
        if not watch.waiting and not watch.informer.synced:
            self._end(resource, watch)

    def _end(self, resource: Resource, watch: _Watch) -> None:
        if self._watches.get(resource) is watch:
            del self._watches[resource]
        _ = watch.task.cancel()
        for key in [key for key in self._written if key[0] == resource]:
            del self._written[key]

    def _definition_deleted(self, name: str) -> None:
        """Watch a kind no more that is not served any more; its objects are gone."""
        for resource, watch in tuple(self._watches.items()):
            if label(resource) == name:
                self._end(resource, watch)
                # What is stored is told as deletions.
                task = self._start(watch.informer.replace({}, ""))
                self._clearing[resource] = task
                task.add_done_callback(partial(self._cleared, resource))

    def _cleared(self, resource: Resource, _: asyncio.Task[None]) -> None:
        self._clearing.pop(resource, None)

    def _compact(self, obj: JsonObject) -> JsonObject:
        """Return an object with the metadata that is read here; equal owners are one list."""
        metadata = obj["metadata"]
        metadata.pop("managedFields", None)
        annotations = metadata.get("annotations")
        if annotations and _LAST_APPLIED in annotations:
            metadata["annotations"] = {k: annotations[k] for k in annotations if k != _LAST_APPLIED}
        owners = metadata.get("ownerReferences")
        if owners:
            if len(self._shared) >= SHARED_MAX:
                self._shared.clear()
            metadata["ownerReferences"] = self._shared.setdefault(orjson.dumps(owners), owners)
        return obj

    def _changed(self, resource: Resource, change: Change) -> None:
        if change.new is None and change.old is not None:
            self._written.pop((resource, name_of(change.old)), None)
            if resource == CRD:
                self._definition_deleted(name_of(change.old))
        elif change.new is not None:
            self.get(resource, name_of(change.new))  # drops a note that is now shown
        self._on_change(resource, change)


def _shows(store: Store, obj: JsonObject) -> bool:
    """Tell whether the watch has brought an object, or a newer state of it, its end included."""
    stored = store.get(name_of(obj))
    if stored is not None and resource_version(stored) >= resource_version(obj):
        return True
    return store.seen(obj["metadata"]["resourceVersion"])
