"""Workers: run a stage on the keys of its queue and turn its outcome into the next step.

Guarantees: every key that is taken is given back; a failed pass is the failure of its key alone and
is tried again after that key's backoff; a pass is cancelled at its deadline, and one that goes on
nevertheless keeps its key but not its worker; cancellation leaves the key to be worked on again,
and no pass runs on after ``run_workers`` has ended.
Assumptions: a stage re-reads the truth on each pass, so running it once too often is harmless.
Where next: reports go to ``controller.flow.commit``, keys to the queues of other stages.

Source: controller-runtime's reconcile loop (``pkg/internal/controller``).
"""

from __future__ import annotations

import asyncio
import contextvars
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, assert_never

import structlog
from structlog.typing import FilteringBoundLogger

from controller.flow.abandonable import Abandonable
from controller.flow.hanging import GRACE, HangingPasses, HangMetrics, Pass, PassWatch
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


class PassMetrics(HangMetrics, Protocol):
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
    grace: float = GRACE,
    hanging: HangingPasses | None = None,
) -> None:
    """Run a stage on the keys of a queue until the queue is shut down and handed out.

    A pass that has not ended ``grace`` after its deadline is left behind: logged, counted and named
    in ``hanging``. Its key stays taken until it ends; another worker takes its worker's place.

    Cancelled, or with nothing left but such passes, this ends within ``grace``: every pass is
    cancelled, and one that ignores that is abandoned. Its coroutine is closed at the point where
    it waits and never runs again; its key is left to be worked on again. Out of reach are a task
    that the pass started itself and that ignores its cancellation, a thread, and a pass that never
    waits: they end with the process.

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
        grace: how long a pass may take to end once it is cancelled, seconds.
        hanging: names the passes that hang; may be shared by stages.
    """
    metrics.workers_started(name, count)
    async with asyncio.TaskGroup() as group:
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
            group=group,
        )
        workers.watch = PassWatch(
            stage=name,
            deadline=deadline,
            grace=grace,
            metrics=metrics,
            hanging=hanging if hanging is not None else HangingPasses(),
            replace=workers.start_worker,
        )
        await workers.run(count)


@dataclass(slots=True, kw_only=True)
class _Workers:
    """The workers of one stage; fields are the arguments of ``run_workers``."""

    name: str
    queue: WorkQueue[Key]
    stage: Stage
    deadline: float
    hand_over: Callable[[str, Key], None]
    report: Callable[[Key, str, Report], None]
    metrics: PassMetrics
    expected: tuple[type[Exception], ...]
    on_error: Callable[[Key, Exception], Report | None] | None

    group: asyncio.TaskGroup
    watch: PassWatch = field(init=False)
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    taking: int = 0  # workers that take keys
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, count: int) -> None:
        """Start workers, and see to it that all passes end soon after the workers."""
        self.taking = count
        for _ in range(count):
            self.start_worker()
        try:
            if count:
                await self.idle.wait()
            self.watch.cancel()
        finally:
            self.watch.stop()

    def start_worker(self) -> None:
        """Start a worker; not in the context of a pass that happens to run."""
        self.group.create_task(self._work(), name=self.name, context=self.context.copy())

    async def _work(self) -> None:
        """Work until the queue ends, or until another worker has taken this one's place."""
        try:
            while True:
                key = await self.queue.get()
                left = await self._take(key)
                if left or self.watch.stopping:  # a stage may have swallowed the worker's end
                    return
                await asyncio.sleep(0)  # a stage that never waits must not keep others from running
        except QueueShutDown:
            self.taking -= 1
            if not self.taking:
                self.idle.set()

    async def _take(self, key: Key) -> bool:
        """Run one pass and give the key back; tell whether the worker was replaced meanwhile."""
        try:
            return await self._pass(key)
        except BaseException:
            # The key stays dirty: whoever works next finds it.
            self.queue.add(key, priority=self.queue.priority(key))
            raise
        finally:
            self.queue.done(key)

    async def _pass(self, key: Key) -> bool:
        """Run the stage once with everything around it; raises only what ends the worker."""
        clock = asyncio.get_running_loop().time
        started = clock()
        result: str | None = None
        self.metrics.pass_started(self.name)
        with structlog.contextvars.bound_contextvars(
            stage=self.name, key=str(key), reconcile_id=str(uuid.uuid4())
        ):
            try:
                with self.watch.over(key, Abandonable(self._call(key))) as running:
                    result = await self._result(running)
                return running.left
            finally:
                self.metrics.pass_finished(self.name, result, clock() - started)

    async def _call(self, key: Key) -> Outcome:
        return await self.stage(key)

    async def _result(self, running: Pass) -> str:
        """Run the stage and do what follows from its outcome; return the result's name."""
        try:
            return self._settle(running.key, await self._outcome(running))
        except asyncio.CancelledError as error:
            if running.work.abandoned or _current_task_is_cancelled():
                raise
            # A future that the stage waited for was cancelled, not this worker.
            inside = RuntimeError(f"the stage was cancelled inside: {error!r}")
            return self._failed(running.key, inside)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this key's failure
            return self._failed(running.key, error)

    async def _outcome(self, running: Pass) -> Outcome:
        """Run the stage within its deadline."""
        try:
            async with asyncio.timeout(self.deadline) as limit:
                outcome: Outcome = await running.work
                return outcome
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise _DeadlineExceeded(
                f"{self.name} did not finish {running.key} within {self.deadline:g} s"
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
                self.queue.add_after(key, after, priority=self.queue.priority(key))
                _log.debug("again", reason=reason, retry_in=after)
                return REQUEUE_AFTER
            case Again(reason=reason):
                delay = self.queue.add_rate_limited(key, priority=self.queue.priority(key))
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
        delay = self.queue.add_rate_limited(key, priority=self.queue.priority(key))
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
