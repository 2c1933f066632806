"""The informers that the manager always runs: the package API and the runtime objects it owns.

Source: Crossplane's watches. Runtime objects are selected by label, so that a cluster's other
Secrets and Deployments are neither read nor held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any

from controller.kube.client import KubeClient
from controller.kube.informer import Change, Informer, Store
from controller.model.objects import (
    DEPLOYMENT,
    IMAGE_CONFIG,
    LABEL_MANAGED_BY,
    LABEL_PACKAGE,
    LOCK,
    MANAGED_BY,
    PACKAGES,
    REVISIONS,
    RUNTIME_CONFIG,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    JsonObject,
    controller_of,
    labels_of,
    uid_of,
)

BY_PACKAGE = "package"  # index of revisions: the parent label
BY_UID = "uid"  # index of revisions
BY_OWNER = "owner"  # index of runtime objects: the UID of their controller


class Watches:
    """One informer per kind.

    Args:
        client: the API server.
        namespace: where runtime objects live.
    """

    def __init__(self, client: KubeClient, *, namespace: str) -> None:
        self._informers: dict[str, Informer] = {}
        for resource in (*PACKAGES.values(), LOCK, IMAGE_CONFIG, RUNTIME_CONFIG):
            self._informers[resource.kind] = Informer(
                client, resource, transform=without_managed_fields
            )
        for resource in REVISIONS.values():
            self._informers[resource.kind] = Informer(
                client,
                resource,
                transform=without_managed_fields,
                indexes={BY_PACKAGE: _package, BY_UID: lambda obj: (uid_of(obj),)},
            )
        for resource in (DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, SECRET):
            self._informers[resource.kind] = Informer(
                client,
                resource,
                namespace=namespace,
                label_selector=f"{LABEL_MANAGED_BY}={MANAGED_BY}",
                transform=without_managed_fields,
                indexes={BY_OWNER: _owner},
            )

    @property
    def stores(self) -> Mapping[str, Store]:
        """The stores by kind."""
        return {kind: informer.store for kind, informer in self._informers.items()}

    def on(self, kind: str, handler: Callable[[Change], None]) -> None:
        """Call a plain function after each change of an object of a kind."""
        self._informers[kind].add_handler(handler)

    def runs(self) -> list[Coroutine[Any, Any, None]]:
        """Return the work of all informers, each to be run as a task."""
        return [informer.run() for informer in self._informers.values()]

    def unsynced(self) -> list[str]:
        """Return the kinds whose first list is not in yet."""
        return [kind for kind, informer in self._informers.items() if not informer.synced]

    async def wait_synced(self) -> None:
        """Wait until the first list of every kind is in."""
        await asyncio.gather(*(informer.wait_synced() for informer in self._informers.values()))


def without_managed_fields(obj: JsonObject) -> JsonObject:
    """Return an object without ``metadata.managedFields``, which nobody here reads."""
    metadata = obj["metadata"]
    if "managedFields" not in metadata:
        return obj
    kept = {name: value for name, value in metadata.items() if name != "managedFields"}
    return {**obj, "metadata": kept}


def _package(revision: JsonObject) -> Iterable[str]:
    name = labels_of(revision).get(LABEL_PACKAGE)
    return (name,) if name is not None else ()


def _owner(obj: JsonObject) -> Iterable[str]:
    owner = controller_of(obj)
    return (owner["uid"],) if owner is not None else ()
