"""The establish stage: brings the objects of a package into the cluster and hands them over.

Key: a revision. Owns ``Established`` and ``status.objectRefs``. Metadata tells which objects need a
write (``controller.model.establishment``); an object that is right costs no request. Ownership of
all objects is checked, and every change of content dry-run, before the first write.
"""

from __future__ import annotations

from collections.abc import Sequence

from controller.flow.worker import Again, Done, Outcome
from controller.kube.client import ApiError, KubeClient
from controller.kube.discovery import Discovery
from controller.kube.informers import MetadataInformers
from controller.model.conditions import (
    DEPENDENCIES_READY,
    ESTABLISHED,
    FALSE,
    PARSED,
    TRUE,
    UNKNOWN,
    Condition,
    Report,
    is_true,
)
from controller.model.content import Entry
from controller.model.establishment import (
    EnrichmentError,
    Owners,
    Webhook,
    is_untouched,
    reference_sort_key,
)
from controller.model.objects import (
    CRD,
    KINDS_WITH_RUNTIME,
    PACKAGES,
    SECRET,
    JsonObject,
    Key,
    Resource,
    controller_of,
    generation_of,
    is_deleting,
    is_paused,
    name_of,
    owner_reference,
    package_kind,
    resource_of,
    uid_of,
)
from controller.model.revision import is_active
from controller.stages.backend import ImageBackend
from controller.stages.cluster import Cluster
from controller.stages.objects import Common, EstablishError, Item, ObjectWriter
from controller.stages.served import ServedKinds

DONE = "Established"
WAITING = "WaitingForKinds"
KIND_NOT_SERVED = "KindNotServed"
KIND_WAIT = 60.0  # seconds; an event about the kind comes first


