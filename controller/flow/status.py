"""Statuses as values: merging what stages state into what an object says, by pure functions.

Where next: ``controller.flow.commit`` writes what changed.

Source: the Kubernetes API conventions ("Typical status properties"), server-side apply.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from controller.model.conditions import Condition, condition_of
from controller.model.objects import JsonObject, generation_of

RollUp: TypeAlias = Callable[[JsonObject, Mapping[str, Condition]], Iterable[Condition]]


@dataclass(frozen=True, slots=True)
class Merged:
    """A status with reports merged into it, and what that changed.

    ``conditions`` are entries of ``status.conditions`` by type, ``fields`` the rest of the status,
    ``derived`` the types that the roll-up gave. ``transitions`` are the conditions whose status,
    reason or message changed, as (before, now).
    """

    conditions: dict[str, JsonObject]
    fields: dict[str, Any]
    derived: frozenset[str]
    transitions: tuple[tuple[Condition | None, Condition], ...]
    changed: bool


def merge(
    obj: JsonObject,
    *,
    conditions: Mapping[str, Condition],
    fields: Mapping[str, Any],
    roll_up: RollUp,
    now: str,
) -> Merged:
    """Merge what stages state into the status of an object and derive the roll-ups.

    Args:
        obj: the object, with its status as it is.
        conditions: the stated conditions by type; without an ``observed_generation`` they speak of
            the object's generation.
        fields: the stated status fields; None removes one.
        roll_up: derives further conditions from the object and all its conditions.
        now: RFC 3339 time for conditions whose status changes.

    Returns:
        The whole new status. ``lastTransitionTime`` moves only with ``status``.

    Source: the Kubernetes API conventions, "Typical status properties".
    """
    generation = generation_of(obj) or None
    status = obj.get("status") or {}
    entries = {entry["type"]: entry for entry in status.get("conditions") or ()}
    before = {kind: condition_of(entry) for kind, entry in entries.items()}
    stated = {kind: with_generation(c, generation) for kind, c in conditions.items()}
    derived = {c.type: with_generation(c, generation) for c in roll_up(obj, {**before, **stated})}
    transitions = []
    changed = False
    for condition in (*stated.values(), *derived.values()):
        old = before.get(condition.type)
        if old == condition:
            continue
        changed = True
        entries[condition.type] = _entry(condition, entries.get(condition.type), now)
        if (
            old is None
            or replace(old, observed_generation=condition.observed_generation) != condition
        ):
            transitions.append((old, condition))
    rest = {name: value for name, value in status.items() if name != "conditions"}
    kept = {**rest, **fields}
    kept = {name: value for name, value in kept.items() if value is not None}
    return Merged(entries, kept, frozenset(derived), tuple(transitions), changed or kept != rest)


def status_body(
    obj: JsonObject,
    merged: Merged,
    *,
    owned_conditions: Collection[str],
    owned_fields: Collection[str],
) -> JsonObject:
    """Return the body of the apply request that writes a merged status.

    Args:
        obj: the object that was merged into; its resourceVersion makes the write conditional.
        merged: the result of ``merge``.
        owned_conditions: the condition types that this manager owns.
        owned_fields: the status fields that this manager owns.

    Returns:
        An object with everything owned that has a value, and nothing else.
    """
    status = {name: value for name, value in merged.fields.items() if name in owned_fields}
    owned = [entry for kind, entry in merged.conditions.items() if kind in owned_conditions]
    if owned:
        status["conditions"] = owned
    metadata = obj["metadata"]
    return {
        "apiVersion": obj["apiVersion"],
        "kind": obj["kind"],
        "metadata": {"name": metadata["name"], "resourceVersion": metadata["resourceVersion"]},
        "status": status,
    }


def with_generation(condition: Condition, generation: int | None) -> Condition:
    """Return a condition that names no generation as one that speaks of this one."""
    if condition.observed_generation is not None or generation is None:
        return condition
    return replace(condition, observed_generation=generation)


def _entry(condition: Condition, old: JsonObject | None, now: str) -> JsonObject:
    """Return the entry of ``status.conditions`` that states a condition."""
    moved = old is None or old["status"] != condition.status
    since = None if moved or old is None else old.get("lastTransitionTime")
    entry: JsonObject = {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "lastTransitionTime": since or now,
    }
    if condition.message:
        entry["message"] = condition.message
    if condition.observed_generation is not None:
        entry["observedGeneration"] = condition.observed_generation
    return entry
