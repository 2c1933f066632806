"""The packages of the soak: what each version of them holds, what is wanted, and what is missing.

``missing`` is a plain function of what is wanted and what the cluster holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from controller.model.objects import (
    CRD,
    DEPLOYMENT,
    PACKAGES,
    REVISIONS,
    SECRET,
    SERVICE,
    Resource,
)
from tests.bench.idle import composition
from tests.integration.harness import NAMESPACE, Platform, conditions, crd, depends_on, meta
from tests.integration.images import push_image

COMPOSITION = Resource("apiextensions.crossplane.io", "v1", "compositions", "Composition")
VERSIONS = (1, 2, 3)
PACKAGE_LABEL = "pkg.crossplane.io/package"
LABEL = "soak"

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Slot:
    """A package that comes and goes: its kind, its name and the repository of its images."""

    kind: str
    name: str
    repository: str

    @property
    def group(self) -> str:
        """The API group of its objects."""
        return f"{self.name}.soak.example.org"

    @property
    def runs(self) -> bool:
        """Whether it has a Deployment, a Service and Secrets."""
        return self.kind != "Configuration"

    def definitions(self, version: int) -> tuple[str, ...]:
        """Name the definitions that one of its versions holds."""
        if self.kind != "Provider":
            return ()
        plurals = ("things", "others", "extras")[: 2 + (version == VERSIONS[-1])]
        return tuple(f"{plural}.{self.group}" for plural in plurals)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a package should be: the version of its image, and the label of all its objects."""

    version: int
    label: str


CHURNED = (
    *(Slot("Provider", f"provider-{n}", f"soak/provider-{n}") for n in range(4)),
    *(Slot("Function", f"function-{n}", f"soak/function-{n}") for n in range(2)),
    *(Slot("Configuration", f"configuration-{n}", f"soak/configuration-{n}") for n in range(3)),
)
# One Configuration stays, and what it depends on is installed by the manager.
NEEDED = (
    Slot("Provider", "soak-needed-provider", "soak/needed-provider"),
    Slot("Function", "soak-needed-function", "soak/needed-function"),
)
BASE = Slot("Configuration", "base", "soak/base")


@dataclass
class Cluster:
    """What the cluster holds, as far as it is looked at."""

    packages: dict[tuple[str, str], Object] = field(default_factory=dict)
    revisions: dict[tuple[str, str], list[Object]] = field(default_factory=dict)
    definitions: dict[str, Object] = field(default_factory=dict)
    compositions: dict[str, Object] = field(default_factory=dict)
    deployments: list[Object] = field(default_factory=list)
    services: dict[str, Object] = field(default_factory=dict)
    secrets: dict[str, Object] = field(default_factory=dict)


def documents(platform: Platform, slot: Slot, version: int) -> list[Object]:
    """Return what one version of a package holds."""
    if slot is BASE:
        needs = [depends_on(s.kind, platform.image(s.repository), ">=v1.0.0") for s in NEEDED]
        return [meta(slot.kind, slot.name, dependsOn=needs)]
    found = [meta(slot.kind, slot.name)]
    for name in slot.definitions(version):
        definition = crd(slot.group, name.partition(".")[0])
        _schema(definition)["description"] = f"version {version}"
        found.append(definition)
    if slot.kind == "Configuration":
        found.append(composition(slot.name, slot.group, f"Thing{version}"))
    return found


def push_all(platform: Platform) -> None:
    """Push every version of every package; the needed ones have one."""
    for slot in (*CHURNED, *NEEDED, BASE):
        for version in VERSIONS if slot in CHURNED else (1,):
            content = yaml.safe_dump_all(documents(platform, slot, version)).encode()
            files = {"package.yaml": content}
            push_image(platform.lab.registry, slot.repository, f"v{version}.0.0", files)


def image(platform: Platform, slot: Slot, version: int) -> str:
    """Return the reference of one version of a package."""
    return platform.image(slot.repository, f"v{version}.0.0")


def look(platform: Platform) -> Cluster:
    """Read what the cluster holds."""
    found = Cluster()
    for kind, resource in PACKAGES.items():
        for package in platform.list(resource):
            found.packages[kind, package["metadata"]["name"]] = package
    for kind, resource in REVISIONS.items():
        for revision in platform.list(resource):
            name = (revision["metadata"].get("labels") or {}).get(PACKAGE_LABEL, "")
            key = (kind.removesuffix("Revision"), name)
            found.revisions.setdefault(key, []).append(revision)
    found.definitions = _by_name(platform.list(CRD))
    found.compositions = _by_name(platform.list(COMPOSITION))
    found.deployments = platform.list(DEPLOYMENT, namespace=NAMESPACE)
    found.services = _by_name(platform.list(SERVICE, namespace=NAMESPACE))
    found.secrets = _by_name(platform.list(SECRET, namespace=NAMESPACE))
    return found


def missing(
    wanted: Mapping[Slot, Wanted | None], images: Mapping[Slot, str], cluster: Cluster
) -> Iterator[str]:
    """Say what the manager has yet to do: each wanted package healthy, with all its objects.

    Args:
        wanted: what each package should be; None for not there.
        images: the reference of each wanted package's image.
        cluster: what is there.
    """
    for slot, want in wanted.items():
        key = (slot.kind, slot.name)
        if want is None:
            continue
        package = cluster.packages.get(key)
        if package is None:
            yield f"{slot.name}: there is no package"
        else:
            yield from _package_faults(slot, images[slot], package)
            yield from _content_faults(slot, want, images[slot], cluster)


