"""Names, kinds, labels and owner references of Kubernetes objects, on raw dictionaries.

Objects stay as the API server sent them (``JsonObject``); the functions here are the one home of
the rules of how they are named and owned.

Source: the Kubernetes API conventions; Crossplane's ``pkg.crossplane.io`` and
``meta.pkg.crossplane.io`` API groups.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

JsonObject: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind that an API server serves, and the URL paths of its objects."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = False

    @property
    def api_version(self) -> str:
        """The ``apiVersion`` that objects of this kind carry."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(
        self,
        name: str | None = None,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> str:
        """Return the URL path of the collection, an object or a subresource.

        Args:
            name: the object's name; None for the collection.
            namespace: the namespace of a namespaced kind; None for all namespaces.
            subresource: for example ``status``; needs a name.

        Returns:
            A path that starts with ``/api`` or ``/apis``.
        """
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name is not None:
            parts.append(name)
        if subresource is not None:
            parts.append(subresource)
        return "/".join(parts)


PKG_GROUP = "pkg.crossplane.io"
META_GROUP = "meta.pkg.crossplane.io"

PROVIDER = Resource(PKG_GROUP, "v1", "providers", "Provider")
CONFIGURATION = Resource(PKG_GROUP, "v1", "configurations", "Configuration")
FUNCTION = Resource(PKG_GROUP, "v1", "functions", "Function")
PROVIDER_REVISION = Resource(PKG_GROUP, "v1", "providerrevisions", "ProviderRevision")
CONFIGURATION_REVISION = Resource(
    PKG_GROUP, "v1", "configurationrevisions", "ConfigurationRevision"
)
FUNCTION_REVISION = Resource(PKG_GROUP, "v1", "functionrevisions", "FunctionRevision")
LOCK = Resource(PKG_GROUP, "v1beta1", "locks", "Lock")
IMAGE_CONFIG = Resource(PKG_GROUP, "v1beta1", "imageconfigs", "ImageConfig")
RUNTIME_CONFIG = Resource(
    PKG_GROUP, "v1beta1", "deploymentruntimeconfigs", "DeploymentRuntimeConfig"
)

NAMESPACE = Resource("", "v1", "namespaces", "Namespace")
SECRET = Resource("", "v1", "secrets", "Secret", namespaced=True)
SERVICE = Resource("", "v1", "services", "Service", namespaced=True)
SERVICE_ACCOUNT = Resource("", "v1", "serviceaccounts", "ServiceAccount", namespaced=True)
EVENT = Resource("", "v1", "events", "Event", namespaced=True)
DEPLOYMENT = Resource("apps", "v1", "deployments", "Deployment", namespaced=True)
CRD = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition"
)

PACKAGES: dict[str, Resource] = {r.kind: r for r in (PROVIDER, CONFIGURATION, FUNCTION)}
REVISIONS: dict[str, Resource] = {
    r.kind: r for r in (PROVIDER_REVISION, CONFIGURATION_REVISION, FUNCTION_REVISION)
}
KINDS_WITH_RUNTIME = frozenset({"Provider", "Function"})

LABEL_PACKAGE = "pkg.crossplane.io/package"
LABEL_PROVIDER = "pkg.crossplane.io/provider"
LABEL_FUNCTION = "pkg.crossplane.io/function"
LABEL_REVISION = "pkg.crossplane.io/revision"
LABEL_FAMILY = "pkg.crossplane.io/provider-family"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "crossdock"

ANNOTATION_PAUSED = "crossplane.io/paused"
ANNOTATION_APPLIED = "crossdock.io/applied"  # "<content hash>.<generation>" of what we wrote
ANNOTATION_REVIVED = "crossdock.io/revived"  # resourceVersion at which a definition was stuck
ANNOTATION_DIGEST = "crossdock.io/digest"  # full manifest digest, on revisions
FINALIZER_REVISION = "revision.pkg.crossplane.io"
FINALIZER_LOCK = "lock.pkg.crossplane.io"

FIELD_MANAGER = "crossdock"
FIELD_MANAGER_RUNTIME = "pkg.crossplane.io/runtime"
FIELD_MANAGER_STATUS = "crossdock-status"
FIELD_MANAGER_METADATA = "crossdock-metadata"  # labels and annotations from a package's metadata

LOCK_NAME = "lock"
ROOT_CA_SECRET = "crossplane-root-ca"  # noqa: S105 - a Secret's name, not its content
DEFAULT_RUNTIME_CONFIG = "default"

DNS_LABEL_MAX = 63


