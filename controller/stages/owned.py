"""Runtime objects that a revision owns: written when what is wanted changed, else left alone.

The wanted content's hash stands in an annotation of the object, so an object that is right costs no
request; what our last write returned counts until the watch shows it.
"""

from __future__ import annotations

from controller.kube.client import KubeClient
from controller.kube.informers import resource_version
from controller.kube.watches import BY_OWNER
from controller.model.establishment import content_hash
from controller.model.objects import (
    ANNOTATION_APPLIED,
    FIELD_MANAGER_RUNTIME,
    JsonObject,
    Resource,
    annotations_of,
    generation_of,
    is_deleting,
    name_of,
    uid_of,
)
from controller.stages.cluster import Cluster


class OwnedObjects:
    """Writes the objects of package runtimes by server-side apply.

    Args:
        cluster: stores of the kinds that are written.
        client: the API server.
        namespace: where runtime objects live.
    """

    def __init__(self, *, cluster: Cluster, client: KubeClient, namespace: str) -> None:
        self._cluster = cluster
        self._client = client
        self._namespace = namespace
        self._written: dict[tuple[str, str], JsonObject] = {}

    def get(self, resource: Resource, name: str) -> JsonObject | None:
        """Return an object as it is known, None when it does not exist or others made it."""
        stored = self._cluster.store(resource.kind).get(name, self._namespace)
        written = self._written.get((resource.kind, name))
        if written is None:
            return stored
        if stored is None or resource_version(stored) < resource_version(written):
            return written
        del self._written[resource.kind, name]
        return stored

    def owned_by(self, resource: Resource, uid: str) -> list[JsonObject]:
        """Return the objects of a kind that a revision controls."""
        return self._cluster.store(resource.kind).by_index(BY_OWNER, uid)

    def deleted(self, resource: Resource, name: str) -> None:
        """Drop what our last write returned: the watch showed that the object is gone."""
        self._written.pop((resource.kind, name), None)

    async def ensure(self, resource: Resource, wanted: JsonObject) -> JsonObject:
        """Write an object unless it is as wanted already.

        Args:
            resource: its kind.
            wanted: the whole object for a server-side apply.

        Returns:
            The object as it is now.

        Raises:
            ApiError: the API server refused it.
        """
        name = name_of(wanted)
        content = content_hash(wanted)
        live = self.get(resource, name)
        if live is not None and not is_deleting(live) and _is_as_noted(live, content):
            return live
        # A write that changes the content raises the generation by one, a create starts at 1.
        generation = generation_of(live) if live is not None else 0
        answer = await self._apply(resource, wanted, f"{content}.{generation + 1}")
        if generation_of(answer) not in (0, generation + 1):
            answer = await self._apply(resource, wanted, f"{content}.{generation_of(answer)}")
        self._written[resource.kind, name] = answer
        return answer

    async def _apply(self, resource: Resource, wanted: JsonObject, note: str) -> JsonObject:
        return await self._client.apply(
            resource,
            name_of(wanted),
            _noted(wanted, note),
            field_manager=FIELD_MANAGER_RUNTIME,
            namespace=self._namespace,
        )

    async def delete(self, resource: Resource, obj: JsonObject) -> None:
        """Delete exactly this object; one of the same name that came later stays."""
        name = name_of(obj)
        await self._client.delete(resource, name, namespace=self._namespace, uid=uid_of(obj))


def _is_as_noted(live: JsonObject, content: str) -> bool:
    noted, _, generation = annotations_of(live).get(ANNOTATION_APPLIED, "").partition(".")
    return noted == content and generation_of(live) in (0, int(generation or 0))


def _noted(wanted: JsonObject, note: str) -> JsonObject:
    metadata = wanted["metadata"]
    annotations = {**(metadata.get("annotations") or {}), ANNOTATION_APPLIED: note}
    return {**wanted, "metadata": {**metadata, "annotations": annotations}}
