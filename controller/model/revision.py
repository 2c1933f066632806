"""Revisions of a package: how one is written, which one is wanted, runs, or may go.

Source: Crossplane's package manager (revision spec, history limit, activation policies).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.model.conditions import (
    DEPENDENCIES_READY,
    FALSE,
    FETCHED,
    PARSED,
    VERIFIED,
    Condition,
    is_true,
    status_of,
)
from controller.model.objects import (
    ANNOTATION_DIGEST,
    DEFAULT_RUNTIME_CONFIG,
    FINALIZER_REVISION,
    KINDS_WITH_RUNTIME,
    LABEL_PACKAGE,
    PACKAGES,
    RUNTIME_CONFIG,
    JsonObject,
    annotations_of,
    is_deleting,
    labels_of,
    name_of,
    owner_reference,
    revision_resource,
)

ACTIVE = "Active"
INACTIVE = "Inactive"
MANUAL = "Manual"
DEFAULT_HISTORY_LIMIT = 1
MAX_NAME = 253

# What the package's spec hands to every one of its revisions.
_INHERITED = (
    "packagePullPolicy",
    "packagePullSecrets",
    "ignoreCrossplaneConstraints",
    "skipDependencyResolution",
    "commonLabels",
    "commonAnnotations",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a package needs done to its revisions."""

    wanted: JsonObject | None
    current: JsonObject | None
    number: int | None  # the number that ``wanted`` is to have, where it must be raised
    activate: bool  # make ``wanted`` active
    deactivate: tuple[JsonObject, ...] = ()
    delete: tuple[JsonObject, ...] = ()


def runtime_config_of(spec: Mapping[str, Any]) -> str:
    """Return ``<kind>/<name>`` of a runtime configuration, empty for the default one."""
    reference = spec.get("runtimeConfigRef") or {}
    name = reference.get("name", DEFAULT_RUNTIME_CONFIG)
    kind = reference.get("kind", RUNTIME_CONFIG.kind)
    if kind == RUNTIME_CONFIG.kind and name == DEFAULT_RUNTIME_CONFIG:
        return ""
    return f"{kind}/{name}"


def number_of(revision: JsonObject) -> int:
    """Return ``spec.revision``."""
    number: int = revision["spec"].get("revision", 0)
    return number


def is_active(revision: JsonObject) -> bool:
    """Tell whether a revision is to be active and is not being deleted."""
    return revision["spec"].get("desiredState") == ACTIVE and not is_deleting(revision)


def next_number(revisions: Sequence[JsonObject]) -> int:
    """Return one more than the highest number; 1 for the first revision."""
    return max((number_of(revision) for revision in revisions), default=0) + 1


def tls_secret_names(kind: str, package: str) -> dict[str, str]:
    """Return the spec fields that name a package's TLS Secrets; empty for a Configuration.

    Source: Crossplane's TLS secret names.
    """
    if kind not in KINDS_WITH_RUNTIME:
        return {}
    server, client = "-tls-server", "-tls-client"
    names = {"tlsServerSecretName": package[: MAX_NAME - len(server)] + server}
    if kind == "Provider":
        names["tlsClientSecretName"] = package[: MAX_NAME - len(client)] + client
    return names


def revision_object(
    package: JsonObject, *, name: str, digest: str, number: int, state: str
) -> JsonObject:
    """Return a revision as it is to be applied.

    Args:
        package: the stored package; its spec is inherited.
        name: the revision's name.
        digest: the manifest digest, ``sha256:<64 hex>``; empty leaves the annotation out.
        number: ``spec.revision``.
        state: ``Active`` or ``Inactive``.

    Returns:
        The whole object for a server-side apply, with finalizer, label and owner.
    """
    resource = revision_resource(package["kind"])
    metadata: JsonObject = {
        "name": name,
        "labels": {LABEL_PACKAGE: name_of(package)},
        "finalizers": [FINALIZER_REVISION],
        "ownerReferences": [owner_reference(package, PACKAGES[package["kind"]], controller=True)],
    }
    if digest:
        metadata["annotations"] = {ANNOTATION_DIGEST: digest}
    spec = {
        "desiredState": state,
        "image": package["spec"]["package"],
        "revision": number,
        **inherited(package),
    }
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": metadata,
        "spec": spec,
    }


def inherited(package: JsonObject) -> JsonObject:
    """Return the spec fields that a revision takes from its package."""
    spec = package["spec"]
    fields = {name: spec[name] for name in _INHERITED if spec.get(name) not in (None, {}, [])}
    if package["kind"] in KINDS_WITH_RUNTIME:
        if "runtimeConfigRef" in spec:
            fields["runtimeConfigRef"] = spec["runtimeConfigRef"]
        fields |= tls_secret_names(package["kind"], name_of(package))
    return fields


