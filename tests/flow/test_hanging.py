"""Passes that do not end: W1 and W5 of engineering.md when a stage ignores its cancellation."""

import asyncio
from dataclasses import dataclass, field

import pytest
import structlog

from controller.flow.hanging import GRACE, HangingPasses
from controller.flow.worker import Done, Outcome
from controller.model.objects import Key
from tests.flow.bench import BASE, DEADLINE, A, B, Counts, Line, now

C = Key("Provider", "c")
OVER = DEADLINE + GRACE


@dataclass
class Stubborn:
    """A stage that ignores its end for some keys, in a way of choice, until it is released."""

    way: str = "swallows"
    keys: set[Key] = field(default_factory=lambda: {A})
    release: asyncio.Event = field(default_factory=asyncio.Event)
    calls: list[tuple[Key, float]] = field(default_factory=list)
    working: set[Key] = field(default_factory=set)
    steps: int = 0

    async def __call__(self, key: Key) -> Outcome:
        assert key not in self.working
        self.working.add(key)
        self.calls.append((key, now()))
        try:
            if key in self.keys:
                await self.hang()
            return Done()
        finally:
            self.working.remove(key)

    async def hang(self) -> None:
        if self.way == "waits in finally":
            try:
                await asyncio.sleep(10_000)
            finally:
                await self.swallow()
        elif self.way == "waits for a task":
            await asyncio.create_task(self.swallow())
        elif self.way == "waits for a group":
            async with asyncio.TaskGroup() as group:
                group.create_task(self.swallow())
        else:
            await self.swallow()

    async def swallow(self) -> None:
        while not self.release.is_set():
            try:
                await asyncio.sleep(1)
                self.steps += 1
            except asyncio.CancelledError:
                pass

    def passes(self, key: Key) -> list[float]:
        return [round(when, 3) for called, when in self.calls if called == key]


WAYS = pytest.mark.parametrize(
    "way", ["swallows", "waits in finally", "waits for a task", "waits for a group"]
)


def make(stage: Stubborn, *, count: int = 1) -> tuple[Line, HangingPasses]:
    hanging = HangingPasses()
    return Line(stage, count=count, options={"hanging": hanging}), hanging


async def stop(line: Line, running: "asyncio.Task[None]") -> None:
    line.queue.shut_down()
    await running


# ---- the worker ----------------------------------------------------------------------------------


@WAYS
async def test_w5_a_pass_that_does_not_end_at_its_deadline_gives_its_worker_to_other_keys(way):
    stage = Stubborn(way)
    line, _ = make(stage)
    running = line.start()
    started = round(now(), 3)
    line.queue.add(A)
    line.queue.add(B)
    await asyncio.sleep(OVER - 0.1)
    assert stage.passes(B) == []
    await asyncio.sleep(0.2)
    assert stage.passes(B) == [started + OVER]
    line.queue.add(C)
    await asyncio.sleep(1)
    assert len(stage.passes(C)) == 1
    stage.release.set()
    await asyncio.sleep(2)
    await stop(line, running)


@WAYS
async def test_q3_the_key_of_a_pass_that_hangs_is_given_to_nobody_until_the_pass_ends(way):
    stage = Stubborn(way)
    line, _ = make(stage, count=3)
    running = line.start()
    line.queue.add(A)
    await asyncio.sleep(OVER + 1)
    line.queue.add(A)
    await asyncio.sleep(200)
    assert len(stage.passes(A)) == 1
    assert line.queue.statistics().processing == 1
    stage.keys.clear()
    stage.release.set()
    ended = now()
    await asyncio.sleep(1.5)
    again = stage.passes(A)[1]  # it had been added meanwhile
    assert again <= ended + 1.001
    await asyncio.sleep(10 * BASE)
    assert line.queue.statistics().processing == 0
    await stop(line, running)


async def test_w5_a_pass_that_ends_late_is_settled_as_any_other():
    stage = Stubborn()
    line, _ = make(stage)
    running = line.start()
    line.queue.add(A)
    await asyncio.sleep(OVER + 1)
    stage.release.set()
    await asyncio.sleep(60)
    assert line.counts.results == ["success"]  # it swallowed the deadline and answered in the end
    assert len(stage.passes(A)) == 1
    assert line.queue.failures(A) == 0
    await stop(line, running)


