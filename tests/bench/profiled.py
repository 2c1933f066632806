"""The manager with a profiler: ``python -m tests.bench.profiled FILE start …``.

SIGUSR1 begins to profile; SIGUSR2 ends it and writes FILE: the functions that took the most time,
and how often each thing woke the event loop.
"""

from __future__ import annotations

import asyncio
import cProfile
import io
import pstats
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from controller.__main__ import main

SHOWN = 30


class Profiler:
    """Counts the event loop's callbacks and profiles the process between two signals."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._profile = cProfile.Profile()
        self._callbacks: Counter[str] = Counter()
        self._counting = False
        self._begun = 0.0
        self._run = asyncio.Handle._run

    def install(self) -> None:
        """Listen to the signals, and see every callback of the event loop from now on."""
        profiler = self

        def run(handle: asyncio.Handle) -> Any:
            if profiler._counting:
                profiler._callbacks[described(handle)] += 1
            return profiler._run(handle)

        asyncio.Handle._run = run  # type: ignore[assignment,method-assign]  # to count it
        signal.signal(signal.SIGUSR1, self.begin)
        signal.signal(signal.SIGUSR2, self.end)

    def begin(self, _number: int, _frame: FrameType | None) -> None:
        """Begin."""
        self._begun, self._counting = time.monotonic(), True
        self._profile.enable()

    def end(self, _number: int, _frame: FrameType | None) -> None:
        """End and write."""
        self._profile.disable()
        self._counting = False
        seconds = time.monotonic() - self._begun
        text = io.StringIO()
        text.write(f"callbacks of the event loop in {seconds:.0f} s (per minute)\n")
        for name, count in self._callbacks.most_common(SHOWN):
            text.write(f"{count:8d} {count / seconds * 60:10.1f}  {name}\n")
        statistics = pstats.Stats(self._profile, stream=text)
        statistics.sort_stats("tottime").print_stats(SHOWN)
        statistics.sort_stats("cumulative").print_stats(SHOWN)
        self._path.write_text(text.getvalue())


def described(handle: asyncio.Handle) -> str:
    """Name what a callback belongs to: the coroutine of its task, else the function."""
    callback: Any = getattr(handle, "_callback", None)
    task = getattr(callback, "__self__", None)
    if isinstance(task, asyncio.Task):
        return f"task {getattr(task.get_coro(), '__qualname__', task.get_coro())}"
    return f"{getattr(callback, '__qualname__', callback)}"


if __name__ == "__main__":
    Profiler(Path(sys.argv[1])).install()
    sys.argv = ["crossdock", *sys.argv[2:]]
    main()
