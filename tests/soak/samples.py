"""Samples of the manager over time, and what they say: are its figures flat?"""

from __future__ import annotations

import http.client
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from tests.bench import process

INTERVAL = 10.0  # seconds between two samples
SCRAPE_SECONDS = 5.0
LAG = "crossdock_event_loop_lag_seconds"


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at the manager.

    Attributes:
        at: seconds since the start of the soak.
        phase: what was going on.
        requests: to the API server so far, as the manager counts them; None: no answer.
        depth: keys ready in all queues.
        delayed: keys added with a delay so far.
        lag_seconds: sum of the event loop's latenesses so far.
        lag_samples: how many these were.
        lag_worst: upper bound of the highest bucket of lateness that is not empty so far, seconds.
        ready: whether ``/readyz`` said so.
    """

    at: float
    phase: str
    rss_mib: float
    descriptors: int
    threads: int
    cpu_seconds: float
    wakeups: int
    requests: int | None = None
    depth: int | None = None
    delayed: int | None = None
    lag_seconds: float | None = None
    lag_samples: int | None = None
    lag_worst: str | None = None
    ready: bool | None = None


class Sampler(threading.Thread):
    """Takes a sample each 10 s, from /proc and from the manager's own endpoints."""

    def __init__(self, pid: int, ports: tuple[int, int], phase: Callable[[], str]) -> None:
        super().__init__(name="sampler", daemon=True)
        self.samples: list[Sample] = []
        self._pid = pid
        self._health, self._metrics = ports
        self._phase = phase
        self._begun = time.monotonic()
        self._ended = threading.Event()

    def end(self) -> None:
        """Take no more samples."""
        self._ended.set()
        self.join(2 * SCRAPE_SECONDS + 1)

    def run(self) -> None:
        """Sample until the end, or until the manager is gone."""
        try:
            while not self._ended.is_set():
                due = time.monotonic() + INTERVAL
                self.samples.append(self._take())
                self._ended.wait(max(0.0, due - time.monotonic()))
        except process.ProcessGoneError:
            return

    def _take(self) -> Sample:
        phase = self._phase()
        reading = process.read(self._pid)
        status, text = _get(self._metrics, "/metrics")
        found = _figures(text) if status == 200 else Figures()
        ready = _get(self._health, "/readyz")[0]
        return Sample(
            at=round(time.monotonic() - self._begun, 1),
            phase=phase,
            rss_mib=round(reading.rss_mib, 2),
            descriptors=reading.descriptors,
            threads=reading.threads,
            cpu_seconds=round(reading.cpu_seconds, 3),
            wakeups=reading.wakeups,
            requests=found.requests,
            depth=found.depth,
            delayed=found.delayed,
            lag_seconds=found.lag_seconds,
            lag_samples=found.lag_samples,
            lag_worst=found.lag_worst,
            ready=ready == 200 if ready else None,
        )


@dataclass(slots=True)
class Figures:
    """What the manager's metrics say."""

    requests: int | None = None
    depth: int | None = None
    delayed: int | None = None
    lag_seconds: float | None = None
    lag_samples: int | None = None
    lag_worst: str | None = None


@dataclass(frozen=True, slots=True)
class Trend:
    """How a figure went over the soak.

    ``slope_per_hour`` is that of a straight line through the last two thirds.
    """

    first_third: float
    last_third: float
    slope_per_hour: float
    least: float
    most: float


def trend(points: Sequence[tuple[float, float]]) -> Trend | None:
    """Return how a figure went, from pairs of seconds and value; None with too few."""
    if len(points) < 3:
        return None
    third = max(1, len(points) // 3)
    values = [value for _, value in points]
    return Trend(
        first_third=statistics.median(values[:third]),
        last_third=statistics.median(values[-third:]),
        slope_per_hour=round(slope(points[third:]) * 3600, 3),
        least=min(values),
        most=max(values),
    )


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the straight line with the least squares; 0 for a single moment."""
    if len({at for at, _ in points}) < 2:
        return 0.0
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def growth(samples: Iterable[Sample], figure: Callable[[Sample], float]) -> Trend | None:
    """Return how a figure of the samples went."""
    return trend([(sample.at, figure(sample)) for sample in samples])


def _figures(text: str) -> Figures:
    found = Figures(requests=0, depth=0, delayed=0)
    below = 0.0
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name, value = sample.name, sample.value
            if name == "rest_client_requests_total":
                found.requests = (found.requests or 0) + int(value)
            elif name == "workqueue_depth":
                found.depth = (found.depth or 0) + int(value)
            elif name == "workqueue_retries_total":
                found.delayed = (found.delayed or 0) + int(value)
            elif name == f"{LAG}_sum":
                found.lag_seconds = round(value, 4)
            elif name == f"{LAG}_count":
                found.lag_samples = int(value)
            elif name == f"{LAG}_bucket":
                if value > below:
                    found.lag_worst = sample.labels["le"]
                below = value
    return found


def _get(port: int, path: str) -> tuple[int, str]:
    """Return status and text of a page of the manager; 0 when it does not answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SCRAPE_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()
