"""Workers: run a stage on the keys of its queue and turn its outcome into the next step.

Guarantees: every key that is taken is given back; a failed pass is the failure of its key alone and
is tried again after that key's backoff; no pass outlives its deadline; cancellation leaves the key
to be worked on again.
Assumptions: a stage re-reads the truth on each pass, so running it once too often is harmless.
Where next: reports go to ``controller.flow.commit``, keys to the queues of other stages.

Source: controller-runtime's reconcile loop (``pkg/internal/controller``).
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, assert_never

import structlog
from structlog.typing import FilteringBoundLogger

from controller.flow.workqueue import QueueMetrics, QueueShutDown, WorkQueue
from controller.model.conditions import Report
from controller.model.objects import Key

_log: FilteringBoundLogger = structlog.get_logger(__name__)

SUCCESS = "success"
ERROR = "error"
REQUEUE = "requeue"
REQUEUE_AFTER = "requeue_after"


@dataclass(frozen=True, slots=True)
class Done:
    """The stage finished with the key; ``next`` names the queues and keys it hands over to."""

    report: Report | None = None
    next: tuple[tuple[str, Key], ...] = ()


@dataclass(frozen=True, slots=True)
class Again:
    """Time must pass before the key is looked at again: ``after`` seconds, None for backoff."""

    reason: str
    after: float | None = None
    report: Report | None = None
    next: tuple[tuple[str, Key], ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Halt:
    """A person must act; the key is looked at again when an event brings it back."""

    reason: str
    report: Report | None = None


Outcome: TypeAlias = Done | Again | Halt
Stage: TypeAlias = Callable[[Key], Awaitable[Outcome]]


class PassMetrics(Protocol):
    """What workers count; ``stage`` is the name given to ``run_workers``."""

    def workers_started(self, stage: str, count: int) -> None:
        """Declare the stage's series, all 0, and its number of workers."""

    def pass_started(self, stage: str) -> None:
        """One more worker is busy."""

    def pass_finished(self, stage: str, result: str | None, seconds: float) -> None:
        """One worker is free again.

        ``result`` is success, error, requeue or requeue_after; None for a cancelled pass, which
        has no outcome.
        """

    def pass_halted(self, stage: str) -> None:
        """The pass ended in an error that is not retried; ``pass_finished`` follows."""

    def pass_timed_out(self, stage: str) -> None:
        """The pass met its deadline; ``pass_finished`` follows."""

    def pass_raised(self, stage: str) -> None:
        """The pass ended in an exception nobody expected; ``pass_finished`` follows."""


class FlowMetrics(PassMetrics, QueueMetrics, Protocol):
    """What queues and workers need of the metrics."""


