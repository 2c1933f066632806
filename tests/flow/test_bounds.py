"""What queues may hold, and what one busy stage may take of the event loop from the others."""

import asyncio
import random
from collections.abc import Callable

import pytest

from controller.flow.worker import Done, Outcome, run_workers
from controller.flow.workqueue import LOW, NORMAL, Backoff, QueueShutDown, WorkQueue
from controller.model.objects import Key
from tests.flow.bench import BASE, A, B, Counts, Line, ServerSaysNo, now

KEYS = [f"key-{number}" for number in range(1000)]


def sizes(queue: WorkQueue[str]) -> dict[str, int]:
    """Return the size of everything that a queue holds."""
    return {
        "ready": len(queue._ready),
        "dirty": len(queue._dirty),
        "processing": len(queue._processing),
        "delayed": len(queue._delays.pending),
        "heap": len(queue._delays._heap),
        "failures": len(queue._failures),
        "getters": len(queue._getters),
        "classes": len(queue._ready.sizes()),
        "drain waiters": len(queue._drain_waiters),
    }


async def test_q2_q6_nothing_in_a_queue_outgrows_its_keys_in_a_million_calls():
    queue: WorkQueue[str] = WorkQueue("test", backoff=Backoff(1, 1000))
    chance = random.Random(7)
    largest: dict[str, int] = {}
    calls: list[Callable[[str], object]] = [queue.add, queue.forget, queue.done]
    calls.append(queue.add_rate_limited)
    for _ in range(1000):
        keys = chance.choices(KEYS, k=250)
        for key in keys:
            chance.choice(calls)(key)
        for number, key in enumerate(keys):
            queue.add_after(key, 1000 - number, priority=number % 3)
            queue.add(key, priority=LOW if number % 2 else NORMAL)
            queue.add_after(key, 500 - number)
        for _ in range(min(len(queue), 200)):
            await queue.get()
        await asyncio.sleep(1)
        for name, size in sizes(queue).items():
            largest[name] = max(size, largest.get(name, 0))
    assert largest.pop("heap") <= 2 * len(KEYS) + 65  # and one that is pushed before the clearing
    assert all(size <= len(KEYS) for size in largest.values()), largest
    assert (largest["getters"], largest["classes"]) == (0, 4)


async def test_q9_getters_that_give_up_leave_nothing_behind():
    queue: WorkQueue[str] = WorkQueue("test", backoff=Backoff(1, 1000))
    for _ in range(1000):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.get(), 0.1)
    assert set(sizes(queue).values()) == {0, 2}  # two classes of priority, both empty


async def test_q7_failures_of_objects_that_are_gone_are_forgotten():
    alive = {Key("Provider", str(number)) for number in range(1000)}
    keys = set(alive)

    async def stage(key: Key) -> Outcome:
        if key in alive:
            raise ServerSaysNo
        return Done()

    line = Line(stage, options={"expected": (ServerSaysNo,)})
    running = line.start()
    for key in keys:
        line.queue.add(key)
    await asyncio.sleep(20)
    assert line.queue.statistics().backing_off == 1000
    alive.clear()  # no event tells the queue: each key finds out at its next look
    await asyncio.sleep(60 + BASE)
    figures = line.queue.statistics()
    assert (figures.backing_off, figures.delayed, figures.ready) == (0, 0, 0)
    line.queue.shut_down()
    await running


async def test_q7_a_key_that_fails_is_always_delayed_or_worked_on():
    """So that no failure is remembered of a key that nobody will look at."""

    async def stage(key: Key) -> Outcome:
        await asyncio.sleep(0.3)
        raise ServerSaysNo

    line = Line(stage, options={"expected": (ServerSaysNo,)})
    running = line.start()
    for number in range(20):
        line.queue.add(Key("Provider", str(number)))
    for _ in range(200):
        await asyncio.sleep(0.1)
        queue = line.queue
        held = {*queue._delays.pending, *queue._dirty, *queue._processing}
        assert set(queue._failures) <= held
    running.cancel()
    await asyncio.wait([running])


# ---- fair between stages -------------------------------------------------------------------------


async def test_q4_a_stage_with_ten_thousand_keys_that_never_waits_leaves_the_others_their_turns():
    busy_passes = 0
    taken: list[int] = []  # passes of the busy stage when the other one's keys were worked on

    async def busy(key: Key) -> Outcome:
        nonlocal busy_passes
        busy_passes += 1
        return Done()

    async def other(key: Key) -> Outcome:
        taken.append(busy_passes)
        await asyncio.sleep(0)
        return Done()

    async def run(name: str, queue: WorkQueue[Key], count: int) -> None:
        await run_workers(
            name=name,
            queue=queue,
            stage=busy if name == "busy" else other,
            count=count,
            deadline=60,
            hand_over=lambda _queue, _key: None,
            report=lambda _key, _stage, _report: None,
            metrics=Counts(),
        )

    queues = {
        name: WorkQueue[Key](name, backoff=Backoff(1, 60)) for name in ("busy", "other", "third")
    }
    for number in range(10_000):
        queues["busy"].add(Key("Provider", str(number)))
    added: list[int] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(run("busy", queues["busy"], 4))
        for name in ("other", "third"):
            group.create_task(run(name, queues[name], 1))
        while len(added) < 100:
            await asyncio.sleep(0)
            if len(taken) == len(added):
                added.append(busy_passes)
                queues["other" if len(added) % 2 else "third"].add(A)
                queues["other" if len(added) % 2 else "third"].add(A)
        for queue in queues.values():
            queue.shut_down()
    assert busy_passes == 10_000
    waited = [after - before for before, after in zip(added, taken, strict=True)]
    assert max(waited) <= 4 * 4  # rounds of the event loop, each with one pass of each worker
    assert taken[-1] < 10_000


async def test_w2_a_key_that_fails_over_and_over_holds_up_no_other():
    started = now()
    seen: list[float] = []

    async def stage(key: Key) -> Outcome:
        if key == B:
            seen.append(now() - started)
            return Done()
        raise ServerSaysNo

    line = Line(stage, count=1, options={"expected": (ServerSaysNo,)})
    running = line.start()
    for number in range(1000):
        line.queue.add(Key("Provider", str(number)))
    await asyncio.sleep(1.5)
    line.queue.add(B)
    await asyncio.sleep(0.1)
    assert seen == [pytest.approx(1.5)]
    running.cancel()
    await asyncio.wait([running])


async def test_q8_the_rest_of_a_first_list_waits_behind_what_has_changed():
    seen: list[Key] = []

    async def stage(key: Key) -> Outcome:
        seen.append(key)
        await asyncio.sleep(1)
        return Done()

    line = Line(stage, count=1)
    running = line.start()
    for number in range(100):
        line.queue.add(Key("Provider", str(number)), priority=LOW)
    await asyncio.sleep(5.5)
    line.queue.add(B)
    await asyncio.sleep(1)
    assert seen.index(B) == 6
    line.queue.shut_down(discard=True)
    await running
    with pytest.raises(QueueShutDown):
        await line.queue.get()
