"""Metrics of the package cache, read from it when metrics are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class CacheFigures(Protocol):
    """What the package cache tells about itself; sizes in bytes."""

    @property
    def entries(self) -> int:
        """Packages in it."""

    @property
    def size(self) -> int:
        """Bytes of the packages."""

    @property
    def leased(self) -> int:
        """Bytes of those that a revision needs."""

    @property
    def budget(self) -> int:
        """Bytes that they may take."""

    @property
    def hits(self) -> int:
        """Packages that were found."""

    @property
    def misses(self) -> int:
        """Packages that were not."""

    @property
    def stores(self) -> int:
        """Packages that were stored."""

    @property
    def evictions(self) -> int:
        """Packages that were removed."""

    @property
    def damaged(self) -> int:
        """Entries that were not what was stored."""

    @property
    def failures(self) -> int:
        """Packages that could not be read or stored."""


_GAUGES: tuple[tuple[str, str, Callable[[CacheFigures], float]], ...] = (
    ("crossdock_cache_packages", "Packages in the cache.", lambda c: c.entries),
    ("crossdock_cache_bytes", "Bytes of the packages.", lambda c: c.size),
    ("crossdock_cache_leased_bytes", "Bytes that revisions need.", lambda c: c.leased),
    ("crossdock_cache_budget_bytes", "Bytes that packages may take.", lambda c: c.budget),
)
_COUNTERS: tuple[tuple[str, str, Callable[[CacheFigures], float]], ...] = (
    ("crossdock_cache_stores", "Packages stored.", lambda c: c.stores),
    ("crossdock_cache_evictions", "Packages removed.", lambda c: c.evictions),
    ("crossdock_cache_damaged", "Entries that were not what was stored.", lambda c: c.damaged),
)
_RESULTS: tuple[tuple[str, Callable[[CacheFigures], float]], ...] = (
    ("hit", lambda c: c.hits),
    ("miss", lambda c: c.misses),
    ("error", lambda c: c.failures),
)


class CacheCollector(Collector):
    """Shows the figures of the package cache.

    Args:
        figures: returns them.
    """

    def __init__(self, figures: Callable[[], CacheFigures]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Yield one family for each figure, and look-ups by result."""
        found = self._figures()
        for name, text, value in _GAUGES:
            yield GaugeMetricFamily(name, text, value=value(found))
        for name, text, value in _COUNTERS:
            yield CounterMetricFamily(name, text, value=value(found))
        requests = CounterMetricFamily(
            "crossdock_cache_requests", "Look-ups of packages in the cache.", labels=("result",)
        )
        for result, value in _RESULTS:
            requests.add_metric((result,), value(found))
        yield requests
