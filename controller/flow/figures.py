"""Figures: what a work queue tells about itself when metrics are read.

Where next: ``controller.telemetry.metrics`` shows them under the names dashboards know.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

# Upper bounds in seconds of the duration histograms, as client-go's dashboards expect them.
DURATION_BOUNDS = tuple(1e-8 * 10**n for n in range(10))


class DurationHistogram:
    """Counts of durations per bucket, cheap enough to be fed on every key.

    ``counts[i]`` holds the durations in ``(bounds[i-1], bounds[i]]``; the last entry those above
    all bounds; ``total`` is their sum in seconds.
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...] = DURATION_BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """What a queue holds and has done; times in seconds.

    ``ready_by_priority`` splits ``ready`` by priority, zeros included. ``unfinished_seconds`` sums
    the ages of the keys being worked on, ``longest_running_seconds`` is the greatest of them. The
    histograms are the queue's own, not copies: read only.
    """

    ready: int
    ready_by_priority: Mapping[int, int]
    processing: int
    delayed: int
    backing_off: int
    adds: int
    retries: int
    unfinished_seconds: float
    longest_running_seconds: float
    queue_duration: DurationHistogram
    work_duration: DurationHistogram


class QueueMetrics(Protocol):
    """Where a queue makes itself known, to be asked for its statistics when metrics are read."""

    def watch_queue(self, name: str, statistics: Callable[[], QueueStatistics]) -> None:
        """Show the figures of the queue of that name from now on."""
