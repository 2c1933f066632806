"""Metrics: every one that the process has, declared once, under the names dashboards know.

Assumptions: metrics are read in the event loop, so queues can be asked without a lock.

Source: client-go's ``workqueue_*``, ``rest_client_*`` and ``leader_election_*``,
controller-runtime's ``controller_runtime_*``; what these have no name for is ``crossdock_*``.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from controller.telemetry.cache import CacheCollector, CacheFigures
from controller.telemetry.watches import WatchCollector, WatchFigures


class DurationFigures(Protocol):
    """Counted durations."""

    @property
    def bounds(self) -> Sequence[float]:
        """Upper bounds of the buckets, seconds."""

    @property
    def counts(self) -> Sequence[int]:
        """Durations in each bucket; one more entry for those above all bounds."""

    @property
    def total(self) -> float:
        """Sum of all durations, seconds."""


class QueueFigures(Protocol):
    """What a work queue tells about itself."""

    @property
    def ready_by_priority(self) -> Mapping[int, int]:
        """Keys that a worker could take, by priority."""

    @property
    def adds(self) -> int:
        """Keys added so far, collapsed ones not counted."""

    @property
    def retries(self) -> int:
        """Keys added with a delay so far."""

    @property
    def unfinished_seconds(self) -> float:
        """Sum of the ages of the keys being worked on."""

    @property
    def longest_running_seconds(self) -> float:
        """Greatest age of the keys being worked on."""

    @property
    def queue_duration(self) -> DurationFigures:
        """How long keys were ready before a worker took them."""

    @property
    def work_duration(self) -> DurationFigures:
        """How long workers had keys."""


class _QueueCollector(Collector):
    """Reads the figures of all queues when metrics are read: counting costs queues nothing."""

    def __init__(self) -> None:
        self.queues: dict[str, Callable[[], QueueFigures]] = {}

    def collect(self) -> Iterator[Metric]:
        """Yield client-go's work queue metrics."""
        figures = {name: statistics() for name, statistics in self.queues.items()}
        depth = GaugeMetricFamily(
            "workqueue_depth", "Keys ready to be worked on.", labels=(*_QUEUE_LABELS, "priority")
        )
        for name, one in figures.items():
            for priority, count in one.ready_by_priority.items():
                depth.add_metric((name, name, str(priority)), count)
        yield depth
        for metric, help_text, value in _QUEUE_GAUGES:
            gauge = GaugeMetricFamily(metric, help_text, labels=_QUEUE_LABELS)
            for name, one in figures.items():
                gauge.add_metric((name, name), value(one))
            yield gauge
        for metric, help_text, value in _QUEUE_COUNTERS:
            counter = CounterMetricFamily(metric, help_text, labels=_QUEUE_LABELS)
            for name, one in figures.items():
                counter.add_metric((name, name), value(one))
            yield counter
        for metric, help_text, durations in _QUEUE_HISTOGRAMS:
            histogram = HistogramMetricFamily(metric, help_text, labels=_QUEUE_LABELS)
            for name, one in figures.items():
                found = durations(one)
                bounds = [*map(floatToGoString, found.bounds), "+Inf"]
                buckets = list(zip(bounds, itertools.accumulate(found.counts), strict=True))
                histogram.add_metric((name, name), buckets, found.total)
            yield histogram


_QUEUE_LABELS = ("name", "controller")
_QUEUE_GAUGES: tuple[tuple[str, str, Callable[[QueueFigures], float]], ...] = (
    (
        "workqueue_unfinished_work_seconds",
        "Sum of the ages of the keys being worked on.",
        lambda q: q.unfinished_seconds,
    ),
    (
        "workqueue_longest_running_processor_seconds",
        "Greatest age of the keys being worked on.",
        lambda q: q.longest_running_seconds,
    ),
)
_QUEUE_COUNTERS: tuple[tuple[str, str, Callable[[QueueFigures], float]], ...] = (
    ("workqueue_adds", "Keys added.", lambda q: q.adds),
    ("workqueue_retries", "Keys added with a delay.", lambda q: q.retries),
)
_QUEUE_HISTOGRAMS: tuple[tuple[str, str, Callable[[QueueFigures], DurationFigures]], ...] = (
    (
        "workqueue_queue_duration_seconds",
        "Time that keys were ready before a worker took them.",
        lambda q: q.queue_duration,
    ),
    (
        "workqueue_work_duration_seconds",
        "Time that workers had keys.",
        lambda q: q.work_duration,
    ),
)
_REQUEST_BOUNDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PASS_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_LAG_INTERVAL = 2.0  # seconds between two samples
_RESULTS = ("success", "error", "requeue", "requeue_after")
_METHODS = {
    "get": "GET",
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "update": "PUT",
    "apply": "PATCH",
    "patch": "PATCH",
    "delete": "DELETE",
}


