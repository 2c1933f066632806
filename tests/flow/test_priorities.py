"""Priorities of the work queue: Q8 of engineering.md."""

import asyncio

import pytest

from controller.flow.workqueue import LOW, NORMAL, QueueShutDown, WorkQueue
from tests.flow.bench import is_empty, make_queue, settle, take

HIGH = 10


async def order(queue: WorkQueue[str]) -> list[str]:
    """Take everything that is ready, without giving it back."""
    return [await take(queue) for _ in range(len(queue))]


async def test_q8_the_priority_of_first_lists_and_resyncs_is_that_of_controller_runtime():
    assert (LOW, NORMAL) == (-100, 0)


async def test_q8_keys_of_a_higher_priority_leave_first_and_in_order_within_one():
    queue = make_queue()
    for key, priority in (("a", LOW), ("b", NORMAL), ("c", HIGH), ("d", LOW), ("e", NORMAL)):
        queue.add(key, priority=priority)
    assert await order(queue) == ["c", "b", "e", "a", "d"]


async def test_q8_without_a_priority_a_key_is_normal():
    queue = make_queue()
    queue.add("low", priority=LOW)
    queue.add("a")
    queue.add("high", priority=1)
    queue.add_after("b", 0)
    assert await order(queue) == ["high", "a", "b", "low"]


async def test_q8_of_several_priorities_of_a_ready_key_the_highest_holds():
    queue = make_queue()
    queue.add("a", priority=LOW)
    queue.add("b", priority=NORMAL)
    queue.add("a", priority=HIGH)
    assert queue.statistics().ready_by_priority == {HIGH: 1, NORMAL: 1, LOW: 0}
    assert queue.statistics().adds == 2
    assert await order(queue) == ["a", "b"]


async def test_q8_a_raised_key_goes_behind_those_of_its_new_priority():
    queue = make_queue()
    for key, priority in (("a", LOW), ("b", LOW), ("c", NORMAL), ("d", NORMAL)):
        queue.add(key, priority=priority)
    queue.add("a")
    assert await order(queue) == ["c", "d", "a", "b"]


async def test_q8_a_priority_is_never_lowered():
    queue = make_queue()
    queue.add("a", priority=HIGH)
    queue.add("b", priority=NORMAL)
    queue.add("a", priority=LOW)
    queue.add("a")
    assert await order(queue) == ["a", "b"]


async def test_q8_adding_with_the_same_priority_does_not_move_a_key():
    queue = make_queue()
    for key in "ab":
        queue.add(key, priority=LOW)
    queue.add("a", priority=LOW)
    assert await order(queue) == ["a", "b"]


async def test_q8_a_raised_key_is_handed_out_once():
    queue = make_queue()
    queue.add("a", priority=LOW)
    queue.add("a", priority=HIGH)
    queue.done(await take(queue))
    assert await is_empty(queue)


async def test_q8_its_time_in_the_queue_begins_with_the_first_add():
    queue = make_queue()
    queue.add("a", priority=LOW)
    await asyncio.sleep(5)
    queue.add("a")
    await take(queue)
    assert queue.statistics().queue_duration.total == pytest.approx(5)


async def test_q8_a_key_being_worked_on_holds_up_no_key_of_a_lower_priority():
    queue = make_queue()
    queue.add("a", priority=HIGH)
    await take(queue)
    queue.add("a", priority=HIGH)
    queue.add("b", priority=LOW)
    assert len(queue) == 1
    assert await take(queue) == "b"
    assert await is_empty(queue)
    queue.done("a")
    assert await take(queue) == "a"


async def test_q8_the_priority_of_a_key_being_worked_on_is_raised_for_its_return():
    queue = make_queue()
    queue.add("a", priority=LOW)
    await take(queue)
    queue.add("a", priority=LOW)
    queue.add("b")
    queue.add("a", priority=HIGH)
    queue.add("a")
    assert queue.priority("a") == LOW  # of the pass that goes on
    queue.done("a")
    assert await order(queue) == ["a", "b"]


async def test_q8_a_key_that_came_back_has_the_priority_it_came_back_with():
    queue = make_queue()
    queue.add("a", priority=HIGH)
    await take(queue)
    queue.add("a", priority=LOW)
    queue.add("b")
    queue.done("a")
    assert await order(queue) == ["b", "a"]


async def test_q8_a_getter_that_waits_gets_the_higher_of_two_keys_added_at_once():
    queue = make_queue()
    getters = [asyncio.create_task(queue.get()) for _ in range(2)]
    await settle()
    queue.add("low", priority=LOW)
    queue.add("high", priority=HIGH)
    assert await asyncio.gather(*getters) == ["high", "low"]


# ---- delays --------------------------------------------------------------------------------------


