"""The work queue compared with a model, step by step, over random histories (Q1 to Q6, Q9)."""

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from controller.flow.workqueue import Backoff, QueueShutDown, WorkQueue
from tests.fakes.clock import VirtualTimeLoop

KEYS = st.sampled_from("abcde")
BASE, CAP = 1.0, 8.0


class QueueMachine(RuleBasedStateMachine):
    """Drives a queue and a model of it; getters are tasks of a loop with virtual time."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.queue: WorkQueue[str] = self.loop.run_until_complete(self._build())
        self.getters: list[asyncio.Task[str]] = []
        self.ready: list[str] = []
        self.dirty: set[str] = set()
        self.processing: set[str] = set()
        self.delayed: dict[str, tuple[float, int]] = {}
        self.failures: dict[str, int] = {}
        self.pushes = 0
        self.shut = False

    async def _build(self) -> WorkQueue[str]:
        return WorkQueue("model", backoff=Backoff(BASE, CAP))

    # The model.

    def model_add(self, key: str) -> None:
        if self.shut or key in self.dirty:
            return
        self.dirty.add(key)
        if key not in self.processing:
            self.ready.append(key)

    def model_add_after(self, key: str, seconds: float) -> None:
        if self.shut:
            return
        if seconds <= 0:
            self.model_add(key)
            return
        when = self.loop.time() + seconds
        if key not in self.delayed or when < self.delayed[key][0]:
            self.pushes += 1
            self.delayed[key] = (when, self.pushes)

    def spin(self, seconds: float = 0) -> None:
        """Let the loop run, and the getters of queue and model take what they can."""
        self.loop.run_until_complete(asyncio.sleep(seconds))
        for _ in range(4):
            self.loop.run_until_complete(asyncio.sleep(0))
        due = sorted((at, k) for k, at in self.delayed.items() if at[0] <= self.loop.time())
        for _, key in due:
            del self.delayed[key]
            self.model_add(key)
        waiting = len(self.getters)
        finished = [task for task in self.getters if task.done()]
        self.getters = [task for task in self.getters if not task.done()]
        taken = [task.result() for task in finished if task.exception() is None]
        expected = self.ready[:waiting]
        del self.ready[:waiting]
        self.dirty.difference_update(expected)
        self.processing.update(expected)
        assert sorted(taken) == sorted(expected)
        if self.shut:
            assert not self.getters
            assert all(isinstance(t.exception(), QueueShutDown | None) for t in finished)
        else:
            assert len(finished) == len(expected)

    # The steps.

    @rule(key=KEYS)
    def add(self, key: str) -> None:
        self.queue.add(key)
        self.model_add(key)
        self.spin()

    @rule(key=KEYS, seconds=st.integers(-1, 10))
    def add_after(self, key: str, seconds: int) -> None:
        self.queue.add_after(key, seconds)
        self.model_add_after(key, seconds)
        self.spin()

    @rule(key=KEYS)
    def add_rate_limited(self, key: str) -> None:
        failures = self.failures.get(key, 0)
        delay = self.queue.add_rate_limited(key)
        assert delay == min(BASE * 2**failures, CAP)
        if not self.shut:
            self.failures[key] = failures + 1
        self.model_add_after(key, delay)
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
    def get_takes_the_oldest(self) -> None:
        key = self.loop.run_until_complete(self.queue.get())
        assert key == self.ready.pop(0)
        self.dirty.remove(key)
        self.processing.add(key)

    @rule(key=KEYS)
    def done(self, key: str) -> None:
        self.queue.done(key)
        if key in self.processing:
            self.processing.remove(key)
            if key in self.dirty:
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
        self.model_add(key)
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
    def the_queue_is_what_the_model_says(self) -> None:
        assert list(self.queue._ready) == self.ready
        assert set(self.queue._dirty) == self.dirty
        assert set(self.queue._processing) == self.processing
        assert {k: at[0] for k, at in self.delayed.items()} == self.queue._delayed
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
