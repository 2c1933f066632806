"""Conditions of packages and revisions: what stages state, and what follows from it.

Every condition type has one source. Stages state theirs as values; ``revision_roll_up`` and
``package_conditions`` derive the ones that users and Crossplane's tools read, as pure functions.

Source: the Kubernetes API conventions ("Typical status properties"); Crossplane's condition types,
reasons and messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from controller.model.objects import (
    KINDS_WITH_RUNTIME,
    JsonObject,
    generation_of,
    package_kind,
)

TRUE = "True"
FALSE = "False"
UNKNOWN = "Unknown"

RESOLVED = "Resolved"
INSTALLED = "Installed"
HEALTHY = "Healthy"
UPGRADEABLE = "Upgradeable"
SYNCED = "Synced"

FETCHED = "Fetched"
VERIFIED = "Verified"
PARSED = "Parsed"
LINTED = "Linted"
CACHED = "Cached"
EVICTED = "Evicted"
DEPENDENCIES_READY = "DependenciesReady"
RUNTIME_PREPARED = "RuntimePrepared"
ESTABLISHED = "Established"
REVISION_HEALTHY = "RevisionHealthy"
RUNTIME_HEALTHY = "RuntimeHealthy"
RUNTIME_ACTIVE = "RuntimeActive"

REASON_HEALTHY = "HealthyPackageRevision"
REASON_UNHEALTHY = "UnhealthyPackageRevision"
REASON_UNPACKING = "UnpackingPackage"
REASON_ACTIVE = "ActivePackageRevision"
REASON_INACTIVE = "InactivePackageRevision"
REASON_AWAITING_ACTIVATION = "AwaitingActivation"
REASON_PAUSED = "ReconcilePaused"

PAUSED_MESSAGE = "Reconciliation (including deletion) is paused via the pause annotation"

PACKAGE_CONDITIONS = frozenset({RESOLVED, INSTALLED, HEALTHY, UPGRADEABLE, SYNCED})
PACKAGE_FIELDS = frozenset(
    {"currentRevision", "currentIdentifier", "resolvedPackage", "appliedImageConfigRefs"}
)
REVISION_CONDITIONS = frozenset(
    {
        FETCHED,
        VERIFIED,
        PARSED,
        LINTED,
        CACHED,
        EVICTED,
        DEPENDENCIES_READY,
        RUNTIME_PREPARED,
        ESTABLISHED,
        REVISION_HEALTHY,
        RUNTIME_HEALTHY,
        RUNTIME_ACTIVE,
        SYNCED,
    }
)
REVISION_FIELDS = frozenset(
    {
        "objectRefs",
        "foundDependencies",
        "installedDependencies",
        "invalidDependencies",
        "appliedImageConfigRefs",
        "resolvedImage",
        "capabilities",
        "tlsServerSecretName",
        "tlsClientSecretName",
        "endpoint",
    }
)

# What a revision needs to be healthy, in the order of the work: the first that fails is the cause.
_ACTIVE_NEEDS = (FETCHED, VERIFIED, PARSED, DEPENDENCIES_READY, RUNTIME_PREPARED, ESTABLISHED)
_INACTIVE_NEEDS = (FETCHED, VERIFIED, PARSED)


@dataclass(frozen=True, slots=True)
class Condition:
    """One observation about an object, as a stage states it.

    ``observed_generation`` is the ``metadata.generation`` it speaks of; None means the generation
    that the object has when the condition is reported.
    """

    type: str
    status: str
    reason: str
    message: str = ""
    observed_generation: int | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What one stage says about one object: conditions and top-level status fields.

    A field whose value is None is removed from the status.
    """

    conditions: tuple[Condition, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)


PAUSED = Report((Condition(SYNCED, FALSE, REASON_PAUSED, PAUSED_MESSAGE),))
RESUMED = Condition(SYNCED, TRUE, "ReconcileSuccess")


@dataclass(frozen=True, slots=True)
class EventText:
    """The type, reason and message of a Kubernetes event."""

    type: str
    reason: str
    message: str


def condition_of(entry: JsonObject) -> Condition:
    """Return the value of one entry of ``status.conditions``."""
    return Condition(
        entry["type"],
        entry["status"],
        entry.get("reason", ""),
        entry.get("message", ""),
        entry.get("observedGeneration"),
    )


def conditions_of(obj: JsonObject) -> dict[str, Condition]:
    """Return the stored conditions of an object by type; empty when it has none."""
    entries = (obj.get("status") or {}).get("conditions") or ()
    return {entry["type"]: condition_of(entry) for entry in entries}


