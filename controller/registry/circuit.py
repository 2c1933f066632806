"""When a host is asked again: pauses that it asked for, and rest after failures in a row. Pure.

Source: RFC 9110 (Retry-After); the circuit breaker pattern, half open for one request.
"""

from __future__ import annotations

from collections import OrderedDict

from controller.registry.failures import RateLimited, RegistryError, RegistryUnavailable
from controller.registry.wire import Limits

HOSTS_MAX = 64
# A server in front of the registry that says that it has nobody behind it.
ABSENT = frozenset({502, 503, 504, 522})


def is_absence(error: RegistryError) -> bool:
    """Tell whether a failure means that a host is away, and not that it dislikes a request."""
    if error.status is not None:
        return error.status in ABSENT
    return isinstance(error, RegistryUnavailable) and error.transient


class Circuit:
    """What is known about the health of one host.

    Args:
        host: as errors name it.
        limits: failures in a row, and for how long the host is left alone then.
    """

    def __init__(self, host: str, limits: Limits) -> None:
        self.host = host
        self._limits = limits
        self._failures = 0
        self._open_until = 0.0
        self._probing = False
        self._cause = ""
        self._paused_until = 0.0

    def pause(self, seconds: float, now: float) -> None:
        """Note that the host asked not to be asked for a while."""
        self._paused_until = max(self._paused_until, now + seconds)

    def wait(self, now: float) -> float:
        """Return the seconds to wait before the host may be asked.

        Raises:
            RateLimited: more than is waited for in place.
        """
        remaining = self._paused_until - now
        if remaining > self._limits.wait_seconds:
            raise RateLimited(
                f"{self.host} asked to wait {remaining:.0f} s more", retry_after=remaining
            )
        return max(0.0, remaining)

    def admit(self, now: float) -> bool:
        """Let a request pass; its end must be told by ``ended``.

        After enough failures in a row nobody passes for a while, and then one request, which
        finds out.

        Returns:
            Whether the request is the one that finds out.

        Raises:
            RegistryUnavailable: none passes now.
            RateLimited: the host asked for a pause that is not over.
        """
        pause = self.wait(now)
        if pause > 0:
            raise RateLimited(
                f"{self.host} asked to wait {pause:.0f} s more", retry_after=pause, transient=True
            )
        if self._failures < self._limits.circuit_failures:
            return False
        if now < self._open_until or self._probing:
            rest = max(1.0, self._open_until - now)
            raise RegistryUnavailable(
                f"{self.host} failed {self._failures} times in a row and is not asked "
                f"for {rest:.0f} s: {self._cause}",
                retry_after=rest,
            )
        self._probing = True
        return True

    def succeeded(self) -> None:
        """Note that the host answered."""
        self._failures = 0

    def failed(self, error: RegistryError, now: float) -> None:
        """Note that the host is away."""
        self._failures += 1
        self._cause = error.cause[:300]
        if self._failures >= self._limits.circuit_failures:
            self._open_until = now + self._limits.circuit_seconds

    def ended(self, *, probe: bool) -> None:
        """Note that a request that passed ended, in whatever way."""
        if probe:
            self._probing = False


class Circuits:
    """The hosts that one registry led to; those unused longest are forgotten."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._known: OrderedDict[str, Circuit] = OrderedDict()

    def of(self, host: str) -> Circuit:
        """Return what is known about a host, port included."""
        circuit = self._known.setdefault(host, Circuit(host, self._limits))
        self._known.move_to_end(host)
        while len(self._known) > HOSTS_MAX:
            self._known.popitem(last=False)
        return circuit
