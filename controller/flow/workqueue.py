"""Work queue: each key once, never to two workers at a time, with delays and per-key backoff.

Guarantees: a key that is added while it waits is handed out once; a key that is added while it is
worked on is handed out again after ``done``; ready keys leave in the order in which they became
ready; a cancelled ``get`` loses no key and no wake-up.
Assumptions: one event loop, one thread. Everything but ``get`` and ``wait_drained`` is a plain
function, so nothing happens between reading and writing the queue's state and no lock is needed.
Where next: ``controller.flow.worker`` takes keys out and runs stages on them.

Source: client-go's ``util/workqueue`` (fair, collapsing, delaying, rate-limiting queue).
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)

# Upper bounds in seconds of the duration histograms, as client-go's dashboards expect them.
DURATION_BOUNDS = tuple(1e-8 * 10**n for n in range(10))
_STALE_DELAYS_KEPT = 64


class QueueShutDown(Exception):  # noqa: N818 - named for the state, as asyncio.QueueShutDown is
    """The queue is shut down and holds no more ready keys."""


class Backoff:
    """Delays that double with each failure: ``base``, 2 ``base``, 4 ``base``, … up to ``cap``.

    Args:
        base: delay after the first failure, seconds, > 0.
        cap: longest delay, seconds, >= base.
        jitter: share of each delay that is left to chance, 0 to 1; a delay is never longer than
            without jitter.

    Source: client-go's ItemExponentialFailureRateLimiter.
    """

    __slots__ = ("_doublings", "_jitter", "base", "cap")

    def __init__(self, base: float, cap: float, *, jitter: float = 0.0) -> None:
        if not (0 < base <= cap < math.inf and 0 <= jitter <= 1):
            raise ValueError(
                f"backoff needs 0 < base <= cap and 0 <= jitter <= 1,"
                f" got base={base} cap={cap} jitter={jitter}"
            )
        self.base = base
        self.cap = cap
        self._jitter = jitter
        self._doublings = math.ceil(math.log2(cap / base))

    def delay(self, failures: int) -> float:
        """Return the delay in seconds after ``failures`` earlier failures (0 gives ``base``).

        Any number of failures is fine: the exponent stops growing at the cap.
        """
        full = self.cap if failures >= self._doublings else self.base * 2.0**failures
        if self._jitter:
            full *= 1 - self._jitter * random.random()  # noqa: S311 - spreads load, no secret
        return full


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

    ``unfinished_seconds`` sums the ages of the keys being worked on, ``longest_running_seconds`` is
    the greatest of them. The histograms are the queue's own, not copies: read only.
    """

    ready: int
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