class EstablishStage:
    """Installs the objects of one revision and keeps them as the package has them."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        client: KubeClient,
        backend: ImageBackend,
        discovery: Discovery,
        metadata: MetadataInformers,
        namespace: str,
        writers: int,
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._backend = backend
        self._discovery = discovery
        self._metadata = metadata
        self._namespace = namespace
        self._served = ServedKinds(client=client, discovery=discovery)
        self._writer = ObjectWriter(client=client, metadata=metadata, writers=writers)
        self.waiting_for_kinds: set[Key] = set()

    async def __call__(self, key: Key) -> Outcome:
        """Establish the objects of an active revision, release those of an inactive one."""
        revision = self._cluster.get(key)
        if revision is None or is_deleting(revision) or is_paused(revision):
            self.waiting_for_kinds.discard(key)
            self._served.forget(key)
            return Done()
        package = self._cluster.package_of(revision)
        if package is None:
            return Done()
        runtime = (("runtime", key),)
        if not is_active(revision):
            return Done(await self._release(key, revision), next=runtime)
        if not self._cluster.is_claimant(revision):
            return Done()
        conditions = self._cluster.conditions(key)
        if not is_true(conditions, DEPENDENCIES_READY) or not is_true(conditions, PARSED):
            return Done()
        owners = Owners(
            revision=owner_reference(revision, resource_of(key.kind), controller=True),
            package=owner_reference(package, PACKAGES[package["kind"]]),
        )
        try:
            common = await self._common(key, revision, owners)
        except EstablishError as error:
            return self._cannot(key, error)
        if await self._is_right(key, revision, common):
            return await self._finish(key, self._cluster.status_fields(key)["objectRefs"])
        return await self._establish(key, revision, common)

    async def _common(self, key: Key, revision: JsonObject, owners: Owners) -> Common:
        return Common(
            owners=owners,
            labels=revision["spec"].get("commonLabels") or {},
            annotations=revision["spec"].get("commonAnnotations") or {},
            webhook=await self._webhook(key, revision),
            webhook_name=_webhook_name(revision),
        )

    async def _is_right(self, key: Key, revision: JsonObject, common: Common) -> bool:
        """Tell from metadata alone that all objects are as this spec of the revision wants them."""
        established = self._cluster.conditions(key).get(ESTABLISHED)
        if established is None or established.reason not in (DONE, WAITING):
            return False
        if established.observed_generation not in (None, generation_of(revision)):
            return False
        references = self._cluster.status_fields(key).get("objectRefs")
        if references is None:
            return False
        added = common.fingerprint()
        for reference in references:
            resource = self._resource(reference["apiVersion"], reference["kind"])
            if resource is None:
                return False
            await self._metadata.ensure(resource)
            stored = self._metadata.get(resource, reference["name"])
            if not is_untouched(stored, common.owners, common.labels, added):
                return False
        return True

    async def _establish(self, key: Key, revision: JsonObject, common: Common) -> Outcome:
        try:
            async with self._backend.open(revision) as content:
                resources = await self._resources(content.entries)
                items = await self._writer.run(
                    content,
                    resources,
                    common,
                    may_replace=lambda owner: self._may_replace(revision, owner),
                )
            self.waiting_for_kinds.discard(key)
        except (EstablishError, EnrichmentError) as error:
            return self._cannot(key, error)
        references = [self._reference(item) for item in items]
        references.sort(key=reference_sort_key, reverse=True)
        return await self._finish(key, references)

    def _cannot(self, key: Key, error: Exception) -> Outcome:
        reason = getattr(error, "reason", "CannotEstablish")
        message = f"cannot establish control of object: {error}"
        failed = Report((Condition(ESTABLISHED, FALSE, reason, message),))
        if reason == KIND_NOT_SERVED:
            self.waiting_for_kinds.add(key)
            return Again(message, after=KIND_WAIT, report=failed)
        return Again(message, report=failed)

    async def _finish(self, key: Key, references: list[JsonObject]) -> Outcome:
        """State that all objects are right, once the kinds that they define are served."""
        fields = {"objectRefs": references}
        definitions = [r["name"] for r in references if r["kind"] == CRD.kind]
        missing = await self._served.missing(key, definitions)
        if missing:
            text = self._served.message(key, missing)
            report = Report((Condition(ESTABLISHED, UNKNOWN, WAITING, text),), fields)
            return Again(text, after=self._served.pause(key), report=report)
        established = Condition(ESTABLISHED, TRUE, DONE)
        return Done(Report((established,), fields), next=(("runtime", key),))

    async def _webhook(self, key: Key, revision: JsonObject) -> Webhook | None:
        """Return where the package's webhooks are reached; None for kinds without a runtime."""
        if package_kind(revision["kind"]) not in KINDS_WITH_RUNTIME:
            return None
        secret = self._cluster.status_fields(key).get("tlsServerSecretName")
        if not secret:
            message = "waiting for package runtime controller to set revision's webhook TLS secret"
            raise EstablishError("CannotEstablish", message)
        stored = self._cluster.store(SECRET.kind).get(secret)
        try:
            if stored is None:
                stored = await self._client.get(SECRET, secret, namespace=self._namespace)
        except ApiError as error:
            message = f"cannot get webhook tls secret: {error}"
            raise EstablishError("CannotEstablish", message) from error
        bundle = (stored.get("data") or {}).get("ca.crt") or ""
        if not bundle:
            message = f"the value for the key ca.crt of Secret {secret} cannot be empty"
            raise EstablishError("CannotEstablish", message)
        package = self._cluster.package_of(revision)
        service = name_of(package) if package is not None else ""
        return Webhook(service=service, namespace=self._namespace, ca_bundle=bundle)

    async def _resources(self, entries: Sequence[Entry]) -> dict[tuple[str, str], Resource]:
        """Return the resource of every kind in the package, watched and synced.

        Raises:
            EstablishError: the API server does not serve a kind; the text names it.
        """
        wanted = sorted({(entry.api_version, entry.kind) for entry in entries})
        if any(self._resource(*kind) is None for kind in wanted):
            await self._discovery.refresh()
        found: dict[tuple[str, str], Resource] = {}
        for api_version, kind in wanted:
            resource = self._resource(api_version, kind)
            if resource is None:
                message = (
                    f"the API server does not serve {kind} ({api_version}); install what defines "
                    "it, for example Crossplane's core, and the package goes on by itself"
                )
                raise EstablishError(KIND_NOT_SERVED, message)
            await self._metadata.ensure(resource)
            found[api_version, kind] = resource
        return found

    def _resource(self, api_version: str, kind: str) -> Resource | None:
        group, _, version = api_version.rpartition("/")
        return self._discovery.lookup(group, kind, version)

    def _reference(self, item: Item) -> JsonObject:
        stored = self._metadata.get(item.resource, item.name)
        reference: JsonObject = {
            "apiVersion": item.entry.api_version,
            "kind": item.entry.kind,
            "name": item.name,
        }
        if stored is not None:
            reference["uid"] = uid_of(stored)
        return reference

    def _may_replace(self, revision: JsonObject, controller: JsonObject) -> bool:
        """Tell whether a revision may take an object over from its present controller.

        A revision of the same package, and one that no longer exists, give way; everything else
        keeps what it has.
        """
        owner = self._cluster.revision_by_uid(controller["uid"])
        if owner is None:
            return bool(controller["kind"].endswith("Revision"))
        mine, theirs = self._cluster.package_of(revision), self._cluster.package_of(owner)
        return theirs is None or (mine is not None and uid_of(mine) == uid_of(theirs))

    async def _release(self, key: Key, revision: JsonObject) -> Report | None:
        """Give up control of what the revision still controls; content stays untouched."""
        for reference in self._cluster.status_fields(key).get("objectRefs") or ():
            resource = self._resource(reference["apiVersion"], reference["kind"])
            if resource is None:
                continue
            await self._metadata.ensure(resource)
            stored = self._metadata.get(resource, reference["name"])
            if stored is not None and (controller_of(stored) or {}).get("uid") == uid_of(revision):
                await self._release_object(resource, stored, uid_of(revision))
        if ESTABLISHED not in self._cluster.conditions(key):
            return None
        message = "the revision is inactive and controls no objects"
        return Report((Condition(ESTABLISHED, UNKNOWN, "Released", message),))

    async def _release_object(self, resource: Resource, stored: JsonObject, uid: str) -> None:
        owners = stored["metadata"]["ownerReferences"]
        index = next(i for i, reference in enumerate(owners) if reference["uid"] == uid)
        path = f"/metadata/ownerReferences/{index}"
        operations: list[JsonObject] = [
            {"op": "test", "path": f"{path}/uid", "value": uid},
            {"op": "replace", "path": f"{path}/controller", "value": False},
        ]
        try:
            written = await self._client.json_patch(resource, name_of(stored), operations)
        except ApiError as error:
            if not error.not_found:
                raise
        else:
            self._metadata.note(resource, written)


def _webhook_name(revision: JsonObject) -> str:
    """Return the name of a package's webhook configurations (Crossplane's rule)."""
    package = revision["metadata"]["labels"]["pkg.crossplane.io/package"]
    return f"crossplane-{package_kind(revision['kind']).lower()}-{package}"
