"""Metrics of watches, read from the informers when metrics are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class WatchFigures(Protocol):
    """What an informer tells about itself."""

    @property
    def objects(self) -> int:
        """Objects in its store."""

    @property
    def silent_seconds(self) -> float:
        """Since the last event, bookmark or list."""

    @property
    def handler_failures(self) -> int:
        """Calls of handlers that raised so far."""


class WatchCollector(Collector):
    """Shows the figures of all informers by kind.

    Args:
        figures: returns them by kind.
    """

    def __init__(self, figures: Callable[[], Mapping[str, WatchFigures]]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Yield one family for each figure."""
        objects = GaugeMetricFamily(
            "crossdock_watch_objects", "Objects in the store.", labels=("kind",)
        )
        silence = GaugeMetricFamily(
            "crossdock_watch_silence_seconds",
            "Time since the last event, bookmark or list.",
            labels=("kind",),
        )
        failures = CounterMetricFamily(
            "crossdock_watch_handler_failures", "Handlers that raised.", labels=("kind",)
        )
        for kind, one in self._figures().items():
            objects.add_metric((kind,), one.objects)
            silence.add_metric((kind,), one.silent_seconds)
            failures.add_metric((kind,), one.handler_failures)
        yield from (objects, silence, failures)
