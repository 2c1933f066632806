"""Writing status: the committer of packages, revisions and the Lock, joined to the API server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from controller.flow.commit import Committer, Conflict, Gone
from controller.flow.worker import FlowMetrics
from controller.kube.client import ApiError, KubeClient
from controller.kube.events import EventRecorder
from controller.model.conditions import (
    PACKAGE_CONDITIONS,
    PACKAGE_FIELDS,
    RESOLVED,
    REVISION_CONDITIONS,
    REVISION_FIELDS,
    Condition,
    event_for,
    revision_roll_up,
)
from controller.model.objects import (
    FIELD_MANAGER_STATUS,
    LOCK,
    PACKAGES,
    REVISIONS,
    JsonObject,
    Key,
    Resource,
)
from controller.stages.cluster import Cluster

_RESOURCES: dict[str, Resource] = {**PACKAGES, **REVISIONS, LOCK.kind: LOCK}


def status_committer(
    client: KubeClient, cluster: Cluster, recorder: EventRecorder, metrics: FlowMetrics
) -> Committer:
    """Return the writer of all statuses, which emits events for transitions.

    Args:
        client: the API server.
        cluster: where statuses are read.
        recorder: takes the events.
        metrics: counts the writes.
    """

    def announce(obj: JsonObject, old: Condition | None, new: Condition) -> None:
        event = event_for(obj["kind"], old, new)
        if event is not None:
            recorder.record(obj, type=event.type, reason=event.reason, message=event.message)

    return Committer(
        read=cluster.get,
        write=partial(_write, client),
        roll_up=_roll_up,
        on_transition=announce,
        metrics=metrics,
        owned_conditions={
            **dict.fromkeys(PACKAGES, PACKAGE_CONDITIONS),
            **dict.fromkeys(REVISIONS, REVISION_CONDITIONS),
            LOCK.kind: {RESOLVED},
        },
        owned_fields={
            **dict.fromkeys(PACKAGES, PACKAGE_FIELDS),
            **dict.fromkeys(REVISIONS, REVISION_FIELDS),
        },
        expected=(ApiError,),
    )


async def _write(client: KubeClient, key: Key, body: JsonObject) -> JsonObject:
    """Apply a status; translate the API server's refusals into the committer's terms."""
    try:
        return await client.apply(
            _RESOURCES[key.kind],
            key.name,
            body,
            field_manager=FIELD_MANAGER_STATUS,
            subresource="status",
        )
    except ApiError as error:
        if error.not_found:
            raise Gone from error
        if error.conflict:
            raise Conflict from error
        raise


def _roll_up(obj: JsonObject, stated: Mapping[str, Condition]) -> Iterable[Condition]:
    return revision_roll_up(obj, stated) if obj["kind"] in REVISIONS else ()
