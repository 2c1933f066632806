"""Workers: run a stage on the keys of its queue and turn its outcome into the next step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from controller.model.conditions import Report
from controller.model.objects import Key


@dataclass(frozen=True, slots=True)
class Done:
    """The stage finished with the key; ``next`` names the queues and keys it hands over to."""

    report: Report | None = None
    next: tuple[tuple[str, Key], ...] = ()


@dataclass(frozen=True, slots=True)
class Again:
    """Time must pass before the key is looked at again: ``after`` seconds, None for backoff."""

    reason: str
    after: float | None = None
    report: Report | None = None
    next: tuple[tuple[str, Key], ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Halt:
    """A person must act; the key is looked at again when an event brings it back."""

    reason: str
    report: Report | None = None


Outcome: TypeAlias = Done | Again | Halt
