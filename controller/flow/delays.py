"""Delays: keys whose time is yet to come, one pending time each, one timer for all.

Where next: ``controller.flow.workqueue`` makes them ready when they are due.

Source: client-go's delaying queue.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_STALE_ENTRIES_KEPT = 64


class Delays(Generic[K]):
    """Keys that are to be made ready later.

    Of several times for one key the earliest holds, of several priorities the highest.

    Args:
        loop: whose clock and timer are used.
        due: called with key and priority when the key's time has come.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, due: Callable[[K, int], None]) -> None:
        self._loop = loop
        self._due = due
        # A heap entry counts only while _pending names the same time for its key.
        self._heap: list[tuple[float, int, K]] = []
        self._pending: dict[K, tuple[float, int]] = {}
        self._pushes = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def pending(self) -> Mapping[K, tuple[float, int]]:
        """Time, by the loop's clock, and priority of each key."""
        return self._pending

    def put(self, key: K, when: float, priority: int) -> None:
        """Let key be due at ``when``, by the loop's clock in seconds, or earlier if it is already.

        Args:
            key: the key.
            when: the time.
            priority: raises the priority of a pending key, never lowers it.
        """
        known = self._pending.get(key)
        if known is not None:
            priority = max(priority, known[1])
            if known[0] <= when:
                self._pending[key] = (known[0], priority)
                return
        self._pending[key] = (when, priority)
        self._pushes += 1
        heapq.heappush(self._heap, (when, self._pushes, key))
        if len(self._heap) > 2 * len(self._pending) + _STALE_ENTRIES_KEPT:
            self._heap = [entry for entry in self._heap if self._holds(entry)]
            heapq.heapify(self._heap)
        self._arm()

    def clear(self) -> None:
        """Drop all keys and the timer."""
        self._pending.clear()
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _holds(self, entry: tuple[float, int, K]) -> bool:
        known = self._pending.get(entry[2])
        return known is not None and known[0] == entry[0]

    def _arm(self) -> None:
        """Let the one timer stand at the earliest time."""
        when = self._heap[0][0]
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._fire, when)

    def _fire(self, when: float) -> None:
        """Give out every key whose time has come; the loop may call a little before ``when``."""
        self._timer = None
        now = max(when, self._loop.time())
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if self._holds(entry):
                key = entry[2]
                _, priority = self._pending.pop(key)
                self._due(key, priority)
        if self._heap:
            self._arm()
