"""Metadata of the objects that packages install, watched from the first time a kind is needed.

Guarantees:
    ``get`` answers with the newer of what the watch delivered and what our own last write
    returned, so that a stage never repeats a write that the watch has not shown yet.

Source: the Kubernetes rule that resource versions of one resource can be compared as integers
(KEP-5504) and metadata-only watches (PartialObjectMetadata).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from controller.kube.client import KubeClient
from controller.kube.informer import Change, Informer
from controller.model.objects import JsonObject, Resource

SYNC_DEADLINE = 60.0  # seconds for the first list of a kind


def resource_version(obj: JsonObject) -> int:
    """Return ``metadata.resourceVersion`` as a number, 0 where there is none."""
    return int(obj["metadata"].get("resourceVersion") or 0)


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
        self._informers: dict[Resource, Informer] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._written: dict[tuple[Resource, str], JsonObject] = {}

    async def ensure(self, resource: Resource) -> None:
        """Watch a kind and wait until its first list is in.

        Raises:
            TimeoutError: the API server did not deliver the list within 60 s.
        """
        informer = self._informers.get(resource)
        if informer is None:
            informer = Informer(self._client, resource, metadata_only=True)
            informer.add_handler(lambda change: self._changed(resource, change))
            self._informers[resource] = informer
            self._tasks.append(self._start(informer.run()))
        async with asyncio.timeout(SYNC_DEADLINE):
            await informer.wait_synced()

    def informers(self) -> list[Informer]:
        """Return the informers that run."""
        return list(self._informers.values())

    def get(self, resource: Resource, name: str) -> JsonObject | None:
        """Return the newest known metadata of an object, None when it does not exist.

        The kind must have been ensured before.
        """
        store = self._informers[resource].store
        stored = store.get(name)
        written = self._written.get((resource, name))
        if written is None:
            return stored
        # All changes up to the store's version are in it, deletions too.
        if int(store.resource_version or 0) >= resource_version(written):
            del self._written[resource, name]
            return stored
        return written

    def note(self, resource: Resource, obj: JsonObject) -> None:
        """Remember the metadata that our own write returned until the watch shows it."""
        stored = self._informers[resource].store.get(obj["metadata"]["name"])
        if stored is not None and resource_version(stored) >= resource_version(obj):
            return
        metadata = {k: v for k, v in obj["metadata"].items() if k != "managedFields"}
        self._written[resource, metadata["name"]] = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": metadata,
        }

    def _changed(self, resource: Resource, change: Change) -> None:
        if change.new is None and change.old is not None:
            self._written.pop((resource, change.old["metadata"]["name"]), None)
        elif change.new is not None:
            self.get(resource, change.new["metadata"]["name"])  # drops a note that is now shown
        self._on_change(resource, change)
