"""What each verb sends: path, query, headers, body, and whether sending it twice is safe.

Guarantees:
    Nothing here waits or sends. A name that would change a request's path is refused.

Source: the Kubernetes API concepts (server-side apply, patch types, watch, metadata-only reads, dry
run); the Kubernetes rule for path segments in names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from controller.kube.apierror import ApiError
from controller.kube.transport import TRIES_MAX, Query, Request
from controller.model.objects import JsonObject, Resource

JSON = "application/json"
APPLY = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

_DRY_RUN = [("dryRun", "All")]
_REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a kind a list or watch holds, and how much of them."""

    resource: Resource
    namespace: str | None = None
    label_selector: str = ""
    field_selector: str = ""
    metadata_only: bool = False

    def query(self) -> list[tuple[str, str]]:
        """Return the selectors' part of a query."""
        pairs = (("labelSelector", self.label_selector), ("fieldSelector", self.field_selector))
        return [pair for pair in pairs if pair[1]]


def object_path(
    resource: Resource, name: str | None, namespace: str | None, subresource: str | None = None
) -> str:
    """Return the URL path of an object or, without a name, of the collection.

    Raises:
        ApiError: a part would lead to another path.
    """
    for part in (name, namespace):
        if part is not None and (part in {"", ".", ".."} or "/" in part or "%" in part):
            raise ApiError(
                status=422,
                reason="Invalid",
                message=f"{resource.kind} {part!r}: a name may not be empty, '.' or '..', "
                "or hold '/' or '%'",
            )
    return resource.path(name, namespace=namespace, subresource=subresource)


def label(resource: Resource) -> str:
    """Return how metrics and RBAC name a kind: ``<plural>.<group>``."""
    return f"{resource.plural}.{resource.group}" if resource.group else resource.plural


def read(resource: Resource, name: str, *, namespace: str | None, metadata_only: bool) -> Request:
    """Return the request that reads one object."""
    return Request(
        method="GET",
        path=object_path(resource, name, namespace),
        label=("get", label(resource)),
        headers={"Accept": METADATA if metadata_only else JSON},
    )


def list_page(
    selection: Selection,
    *,
    resource_version: str | None,
    limit: int | None,
    continue_token: str | None,
    tries: int = TRIES_MAX,
) -> Request:
    """Return the request for one page of a list."""
    query = selection.query()
    query += [("limit", str(limit))] if limit is not None else []
    query += [("continue", continue_token)] if continue_token else []
    query += [("resourceVersion", resource_version)] if resource_version is not None else []
    return Request(
        method="GET",
        path=object_path(selection.resource, None, selection.namespace),
        label=("list", label(selection.resource)),
        query=query,
        headers={"Accept": METADATA_LIST if selection.metadata_only else JSON},
        tries=tries,
    )


def watch(
    selection: Selection, *, resource_version: str, timeout_seconds: int, send_initial_events: bool
) -> Request:
    """Return the request for a watch with bookmarks."""
    query = [
        ("watch", "true"),
        ("allowWatchBookmarks", "true"),
        ("timeoutSeconds", str(timeout_seconds)),
        *selection.query(),
    ]
    if send_initial_events:
        query += [("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan")]
    if resource_version:
        query.append(("resourceVersion", resource_version))
    return Request(
        method="GET",
        path=object_path(selection.resource, None, selection.namespace),
        label=("watch", label(selection.resource)),
        query=query,
        headers={"Accept": METADATA if selection.metadata_only else JSON},
    )


def create(
    resource: Resource, body: JsonObject | bytes, *, namespace: str | None, dry_run: bool
) -> Request:
    """Return the request that creates an object.

    Sent twice, the second is answered with AlreadyExists, unless the server makes up the name.
    """
    generated = isinstance(body, dict) and "generateName" in body.get("metadata", {})
    return Request(
        method="POST",
        path=object_path(resource, None, namespace),
        label=("create", label(resource)),
        query=_DRY_RUN if dry_run else (),
        headers={"Content-Type": JSON},
        body=_bytes(body),
        repeatable=not generated,
    )


def apply(
    path: str,
    resource: Resource,
    body: JsonObject | bytes,
    *,
    field_manager: str,
    force: bool,
    dry_run: bool,
) -> Request:
    """Return the request of a server-side apply."""
    query = [("fieldManager", field_manager), ("force", "true" if force else "false")]
    query += _DRY_RUN if dry_run else []
    return Request(
        method="PATCH",
        path=path,
        label=("apply", label(resource)),
        query=query,
        headers={"Content-Type": APPLY},
        body=_bytes(body),
    )


def merge_patch(path: str, resource: Resource, patch: JsonObject) -> Request:
    """Return the request of a merge patch; twice could undo a change made in between."""
    return Request(
        method="PATCH",
        path=path,
        label=("patch", label(resource)),
        headers={"Content-Type": MERGE_PATCH},
        body=orjson.dumps(patch),
        repeatable=False,
    )


def json_patch(path: str, resource: Resource, operations: Sequence[JsonObject]) -> Request:
    """Return the request of a JSON patch; one with a ``test`` does nothing the second time."""
    return Request(
        method="PATCH",
        path=path,
        label=("patch", label(resource)),
        headers={"Content-Type": JSON_PATCH},
        body=orjson.dumps(operations),
        repeatable=any(each.get("op") == "test" for each in operations),
    )


def delete(path: str, resource: Resource, *, uid: str | None, propagation: str) -> Request:
    """Return the request that deletes an object."""
    options: JsonObject = {"propagationPolicy": propagation}
    if uid:
        options["preconditions"] = {"uid": uid}
    return Request(
        method="DELETE",
        path=path,
        label=("delete", label(resource)),
        headers={"Content-Type": JSON},
        body=orjson.dumps(options),
    )


def raw(
    method: str,
    path: str,
    *,
    query: Query,
    headers: Mapping[str, str] | None,
    body: bytes | None,
    label: tuple[str, str] | None = None,
) -> Request:
    """Return any request; POST and PATCH are not sent twice."""
    return Request(
        method=method,
        path=path,
        label=label or (method.lower(), "/" + path.split("/")[1]),
        query=query,
        headers=headers,
        body=body,
        repeatable=method in _REPEATABLE,
    )


def _bytes(body: JsonObject | bytes) -> bytes:
    return body if isinstance(body, bytes) else orjson.dumps(body)
