"""Hanging passes: those that go on although their deadline cancelled them.

Guarantees: a pass that hangs holds up neither its worker's other keys nor the stop; it is logged,
counted and named for as long as it hangs; its key is not worked on by anyone else.
Assumptions: a pass waits now and then; one that computes without a wait holds up the event loop,
which no task can help.
Where next: ``controller.flow.worker`` runs passes under watch; a liveness check calls
``HangingPasses.check``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from structlog.typing import FilteringBoundLogger

from controller.flow.abandonable import Abandonable
from controller.model.objects import Key

_log: FilteringBoundLogger = structlog.get_logger(__name__)

GRACE = 2.0  # seconds between the request that a pass ends and the moment it counts as hanging
_NAMED_LIMIT = 10  # passes that a failing check names


class HangMetrics(Protocol):
    """What is counted about passes that hang; ``stage`` is the name given to ``run_workers``."""

    def pass_left(self, stage: str) -> None:
        """A pass goes on after its deadline and grace; it keeps no worker busy from now on."""

    def pass_returned(self, stage: str) -> None:
        """A pass that was left has ended; ``pass_finished`` follows."""


class HangingPasses:
    """The passes that hang now, of all stages that share this object; at most one for a key."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, Key], float] = {}

    def add(self, stage: str, key: Key) -> None:
        """Note that the stage's pass over key hangs."""
        self._since[stage, key] = asyncio.get_running_loop().time()

    def remove(self, stage: str, key: Key) -> None:
        """Note that it has ended."""
        self._since.pop((stage, key), None)

    def names(self) -> list[str]:
        """Return ``stage kind/name`` of each pass that hangs, the longest first."""
        return [f"{stage} {key}" for stage, key in self._since]

    def check(self) -> str | None:
        """Return which passes hang and for how long; None when all is well.

        Made to be a check of ``/healthz``; to be called in the event loop.
        """
        if not self._since:
            return None
        now = asyncio.get_running_loop().time()
        ages = zip(self.names(), self._since.values(), strict=True)
        shown = [f"{name} for {now - since:.0f} s" for name, since in ages]
        more = len(shown) - _NAMED_LIMIT
        rest = [f"and {more} more"] if more > 0 else []
        return f"passes that do not end: {', '.join(shown[:_NAMED_LIMIT] + rest)}"


@dataclass(slots=True, kw_only=True, eq=False)
class Pass:
    """One pass that runs; ``left`` when it hangs and another worker has its worker's place."""

    key: Key
    work: Abandonable[Any]
    task: asyncio.Task[Any] | None
    timer: asyncio.TimerHandle
    left: bool = False


class PassWatch:
    """Watches the passes of one stage.

    Args:
        stage: the stage's name.
        deadline: when a pass is asked to end, seconds after it began.
        grace: how long it may take to end, seconds.
        metrics: what to count.
        hanging: where passes that hang are named.
        replace: starts one more worker.
    """

    def __init__(
        self,
        *,
        stage: str,
        deadline: float,
        grace: float,
        metrics: HangMetrics,
        hanging: HangingPasses,
        replace: Callable[[], None],
    ) -> None:
        self._stage = stage
        self._deadline = deadline
        self._grace = grace
        self._metrics = metrics
        self._hanging = hanging
        self._replace = replace
        self._loop = asyncio.get_running_loop()
        self._running: set[Pass] = set()
        self.stopping = False

    @contextmanager
    def over(self, key: Key, work: Abandonable[Any]) -> Iterator[Pass]:
        """Watch the current task's pass over key for as long as the block lasts."""
        running: Pass = Pass(
            key=key,
            work=work,
            task=asyncio.current_task(),
            timer=self._loop.call_later(self._deadline + self._grace, lambda: self._leave(running)),
        )
        self._running.add(running)
        try:
            yield running
        finally:
            running.timer.cancel()
            self._running.discard(running)
            if running.left:
                self._hanging.remove(self._stage, key)
                self._metrics.pass_returned(self._stage)

    def cancel(self) -> None:
        """Ask every pass to end."""
        for running in self._running:
            if running.task is not None:
                running.task.cancel()

    def stop(self) -> None:
        """Give every pass its grace to end from now on, then abandon it."""
        self.stopping = True
        for running in self._running:
            running.timer.cancel()
            running.timer = self._loop.call_later(self._grace, self._abandon, running)

    def _leave(self, running: Pass) -> None:
        """Let the pass hang, and another worker go on with its worker's other keys."""
        running.left = True
        self._hanging.add(self._stage, running.key)
        self._metrics.pass_left(self._stage)
        _log.error(
            "hangs",
            stage=self._stage,
            key=str(running.key),
            deadline=self._deadline,
            grace=self._grace,
        )
        self._replace()

    def _abandon(self, running: Pass) -> None:
        """End the wait for a pass that does not end although everything must."""
        _log.error("abandoned", stage=self._stage, key=str(running.key), grace=self._grace)
        running.work.abandon()
