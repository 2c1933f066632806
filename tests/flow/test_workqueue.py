"""The work queue: Q1 to Q5 and Q9 of engineering.md."""

import asyncio
import contextlib
import gc
import weakref

import pytest

from controller.flow.workqueue import DURATION_BOUNDS, Backoff, QueueShutDown, WorkQueue
from tests.flow.bench import BASE, CAP, is_empty, make_queue, settle, take

# ---- Q1 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drain", [False, True])
async def test_q1_many_producers_and_workers_lose_no_key_and_double_none(drain):
    queue: WorkQueue[int] = WorkQueue("test", backoff=Backoff(BASE, CAP))
    added: set[int] = set()
    passes: list[int] = []

    async def produce(first: int) -> None:
        for number in range(first, first + 50):
            queue.add(number)
            added.add(number)
            await asyncio.sleep(0.01)

    async def work() -> None:
        with contextlib.suppress(QueueShutDown):
            while True:
                key = await queue.get()
                passes.append(key)
                await asyncio.sleep(0.03)
                queue.done(key)

    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(work())
        async with asyncio.TaskGroup() as producers:
            for number in range(50):
                producers.create_task(produce(50 * number))
        queue.shut_down(drain=drain)
        queue.add(-1)
        await queue.wait_drained()
        assert not drain or len(passes) == len(added)
    assert sorted(passes) == sorted(added)


async def test_q1_length_is_the_number_of_keys_that_a_worker_could_take():
    queue = make_queue()
    lengths = []
    queue.add("a")
    lengths.append(len(queue))
    queue.add("b")
    lengths.append(len(queue))
    queue.add("a")
    lengths.append(len(queue))
    await take(queue)
    lengths.append(len(queue))
    queue.add("a")
    lengths.append(len(queue))
    queue.done("a")
    lengths.append(len(queue))
    assert lengths == [1, 2, 2, 1, 1, 2]


# ---- Q2, Q3, Q4: each key once, one worker, in order ---------------------------------------------


async def test_q2_a_key_that_is_ready_is_handed_out_once_however_often_it_is_added():
    queue = make_queue()
    for _ in range(3):
        queue.add("a")
    assert len(queue) == 1
    assert await take(queue) == "a"
    queue.done("a")
    assert await is_empty(queue)
    assert queue.statistics().adds == 1


async def test_q3_a_key_added_while_worked_on_is_queued_at_done_and_only_then():
    queue = make_queue()
    queue.add("a")
    await take(queue)
    queue.add("a")
    queue.add("a")
    assert len(queue) == 0
    assert await is_empty(queue)
    queue.done("a")
    assert await take(queue) == "a"
    queue.done("a")
    assert await is_empty(queue)


async def test_q3_a_key_that_came_back_goes_to_a_worker_that_waits():
    queue = make_queue()
    queue.add("a")
    await take(queue)
    getter = asyncio.create_task(queue.get())
    await settle()
    queue.add("a")
    queue.done("a")
    assert await asyncio.wait_for(getter, 1) == "a"


async def test_q3_never_two_workers_on_one_key():
    queue = make_queue()
    working: set[str] = set()
    passes: dict[str, int] = {}

    async def worker() -> None:
        with contextlib.suppress(QueueShutDown):
            while True:
                key = await queue.get()
                assert key not in working
                working.add(key)
                passes[key] = passes.get(key, 0) + 1
                await asyncio.sleep(0.3)
                working.remove(key)
                queue.done(key)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(worker())
        for _ in range(40):
            for key in ("a", "b"):
                queue.add(key)
            await asyncio.sleep(0.05)
        queue.shut_down()
    assert all(2 <= count <= 10 for count in passes.values())


async def test_q3_another_key_is_not_held_up_by_one_being_worked_on():
    queue = make_queue()
    queue.add("a")
    await take(queue)
    queue.add("a")
    queue.add("b")
    assert await take(queue) == "b"


async def test_q3_done_without_get_has_no_effect():
    queue = make_queue()
    queue.add("a")
    queue.done("a")
    queue.done("b")
    assert len(queue) == 1
    assert await take(queue) == "a"
    assert queue.statistics().work_duration.counts == [0] * (len(DURATION_BOUNDS) + 1)


async def test_q4_ready_keys_leave_in_the_order_in_which_they_became_ready():
    queue = make_queue()
    for key in "cabdc":
        queue.add(key)
    assert [await take(queue) for _ in range(4)] == ["c", "a", "b", "d"]


async def test_q4_a_key_that_came_back_goes_behind_those_that_wait():
    queue = make_queue()
    queue.add("a")
    await take(queue)
    queue.add("a")
    queue.add("b")
    queue.done("a")
    assert [await take(queue), await take(queue)] == ["b", "a"]


