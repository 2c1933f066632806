"""What the API server says about packages, as ``list``, ``trace`` and ``install --wait`` show it.

Pure functions on stored objects.

Source: the printer columns and conditions of Crossplane's package kinds; the status column of its
``resource trace``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.cli.render import MISSING, shortened
from controller.model.conditions import (
    HEALTHY,
    INSTALLED,
    REASON_INACTIVE,
    RESOLVED,
    REVISION_HEALTHY,
    RUNTIME_HEALTHY,
    SYNCED,
    TRUE,
    UPGRADEABLE,
    Condition,
    conditions_of,
    observed,
)
from controller.model.objects import JsonObject, generation_of

# What a package's health says before the revision's own words.
_WRAPPED = re.compile(r'^Package (revision|runtime) health is "\w+" with message: ')


@dataclass(frozen=True, slots=True)
class Readiness:
    """How far a package has come towards what its spec asks for."""

    done: bool
    text: str


def status_text(conditions: Mapping[str, Condition], kind: str) -> str:
    """Return the status of a condition as a table shows it: ``-`` where nobody stated it."""
    condition = conditions.get(kind)
    return condition.status if condition is not None else MISSING


def version_of(reference: str) -> str:
    """Return the tag of a reference as written; empty when it has none."""
    name = reference.partition("@")[0].rpartition("/")[2]
    return name.partition(":")[2]


def cause(condition: Condition, *, short: bool = False) -> str:
    """Return ``<reason>: <message>``, the reason alone where there is no message.

    A package's health that only passes its revision's words on is told in these words.

    Args:
        condition: what is told.
        short: of a long message only the end, where the first cause stands.
    """
    message = _WRAPPED.sub("", condition.message)
    message = shortened(message) if short else message
    return f"{condition.reason}: {message}" if message else condition.reason


def _first_failing(conditions: Mapping[str, Condition], kinds: Iterable[str]) -> Condition | None:
    stated = (conditions.get(kind) for kind in kinds)
    return next((c for c in stated if c is not None and c.status != TRUE), None)


def package_status(package: JsonObject, *, short: bool = False) -> str:
    """Return a package's status in one line: the reason of its health, or what keeps it from it."""
    conditions = conditions_of(package)
    failing = _first_failing(conditions, (SYNCED, INSTALLED, HEALTHY, UPGRADEABLE))
    if failing is not None:
        return cause(failing, short=short)
    health = conditions.get(HEALTHY)
    return health.reason if health is not None else ""


def revision_health(revision: JsonObject) -> str:
    """Return True, False, Unknown or ``-`` for a revision: its own health and its runtime's."""
    conditions = conditions_of(revision)
    statuses = [
        conditions[kind].status
        for kind in (REVISION_HEALTHY, RUNTIME_HEALTHY)
        if kind in conditions
    ]
    return next((s for s in statuses if s != TRUE), TRUE if statuses else MISSING)


def revision_status(revision: JsonObject, *, short: bool = False) -> str:
    """Return a revision's status in one line."""
    conditions = conditions_of(revision)
    failing = _first_failing(conditions, (SYNCED, REVISION_HEALTHY, RUNTIME_HEALTHY))
    if failing is not None:
        return cause(failing, short=short)
    health = conditions.get(REVISION_HEALTHY)
    return health.reason if health is not None else ""


def readiness(package: JsonObject, *, manual: bool) -> Readiness:
    """Return whether a package has reached what its present spec asks for, and what it waits for.

    Args:
        package: the stored package.
        manual: its revision waits for a person to activate it; being ready for that is enough.

    Returns:
        Done when Installed and Healthy are True for the present generation and nothing keeps the
        version asked for back; otherwise the text of the first condition that says why not.
    """
    conditions = conditions_of(package)
    installed = conditions.get(INSTALLED)
    if manual and installed is not None and installed.reason == REASON_INACTIVE:
        return Readiness(done=True, text=cause(installed))
    failing = _first_failing(conditions, (SYNCED, RESOLVED, UPGRADEABLE, INSTALLED, HEALTHY))
    if failing is not None:
        return Readiness(done=False, text=cause(failing))
    wanted = [conditions.get(INSTALLED), conditions.get(HEALTHY)]
    generation = generation_of(package)
    if any(c is None or observed(package, c) < generation for c in wanted):
        return Readiness(done=False, text="no answer from the manager yet")
    return Readiness(done=True, text=cause(conditions[HEALTHY]))
