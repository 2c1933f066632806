"""The informers that the manager always runs: the package API and the runtime objects it owns.

Source: Crossplane's watches. Runtime objects are selected by label, so that a cluster's other
Secrets and Deployments are neither read nor held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any

from controller.kube.client import KubeClient
from controller.kube.informer import Figures, Handler, Informer, Registration, Store
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
        resync: seconds between two deliveries of everything that is stored; None: never.
    """

    def __init__(self, client: KubeClient, *, namespace: str, resync: float | None = None) -> None:
        self._informers: dict[str, Informer] = {}
        for resource in (*PACKAGES.values(), LOCK, IMAGE_CONFIG, RUNTIME_CONFIG):
            self._informers[resource.kind] = Informer(
                client, resource, transform=without_managed_fields, resync=resync
            )
        for resource in REVISIONS.values():
            self._informers[resource.kind] = Informer(
                client,
                resource,
                transform=without_managed_fields,
                resync=resync,
                indexes={BY_PACKAGE: _package, BY_UID: lambda obj: (uid_of(obj),)},
            )
        for resource in (DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, SECRET):
            self._informers[resource.kind] = Informer(
                client,
                resource,
                namespace=namespace,
                label_selector=f"{LABEL_MANAGED_BY}={MANAGED_BY}",
                transform=without_managed_fields,
                resync=resync,
                indexes={BY_OWNER: _owner},
            )

    @property
    def stores(self) -> Mapping[str, Store]:
        """The stores by kind."""
        return {kind: informer.store for kind, informer in self._informers.items()}

    def on(self, kind: str, handler: Handler) -> Registration:
        """Call a plain function for each stored object of a kind, and after each change."""
        return self._informers[kind].add_handler(handler)

    def runs(self) -> list[Coroutine[Any, Any, None]]:
        """Return the work of all informers, each to be run as a task."""
        return [informer.run() for informer in self._informers.values()]

    def unsynced(self) -> list[str]:
        """Return the kinds whose first list is not in yet."""
        return [kind for kind, informer in self._informers.items() if not informer.synced]

    def silent(self, seconds: float) -> list[str]:
        """Return the kinds that had neither event, bookmark nor list for so long."""
        return [
            k for k, informer in self._informers.items() if informer.silent_seconds() >= seconds
        ]

    def figures(self) -> dict[str, Figures]:
        """Return what the informers tell about themselves, by kind."""
        return {kind: informer.figures() for kind, informer in self._informers.items()}

    async def wait_synced(self) -> None:
        """Wait until the first list of every kind is in."""
        await asyncio.gather(*(informer.wait_synced() for informer in self._informers.values()))


def without_managed_fields(obj: JsonObject) -> JsonObject:
    """Return the object itself without ``metadata.managedFields``, which nobody here reads."""
    obj["metadata"].pop("managedFields", None)
    return obj


def _package(revision: JsonObject) -> Iterable[str]:
    name = labels_of(revision).get(LABEL_PACKAGE)
    return (name,) if name is not None else ()


def _owner(obj: JsonObject) -> Iterable[str]:
    owner = controller_of(obj)
    return (owner["uid"],) if owner is not None else ()