class WorkQueue(Generic[K]):
    """Keys that wait for a worker.

    Built inside a running event loop, whose clock (``loop.time``) it uses.

    Args:
        name: the queue's name in metrics, logs and hand-overs.
        backoff: delays of ``add_rate_limited``.
        metrics: where the queue's figures are shown; None for nowhere.

    Source: client-go's ``util/workqueue``.
    """

    def __init__(self, name: str, *, backoff: Backoff, metrics: QueueMetrics | None = None) -> None:
        self.name = name
        self._backoff = backoff
        self._loop = asyncio.get_running_loop()
        self._clock: Callable[[], float] = self._loop.time
        # Invariants: every ready key is dirty; no ready key is being processed; a key that is
        # dirty and processing came back while it was worked on. Values: when that began.
        self._ready: deque[K] = deque()
        self._dirty: dict[K, float] = {}
        self._processing: dict[K, float] = {}
        self._getters: deque[asyncio.Future[None]] = deque()
        # A heap entry counts only while _delayed names the same time for its key.
        self._heap: list[tuple[float, int, K]] = []
        self._delayed: dict[K, float] = {}
        self._pushes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._failures: dict[K, int] = {}
        self._shutting_down = False
        self._draining = False
        self._drain_waiters: deque[asyncio.Future[None]] = deque()
        self._adds = 0
        self._retries = 0
        self._queue_duration = DurationHistogram()
        self._work_duration = DurationHistogram()
        if metrics is not None:
            metrics.watch_queue(name, self.statistics)

    def __len__(self) -> int:
        """The number of keys that a worker could take now."""
        return len(self._ready)

    def add(self, key: K) -> None:
        """Make key ready; no effect while it is ready already or after ``shut_down``."""
        if key in self._dirty or self._shutting_down:
            return
        self._adds += 1
        self._dirty[key] = self._clock()
        if key not in self._processing:
            self._ready.append(key)
            if self._getters:
                _wake_one(self._getters)

    def add_after(self, key: K, seconds: float) -> None:
        """Add key when ``seconds`` have passed; the earliest of several pending times wins.

        Args:
            key: the key.
            seconds: 0 or less adds it now.
        """
        if self._shutting_down:
            return
        self._retries += 1
        if seconds <= 0:
            self.add(key)
            return
        when = self._clock() + seconds
        known = self._delayed.get(key)
        if known is not None and known <= when:
            return
        self._delayed[key] = when
        self._pushes += 1
        heapq.heappush(self._heap, (when, self._pushes, key))
        if len(self._heap) > 2 * len(self._delayed) + _STALE_DELAYS_KEPT:
            self._heap = [entry for entry in self._heap if self._delayed.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)
        self._arm()

    def add_rate_limited(self, key: K) -> float:
        """Add key after its backoff and count one failure; return the delay in seconds."""
        failures = self._failures.get(key, 0)
        delay = self._backoff.delay(failures)
        if not self._shutting_down:
            self._failures[key] = failures + 1
            self.add_after(key, delay)
        return delay

    def failures(self, key: K) -> int:
        """Return how often key was added rate-limited since the last ``forget``."""
        return self._failures.get(key, 0)

    def forget(self, key: K) -> None:
        """Start the key's backoff anew; keys waiting are left alone."""
        self._failures.pop(key, None)

    def done(self, key: K) -> None:
        """Give key back after work; it becomes ready again if it was added meanwhile.

        Required once for every key that ``get`` returned; without a matching ``get`` it has no
        effect.
        """
        started = self._processing.pop(key, None)
        if started is None:
            return
        self._work_duration.observe(self._clock() - started)
        if key in self._dirty:
            self._ready.append(key)
            _wake_one(self._getters)
        elif not self._processing:
            _wake_all(self._drain_waiters)

    async def get(self) -> K:
        """Return the next ready key; the caller owns it until ``done``.

        Raises:
            QueueShutDown: the queue is shut down and no key is ready.
        """
        while not self._ready:
            if self._shutting_down:
                raise QueueShutDown(f"queue {self.name} is shut down")
            await self._wait(self._getters, pass_on=True)
        key = self._ready.popleft()
        now = self._clock()
        self._queue_duration.observe(now - self._dirty.pop(key))
        self._processing[key] = now
        return key

    def shut_down(self, *, drain: bool = False, discard: bool = False) -> None:
        """Refuse further keys and end every getter once the ready keys are handed out.

        Delayed keys are dropped. May be called again: a call without ``drain`` releases those who
        wait in ``wait_drained``.

        Args:
            drain: ``wait_drained`` waits until no key is being worked on.
            discard: drop the ready keys as well, and those that came back while worked on.
        """
        self._shutting_down = True
        self._draining = drain
        self._delayed.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if discard:
            self._dirty.clear()
            self._ready.clear()
        _wake_all(self._getters)
        if not drain:
            _wake_all(self._drain_waiters)

    async def wait_drained(self) -> None:
        """Wait until no key is ready or being worked on, or until a shut-down without drain."""
        while self._draining and (self._processing or self._ready):
            await self._wait(self._drain_waiters, pass_on=False)

    def statistics(self) -> QueueStatistics:
        """Return what the queue holds and has done so far."""
        now = self._clock()
        ages = [now - started for started in self._processing.values()]
        return QueueStatistics(
            ready=len(self._ready),
            processing=len(self._processing),
            delayed=len(self._delayed),
            backing_off=len(self._failures),
            adds=self._adds,
            retries=self._retries,
            unfinished_seconds=sum(ages),
            longest_running_seconds=max(ages, default=0.0),
            queue_duration=self._queue_duration,
            work_duration=self._work_duration,
        )

    async def _wait(self, waiters: deque[asyncio.Future[None]], *, pass_on: bool) -> None:
        """Wait to be woken; a cancelled waiter hands its wake-up to the next one."""
        waiter = self._loop.create_future()
        waiters.append(waiter)
        try:
            await waiter
        except BaseException:
            woken = waiter.done() and not waiter.cancelled()
            waiter.cancel()
            with suppress(ValueError):  # a wake-up that came too late took it out already
                waiters.remove(waiter)
            if woken and pass_on and self._ready:
                _wake_one(waiters)
            raise

    def _arm(self) -> None:
        """Let the one timer stand at the earliest delay."""
        when = self._heap[0][0]
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._fire, when)

    def _fire(self, when: float) -> None:
        """Add every key whose time has come; the loop may call a little before ``when``."""
        self._timer = None
        now = max(when, self._clock())
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._delayed.get(key) == due:
                del self._delayed[key]
                self.add(key)
        if self._heap:
            self._arm()


def _wake_one(waiters: deque[asyncio.Future[None]]) -> None:
    """Wake the longest waiting; those cancelled meanwhile are passed over."""
    while waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(None)
            return


def _wake_all(waiters: deque[asyncio.Future[None]]) -> None:
    """Wake everyone who waits."""
    while waiters:
        waiter = waiters.popleft()
        if not waiter.done():
            waiter.set_result(None)