def differs(wanted: JsonObject, live: JsonObject) -> bool:
    """Tell whether a stored revision lacks something that the wanted one has.

    Labels and annotations that others added do not count; fields of the spec count exactly.
    """
    spec = live["spec"]
    empty: tuple[Any, ...] = (None, {}, [])
    for name in {*wanted["spec"], *_INHERITED}:
        have, want = spec.get(name), wanted["spec"].get(name)
        if have != want and not (have in empty and want in empty):
            return True
    metadata = wanted["metadata"]
    if not metadata["labels"].items() <= labels_of(live).items():
        return True
    if not metadata.get("annotations", {}).items() <= annotations_of(live).items():
        return True
    finalizers = live["metadata"].get("finalizers") or ()
    if not set(metadata["finalizers"]) <= set(finalizers):
        return True
    owners = live["metadata"].get("ownerReferences") or ()
    return any(reference not in owners for reference in metadata["ownerReferences"])


def wanted_revision(package: JsonObject, revisions: Sequence[JsonObject]) -> JsonObject | None:
    """Return the revision that the package's spec asks for, None while it is unknown.

    It has the image and the runtime configuration of the spec; of several (a tag that moved) the
    one with the highest number.
    """
    runtime_config = runtime_config_of(package["spec"])
    matching = [
        revision
        for revision in revisions
        if revision["spec"].get("image") == package["spec"]["package"]
        and runtime_config_of(revision["spec"]) == runtime_config
        and not is_deleting(revision)
    ]
    return max(matching, key=number_of, default=None)


def claimant(
    package: JsonObject, revisions: Sequence[JsonObject], current: str | None
) -> JsonObject | None:
    """Return the one active revision that may write objects, None when none is active.

    Args:
        package: the stored package.
        revisions: its revisions.
        current: ``status.currentRevision`` as it is now.

    Returns:
        The only active revision. Of several: under Automatic the one that the spec asks for, under
        Manual one that is not the current one, since a person has just activated it; else the
        highest number.
    """
    active = [revision for revision in revisions if is_active(revision)]
    if len(active) <= 1:
        return active[0] if active else None
    if package["spec"].get("revisionActivationPolicy") == MANUAL:
        preferred = [revision for revision in active if name_of(revision) != current]
    else:
        wanted = wanted_revision(package, revisions)
        preferred = [revision for revision in active if revision is wanted]
    return max(preferred or active, key=number_of)


def can_be_activated(conditions: Mapping[str, Condition]) -> bool:
    """Tell whether a candidate passed the checks that come before any object is touched."""
    return (
        is_true(conditions, FETCHED)
        and is_true(conditions, PARSED)
        and is_true(conditions, DEPENDENCIES_READY)
        and status_of(conditions, VERIFIED) != FALSE
    )


def plan(
    package: JsonObject,
    revisions: Sequence[JsonObject],
    *,
    current_name: str | None,
    wanted_conditions: Mapping[str, Condition],
) -> Plan:
    """Decide what a package's revisions need.

    Args:
        package: the stored package.
        revisions: its revisions, in any order.
        current_name: ``status.currentRevision`` as it is now.
        wanted_conditions: conditions of the revision that the spec asks for, by type.

    Returns:
        The plan. A running revision is switched off only when its successor is active, and the
        successor becomes active only when its content passed the checks.
    """
    alive = [revision for revision in revisions if not is_deleting(revision)]
    wanted = wanted_revision(package, alive)
    running = claimant(package, alive, current_name)
    named = next((r for r in alive if name_of(r) == current_name), None)
    current = running or named or wanted
    automatic = package["spec"].get("revisionActivationPolicy") != MANUAL
    activate = (
        automatic
        and wanted is not None
        and not is_active(wanted)
        and (running is None or can_be_activated(wanted_conditions))
    )
    number = None
    if wanted is not None and number_of(wanted) < next_number(alive) - 1:
        number = next_number(alive)
    deactivate = tuple(r for r in alive if is_active(r) and r is not running)
    return Plan(
        wanted=wanted,
        current=current,
        number=number,
        activate=activate,
        deactivate=deactivate,
        delete=_beyond_history(package, alive, keep=(wanted, current, running)),
    )


def _beyond_history(
    package: JsonObject, revisions: Sequence[JsonObject], *, keep: tuple[JsonObject | None, ...]
) -> tuple[JsonObject, ...]:
    """Return the oldest inactive revisions beyond the history limit (0: keep all)."""
    limit = package["spec"].get("revisionHistoryLimit", DEFAULT_HISTORY_LIMIT)
    if limit is None or limit <= 0:
        return ()
    excess = len(revisions) - (limit + 1)
    kept = {name_of(revision) for revision in keep if revision is not None}
    old = sorted(revisions, key=number_of)
    removable = [r for r in old if name_of(r) not in kept and not is_active(r)]
    return tuple(removable[: max(0, excess)])