async def test_w5_a_pass_that_ends_late_with_its_cancellation_is_a_deadline_met_and_retried():
    release = asyncio.Event()
    calls: list[float] = []

    async def stage(key: Key) -> Outcome:
        calls.append(now())
        if len(calls) == 1:
            try:
                await asyncio.sleep(1000)
            finally:
                await release.wait()
        return Done()

    line = Line(stage, count=1)
    running = line.start()
    line.queue.add(A)
    await asyncio.sleep(100)
    assert line.counts.results == []
    release.set()
    await asyncio.sleep(10)
    assert line.counts.results == ["error", "success"]
    assert line.counts.timeouts == 1
    assert len(calls) == 2
    await stop(line, running)


async def test_w5_as_many_workers_as_ever_take_keys_however_many_passes_hang():
    hung = {Key("Provider", f"hung-{number}") for number in range(20)}
    stage = Stubborn(keys=hung)
    line, hanging = make(stage, count=2)
    running = line.start()
    for key in sorted(hung):
        line.queue.add(key)
    line.queue.add(B)
    await asyncio.sleep(10 * OVER + 1)
    assert len(hanging.names()) == 20
    assert len(stage.passes(B)) == 1
    assert line.counts.active == 0
    stage.release.set()
    await asyncio.sleep(5)
    assert hanging.names() == []
    assert line.counts.active == 0
    slow = [Key("Provider", f"slow-{number}") for number in range(5)]
    stage.keys = set(slow)
    stage.release.clear()
    for key in slow:
        line.queue.add(key)
    await asyncio.sleep(1)
    assert len(stage.working) == 2
    stage.release.set()
    await stop(line, running)


async def test_w6_a_pass_that_hangs_is_logged_once_counted_and_named_until_it_ends():
    stage = Stubborn()
    line, hanging = make(stage)
    running = line.start()
    line.queue.add(A)
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as events:
        await asyncio.sleep(OVER - 0.1)
        assert (hanging.names(), hanging.check(), line.counts.hung) == ([], None, 0)
        await asyncio.sleep(100)
    (line_logged,) = [event for event in events if event["log_level"] == "error"]
    assert (line_logged["event"], line_logged["stage"]) == ("hangs", "image")
    assert (line_logged["key"], line_logged["deadline"]) == ("Provider/a", DEADLINE)
    assert "reconcile_id" in line_logged
    assert hanging.names() == ["image Provider/a"]
    assert hanging.check() == "passes that do not end: image Provider/a for 100 s"
    assert (line.counts.hung, line.counts.hanging, line.counts.active) == (1, 1, 0)
    stage.release.set()
    await asyncio.sleep(2)
    assert (hanging.names(), hanging.check()) == ([], None)
    assert (line.counts.hung, line.counts.hanging, line.counts.active) == (1, 0, 0)
    await stop(line, running)


async def test_a_check_names_the_longest_first_and_not_all_of_very_many():
    hanging = HangingPasses()
    for number in range(25):
        hanging.add("image", Key("Provider", f"p{number:02}"))
        await asyncio.sleep(1)
    found = hanging.check()
    assert found is not None
    assert found.startswith("passes that do not end: image Provider/p00 for 25 s, ")
    assert found.endswith("image Provider/p09 for 16 s, and 15 more")


async def test_w6_the_worker_that_takes_over_logs_nothing_of_the_pass_that_hangs():
    seen: list[dict[str, object]] = []

    class Seen(Counts):
        def pass_started(self, stage: str) -> None:
            super().pass_started(stage)
            seen.append(structlog.contextvars.get_contextvars())

    stage = Stubborn()
    line = Line(stage, count=1, counts=Seen())
    running = line.start()
    line.queue.add(A)
    line.queue.add(B)
    await asyncio.sleep(OVER + 1)
    assert seen == [{}, {}]
    stage.release.set()
    await stop(line, running)


