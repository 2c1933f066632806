"""What this process holds: descriptors, memory, and how long its event loop is held."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path


def open_files() -> dict[str, str]:
    """Return what each file descriptor of this process leads to."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found[path.name] = f"{path.name} -> {path.readlink()}"
    return {key: value for key, value in found.items() if "/proc/" not in value}


def memory() -> float:
    """Return the MiB of memory that this process holds, after giving back what it can."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Heartbeat:
    """Tells how long the event loop was held by the work of this process.

    Attributes:
        longest: seconds of work between two turns, without the garbage collector.
        collector: seconds of the collector's longest run.
    """

    def __init__(self) -> None:
        self.longest = 0.0
        self.collector = 0.0
        self._collecting = 0.0  # since when
        self._collected = 0.0  # in all

    @contextlib.asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """Measure for as long as the context lasts."""
        task = asyncio.ensure_future(self._beat())
        gc.callbacks.append(self._collects)
        try:
            yield
        finally:
            gc.callbacks.remove(self._collects)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            # The processor's time: other processes do not count.
            before, collected = time.thread_time(), self._collected
            await asyncio.sleep(0.001)
            spent = time.thread_time() - before - (self._collected - collected)
            self.longest = max(self.longest, spent)

    def _collects(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = time.thread_time()
            return
        spent = time.thread_time() - self._collecting
        self._collected += spent
        self.collector = max(self.collector, spent)
