"""An event loop whose clock jumps: waiting for a timer takes no time.

Guarantees: timers fire in their order, each at its time by ``loop.time()``; real I/O and threads
still work, and are polled before the clock jumps.
Assumptions: the code under test asks ``loop.time()``, never the wall clock.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

_PATIENCE = 10.0  # seconds of real time that I/O may take while no timer is set


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for I/O without waiting for time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            ready = super().select(_PATIENCE)
            if not ready:
                raise RuntimeError("every task waits, no timer is set, and no I/O happens")
            return ready
        ready = super().select(0)
        if not ready and timeout > 0:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector event loop that jumps to the next timer when nothing else is to be done."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._jumping.now