# ---- the stop ------------------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize("before", [1.0, DEADLINE + 0.5, OVER + 5], ids="stopped after {}".format)
async def test_w1_cancelled_workers_end_within_the_grace_whatever_a_stage_does(way, before):
    stage = Stubborn(way)
    line, hanging = make(stage)
    running = line.start()
    line.queue.add(A)
    await asyncio.sleep(before)
    asked = now()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert now() - asked == pytest.approx(GRACE)
    assert (line.counts.active, line.counts.hanging, hanging.names()) == (0, 0, [])
    assert line.queue.statistics().processing == 0
    assert await asyncio.wait_for(line.queue.get(), 1) == A  # dirty: whoever works next finds it
    assert stage.working == set()
    stage.release.set()
    await asyncio.sleep(2)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_w1_an_abandoned_pass_takes_no_further_step():
    stage = Stubborn()
    line, _ = make(stage)
    running = line.start()
    line.queue.add(A)
    await asyncio.sleep(5)
    running.cancel()
    await asyncio.wait([running])
    steps = stage.steps
    await asyncio.sleep(100)
    assert stage.steps == steps


async def test_w6_an_abandoned_pass_is_logged_with_its_stage_and_key(logs):
    stage = Stubborn()
    line, _ = make(stage)
    running = line.start()
    line.queue.add(A)
    await asyncio.sleep(5)
    running.cancel()
    await asyncio.wait([running])
    (abandoned,) = [entry for entry in logs if entry["event"] == "abandoned"]
    assert (abandoned["stage"], abandoned["key"]) == ("image", "Provider/a")


async def test_w1_workers_whose_stages_obey_end_at_once_when_cancelled():
    async def stage(key: Key) -> Outcome:
        await asyncio.sleep(DEADLINE / 2)
        return Done()

    line = Line(stage, count=4)
    running = line.start()
    keys = {Key("Provider", str(number)) for number in range(10)}
    for key in keys:
        line.queue.add(key)
    await asyncio.sleep(1)
    asked = now()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert now() == asked
    assert {await line.queue.get() for _ in keys} == keys
    assert line.counts.results == [None] * 4


async def test_w1_a_stage_that_swallows_the_stop_and_answers_gets_no_further_key():
    calls: list[Key] = []

    async def stage(key: Key) -> Outcome:
        calls.append(key)
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            await asyncio.sleep(GRACE / 2)
        return Done()

    line = Line(stage, count=1)
    running = line.start()
    line.queue.add(A)
    line.queue.add(B)
    await asyncio.sleep(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert calls == [A]
    assert await line.queue.get() == B
    assert line.counts.results == ["success"]


async def test_q5_a_queue_that_is_shut_down_ends_its_workers_though_a_pass_hangs():
    stage = Stubborn()
    line, hanging = make(stage)
    running = line.start()
    line.queue.add(A)
    await asyncio.sleep(OVER + 1)
    line.queue.add(B)
    line.queue.shut_down()
    asked = now()
    await running
    assert now() - asked == pytest.approx(GRACE)
    assert len(stage.passes(B)) == 1
    assert hanging.names() == []


async def test_q5_a_queue_that_is_shut_down_asks_passes_that_hang_to_end_once_more():
    async def stage(key: Key) -> Outcome:
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.Event().wait()
        return Done()

    line = Line(stage, count=1)
    running = line.start()
    line.queue.add(A)
    await asyncio.sleep(OVER + 1)
    line.queue.shut_down()
    asked = now()
    await running
    assert now() == asked


async def test_q5_a_drain_ends_though_a_pass_hangs():
    stage = Stubborn()
    line, _ = make(stage)
    running = line.start()
    line.queue.add(A)
    await asyncio.sleep(1)
    line.queue.shut_down(drain=True)
    await asyncio.wait_for(line.queue.wait_drained(), DEADLINE + 3 * GRACE)
    await running


async def test_w1_no_timer_is_left_when_the_workers_have_ended():
    loop = asyncio.get_running_loop()
    stage = Stubborn()
    line, _ = make(stage, count=3)
    running = line.start()
    for key in (A, B, C):
        line.queue.add(key)
    await asyncio.sleep(5)
    running.cancel()
    await asyncio.wait([running])
    left = [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]  # asyncio has no public name for its timers
    assert left == []
