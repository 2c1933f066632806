"""The work queue compared with a model, step by step, over random histories (Q1 to Q6, Q8, Q9)."""

import asyncio
import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controller.flow.workqueue import LOW, NORMAL, Backoff, QueueShutDown, WorkQueue
from tests.fakes.clock import VirtualTimeLoop

KEYS = st.sampled_from("abcde")
PRIORITIES = st.sampled_from([LOW, NORMAL, NORMAL, 7])
BASE, CAP = 1.0, 8.0


class QueueMachine(RuleBasedStateMachine):
    """Drives a queue and a model of it; getters are tasks of a loop with virtual time."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.queue: WorkQueue[str] = self.loop.run_until_complete(self._build())
        self.getters: list[asyncio.Task[str]] = []
        self.ready: list[str] = []  # in the order in which keys came to their priority
        self.dirty: dict[str, int] = {}  # to its priority
        self.processing: dict[str, int] = {}
        self.delayed: dict[str, tuple[float, int, int]] = {}  # time, number of push, priority
        self.failures: dict[str, int] = {}
        self.pushes = 0
        self.shut = False

    async def _build(self) -> WorkQueue[str]:
        return WorkQueue("model", backoff=Backoff(BASE, CAP))

    # The model.

    def model_add(self, key: str, priority: int) -> None:
        if self.shut:
            return
        known = self.dirty.get(key)
        if known is not None and known >= priority:
            return
        self.dirty[key] = priority
        if key not in self.processing:
            self.ready = [other for other in self.ready if other != key] + [key]

    def model_add_after(self, key: str, seconds: float, priority: int) -> None:
        if self.shut:
            return
        if seconds <= 0:
            self.model_add(key, priority)
            return
        when = self.loop.time() + seconds
        known = self.delayed.get(key)
        if known is None or when < known[0]:
            self.pushes += 1
            known = (when, self.pushes, known[2] if known else priority)
        self.delayed[key] = (*known[:2], max(priority, known[2]))

    def model_order(self) -> list[str]:
        """Ready keys by priority, then by age."""
        return sorted(self.ready, key=lambda key: -self.dirty[key])

    def model_take(self, count: int) -> list[str]:
        taken = self.model_order()[:count]
        for key in taken:
            self.ready.remove(key)
            self.processing[key] = self.dirty.pop(key)
        return taken

    def spin(self, seconds: float = 0) -> None:
        """Let the loop run, and the getters of queue and model take what they can."""
        self.loop.run_until_complete(asyncio.sleep(seconds))
        for _ in range(4):
            self.loop.run_until_complete(asyncio.sleep(0))
        waiting = len(self.getters)
        expected = self.model_take(waiting)
        due = sorted((at, k) for k, at in self.delayed.items() if at[0] <= self.loop.time())
        for _, group in itertools.groupby(due, key=lambda entry: entry[0][0]):
            for (_, _, priority), key in group:
                del self.delayed[key]
                self.model_add(key, priority)
            expected += self.model_take(waiting - len(expected))
        finished = [task for task in self.getters if task.done()]
        self.getters = [task for task in self.getters if not task.done()]
        taken = [task.result() for task in finished if task.exception() is None]
        assert sorted(taken) == sorted(expected)
        if self.shut:
            assert not self.getters
            assert all(isinstance(t.exception(), QueueShutDown | None) for t in finished)
        else:
            assert len(finished) == len(expected)

    # The steps.

    @rule(key=KEYS, priority=PRIORITIES)
    def add(self, key: str, priority: int) -> None:
        self.queue.add(key, priority=priority)
        self.model_add(key, priority)
        self.spin()

    @rule(key=KEYS, seconds=st.integers(-1, 10), priority=PRIORITIES)
    def add_after(self, key: str, seconds: int, priority: int) -> None:
        self.queue.add_after(key, seconds, priority=priority)
        self.model_add_after(key, seconds, priority)
        self.spin()

    @rule(key=KEYS, priority=PRIORITIES)
    def add_rate_limited(self, key: str, priority: int) -> None:
        failures = self.failures.get(key, 0)
        delay = self.queue.add_rate_limited(key, priority=priority)
        assert delay == min(BASE * 2**failures, CAP)
        if not self.shut:
            self.failures[key] = failures + 1
        self.model_add_after(key, delay, priority)
        self.spin()

    @rule(key=KEYS)
    def forget(self, key: str) -> None:
        self.queue.forget(key)
        self.failures.pop(key, None)
        self.spin()

    @rule()
    def get(self) -> None:
        self.getters.append(self.loop.create_task(self.queue.get()))
        self.spin()

    @precondition(lambda self: self.ready)
    @rule()
    def get_takes_the_oldest_of_the_highest_priority(self) -> None:
        key = self.loop.run_until_complete(self.queue.get())
        assert [key] == self.model_take(1)
        assert self.queue.priority(key) == self.processing[key]

    @rule(key=KEYS)
    def done(self, key: str) -> None:
        self.queue.done(key)
        if self.processing.pop(key, None) is not None and key in self.dirty:
            self.ready.append(key)
        self.spin()

    @precondition(lambda self: self.getters)
    @rule(data=st.data())
    def cancel_a_getter(self, data: st.DataObject) -> None:
        self.getters.pop(data.draw(st.integers(0, len(self.getters) - 1))).cancel()
        self.spin()

    @precondition(lambda self: self.getters)
    @rule(data=st.data(), key=KEYS, first=st.booleans())
    def cancel_a_getter_around_an_add(self, data: st.DataObject, key: str, first: bool) -> None:
        getter = self.getters.pop(data.draw(st.integers(0, len(self.getters) - 1)))
        if first:
            getter.cancel()
        self.queue.add(key)
        self.model_add(key, NORMAL)
        if not first:
            getter.cancel()
        self.spin()

    @rule(seconds=st.integers(1, 12))
    def wait(self, seconds: int) -> None:
        self.spin(seconds)

    @precondition(lambda self: not self.shut)
    @rule(drain=st.booleans(), discard=st.booleans(), rarely=st.integers(0, 9))
    def shut_down(self, drain: bool, discard: bool, rarely: int) -> None:
        if rarely:
            return
        self.queue.shut_down(drain=drain, discard=discard)
        self.shut = True
        self.delayed.clear()
        if discard:
            self.dirty.clear()
            self.ready.clear()
        self.spin()

    # What holds at all times.

    @invariant()
    def q1_queue_is_within_dirty_and_apart_from_processing(self) -> None:
        ready = list(self.queue._ready)
        assert len(ready) == len(set(ready))
        assert set(ready) <= set(self.queue._dirty)
        assert not set(ready) & set(self.queue._processing)
        assert set(self.queue._dirty) - set(ready) <= set(self.queue._processing)

    @invariant()
    def q8_a_priority_is_of_a_waiting_key_or_one_worked_on(self) -> None:
        assert sum(self.queue.statistics().ready_by_priority.values()) == len(self.ready)
        assert {k: p for k, (_, p) in self.queue._dirty.items()} == self.dirty
        assert {k: p for k, (_, p) in self.queue._processing.items()} == self.processing

    @invariant()
    def the_queue_is_what_the_model_says(self) -> None:
        assert list(self.queue._ready) == self.model_order()
        pending = {key: (when, priority) for key, (when, _, priority) in self.delayed.items()}
        assert self.queue._delays.pending == pending
        figures = self.queue.statistics()
        assert (figures.ready, figures.processing) == (len(self.ready), len(self.processing))
        assert figures.delayed == len(self.delayed)

    def teardown(self) -> None:
        for task in self.getters:
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()


TestQueueAgainstItsModel = QueueMachine.TestCase
TestQueueAgainstItsModel.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None
)