async def test_q8_a_delayed_key_becomes_ready_with_its_priority():
    queue = make_queue()
    queue.add_after("a", 1, priority=LOW)
    queue.add_after("b", 2, priority=NORMAL)
    queue.add_rate_limited("c", priority=HIGH)
    await asyncio.sleep(3)
    assert await order(queue) == ["c", "b", "a"]


async def test_q8_length_counts_ready_keys_only():
    queue = make_queue()
    queue.add_after("a", 1, priority=HIGH)
    queue.add("b", priority=LOW)
    assert len(queue) == 1
    assert queue.statistics().ready_by_priority == {NORMAL: 0, LOW: 1}
    await asyncio.sleep(2)
    assert len(queue) == 2


@pytest.mark.parametrize("first", [(30, HIGH, 10, LOW), (10, LOW, 30, HIGH), (30, LOW, 10, HIGH)])
async def test_q8_of_a_delayed_key_the_highest_priority_and_the_lowest_delay_hold(first):
    queue = make_queue()
    delay, priority, other_delay, other_priority = first
    queue.add_after("a", delay, priority=priority)
    queue.add_after("a", other_delay, priority=other_priority)
    await asyncio.sleep(9.9)
    assert len(queue) == 0
    await asyncio.sleep(0.2)
    assert queue.statistics().ready_by_priority[HIGH] == 1
    queue.done(await take(queue))
    await asyncio.sleep(100)
    assert await is_empty(queue)


async def test_q8_a_delayed_key_of_a_high_priority_holds_up_no_ready_one():
    queue = make_queue()
    queue.add_after("a", 10, priority=HIGH)
    queue.add("b", priority=LOW)
    assert await take(queue) == "b"


async def test_q8_a_ready_key_that_is_delayed_as_well_stays_ready():
    queue = make_queue()
    queue.add("a")
    queue.add_after("a", 3600)
    assert len(queue) == 1
    queue.done(await take(queue))
    assert await is_empty(queue)
    assert await take(queue, within=3601) == "a"  # the delayed look was promised to someone


async def test_q8_a_delayed_key_that_is_added_with_a_higher_priority_counts_once():
    queue = make_queue()
    queue.add_after("a", 3600, priority=LOW)
    assert queue.statistics().ready_by_priority == {NORMAL: 0, LOW: 0}
    queue.add("a", priority=HIGH)
    assert queue.statistics().ready_by_priority == {HIGH: 1, NORMAL: 0, LOW: 0}
    assert await take(queue) == "a"
    assert queue.priority("a") == HIGH
    assert queue.statistics().ready_by_priority == {HIGH: 0, NORMAL: 0, LOW: 0}
    assert queue.statistics().adds == 1


@pytest.mark.parametrize("after", [-1, 0, 1])
async def test_q8_many_keys_of_five_priorities_leave_by_priority_each_in_order(after):
    queue = make_queue()
    priorities = {"high": 10, "upper": 5, "middle": 0, "lower": -5, "low": -10}
    for number in range(1000):
        for name, priority in priorities.items():
            queue.add_after(f"{name}-{number}", after, priority=priority)
    await asyncio.sleep(max(after, 0) + 0.1)
    expected = [f"{name}-{number}" for name in priorities for number in range(1000)]
    assert await order(queue) == expected
    assert set(queue.statistics().ready_by_priority.values()) == {0}
    assert queue.statistics().adds == 5000


async def test_q8_a_delay_that_ends_raises_a_key_that_is_ready():
    queue = make_queue()
    queue.add("a", priority=LOW)
    queue.add("b", priority=NORMAL)
    queue.add_after("a", 1, priority=HIGH)
    await asyncio.sleep(2)
    assert await order(queue) == ["a", "b"]


# ---- shutting down, and many priorities ----------------------------------------------------------


async def test_q8_after_shut_down_no_priority_is_raised_and_keys_leave_in_order():
    queue = make_queue()
    queue.add("a", priority=LOW)
    queue.add("b")
    queue.shut_down()
    queue.add("a", priority=HIGH)
    assert await order(queue) == ["b", "a"]
    with pytest.raises(QueueShutDown):
        await take(queue)


async def test_q8_discard_drops_the_keys_of_every_priority():
    queue = make_queue()
    for key, priority in (("a", LOW), ("b", NORMAL), ("c", HIGH)):
        queue.add(key, priority=priority)
    queue.shut_down(discard=True)
    assert len(queue) == 0
    with pytest.raises(QueueShutDown):
        await take(queue)


async def test_q8_any_number_of_priorities_works_and_unused_ones_are_dropped():
    queue = make_queue()
    for number in range(1000):
        queue.add(f"key-{number}", priority=number * 7 % 1000)
    keys = await order(queue)
    assert [int(key[4:]) * 7 % 1000 for key in keys] == list(range(999, -1, -1))
    for key in keys:
        queue.done(key)
    for number in range(1000):
        queue.add("a", priority=2000 + number)
        queue.done(await take(queue))
    assert len(queue.statistics().ready_by_priority) < 20
