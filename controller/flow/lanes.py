"""How each stage's queue is worked on: workers, deadlines and backoff, in one table."""

from __future__ import annotations

from dataclasses import dataclass

from controller.flow.backoff import Backoff


@dataclass(frozen=True, slots=True)
class Lane:
    """How one stage's queue is worked on."""

    workers: int
    deadline: float  # seconds for one pass
    backoff: Backoff


LANES = {
    "package": Lane(4, 60, Backoff(0.5, 60)),
    "digest": Lane(8, 120, Backoff(1, 300)),
    "image": Lane(4, 900, Backoff(1, 300)),
    "resolve": Lane(1, 120, Backoff(0.5, 60)),
    "install": Lane(8, 300, Backoff(1, 60)),
    "prepare": Lane(4, 60, Backoff(0.5, 60)),
    "establish": Lane(4, 900, Backoff(0.5, 60)),
    "runtime": Lane(4, 60, Backoff(0.5, 60)),
    "evict": Lane(4, 60, Backoff(0.5, 60)),
}
