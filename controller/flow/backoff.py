"""Backoff: how long to wait after so many failures.

Where next: ``controller.flow.workqueue`` delays failed keys by it.
"""

from __future__ import annotations

import math
import random


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
