"""Work queue: each key once, never to two workers at a time, with priorities, delays, backoff.

Guarantees: a key that is added while it waits is handed out once; a key that is added while it is
worked on is handed out again after ``done``; ready keys leave by priority, and within one priority
in the order in which they became ready; a cancelled ``get`` loses no key and no wake-up; nothing
here grows beyond the keys that are ready, delayed, worked on or backing off.
Assumptions: one event loop, one thread. Everything but ``get`` and ``wait_drained`` is a plain
function, so nothing happens between reading and writing the queue's state and no lock is needed.
Where next: ``controller.flow.worker`` takes keys out and runs stages on them.

Source: client-go's ``util/workqueue`` (fair, collapsing, delaying, rate-limiting queue) and
controller-runtime's ``priorityqueue``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Generic, TypeVar

from controller.flow.backoff import Backoff
from controller.flow.delays import Delays
from controller.flow.figures import (
    DURATION_BOUNDS,
    DurationHistogram,
    QueueMetrics,
    QueueStatistics,
)
from controller.flow.ready import LOW, NORMAL, ReadyKeys

__all__ = [
    "DURATION_BOUNDS",
    "LOW",
    "NORMAL",
    "Backoff",
    "DurationHistogram",
    "QueueMetrics",
    "QueueShutDown",
    "QueueStatistics",
    "WorkQueue",
]

K = TypeVar("K", bound=Hashable)


class QueueShutDown(Exception):  # noqa: N818 - named for the state, as asyncio.QueueShutDown is
    """The queue is shut down and holds no more ready keys."""


class WorkQueue(Generic[K]):
    """Keys that wait for a worker.

    Built inside a running event loop, whose clock (``loop.time``) it uses.

    Args:
        name: the queue's name in metrics, logs and hand-overs.
        backoff: delays of ``add_rate_limited``.
        metrics: where the queue's figures are shown; None for nowhere.

    Source: client-go's ``util/workqueue``, controller-runtime's ``priorityqueue``.
    """

    def __init__(self, name: str, *, backoff: Backoff, metrics: QueueMetrics | None = None) -> None:
        self.name = name
        self._backoff = backoff
        self._loop = asyncio.get_running_loop()
        self._clock: Callable[[], float] = self._loop.time
        # Invariants: every ready key is dirty; no ready key is being processed; a key that is
        # dirty and processing came back while it was worked on. Values: since when, and priority.
        self._ready: ReadyKeys[K] = ReadyKeys()
        self._dirty: dict[K, tuple[float, int]] = {}
        self._processing: dict[K, tuple[float, int]] = {}
        self._getters: deque[asyncio.Future[None]] = deque()
        self._delays: Delays[K] = Delays(self._loop, self._due)
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

    def add(self, key: K, *, priority: int = NORMAL) -> None:
        """Make key ready; no effect after ``shut_down``.

        A key that is ready already stays where it is, unless the priority is higher: then it goes
        behind those of the higher priority. A delay that is pending for the key stays pending.

        Args:
            key: the key.
            priority: keys of a higher one leave first; never lowered while the key waits.
        """
        if self._shutting_down:
            return
        waiting = self._dirty.get(key)
        if waiting is not None:
            if priority > waiting[1]:
                self._raise(key, waiting, priority)
            return
        self._adds += 1
        self._dirty[key] = (self._clock(), priority)
        if key not in self._processing:
            self._ready.append(key, priority)
            if self._getters:
                _wake_one(self._getters)

    def add_after(self, key: K, seconds: float, *, priority: int = NORMAL) -> None:
        """Add key when ``seconds`` have passed.

        Of several pending times of a key the earliest wins, of their priorities the highest.

        Args:
            key: the key.
            seconds: 0 or less adds it now.
            priority: as for ``add``.
        """
        if self._shutting_down:
            return
        self._retries += 1
        if seconds <= 0:
            self.add(key, priority=priority)
        else:
            self._delays.put(key, self._clock() + seconds, priority)

    def add_rate_limited(self, key: K, *, priority: int = NORMAL) -> float:
        """Add key after its backoff and count one failure; return the delay in seconds."""
        failures = self._failures.get(key, 0)
        delay = self._backoff.delay(failures)
        if not self._shutting_down:
            self._failures[key] = failures + 1
            self.add_after(key, delay, priority=priority)
        return delay

    def priority(self, key: K) -> int:
        """Return the priority with which a key that is worked on left; NORMAL for any other."""
        found = self._processing.get(key)
        return NORMAL if found is None else found[1]

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
        work = self._processing.pop(key, None)
        if work is None:
            return
        self._work_duration.observe(self._clock() - work[0])
        waiting = self._dirty.get(key)
        if waiting is not None:
            self._ready.append(key, waiting[1])
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
        key = self._ready.pop()
        now = self._clock()
        since, priority = self._dirty.pop(key)
        self._queue_duration.observe(now - since)
        self._processing[key] = (now, priority)
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
        self._delays.clear()
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
        ages = [now - started for started, _ in self._processing.values()]
        return QueueStatistics(
            ready=len(self._ready),
            ready_by_priority=self._ready.sizes(),
            processing=len(self._processing),
            delayed=len(self._delays),
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

    def _due(self, key: K, priority: int) -> None:
        """Add a key whose delay has passed."""
        self.add(key, priority=priority)

    def _raise(self, key: K, waiting: tuple[float, int], priority: int) -> None:
        """Give a higher priority to a key that waits or came back while worked on."""
        since, lower = waiting
        self._dirty[key] = (since, priority)
        if key not in self._processing:
            self._ready.remove(key, lower)
            self._ready.append(key, priority)


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
