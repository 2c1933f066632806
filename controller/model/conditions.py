"""Conditions of packages and revisions: merging and roll-ups, as pure functions.

Source: the Kubernetes API conventions ("Typical status properties"); Crossplane's condition types,
reasons and messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Condition:
    """One observation about an object, as a stage states it."""

    type: str
    status: str  # "True", "False" or "Unknown"
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What one stage says about one object: conditions and top-level status fields.

    A field whose value is None is removed from the status.
    """

    conditions: tuple[Condition, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