async def test_q4_a_queue_keeps_no_reference_to_keys_it_handed_out():
    class Thing:
        pass

    queue: WorkQueue[Thing] = WorkQueue("things", backoff=Backoff(BASE, CAP))
    thing = Thing()
    trace = weakref.ref(thing)
    queue.add(thing)
    queue.add_rate_limited(thing)
    queue.add_after(thing, 0.5)
    for _ in range(2):
        key = await queue.get()
        queue.forget(key)
        queue.done(key)
    await asyncio.sleep(2)
    del thing, key
    gc.collect()
    assert trace() is None


# ---- Q5: shutting down ---------------------------------------------------------------------------


async def test_q5_shut_down_refuses_keys_hands_out_the_ready_ones_then_ends_every_getter():
    queue = make_queue()
    queue.add("a")
    queue.add("b")
    queue.shut_down()
    queue.add("c")
    queue.add_after("d", 0)
    assert [await take(queue), await take(queue)] == ["a", "b"]
    for _ in range(2):
        with pytest.raises(QueueShutDown, match="test"):
            await take(queue)


async def test_q5_shut_down_wakes_all_getters():
    queue = make_queue()
    getters = [asyncio.create_task(queue.get()) for _ in range(3)]
    await settle()
    queue.shut_down()
    results = await asyncio.gather(*getters, return_exceptions=True)
    assert [type(result) for result in results] == [QueueShutDown] * 3


async def test_q5_discard_drops_the_ready_keys_and_those_that_came_back():
    queue = make_queue()
    queue.add("a")
    queue.add("b")
    assert await take(queue) == "a"
    queue.add("a")
    queue.shut_down(discard=True)
    queue.done("a")
    with pytest.raises(QueueShutDown):
        await take(queue)


async def test_q5_without_drain_nobody_waits_for_work_in_progress():
    queue = make_queue()
    queue.add("a")
    await take(queue)
    queue.shut_down()
    await asyncio.wait_for(queue.wait_drained(), 1)


async def test_q5_drain_waits_until_no_key_is_worked_on():
    queue = make_queue()
    queue.add("a")
    queue.add("b")
    await take(queue)
    await take(queue)
    queue.shut_down(drain=True)
    drained = asyncio.create_task(queue.wait_drained())
    queue.done("a")
    await settle()
    assert not drained.done()
    queue.done("b")
    await asyncio.wait_for(drained, 1)


async def test_q5_drain_includes_a_key_that_came_back_while_worked_on():
    queue = make_queue()
    queue.add("a")
    await take(queue)
    queue.add("a")
    queue.shut_down(drain=True)
    drained = asyncio.create_task(queue.wait_drained())
    queue.done("a")
    await settle()
    assert not drained.done()
    assert await take(queue) == "a"
    queue.done("a")
    await asyncio.wait_for(drained, 1)


async def test_q5_a_plain_shut_down_breaks_a_drain():
    queue = make_queue()
    queue.add("a")
    await take(queue)
    queue.shut_down(drain=True)
    drained = asyncio.create_task(queue.wait_drained())
    await settle()
    queue.shut_down()
    await asyncio.wait_for(drained, 1)


async def test_q5_a_cancelled_drain_leaves_the_queue_usable():
    queue = make_queue()
    queue.add("a")
    await take(queue)
    queue.shut_down(drain=True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.wait_drained(), 1)
    queue.done("a")
    await asyncio.wait_for(queue.wait_drained(), 1)


# ---- Q9: cancellation ----------------------------------------------------------------------------


async def test_q9_a_cancelled_get_loses_no_key():
    queue = make_queue()
    getter = asyncio.create_task(queue.get())
    await settle()
    getter.cancel()
    await settle()
    queue.add("a")
    assert await take(queue) == "a"


async def test_q9_a_getter_cancelled_after_its_wake_up_passes_it_on():
    queue = make_queue()
    first = asyncio.create_task(queue.get())
    second = asyncio.create_task(queue.get())
    await settle()
    queue.add("a")
    first.cancel()
    assert await asyncio.wait_for(second, 1) == "a"
    assert first.cancelled()


async def test_q9_a_getter_cancelled_before_the_wake_up_does_not_swallow_it():
    queue = make_queue()
    first = asyncio.create_task(queue.get())
    second = asyncio.create_task(queue.get())
    await settle()
    first.cancel()
    queue.add("a")
    assert await asyncio.wait_for(second, 1) == "a"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_q9_the_last_getter_cancelled_after_its_wake_up_leaves_the_key_ready():
    queue = make_queue()
    getter = asyncio.create_task(queue.get())
    await settle()
    queue.add("a")
    getter.cancel()
    await settle()
    assert len(queue) == 1
    assert await take(queue) == "a"


async def test_q9_every_ready_key_wakes_a_getter():
    queue = make_queue()
    getters = [asyncio.create_task(queue.get()) for _ in range(3)]
    await settle()
    for key in "abc":
        queue.add(key)
    assert await asyncio.wait_for(asyncio.gather(*getters), 1) == ["a", "b", "c"]