def leftovers(wanted: Mapping[Slot, Wanted | None], cluster: Cluster) -> Iterator[str]:
    """Say what is still there of unwanted packages; Kubernetes' garbage collector has a part in it.

    An object whose owners a stranger took away before its package went is nobody's: it may stay.
    """
    for slot, want in wanted.items():
        key = (slot.kind, slot.name)
        for revision in cluster.revisions.get(key, ()):
            if want is None or revision["metadata"].get("deletionTimestamp"):
                yield f"{slot.name}: the revision {revision['metadata']['name']} is still there"
        if want is not None:
            continue
        if key in cluster.packages:
            yield f"{slot.name}: the package is still there"
        objects = {n: cluster.definitions.get(n) for n in slot.definitions(VERSIONS[-1])}
        if slot.kind == "Configuration":
            objects[slot.name] = cluster.compositions.get(slot.name)
        for name, found in objects.items():
            if found is not None and found["metadata"].get("ownerReferences"):
                yield f"{slot.name}: {name} is still there"
        if slot.runs and _deployments(slot, cluster):
            yield f"{slot.name}: a Deployment is still there"


def _package_faults(slot: Slot, reference: str, package: Object) -> Iterator[str]:
    if package["spec"]["package"] != reference:
        yield f"{slot.name}: the package names {package['spec']['package']}"
    stated = conditions(package)
    for kind in ("Installed", "Healthy"):
        found = stated.get(kind, {})
        if found.get("status") != "True":
            yield f"{slot.name}: {kind} is {found.get('status')}: {found.get('message')}"
        elif found.get("observedGeneration") != package["metadata"]["generation"]:
            yield f"{slot.name}: {kind} is of an earlier generation"


def _content_faults(slot: Slot, want: Wanted, reference: str, cluster: Cluster) -> Iterator[str]:
    revisions = cluster.revisions.get((slot.kind, slot.name), [])
    active = [r for r in revisions if r["spec"].get("desiredState") == "Active"]
    if len(active) != 1 or active[0]["spec"]["image"] != reference:
        yield f"{slot.name}: its active revisions are {[r['spec']['image'] for r in active]}"
        return
    revision = active[0]
    for name in slot.definitions(want.version):
        definition = cluster.definitions.get(name)
        described = _schema(definition).get("description") if definition else None
        yield from _object_faults(name, definition, want, revision)
        if definition is not None and described != f"version {want.version}":
            yield f"{name}: its content is {described!r}"
    if slot.kind == "Configuration" and slot is not BASE:
        found = cluster.compositions.get(slot.name)
        kind = found["spec"]["compositeTypeRef"]["kind"] if found else None
        yield from _object_faults(slot.name, found, want, revision)
        if found is not None and kind != f"Thing{want.version}":
            yield f"{slot.name}: its Composition is for {kind!r}"
    if slot.runs:
        yield from _runtime_faults(slot, reference, revision, cluster)


def _object_faults(
    name: str, found: Object | None, want: Wanted, revision: Object
) -> Iterator[str]:
    if found is None:
        yield f"{name}: it does not exist"
        return
    metadata = found["metadata"]
    if metadata.get("deletionTimestamp"):
        yield f"{name}: it is being deleted"
    if want.label and (metadata.get("labels") or {}).get(LABEL) != want.label:
        yield f"{name}: its labels are {metadata.get('labels')}"
    if _controllers(found) != [revision["metadata"]["uid"]]:
        yield f"{name}: its controller is not the active revision"


def _runtime_faults(
    slot: Slot, reference: str, revision: Object, cluster: Cluster
) -> Iterator[str]:
    deployments = _deployments(slot, cluster)
    names = [deployment["metadata"]["name"] for deployment in deployments]
    if names != [revision["metadata"]["name"]]:
        yield f"{slot.name}: its Deployments are {names}"
    for deployment in deployments:
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        if container["image"] != reference:
            yield f"{slot.name}: its Deployment runs {container['image']}"
    if slot.name not in cluster.services:
        yield f"{slot.name}: there is no Service"
    sides = ("server", "client") if slot.kind == "Provider" else ("server",)
    for side in sides:
        data = (cluster.secrets.get(f"{slot.name}-tls-{side}") or {}).get("data") or {}
        if not data.get("tls.crt", "").startswith("LS0t"):  # a PEM file's first dashes
            yield f"{slot.name}: there is no certificate for the {side}"


def _deployments(slot: Slot, cluster: Cluster) -> list[Object]:
    """Return the Deployments that a revision of a package controls."""
    prefix = f"{slot.name}-"
    return [
        deployment
        for deployment in cluster.deployments
        for owner in deployment["metadata"].get("ownerReferences") or ()
        if owner.get("controller")
        and owner["kind"] == f"{slot.kind}Revision"
        and owner["name"].rpartition("-")[0] + "-" == prefix
    ]


def _controllers(obj: Object) -> list[str]:
    owners = obj["metadata"].get("ownerReferences") or ()
    return [owner["uid"] for owner in owners if owner.get("controller")]


def _schema(definition: Object) -> Object:
    return definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def _by_name(objects: list[Object]) -> dict[str, Object]:
    return {obj["metadata"]["name"]: obj for obj in objects}