class Metrics:
    """Every metric of the process, in a registry of its own.

    Source: client-go's ``workqueue_*`` and ``rest_client_*``, controller-runtime's
    ``controller_runtime_*``; what these have no name for is ``crossdock_*``.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.api_host = ""  # host and port of the API server that ``observe_api`` speaks of
        ProcessCollector(registry=self.registry)
        self._queues = _QueueCollector()
        self.registry.register(self._queues)
        self._declare_passes()
        self._declare_requests()
        self._declare_leadership()
        self._lag = self._histogram(
            "crossdock_event_loop_lag_seconds", "Lateness of the event loop.", _LAG_BOUNDS
        )

    def _declare_passes(self) -> None:
        self._reconciles = self._counter(
            "controller_runtime_reconcile", "Passes by result.", "controller", "result"
        )
        self._errors = self._counter(
            "controller_runtime_reconcile_errors", "Passes that failed.", "controller"
        )
        self._halts = self._counter(
            "controller_runtime_terminal_reconcile_errors", "Passes not retried.", "controller"
        )
        self._panics = self._counter(
            "controller_runtime_reconcile_panics", "Unexpected exceptions.", "controller"
        )
        self._timeouts = self._counter(
            "controller_runtime_reconcile_timeouts", "Passes that met a deadline.", "controller"
        )
        self._pass_time = self._histogram(
            "controller_runtime_reconcile_time_seconds", "Pass times.", _PASS_BOUNDS, "controller"
        )
        self._workers = self._gauge(
            "controller_runtime_max_concurrent_reconciles", "Workers.", "controller"
        )
        self._active = self._gauge(
            "controller_runtime_active_workers", "Workers that are busy.", "controller"
        )
        self._hung = self._counter(
            "crossdock_hung_passes", "Passes that did not end at their deadline.", "controller"
        )
        self._hanging = self._gauge(
            "crossdock_hanging_passes", "Passes that do not end, now.", "controller"
        )

    def _declare_requests(self) -> None:
        self._rest = self._counter(
            "rest_client_requests", "Requests to the API server.", "code", "method", "host"
        )
        self._rest_time = self._histogram(
            "rest_client_request_duration_seconds", "Times.", _REQUEST_BOUNDS, "verb", "host"
        )
        self._api = self._counter(
            "crossdock_api_requests", "Requests to the API server.", "verb", "resource", "code"
        )
        self._pulls = self._counter(
            "crossdock_registry_requests", "Requests to registries.", "registry", "verb", "code"
        )
        self._pull_time = self._histogram(
            "crossdock_registry_request_duration_seconds", "Times.", _REQUEST_BOUNDS, "registry"
        )

    def _declare_leadership(self) -> None:
        self._leading = self._gauge(
            "leader_election_master_status", "1 while this process leads, else 0.", "name"
        )
        self._slow_renewals = self._counter(
            "leader_election_slowpath", "Renewals that had to read the Lease first.", "name"
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, bounds: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=bounds)

    def render(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self.registry)

    def watch_queue(self, name: str, statistics: Callable[[], QueueFigures]) -> None:
        """Show the figures of the work queue of that name from now on."""
        self._queues.queues[name] = statistics

    def show_watches(self, figures: Callable[[], Mapping[str, WatchFigures]]) -> None:
        """Show the figures of all informers, by kind, from now on."""
        self.registry.register(WatchCollector(figures))

    def show_cache(self, figures: Callable[[], CacheFigures]) -> None:
        """Show the figures of the package cache from now on."""
        self.registry.register(CacheCollector(figures))

    def workers_started(self, stage: str, count: int) -> None:
        """Declare a stage's series, all 0, and its number of workers."""
        self._workers.labels(stage).set(count)
        self._active.labels(stage)
        self._pass_time.labels(stage)
        self._hanging.labels(stage)
        for counter in (self._errors, self._halts, self._panics, self._timeouts, self._hung):
            counter.labels(stage)
        for result in _RESULTS:
            self._reconciles.labels(stage, result)

    def pass_started(self, stage: str) -> None:
        """Count one more busy worker."""
        self._active.labels(stage).inc()

    def pass_finished(self, stage: str, result: str | None, seconds: float) -> None:
        """Count one busy worker less, and the pass unless it was cancelled (result None)."""
        self._active.labels(stage).dec()
        if result is None:
            return
        self._pass_time.labels(stage).observe(seconds)
        self._reconciles.labels(stage, result).inc()
        if result == "error":
            self._errors.labels(stage).inc()

    def pass_halted(self, stage: str) -> None:
        """Count a pass that is not retried."""
        self._halts.labels(stage).inc()

    def pass_timed_out(self, stage: str) -> None:
        """Count a pass that met its deadline."""
        self._timeouts.labels(stage).inc()

    def pass_raised(self, stage: str) -> None:
        """Count an exception that nobody expected."""
        self._panics.labels(stage).inc()

    def pass_left(self, stage: str) -> None:
        """Count a pass that does not end, and its worker, which is replaced, as free."""
        self._hung.labels(stage).inc()
        self._hanging.labels(stage).inc()
        self._active.labels(stage).dec()

    def pass_returned(self, stage: str) -> None:
        """Count a pass that was left as running again; ``pass_finished`` follows."""
        self._hanging.labels(stage).dec()
        self._active.labels(stage).inc()

    def observe_api(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """Count one request to the API server; code 0 without an answer."""
        shown = str(code) if code else "<error>"
        self._rest.labels(shown, _METHODS.get(verb, verb.upper()), self.api_host).inc()
        self._rest_time.labels(verb, self.api_host).observe(seconds)
        self._api.labels(verb, resource, shown).inc()

    def observe_registry(self, registry: str, verb: str, code: int, seconds: float) -> None:
        """Count one request to a registry; code 0 without an answer."""
        self._pulls.labels(registry, verb, str(code) if code else "<error>").inc()
        self._pull_time.labels(registry).observe(seconds)

    def leader_changed(self, name: str, leading: bool) -> None:  # noqa: FBT001 - a state, no option
        """Show whether this process holds the Lease of that name."""
        self._leading.labels(name).set(leading)
        self._slow_renewals.labels(name)

    def leader_slow_path(self, name: str) -> None:
        """Count a renewal of the Lease that had to read it first."""
        self._slow_renewals.labels(name).inc()

    async def sample_event_loop_lag(self) -> None:
        """Measure how late the event loop is, for as long as the process runs."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + _LAG_INTERVAL
            await asyncio.sleep(_LAG_INTERVAL)
            self._lag.observe(max(0.0, clock() - due))
