"""The worker loop: W1 to W8 of engineering.md, and what becomes of each outcome."""

import asyncio
from typing import Any

import pytest
import structlog

from controller.flow.worker import Again, Done, Halt, Outcome
from controller.flow.workqueue import LOW, NORMAL
from controller.model.conditions import Report
from controller.model.objects import Key
from tests.flow.bench import BASE, DEADLINE, REPORT, A, B, Line, Script, ServerSaysNo


def logged(events: list[Any], event: str) -> list[Any]:
    return [entry for entry in events if entry["event"] == event]


# ---- W1 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        Done(),
        Again("later", 100.0),
        Again("backoff"),
        Halt("you"),
        ValueError("no"),
        ServerSaysNo(),
    ],
)
async def test_w1_the_key_is_given_back_whatever_happened(answer):
    line = Line(Script(answer))
    await line.run(A)
    assert line.queue.statistics().processing == 0
    assert line.counts.active == 0


async def test_w1_a_cancelled_pass_gives_the_key_back_still_dirty():
    async def hang(key: Key) -> Outcome:
        await asyncio.sleep(DEADLINE / 2)
        return Done()

    line = Line(hang)
    running = line.start()
    line.queue.add(A)
    await asyncio.sleep(1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert line.queue.statistics().processing == 0
    assert await line.queue.get() == A
    assert line.counts.results == [None]
    assert line.queue.failures(A) == 0
    assert not line.reports


# ---- W2 ------------------------------------------------------------------------------------------


async def test_w2_done_reports_hands_over_and_forgets():
    script = Script(ValueError("first"), Done(REPORT, next=(("establish", A), ("resolve", B))))
    line = Line(script)
    await line.run(A, seconds=10)
    assert line.reports == [(A, "image", REPORT)]
    assert line.handed == [("establish", A), ("resolve", B)]
    assert line.queue.failures(A) == 0
    assert line.counts.results == ["error", "success"]


async def test_w2_an_error_comes_back_after_its_backoff():
    script = Script(ServerSaysNo("1"), ServerSaysNo("2"), ServerSaysNo("3"))
    line = Line(script)
    await line.run(A, seconds=20)
    assert script.gaps() == [1, 2, 4]
    assert line.counts.results == ["error", "error", "error", "success"]


async def test_w2_a_request_to_come_back_after_a_time_is_not_rate_limited():
    script = Script(ServerSaysNo(), Again("poll", 7.0, REPORT, (("runtime", A),)), Again("poll", 7))
    line = Line(script)
    await line.run(A, seconds=20)
    assert script.gaps() == [1, 7, 7]
    assert line.counts.results == ["error", "requeue_after", "requeue_after", "success"]
    assert line.reports == [(A, "image", REPORT)]
    assert line.handed == [("runtime", A)]


async def test_w2_a_request_to_come_back_after_a_time_starts_backoff_anew():
    script = Script(ServerSaysNo(), ServerSaysNo(), Again("poll", 7), ServerSaysNo())
    line = Line(script)
    await line.run(A, seconds=20)
    assert script.gaps() == [1, 2, 7, 1]


async def test_w2_again_without_a_time_backs_off():
    script = Script(Again("not yet"), Again("not yet"), Again("not yet"))
    line = Line(script)
    await line.run(A, seconds=20)
    assert script.gaps() == [1, 2, 4]
    assert line.counts.results == ["requeue", "requeue", "requeue", "success"]


async def test_w2_a_halt_is_counted_reported_and_not_retried():
    script = Script(ServerSaysNo(), Halt("no such key", REPORT))
    line = Line(script)
    await line.run(A, seconds=1000)
    assert len(script.calls) == 2
    assert line.counts.halts == 1
    assert line.counts.results == ["error", "error"]
    assert line.reports == [(A, "image", REPORT)]
    assert line.queue.failures(A) == 0


async def test_w2_an_event_brings_a_halted_key_back():
    script = Script(Halt("you"))
    line = Line(script)
    running = line.start()
    line.queue.add(A)
    await asyncio.sleep(1)
    line.queue.add(A)
    await asyncio.sleep(1)
    line.queue.shut_down()
    await running
    assert len(script.calls) == 2


async def test_w2_a_key_that_failed_or_asked_to_come_back_keeps_its_priority():
    seen: list[int] = []
    script = Script(ServerSaysNo(), Again("not yet"), Again("poll", 2), ValueError("bug"), Done())

    async def stage(key: Key) -> Outcome:
        seen.append(line.queue.priority(key))
        return await script(key)

    line = Line(stage)
    running = line.start()
    line.queue.add(A, priority=LOW)
    await asyncio.sleep(20)
    assert (seen, script.answers) == ([LOW] * 5, [])
    line.queue.shut_down()
    await running


async def test_w2_a_key_whose_pass_was_cancelled_keeps_its_priority():
    async def stage(key: Key) -> Outcome:
        await asyncio.sleep(5)
        return Done()

    line = Line(stage)
    running = line.start()
    line.queue.add(A, priority=7)
    await asyncio.sleep(1)
    running.cancel()
    await asyncio.wait([running])
    assert line.queue.statistics().ready_by_priority == {7: 1, NORMAL: 0, LOW: 0}


async def test_w2_an_event_raises_the_priority_of_a_key_that_is_worked_on_for_the_next_pass():
    seen: list[int] = []

    async def stage(key: Key) -> Outcome:
        seen.append(line.queue.priority(key))
        line.queue.add(key)
        await asyncio.sleep(1)
        return Done() if len(seen) == 1 else Halt("enough")

    line = Line(stage)
    running = line.start()
    line.queue.add(A, priority=LOW)
    await asyncio.sleep(1.5)
    assert seen == [LOW, NORMAL]
    running.cancel()
    await asyncio.wait([running])


# ---- W3 ------------------------------------------------------------------------------------------


async def test_w3_backoff_grows_over_events_and_is_reset_by_a_result_without_error_only():
    script = Script(*[ServerSaysNo()] * 3, Done(), ServerSaysNo(), Done())
    line = Line(script)
    running = line.start()
    for _ in range(3):  # events, each before the retry is due
        line.queue.add(A)
        await asyncio.sleep(0.1)
    assert line.queue.failures(A) == 3
    await asyncio.sleep(60)  # the retry succeeds
    assert (len(script.calls), line.queue.failures(A)) == (4, 0)
    line.queue.add(A)
    await asyncio.sleep(60)
    line.queue.shut_down()
    await running
    assert script.gaps()[-1] == BASE


# ---- W4 ------------------------------------------------------------------------------------------


async def test_w4_an_exception_is_the_failure_of_its_key_alone():
    calls: list[Key] = []

    async def stage(key: Key) -> Outcome:
        calls.append(key)
        if key == A:
            raise ZeroDivisionError("bug")
        return Done()

    line = Line(stage, count=1)
    await line.run(A, B)
    assert calls == [A, B]
    assert (line.counts.panics, line.counts.results) == (1, ["error", "success"])


async def test_w4_a_call_that_is_cancelled_inside_the_stage_does_not_end_the_worker():
    calls: list[Key] = []

    async def stage(key: Key) -> Outcome:
        calls.append(key)
        if key == A and calls.count(A) == 1:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        return Done()

    line = Line(stage, count=1)
    await line.run(A, B, seconds=5)
    assert calls == [A, B, A]
    assert line.counts.results == ["error", "success", "success"]


async def test_w4_a_report_or_hand_over_that_fails_is_the_failure_of_the_key():
    def refuse(*_: object) -> None:
        raise KeyError("no such queue")

    for option, answer in (("report", Done(REPORT)), ("hand_over", Done(next=(("x", A),)))):
        line = Line(Script(answer), options={option: refuse})
        await line.run(A)
        assert line.counts.results == ["error"]
        assert line.queue.failures(A) == 1


# ---- W5 ------------------------------------------------------------------------------------------


async def test_w5_a_pass_ends_at_its_deadline_is_counted_and_retried():
    calls = []

    async def stage(key: Key) -> Outcome:
        calls.append(asyncio.get_running_loop().time())
        if len(calls) == 1:
            await asyncio.sleep(10 * DEADLINE)
        return Done()

    line = Line(stage)
    with structlog.testing.capture_logs() as events:
        await line.run(A, seconds=2 * DEADLINE)
    assert calls[1] - calls[0] == pytest.approx(DEADLINE + BASE)
    assert (line.counts.timeouts, line.counts.panics) == (1, 0)
    assert line.counts.results == ["error", "success"]
    assert line.counts.seconds[0] == pytest.approx(DEADLINE)
    (failure,) = logged(events, "failed")
    assert failure["error"] == "image did not finish Provider/a within 30 s"
    assert failure["exc_info"] is None


async def test_w5_a_timeout_of_the_stages_own_is_not_the_deadline():
    line = Line(Script(TimeoutError("the registry")), options={"expected": (TimeoutError,)})
    await line.run(A)
    assert line.counts.timeouts == 0
    assert line.counts.results == ["error"]


# ---- W6 ------------------------------------------------------------------------------------------


async def test_w6_each_pass_has_its_own_id_bound_to_the_log():
    seen: list[dict[str, Any]] = []

    async def stage(key: Key) -> Outcome:
        seen.append(structlog.contextvars.get_contextvars())
        return Done()

    line = Line(stage)
    await line.run(A, B)
    assert [(entry["stage"], entry["key"]) for entry in seen] == [
        ("image", "Provider/a"),
        ("image", "Provider/b"),
    ]
    assert len({entry["reconcile_id"] for entry in seen}) == 2
    assert structlog.contextvars.get_contextvars() == {}


async def test_w6_a_failure_is_logged_once_with_its_error_and_the_delay():
    line = Line(Script(ServerSaysNo("quota exceeded")), options={"expected": (ServerSaysNo,)})
    with structlog.testing.capture_logs(
        processors=[structlog.contextvars.merge_contextvars]
    ) as events:
        await line.run(A)
    (failure,) = logged(events, "failed")
    assert failure["log_level"] == "warning"
    assert failure["error"] == "quota exceeded"
    assert (failure["stage"], failure["key"]) == ("image", "Provider/a")
    assert (failure["retry_in"], failure["failures"]) == (1, 1)
    assert failure["exc_info"] is None
    assert [e for e in events if e["log_level"] not in ("debug", "info")] == [failure]


async def test_w6_only_an_unexpected_exception_has_a_traceback():
    error = ZeroDivisionError()
    line = Line(Script(error), options={"expected": (ServerSaysNo,)})
    with structlog.testing.capture_logs() as events:
        await line.run(A)
    (failure,) = logged(events, "failed")
    assert failure["exc_info"] is error
    assert failure["error"] == "ZeroDivisionError()"
    assert line.counts.panics == 1


# ---- W7, W8 --------------------------------------------------------------------------------------


async def test_w7_the_series_are_declared_before_the_first_pass():
    line = Line(Script(), count=3)
    await line.run()
    assert line.counts.workers == {"image": 3}


async def test_w8_a_stage_that_finds_its_object_gone_succeeds():
    line = Line(Script(Done()))
    await line.run(Key("Provider", "deleted long ago"), seconds=100)
    assert line.counts.results == ["success"]


# ---- around the pass -----------------------------------------------------------------------------


async def test_the_owner_of_a_stage_turns_exceptions_into_reports():
    seen: list[tuple[Key, Exception]] = []

    def on_error(key: Key, error: Exception) -> Report | None:
        seen.append((key, error))
        return REPORT if isinstance(error, ServerSaysNo) else None

    no, bug = ServerSaysNo("no"), ValueError("bug")
    line = Line(Script(no, bug), options={"on_error": on_error})
    await line.run(A, seconds=10)
    assert seen == [(A, no), (A, bug)]
    assert line.reports == [(A, "image", REPORT)]


async def test_an_on_error_that_fails_is_logged_and_the_key_comes_back():
    def on_error(key: Key, error: Exception) -> Report | None:
        raise RuntimeError("second fault")

    script = Script(ServerSaysNo())
    line = Line(script, options={"on_error": on_error})
    with structlog.testing.capture_logs() as events:
        await line.run(A, seconds=5)
    assert len(script.calls) == 2
    assert [entry["log_level"] for entry in events if entry.get("exc_info") is True] == ["error"]


async def test_as_many_passes_run_at_a_time_as_there_are_workers():
    running = 0
    peak = 0

    async def stage(key: Key) -> Outcome:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(1)
        running -= 1
        return Done()

    line = Line(stage, count=3)
    await line.run(*(Key("Provider", str(n)) for n in range(9)), seconds=10)
    assert peak == 3
    assert len(line.counts.results) == 9


async def test_a_stage_that_never_waits_leaves_the_event_loop_to_others():
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    line = Line(Script(), count=1)
    ticking = asyncio.create_task(tick())
    for number in range(100):
        line.queue.add(Key("Provider", str(number)))
    line.queue.shut_down()
    await line.start()
    ticking.cancel()
    assert ticks >= 100


async def test_workers_finish_what_is_ready_after_the_queue_is_shut_down():
    script = Script()
    line = Line(script, count=1)
    line.queue.add(A)
    line.queue.add(B)
    line.queue.shut_down()
    await asyncio.wait_for(line.start(), 1)
    assert [key for key, _ in script.calls] == [A, B]