class Key(NamedTuple):
    """What a queue carries: the kind and name of a cluster-scoped object."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}"


LOCK_KEY = Key("Lock", LOCK_NAME)


def resource_of(kind: str) -> Resource:
    """Return the resource of a package or revision kind; KeyError for any other kind."""
    return PACKAGES[kind] if kind in PACKAGES else REVISIONS[kind]


def revision_resource(package_kind: str) -> Resource:
    """Return the revision kind of a package kind (``Provider`` → ``ProviderRevision``)."""
    return REVISIONS[package_kind + "Revision"]


def package_kind(revision_kind: str) -> str:
    """Return the package kind of a revision kind (``ProviderRevision`` → ``Provider``)."""
    return revision_kind.removesuffix("Revision")


def name_of(obj: JsonObject) -> str:
    """Return ``metadata.name``."""
    name: str = obj["metadata"]["name"]
    return name


def key_of(obj: JsonObject) -> Key:
    """Return the queue key of a stored object."""
    return Key(obj["kind"], obj["metadata"]["name"])


def uid_of(obj: JsonObject) -> str:
    """Return ``metadata.uid``, empty when the object was never stored."""
    uid: str = obj["metadata"].get("uid", "")
    return uid


def generation_of(obj: JsonObject) -> int:
    """Return ``metadata.generation``, 0 where the kind has none."""
    generation: int = obj["metadata"].get("generation", 0)
    return generation


def labels_of(obj: JsonObject) -> dict[str, str]:
    """Return the labels; an empty mapping when there are none. Read only."""
    return obj["metadata"].get("labels") or {}


def annotations_of(obj: JsonObject) -> dict[str, str]:
    """Return the annotations; an empty mapping when there are none. Read only."""
    return obj["metadata"].get("annotations") or {}


def is_deleting(obj: JsonObject) -> bool:
    """Tell whether the object waits for its finalizers."""
    return "deletionTimestamp" in obj["metadata"]


def is_paused(obj: JsonObject) -> bool:
    """Tell whether the pause annotation is exactly ``"true"`` (Crossplane's rule)."""
    return annotations_of(obj).get(ANNOTATION_PAUSED) == "true"


def owner_reference(
    owner: JsonObject, resource: Resource, *, controller: bool = False
) -> JsonObject:
    """Return an owner reference to a stored object.

    Args:
        owner: the owning object; needs ``metadata.name`` and ``metadata.uid``.
        resource: its kind (objects from lists carry none).
        controller: with ``controller`` and ``blockOwnerDeletion`` true.

    Returns:
        One entry of ``metadata.ownerReferences``.
    """
    reference: JsonObject = {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
    }
    if controller:
        reference["controller"] = True
        reference["blockOwnerDeletion"] = True
    return reference


def controller_of(obj: JsonObject) -> JsonObject | None:
    """Return the owner reference with ``controller: true``, None when nobody controls it."""
    for reference in obj["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            found: JsonObject = reference
            return found
    return None


def dns_label(text: str) -> str:
    """Return text as an RFC 1123 label, as Crossplane derives object names from paths.

    Keeps ``a-z0-9``, turns ``. / : -`` into ``-`` and drops the rest, of at most the first 63
    characters; leading and trailing dashes go.

    Source: Crossplane's ToDNSLabel.
    """
    kept = []
    for character in text[:DNS_LABEL_MAX]:
        if character.isascii() and (character.islower() or character.isdigit()):
            kept.append(character)
        elif character in "./:-":
            kept.append("-")
    return "".join(kept).strip("-")


def friendly_id(name: str, identifier: str) -> str:
    """Return ``<name>-<12 characters of identifier>`` as a DNS label of at most 63 characters.

    Source: Crossplane's FriendlyID.
    """
    return dns_label(f"{name[:50]}-{identifier[:12]}")


def revision_name(package: str, digest: str, runtime_config: str = "") -> str:
    """Return the name of the revision of a package that runs an image.

    Args:
        package: the package object's name.
        digest: manifest digest, ``sha256:<64 hex>``.
        runtime_config: ``<kind>/<name>`` of a runtime configuration other than the default one;
            empty for the default.

    Returns:
        ``<package>-<12 hex>``; equal inputs give equal names, whatever else the spec says.

    Source: design, decision "Revision names".
    """
    digest_hex = digest.removeprefix("sha256:")
    if not runtime_config:
        return friendly_id(package, digest_hex)
    mixed = hashlib.sha256(f"{digest_hex}|{runtime_config}".encode()).hexdigest()
    return friendly_id(package, mixed)
