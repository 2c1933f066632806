"""The work queue over time: Q6 and Q7 of engineering.md, and the arithmetic of its figures."""

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.flow.workqueue import Backoff, DurationHistogram, QueueShutDown, WorkQueue
from tests.flow.bench import Counts, is_empty, make_queue, now, take

# ---- Q6: delays ----------------------------------------------------------------------------------


async def test_q6_a_delayed_key_becomes_ready_at_its_time_and_not_before():
    queue = make_queue()
    queue.add_after("a", 10)
    started = now()
    await asyncio.sleep(9.99)
    assert len(queue) == 0
    assert await take(queue, within=1) == "a"
    assert now() - started == pytest.approx(10)


@pytest.mark.parametrize("delays", [(30, 10), (10, 30), (30, 20, 10, 25)])
async def test_q6_of_several_pending_times_of_a_key_the_earliest_wins(delays):
    queue = make_queue()
    for delay in delays:
        queue.add_after("a", delay)
    started = now()
    assert queue.statistics().delayed == 1
    assert await take(queue, within=100) == "a"
    assert now() - started == pytest.approx(10)
    queue.done("a")
    await asyncio.sleep(100)
    assert await is_empty(queue)


@pytest.mark.parametrize("delay", [0, -1])
async def test_q6_no_delay_means_now(delay):
    queue = make_queue()
    queue.add_after("a", delay)
    assert len(queue) == 1


async def test_q6_keys_become_ready_in_the_order_of_their_times():
    queue = make_queue()
    for key, delay in (("c", 3), ("a", 1), ("d", 3), ("b", 2)):
        queue.add_after(key, delay)
    assert [await take(queue, within=10) for _ in range(4)] == ["a", "b", "c", "d"]


async def test_q6_a_key_that_is_delayed_and_added_is_ready_now_and_again_later():
    queue = make_queue()
    queue.add_after("a", 5)
    queue.add("a")
    assert await take(queue) == "a"
    queue.done("a")
    assert await take(queue, within=10) == "a"


async def test_q6_pending_delays_are_dropped_at_shut_down():
    queue = make_queue()
    queue.add_after("a", 5)
    queue.shut_down()
    assert queue.statistics().delayed == 0
    queue.add_after("b", 5)
    await asyncio.sleep(10)
    with pytest.raises(QueueShutDown):
        await take(queue)


async def test_q6_one_timer_serves_all_delays(monkeypatch):
    queue = make_queue()
    loop = asyncio.get_running_loop()
    armed: list[asyncio.TimerHandle] = []
    real = loop.call_at

    def call_at(when: float, callback: Callable[..., None], *args: float) -> asyncio.TimerHandle:
        handle = real(when, callback, *args)
        armed.append(handle)
        return handle

    monkeypatch.setattr(loop, "call_at", call_at)
    for number in range(100):
        queue.add_after(f"key-{number}", 100 - number % 50)
    assert sum(not handle.cancelled() for handle in armed) == 1
    for _ in range(100):
        queue.add_after("much later", 1000)
        queue.add_after("later still", 2000)
    assert len(armed) == 50  # set anew for earlier times only


async def test_q6_superseded_delays_do_not_pile_up():
    queue = make_queue()
    for number in range(10_000):
        queue.add_after("a", 20_000 - number)
    assert len(queue._delays._heap) < 100


# ---- Q7: backoff ---------------------------------------------------------------------------------


def test_q7_backoff_doubles_from_base_to_cap():
    backoff = Backoff(0.005, 1000)
    delays = [backoff.delay(failures) for failures in range(20)]
    assert delays[:4] == [0.005, 0.01, 0.02, 0.04]
    assert delays[-1] == 1000


@given(
    base=st.floats(1e-3, 1e3),
    factor=st.floats(1, 1e6),
    failures=st.integers(0, 10**9),
    jitter=st.floats(0, 1),
)
def test_q7_a_delay_is_between_its_jittered_and_its_full_length(base, factor, failures, jitter):
    full = Backoff(base, base * factor).delay(failures)
    assert base <= full <= base * factor
    assert full <= Backoff(base, base * factor).delay(failures + 1)
    assert (
        (1 - jitter) * full <= Backoff(base, base * factor, jitter=jitter).delay(failures) <= full
    )


