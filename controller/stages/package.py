"""The package stage: decides which revision is active, keeps the history, rolls up health.

Key: a package. Owns which revision is Active, and the package's ``Installed``, ``Healthy`` and
``Upgradeable``. Asks the digest stage when the spec names an image that no revision has.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from controller.flow.worker import Done, Outcome
from controller.kube.client import KubeClient
from controller.model.conditions import (
    FALSE,
    FETCHED,
    PARSED,
    PAUSED,
    RESOLVED,
    RESUMED,
    SYNCED,
    Condition,
    Report,
    package_conditions,
    status_of,
)
from controller.model.objects import (
    ANNOTATION_DIGEST,
    FIELD_MANAGER,
    JsonObject,
    Key,
    annotations_of,
    is_deleting,
    is_paused,
    key_of,
    name_of,
    resource_of,
    uid_of,
)
from controller.model.revision import (
    ACTIVE,
    INACTIVE,
    Plan,
    differs,
    number_of,
    plan,
    revision_object,
)
from controller.stages.cluster import Cluster


class PackageStage:
    """Reconciles the revisions of one package with its spec."""

    def __init__(self, *, cluster: Cluster, client: KubeClient) -> None:
        self._cluster = cluster
        self._client = client

    async def __call__(self, key: Key) -> Outcome:
        """Bring the revisions of a package to what its spec and their state ask for."""
        package = self._cluster.get(key)
        if package is None or is_deleting(package):
            return Done()
        if is_paused(package):
            return Done(PAUSED)
        decision = self._decide(key, package)
        await self._write(package, decision)
        next_keys = (("digest", key),) if self._needs_digest(key, package, decision) else ()
        return Done(self._report(key, package, decision), next=next_keys)

    def _decide(self, key: Key, package: JsonObject) -> Plan:
        revisions = self._cluster.revisions(key)
        current = self._cluster.status_fields(key).get("currentRevision")
        first = plan(package, revisions, current_name=current, wanted_conditions={})
        if first.wanted is None:
            return first
        conditions = self._cluster.conditions(key_of(first.wanted))
        return plan(package, revisions, current_name=current, wanted_conditions=conditions)

    def _needs_digest(self, key: Key, package: JsonObject, decision: Plan) -> bool:
        if decision.wanted is None or package["spec"].get("packagePullPolicy") == "Always":
            return True
        conditions = self._cluster.conditions(key_of(decision.wanted))
        if FALSE in (status_of(conditions, FETCHED), status_of(conditions, PARSED)):
            return True
        if status_of(self._cluster.conditions(key), RESOLVED) == FALSE:
            return True
        known = self._cluster.status_fields(key).get("currentIdentifier")
        return bool(known != package["spec"]["package"])

    async def _write(self, package: JsonObject, decision: Plan) -> None:
        wanted = decision.wanted
        if wanted is not None:
            number = decision.number or number_of(wanted)
            state = ACTIVE if decision.activate else wanted["spec"].get("desiredState", INACTIVE)
            body = revision_object(
                package,
                name=name_of(wanted),
                digest=annotations_of(wanted).get(ANNOTATION_DIGEST, ""),
                number=number,
                state=state or INACTIVE,
            )
            if differs(body, wanted):
                await self._apply(body)
        for revision in decision.deactivate:
            await self._client.json_patch(
                resource_of(revision["kind"]),
                name_of(revision),
                [
                    {"op": "test", "path": "/metadata/uid", "value": uid_of(revision)},
                    {"op": "replace", "path": "/spec/desiredState", "value": INACTIVE},
                ],
            )
        for revision in decision.delete:
            resource = resource_of(revision["kind"])
            await self._client.delete(resource, name_of(revision), uid=uid_of(revision))

    async def _apply(self, body: JsonObject) -> None:
        resource = resource_of(body["kind"])
        name = name_of(body)
        await self._client.apply(resource, name, body, field_manager=FIELD_MANAGER)

    def _report(self, key: Key, package: JsonObject, decision: Plan) -> Report:
        present = self._cluster.conditions(key)
        current, wanted = decision.current, decision.wanted
        if current is not None and decision.activate and current is wanted:
            active_spec = {**current["spec"], "desiredState": ACTIVE}
            current = {**current, "spec": active_spec}
        behind = current is not None and wanted is not decision.current
        candidate = wanted if behind else None
        conditions = package_conditions(
            package,
            resolved=present.get(RESOLVED),
            current=current,
            current_conditions=self._conditions(current),
            behind=behind,
            candidate=candidate,
            candidate_conditions=self._conditions(candidate),
            present=present,
        )
        if SYNCED in present:
            conditions = (*conditions, RESUMED)
        fields: dict[str, Any] = {}
        # Until the store shows the others inactive: a later pass must choose the same one again.
        if current is not None and not decision.deactivate:
            fields["currentRevision"] = name_of(current)
        return Report(conditions, fields)

    def _conditions(self, revision: JsonObject | None) -> dict[str, Condition]:
        if revision is None:
            return {}
        stated = self._cluster.conditions(key_of(revision))
        return {k: dataclasses.replace(c, observed_generation=None) for k, c in stated.items()}