def status_of(conditions: Mapping[str, Condition], kind: str) -> str:
    """Return the status of one condition type; Unknown where nobody stated it."""
    condition = conditions.get(kind)
    return condition.status if condition is not None else UNKNOWN


def is_true(conditions: Mapping[str, Condition], kind: str) -> bool:
    """Tell whether a condition type is stated and True."""
    return status_of(conditions, kind) == TRUE


def revision_roll_up(
    revision: JsonObject, conditions: Mapping[str, Condition]
) -> tuple[Condition, ...]:
    """Return ``RevisionHealthy`` as it follows from the stages' conditions.

    Args:
        revision: the stored revision; its kind and ``spec.desiredState`` decide what is needed.
        conditions: all conditions of the revision by type.

    Returns:
        One condition: False with the message of the first stage that failed, True when all that
        the revision needs is True; nothing while a stage has not spoken yet, but Unknown instead
        of a failure that is no longer stated.
    """
    active = revision["spec"].get("desiredState") == "Active"
    needs = _ACTIVE_NEEDS if active else _INACTIVE_NEEDS
    has_runtime = package_kind(revision["kind"]) in KINDS_WITH_RUNTIME
    stated = [conditions.get(need) for need in needs if has_runtime or need != RUNTIME_PREPARED]
    failed = next((c for c in stated if c is not None and c.status == FALSE), None)
    if failed is not None:
        return (replace(failed, type=REVISION_HEALTHY, reason=REASON_UNHEALTHY),)
    spoken = [c for c in stated if c is not None and c.status == TRUE]
    if len(spoken) < len(stated):
        return _in_progress(stated, conditions.get(REVISION_HEALTHY))
    generations = [c.observed_generation for c in spoken if c.observed_generation is not None]
    oldest = min(generations) if generations else None
    return (Condition(REVISION_HEALTHY, TRUE, REASON_HEALTHY, observed_generation=oldest),)


def _in_progress(
    stated: Sequence[Condition | None], before: Condition | None
) -> tuple[Condition, ...]:
    """Return nothing while nothing was said, Unknown where what was said no longer holds."""
    if before is None:
        return ()
    waiting = next((c.message for c in stated if c is not None and c.status == UNKNOWN), "")
    return (Condition(REVISION_HEALTHY, UNKNOWN, "Reconciling", waiting),)


def _revision_health(kind: str, conditions: Mapping[str, Condition]) -> Condition:
    """Return the package's Healthy as it follows from its current revision.

    Source: Crossplane's health derivation for packages.
    """
    revision = conditions.get(REVISION_HEALTHY)
    if revision is None or revision.status != TRUE:
        message = f'Package revision health is "{status_of(conditions, REVISION_HEALTHY)}"'
        if revision is not None and revision.message:
            message += f" with message: {revision.message}"
        return Condition(HEALTHY, FALSE, REASON_UNHEALTHY, message)
    if kind not in KINDS_WITH_RUNTIME:
        return Condition(HEALTHY, TRUE, REASON_HEALTHY)
    runtime = conditions.get(RUNTIME_HEALTHY)
    activity = conditions.get(RUNTIME_ACTIVE)
    awaiting = activity is not None and activity.reason == REASON_AWAITING_ACTIVATION
    if runtime is None or runtime.status != TRUE:
        message = f'Package runtime health is "{status_of(conditions, RUNTIME_HEALTHY)}"'
        if runtime is not None and runtime.message:
            message += f" with message: {runtime.message}"
        if awaiting:
            message += "; runtime is scaled to zero awaiting activation"
        return Condition(HEALTHY, FALSE, REASON_UNHEALTHY, message)
    if awaiting and activity is not None:
        return Condition(HEALTHY, TRUE, REASON_AWAITING_ACTIVATION, activity.message)
    return Condition(HEALTHY, TRUE, REASON_HEALTHY)


