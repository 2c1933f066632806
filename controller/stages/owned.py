"""Runtime objects that a revision owns: written when what is wanted changed, else left alone.

The wanted content's hash stands in an annotation of the object, so an object that is right costs no
request; what our last write returned counts until the watch shows it.
"""

from __future__ import annotations

from controller.kube.client import ApiError, KubeClient
from controller.kube.watches import BY_OWNER
from controller.model.establishment import content_hash
from controller.model.objects import (
    ANNOTATION_APPLIED,
    DEPLOYMENT,
    FIELD_MANAGER_RUNTIME,
    LABEL_MANAGED_BY,
    MANAGED_BY,
    REVISIONS,
    SERVICE,
    JsonObject,
    Resource,
    annotations_of,
    controller_of,
    generation_of,
    is_deleting,
    labels_of,
    name_of,
    uid_of,
)
from controller.model.runtime import RuntimeConfigError
from controller.stages.cluster import Cluster

TAKEN_ONLY_OURS = (SERVICE, DEPLOYMENT)  # accounts and Secrets may be prepared by a person


class OwnershipError(RuntimeConfigError):
    """An object of this name belongs to somebody else; the text says to whom."""


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
        if not self._cluster.store(resource.kind).seen(written["metadata"]["resourceVersion"]):
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
        if live is None:  # one that others made carries no label of ours, so the watch lacks it
            live = await self._unwatched(resource, name)
        self._check(resource, live, wanted)
        if live is not None and not is_deleting(live) and _is_as_noted(live, content):
            return live
        # A write that changes the content raises the generation by one, a create starts at 1.
        generation = generation_of(live) if live is not None else 0
        answer = await self._apply(resource, wanted, f"{content}.{generation + 1}")
        if generation_of(answer) not in (0, generation + 1):
            answer = await self._apply(resource, wanted, f"{content}.{generation_of(answer)}")
        self._written[resource.kind, name] = answer
        return answer

    async def _unwatched(self, resource: Resource, name: str) -> JsonObject | None:
        try:
            return await self._client.get(resource, name, namespace=self._namespace)
        except ApiError as error:
            if error.not_found:
                return None
            raise

    def held_by_another(self, live: JsonObject | None, uid: str) -> JsonObject | None:
        """Return the controller of an object that belongs to another package, or to no revision."""
        holder = controller_of(live) if live is not None else None
        if holder is None or holder["uid"] == uid:
            return None
        mine, theirs = (self._cluster.revision_by_uid(u) for u in (uid, holder["uid"]))
        if theirs is None:
            return None if holder["kind"] in REVISIONS else holder
        package = self._cluster.package_of(theirs)
        if mine is None or package is None or package is self._cluster.package_of(mine):
            return None
        return holder

    def _check(self, resource: Resource, live: JsonObject | None, wanted: JsonObject) -> None:
        """Refuse to take what is not ours.

        Raises:
            OwnershipError: another package, or a person, has an object of this name.
        """
        if live is None:
            return
        mine = controller_of(wanted) or {}
        holder = self.held_by_another(live, mine.get("uid", ""))
        text = f"{resource.kind} {self._namespace}/{name_of(live)}"
        remedy = "give the package, or the template of its runtime configuration, another name"
        if holder is not None:
            raise OwnershipError(
                f"{text} is already controlled by {holder['kind']} {holder['name']}: {remedy}"
            )
        if resource in TAKEN_ONLY_OURS and controller_of(live) is None and _not_ours(live):
            raise OwnershipError(f"{text} exists and was not made by crossdock: {remedy}")

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


def _not_ours(live: JsonObject) -> bool:
    return labels_of(live).get(LABEL_MANAGED_BY) != MANAGED_BY


def _is_as_noted(live: JsonObject, content: str) -> bool:
    noted, _, generation = annotations_of(live).get(ANNOTATION_APPLIED, "").partition(".")
    return noted == content and generation_of(live) in (0, int(generation or 0))


def _noted(wanted: JsonObject, note: str) -> JsonObject:
    metadata = wanted["metadata"]
    annotations = {**(metadata.get("annotations") or {}), ANNOTATION_APPLIED: note}
    return {**wanted, "metadata": {**metadata, "annotations": annotations}}
