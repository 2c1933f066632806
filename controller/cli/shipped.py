"""The manifests that come with crossdock, as objects ready to be compared and applied.

Pure but for reading the files. Objects carry a hash of themselves in an annotation, so that a
manifest that changed is told from one that did not, fields that went away included.

Source: Kubernetes' server-side apply (fields that an applier no longer sends are removed).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

import controller
from controller.cli.flags import DEFAULT_NAMESPACE, DEFAULT_SERVICE_ACCOUNT
from controller.cli.names import full_name
from controller.cli.session import CommandError
from controller.model.manifest import ManifestError, iter_documents
from controller.model.objects import (
    CRD,
    NAMESPACE,
    SERVICE_ACCOUNT,
    JsonObject,
    Resource,
    annotations_of,
    name_of,
)

ANNOTATION_MANIFEST = "crossdock.io/manifest"  # hash of the manifest that was applied

_RBAC = "rbac.authorization.k8s.io"
PERMISSIONS = (
    NAMESPACE,
    SERVICE_ACCOUNT,
    Resource(_RBAC, "v1", "clusterroles", "ClusterRole"),
    Resource(_RBAC, "v1", "clusterrolebindings", "ClusterRoleBinding"),
    Resource(_RBAC, "v1", "roles", "Role", namespaced=True),
    Resource(_RBAC, "v1", "rolebindings", "RoleBinding", namespaced=True),
)
_KNOWN = {(r.api_version, r.kind): r for r in (*PERMISSIONS, CRD)}


@dataclass(frozen=True, slots=True)
class Desired:
    """An object as it is to be, and where."""

    resource: Resource
    body: JsonObject

    @property
    def name(self) -> str:
        """The object's name."""
        return name_of(self.body)

    @property
    def namespace(self) -> str | None:
        """Its namespace, None for a cluster-scoped kind."""
        namespace: str | None = self.body["metadata"].get("namespace")
        return namespace

    def __str__(self) -> str:
        return full_name(self.resource, self.name)


def manifests_folder() -> Path:
    """Return the folder of manifests: in the installed package, or beside it in a repository.

    Raises:
        CommandError: the installation has none.
    """
    package = Path(controller.__file__).parent
    for folder in (package / "manifests", package.parent / "manifests"):
        if (folder / "crds").is_dir():
            return folder
    raise CommandError(
        f"no manifests beside {package}: this installation is incomplete, install crossdock again"
    )


def read_folder(folder: Path) -> list[Desired]:
    """Return the objects of the YAML files of a folder, by file name and place in it.

    Raises:
        CommandError: a file cannot be read, or holds a kind that is not set up by ``init``.
    """
    found = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            with path.open("rb") as stream:
                values = [d.value for d in iter_documents(stream, source=str(path))]
        except (OSError, ManifestError) as error:
            raise CommandError(f"cannot read {path}: {error}") from error
        for value in values:
            resource = _KNOWN.get((value.get("apiVersion", ""), value.get("kind", "")))
            if resource is None:
                raise CommandError(f"{path}: init does not set up {value.get('kind')} objects")
            found.append(Desired(resource, value))
    return found


def retargeted(desired: Desired, *, namespace: str, service_account: str) -> Desired:
    """Return an object of the shipped permissions for another namespace and service account."""
    body = deepcopy(desired.body)
    metadata = body["metadata"]
    if desired.resource == NAMESPACE and metadata["name"] == DEFAULT_NAMESPACE:
        metadata["name"] = namespace
    if desired.resource == SERVICE_ACCOUNT and metadata["name"] == DEFAULT_SERVICE_ACCOUNT:
        metadata["name"] = service_account
    for place in (metadata, *body.get("subjects", ())):
        if place.get("namespace") == DEFAULT_NAMESPACE:
            place["namespace"] = namespace
    for subject in body.get("subjects", ()):
        if subject["name"] == DEFAULT_SERVICE_ACCOUNT:
            subject["name"] = service_account
    return Desired(desired.resource, body)


def stamped(desired: Desired) -> Desired:
    """Return an object with the hash of its content in an annotation."""
    content = orjson.dumps(desired.body, option=orjson.OPT_SORT_KEYS)
    body = deepcopy(desired.body)
    body["metadata"].setdefault("annotations", {})[ANNOTATION_MANIFEST] = hashlib.sha256(
        content
    ).hexdigest()[:16]
    return Desired(desired.resource, body)


def is_current(live: JsonObject, desired: Desired) -> bool:
    """Tell whether a stored object needs no write: same manifest, and nobody changed its fields."""
    wanted = annotations_of(desired.body).get(ANNOTATION_MANIFEST)
    same = annotations_of(live).get(ANNOTATION_MANIFEST) == wanted
    return same and covers(live, desired.body)


def covers(live: Any, wanted: Any) -> bool:
    """Tell whether a value has all that is wanted; mappings may have more, lists may not."""
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            key in live and covers(live[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(live, list) and len(live) == len(wanted) and all(map(covers, live, wanted))
        )
    return type(live) is type(wanted) and bool(live == wanted)


def lost_versions(live: JsonObject, desired: Desired) -> list[str]:
    """Return the versions that objects may be stored in and a new definition no longer has.

    Source: ``status.storedVersions`` of CustomResourceDefinitions.
    """
    kept = {version["name"] for version in desired.body["spec"]["versions"]}
    stored: Iterable[str] = (live.get("status") or {}).get("storedVersions") or ()
    return [version for version in stored if version not in kept]


def is_established(definition: JsonObject) -> bool:
    """Tell whether the API server has taken a CustomResourceDefinition into service."""
    conditions = (definition.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)