def package_conditions(
    package: JsonObject,
    *,
    resolved: Condition | None,
    current: JsonObject | None,
    current_conditions: Mapping[str, Condition],
    behind: bool,
    candidate: JsonObject | None,
    candidate_conditions: Mapping[str, Condition],
    present: Mapping[str, Condition],
) -> tuple[Condition, ...]:
    """Return ``Installed``, ``Healthy`` and ``Upgradeable`` of a package.

    Args:
        package: the stored package.
        resolved: its ``Resolved`` condition, None before the first digest.
        current: the revision that runs (or is to run first); None before the first one exists.
        current_conditions: the conditions of ``current`` by type.
        behind: the spec asks for another revision than the current one.
        candidate: that other revision; None while its digest is not known.
        candidate_conditions: the conditions of ``candidate`` by type.
        present: the package's own conditions as they are now.

    Returns:
        The conditions to state. ``Healthy`` speaks of the version that runs and keeps that spec's
        observedGeneration; what keeps a newer one from being installed is ``Upgradeable``.
    """
    failed = resolved is not None and resolved.status == FALSE
    if current is None:
        if not failed or resolved is None:
            return ()
        return (
            Condition(INSTALLED, FALSE, REASON_UNPACKING, resolved.message),
            Condition(HEALTHY, FALSE, REASON_UNHEALTHY, resolved.message),
        )
    installed = Condition(INSTALLED, TRUE, REASON_ACTIVE)
    if current["spec"].get("desiredState") != "Active":
        installed = Condition(INSTALLED, FALSE, REASON_INACTIVE, "Package is inactive")
    health = _revision_health(package["kind"], current_conditions)
    upgradeable = Condition(UPGRADEABLE, TRUE, "Current", "The version asked for is installed.")
    if behind or failed:
        seen = present.get(HEALTHY)
        generation = seen.observed_generation if seen is not None else None
        installed = replace(installed, observed_generation=generation)
        health = replace(health, observed_generation=generation)
        upgradeable = _upgradeable(resolved if failed else None, candidate, candidate_conditions)
    return installed, health, upgradeable


def _upgradeable(
    failure: Condition | None, candidate: JsonObject | None, conditions: Mapping[str, Condition]
) -> Condition:
    if failure is not None:
        return Condition(UPGRADEABLE, FALSE, "CannotResolve", failure.message)
    if candidate is None:
        return Condition(UPGRADEABLE, UNKNOWN, "Resolving", "The version asked for is looked up.")
    name = candidate["metadata"]["name"]
    for need in (FETCHED, VERIFIED, PARSED, DEPENDENCIES_READY):
        condition = conditions.get(need)
        if condition is not None and condition.status == FALSE:
            return Condition(UPGRADEABLE, FALSE, condition.reason, f"{name}: {condition.message}")
    return Condition(UPGRADEABLE, UNKNOWN, "Checking", f"{name} is not active yet")


# (condition type) → reason of the Warning for False, and the Normal event for True, if any.
_REVISION_EVENTS: dict[str, tuple[str, tuple[str, str] | None]] = {
    FETCHED: ("ParsePackage", None),
    VERIFIED: ("VerifyPackage", None),
    PARSED: ("ParsePackage", None),
    LINTED: ("LintPackage", None),
    CACHED: ("CachePackage", None),
    EVICTED: ("SyncPackage", None),
    DEPENDENCIES_READY: ("ResolveDependencies", None),
    RUNTIME_PREPARED: ("SyncPackage", None),
    ESTABLISHED: ("SyncPackage", None),
    RUNTIME_HEALTHY: ("SyncPackage", ("SyncPackage", "Successfully configured package revision")),
    REVISION_HEALTHY: ("", ("SyncPackage", "Successfully reconciled package revision")),
}
_PACKAGE_EVENTS: dict[str, tuple[str, tuple[str, str] | None]] = {
    RESOLVED: ("UnpackPackage", None),
    HEALTHY: ("", ("InstallPackageRevision", "Successfully installed package revision")),
    UPGRADEABLE: ("UpgradePackage", None),
}


def event_for(kind: str, old: Condition | None, new: Condition) -> EventText | None:
    """Return the event that a transition of a condition is worth, None for most.

    Args:
        kind: the object's kind.
        old: the condition before; None when it is new.
        new: the condition now.

    Returns:
        A Warning when the condition turned False or its message changed while False, a Normal
        event when health was reached; never one for an unchanged condition.

    Source: Crossplane's event reasons and messages for packages and revisions.
    """
    if new.type == SYNCED and new.reason == REASON_PAUSED:
        paused = old is not None and old.reason == REASON_PAUSED
        return None if paused else EventText("Normal", "ReconciliationPaused", new.message)
    table = _REVISION_EVENTS if kind.endswith("Revision") else _PACKAGE_EVENTS
    entry = table.get(new.type)
    if entry is None:
        return None
    warning, success = entry
    same_status = old is not None and old.status == new.status
    if new.status == TRUE and success is not None and not same_status:
        return EventText("Normal", *success)
    if new.status == FALSE and warning:
        if same_status and old is not None and old.message == new.message:
            return None
        return EventText("Warning", warning, new.message)
    return None


def observed(package: JsonObject, condition: Condition) -> int:
    """Return the generation that a condition speaks of, the object's own where it names none."""
    if condition.observed_generation is not None:
        return condition.observed_generation
    return generation_of(package)