def test_q7_jitter_spreads_delays():
    backoff = Backoff(1, 60, jitter=0.5)
    assert len({backoff.delay(3) for _ in range(20)}) > 1


@pytest.mark.parametrize(
    ("base", "cap", "jitter"),
    [(0, 1, 0), (-1, 1, 0), (2, 1, 0), (1, float("inf"), 0), (1, 2, 1.5), (1, 2, -0.1)],
)
def test_q7_a_backoff_that_makes_no_sense_is_refused(base, cap, jitter):
    with pytest.raises(ValueError, match="base"):
        Backoff(base, cap, jitter=jitter)


async def test_q7_each_key_backs_off_by_itself_until_forgotten():
    queue = make_queue()
    assert [queue.add_rate_limited("a") for _ in range(4)] == [1, 2, 4, 8]
    assert queue.add_rate_limited("b") == 1
    assert (queue.failures("a"), queue.failures("b")) == (4, 1)
    queue.forget("a")
    assert queue.failures("a") == 0
    assert queue.add_rate_limited("a") == 1
    queue.forget("never added")


async def test_q7_a_rate_limited_key_comes_after_its_delay():
    queue = make_queue()
    started = now()
    for delay in (1, 2, 4):
        queue.add_rate_limited("a")
        await take(queue, within=100)
        queue.done("a")
        assert now() - started == pytest.approx(delay)
        started = now()


async def test_q7_failures_are_not_counted_after_shut_down():
    queue = make_queue()
    queue.shut_down()
    assert queue.add_rate_limited("a") == 1
    assert queue.failures("a") == 0


# ---- figures -------------------------------------------------------------------------------------


async def test_adds_count_once_a_key_becomes_dirty_and_retries_each_delayed_add():
    queue = make_queue()
    queue.add("a")
    queue.add("a")
    await take(queue)
    queue.add("a")
    queue.add_after("b", 1)
    queue.add_rate_limited("c")
    figures = queue.statistics()
    assert (figures.adds, figures.retries, figures.delayed, figures.backing_off) == (2, 2, 2, 1)


async def test_durations_are_observed_at_get_and_at_done():
    queue = make_queue()
    queue.add("a")
    await asyncio.sleep(2)
    await take(queue)
    await asyncio.sleep(3)
    queue.done("a")
    figures = queue.statistics()
    assert figures.queue_duration.total == pytest.approx(2)
    assert figures.work_duration.total == pytest.approx(3)
    assert sum(figures.queue_duration.counts) == sum(figures.work_duration.counts) == 1


async def test_unfinished_work_is_the_age_of_what_is_worked_on_and_never_stuck():
    queue = make_queue()
    queue.add("a")
    queue.add("b")
    await take(queue)
    await asyncio.sleep(2)
    await take(queue)
    await asyncio.sleep(1)
    figures = queue.statistics()
    assert figures.processing == 2
    assert figures.unfinished_seconds == pytest.approx(4)
    assert figures.longest_running_seconds == pytest.approx(3)
    queue.shut_down()
    queue.done("a")
    queue.done("b")
    figures = queue.statistics()
    assert (figures.unfinished_seconds, figures.longest_running_seconds) == (0, 0)


async def test_a_queue_makes_itself_known_to_the_metrics_it_is_given():
    counts = Counts()
    queue: WorkQueue[str] = WorkQueue("seen", backoff=Backoff(1, 2), metrics=counts)
    queue.add("a")
    assert counts.queues["seen"]().ready == 1


@pytest.mark.parametrize(
    ("seconds", "bucket"), [(0, 0), (1e-8, 0), (1.1e-8, 1), (0.5, 8), (10, 9), (11, 10)]
)
def test_a_duration_is_counted_in_the_first_bucket_that_holds_it(seconds, bucket):
    histogram = DurationHistogram()
    histogram.observe(seconds)
    assert histogram.counts.index(1) == bucket
    assert histogram.total == seconds