async def run_workers(
    *,
    name: str,
    queue: WorkQueue[Key],
    stage: Stage,
    count: int,
    deadline: float,
    hand_over: Callable[[str, Key], None],
    report: Callable[[Key, str, Report], None],
    metrics: PassMetrics,
    expected: tuple[type[Exception], ...] = (),
    on_error: Callable[[Key, Exception], Report | None] | None = None,
) -> None:
    """Run a stage on the keys of a queue until the queue is shut down and handed out.

    Args:
        name: the stage's name: in logs, metrics and as the source of its reports.
        queue: where keys come from; a failed key goes back there after its backoff.
        stage: one pass over one key.
        count: passes that may run at a time, on different keys.
        deadline: longest time of one pass, seconds; a pass that meets it is cancelled and retried.
        hand_over: adds a key to the queue of that name.
        report: takes the conditions and fields that a pass states.
        metrics: what to count.
        expected: exceptions that need no traceback in the log: the world failed, not the code.
        on_error: turns the exception of a pass (``TimeoutError`` for the deadline) into what it
            states about the object.
    """
    metrics.workers_started(name, count)
    workers = _Workers(
        name=name,
        queue=queue,
        stage=stage,
        deadline=deadline,
        hand_over=hand_over,
        report=report,
        metrics=metrics,
        expected=expected,
        on_error=on_error,
    )
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(workers.run(), name=f"{name}-{number}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workers:
    """What the workers of one stage share; the arguments of ``run_workers``."""

    name: str
    queue: WorkQueue[Key]
    stage: Stage
    deadline: float
    hand_over: Callable[[str, Key], None]
    report: Callable[[Key, str, Report], None]
    metrics: PassMetrics
    expected: tuple[type[Exception], ...]
    on_error: Callable[[Key, Exception], Report | None] | None

    async def run(self) -> None:
        """Work until the queue ends."""
        while True:
            try:
                key = await self.queue.get()
            except QueueShutDown:
                return
            try:
                await self._pass(key)
            except BaseException:
                self.queue.add(key)  # the key stays dirty: whoever works next finds it
                raise
            finally:
                self.queue.done(key)
            await asyncio.sleep(0)  # a stage that never waited must not keep others from running

    async def _pass(self, key: Key) -> None:
        """Run the stage once with everything around it; raises only what ends the worker."""
        clock = asyncio.get_running_loop().time
        started = clock()
        result: str | None = None
        self.metrics.pass_started(self.name)
        with structlog.contextvars.bound_contextvars(
            stage=self.name, key=str(key), reconcile_id=str(uuid.uuid4())
        ):
            try:
                result = self._settle(key, await self._outcome(key))
            except asyncio.CancelledError as error:
                if _current_task_is_cancelled():
                    raise
                # A future that the stage waited for was cancelled, not this worker.
                result = self._failed(
                    key, RuntimeError(f"the stage was cancelled inside: {error!r}")
                )
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this key's failure
                result = self._failed(key, error)
            finally:
                self.metrics.pass_finished(self.name, result, clock() - started)

    async def _outcome(self, key: Key) -> Outcome:
        """Run the stage within its deadline."""
        try:
            async with asyncio.timeout(self.deadline) as limit:
                return await self.stage(key)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise _DeadlineExceeded(
                f"{self.name} did not finish {key} within {self.deadline:g} s"
            ) from error

    def _settle(self, key: Key, outcome: Outcome) -> str:
        """Do what the outcome asks for; return the result's name in the metrics."""
        if outcome.report is not None:
            self.report(key, self.name, outcome.report)
        if not isinstance(outcome, Halt):
            for queue_name, next_key in outcome.next:
                self.hand_over(queue_name, next_key)
        match outcome:
            case Done():
                self.queue.forget(key)
                _log.debug("done")
                return SUCCESS
            case Again(reason=reason, after=float() | int() as after):
                self.queue.forget(key)
                self.queue.add_after(key, after)
                _log.debug("again", reason=reason, retry_in=after)
                return REQUEUE_AFTER
            case Again(reason=reason):
                delay = self.queue.add_rate_limited(key)
                _log.debug("again", reason=reason, retry_in=round(delay, 3))
                return REQUEUE
            case Halt(reason=reason):
                self.queue.forget(key)
                self.metrics.pass_halted(self.name)
                _log.info("halted", reason=reason)
                return ERROR
            case _:
                assert_never(outcome)

    def _failed(self, key: Key, error: Exception) -> str:
        """Log the failure once, state it, and let the key come back after its backoff."""
        delay = self.queue.add_rate_limited(key)
        late = isinstance(error, _DeadlineExceeded)
        foreseen = late or isinstance(error, self.expected)
        if late:
            self.metrics.pass_timed_out(self.name)
        elif not foreseen:
            self.metrics.pass_raised(self.name)
        _log.warning(
            "failed",
            error=str(error) or repr(error),
            failures=self.queue.failures(key),
            retry_in=round(delay, 3),
            exc_info=None if foreseen else error,
        )
        try:
            stated = self.on_error(key, error) if self.on_error is not None else None
            if stated is not None:
                self.report(key, self.name, stated)
        except Exception:  # noqa: BLE001 - stating a failure must not add another one
            _log.exception("the failure could not be stated on the object")
        return ERROR


class _DeadlineExceeded(TimeoutError):  # noqa: N818 - named for what happened to the pass
    """A pass met its deadline."""


def _current_task_is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
