"""What stages read: the stores of the informers, and statuses as they will be.

Stores are filled by watches and never written here; ``view`` overlays what stages reported and the
API server has not shown yet, so that a stage sees the report of the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from controller.flow.commit import View
from controller.kube.informer import Store
from controller.kube.watches import BY_PACKAGE, BY_UID
from controller.model.conditions import Condition
from controller.model.objects import (
    LABEL_PACKAGE,
    LOCK,
    PACKAGES,
    REVISIONS,
    JsonObject,
    Key,
    key_of,
    labels_of,
    package_kind,
    revision_resource,
)
from controller.model.revision import claimant, number_of


class Cluster:
    """Read access to packages, revisions and the objects beside them.

    Args:
        stores: one store per kind name, for every kind that the manager watches in full.
        view: returns the status of a package or revision as it will be.
    """

    def __init__(self, *, stores: Mapping[str, Store], view: Callable[[Key], View]) -> None:
        self._stores = stores
        self._view = view

    def get(self, key: Key) -> JsonObject | None:
        """Return a stored cluster-scoped object, None when it does not exist."""
        return self._stores[key.kind].get(key.name)

    def store(self, kind: str) -> Store:
        """Return the store of a kind."""
        return self._stores[kind]

    def conditions(self, key: Key) -> Mapping[str, Condition]:
        """Return the conditions of a package or revision by type, as they will be."""
        return self._view(key).conditions

    def status_fields(self, key: Key) -> Mapping[str, Any]:
        """Return the other status fields of a package or revision, as they will be."""
        return self._view(key).fields

    def lock(self) -> JsonObject | None:
        """Return the Lock, None while it does not exist."""
        return self._stores[LOCK.kind].get("lock")

    def image_configs(self) -> list[JsonObject]:
        """Return all ImageConfigs."""
        return self._stores["ImageConfig"].list()

    def packages(self) -> list[JsonObject]:
        """Return the packages of all kinds."""
        return [package for kind in PACKAGES for package in self._stores[kind].list()]

    def all_revisions(self) -> list[JsonObject]:
        """Return the revisions of all kinds."""
        return [revision for kind in REVISIONS for revision in self._stores[kind].list()]

    def revisions(self, package: Key) -> list[JsonObject]:
        """Return the revisions of a package, lowest number first."""
        kind = revision_resource(package.kind).kind
        found = self._stores[kind].by_index(BY_PACKAGE, package.name)
        return sorted(found, key=number_of)

    def revision_by_uid(self, uid: str) -> JsonObject | None:
        """Return the revision with a UID, of whichever kind, None when there is none."""
        for kind in REVISIONS:
            found = self._stores[kind].by_index(BY_UID, uid)
            if found:
                return found[0]
        return None

    def package_of(self, revision: JsonObject) -> JsonObject | None:
        """Return the package that a revision belongs to, None when it is gone."""
        name = labels_of(revision).get(LABEL_PACKAGE)
        if name is None:
            return None
        return self._stores[package_kind(revision["kind"])].get(name)

    def is_claimant(self, revision: JsonObject) -> bool:
        """Tell whether a revision is the one of its package that may write objects."""
        package = self.package_of(revision)
        if package is None:
            return False
        key = key_of(package)
        current = self.status_fields(key).get("currentRevision")
        claiming = claimant(package, self.revisions(key), current)
        return claiming is not None and claiming["metadata"]["uid"] == revision["metadata"]["uid"]
