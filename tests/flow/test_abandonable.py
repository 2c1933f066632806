"""A coroutine that can be left: the same as a task until it is abandoned, and ended then."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from controller.flow.abandonable import Abandonable
from tests.flow.bench import settle

Log = list[Any]
Sample = Callable[[Log], Awaitable[Any]]


async def waits(log: Log) -> str:
    log.append("began")
    await asyncio.sleep(2)
    return "slept"


async def never_waits(log: Log) -> str:
    return "at once"


async def raises(log: Log) -> None:
    await asyncio.sleep(0)
    raise ValueError("no")


async def awaits_a_failed_future(log: Log) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(1, future.set_exception, KeyError("gone"))
    try:
        await future
    except KeyError as error:
        log.append(repr(error))


async def cleans_up_slowly(log: Log) -> None:
    try:
        await asyncio.sleep(2)
    finally:
        await asyncio.sleep(1.5)
        log.append("clean")


async def swallows_once(log: Log) -> str:
    try:
        await asyncio.sleep(2)
    except asyncio.CancelledError:
        log.append("swallowed")
    await asyncio.sleep(1)
    return "went on"


async def has_a_timeout(log: Log) -> str:
    try:
        async with asyncio.timeout(1):
            await asyncio.sleep(5)
    except TimeoutError:
        await asyncio.sleep(2)
    return "timed out"


async def waits_for_a_task(log: Log) -> Any:
    return await asyncio.create_task(cleans_up_slowly(log))


async def gathers(log: Log) -> Any:
    return await asyncio.gather(waits(log), cleans_up_slowly(log))


async def has_a_group(log: Log) -> str:
    async with asyncio.TaskGroup() as group:
        group.create_task(cleans_up_slowly(log))
        group.create_task(waits(log))
    return "group"


async def has_a_group_that_fails(log: Log) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(raises(log))
        group.create_task(cleans_up_slowly(log))


async def shields(log: Log) -> Any:
    return await asyncio.shield(waits(log))


async def waits_with_a_limit(log: Log) -> Any:
    return await asyncio.wait_for(cleans_up_slowly(log), 1)


async def works_in_a_thread(log: Log) -> Any:
    return await asyncio.to_thread(len, "four")


async def yields_often(log: Log) -> int:
    count = 0
    for _ in range(5):
        await asyncio.sleep(0)
        count += 1
    return count


SAMPLES: list[Sample] = [
    waits,
    never_waits,
    raises,
    awaits_a_failed_future,
    cleans_up_slowly,
    swallows_once,
    has_a_timeout,
    waits_for_a_task,
    gathers,
    has_a_group,
    has_a_group_that_fails,
    shields,
    waits_with_a_limit,
    yields_often,
]
CANCELS: list[tuple[float, ...]] = [(), (0.1,), (0.5,), (1,), (1.5,), (2,), (0.5, 1.0), (2, 2, 3)]


async def outcome(sample: Sample, cancels: tuple[float, ...], *, wrapped: bool) -> Any:
    """Run a sample and cancel it at the given times; return everything that can be seen."""
    loop, log = asyncio.get_running_loop(), []  # type: ignore[var-annotated]  # a Log

    async def run() -> Any:
        started = loop.time()
        try:
            result = await (Abandonable(sample(log)) if wrapped else sample(log))  # type: ignore[arg-type]  # samples are coroutine functions
        except BaseException as error:  # noqa: BLE001 - what happened is compared
            result = repr(error)
            if isinstance(error, BaseExceptionGroup):
                result += repr(error.exceptions)
        task = asyncio.current_task()
        assert task is not None
        return result, round(loop.time() - started, 3), task.cancelling()

    task = asyncio.create_task(run())
    for when in cancels:
        loop.call_later(when, task.cancel)
    done, _ = await asyncio.wait([task])
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:  # a shielded one
        await asyncio.wait(others)
    return log, [("cancelled" if one.cancelled() else one.result()) for one in done]


@pytest.mark.parametrize("cancels", CANCELS, ids=str)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.__name__)
async def test_w5_until_abandoned_everything_is_as_in_a_plain_await(sample, cancels):
    plain = await outcome(sample, cancels, wrapped=False)
    assert await outcome(sample, cancels, wrapped=True) == plain


async def test_w5_the_work_of_a_thread_can_be_waited_for():
    assert await Abandonable(works_in_a_thread([])) == 4


async def test_w5_context_and_current_task_are_those_of_the_caller():
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def work() -> asyncio.Task[Any] | None:
        await asyncio.sleep(1)
        variable.set(variable.get() + " and inside")
        return asyncio.current_task()

    variable.set("outside")
    assert await Abandonable(work()) is asyncio.current_task()
    assert variable.get() == "outside and inside"


# ---- abandoned -----------------------------------------------------------------------------------


async def swallows_always(log: Log) -> None:
    while True:
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            log.append("swallowed")


async def swallows_always_without_time(log: Log) -> None:
    while True:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            log.append("swallowed")


async def waits_in_finally_for_ever(log: Log) -> None:
    try:
        await asyncio.sleep(1000)
    finally:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("closed")


async def waits_for_a_task_that_swallows(log: Log) -> None:
    try:
        await asyncio.create_task(swallows_for_a_while(log))
    finally:
        log.append("closed")


async def gathers_what_swallows(log: Log) -> None:
    await asyncio.gather(swallows_for_a_while(log), swallows_for_a_while(log))


async def has_a_group_that_swallows(log: Log) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(swallows_for_a_while(log))


async def swallows_for_a_while(log: Log) -> None:
    until = asyncio.get_running_loop().time() + 100
    while (left := until - asyncio.get_running_loop().time()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            log.append("swallowed")


@pytest.mark.parametrize(
    "stubborn",
    [
        swallows_always,
        waits_in_finally_for_ever,
        waits_for_a_task_that_swallows,
        gathers_what_swallows,
        has_a_group_that_swallows,
    ],
    ids=lambda sample: sample.__name__,
)
async def test_w5_abandoned_it_ends_whatever_it_waits_for(stubborn):
    loop = asyncio.get_running_loop()
    log: Log = []
    work: Abandonable[None] = Abandonable(stubborn(log))

    async def run() -> None:
        await work

    task = asyncio.create_task(run())
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.sleep(1)
    assert not task.done()
    asked = loop.time()
    work.abandon()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert loop.time() == asked
    assert log[-1:] in (["swallowed"], ["closed"])
    await asyncio.sleep(200)  # tasks that it started end when they like
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_w5_abandoned_it_ends_even_if_it_never_waits_for_anything():
    work: Abandonable[None] = Abandonable(swallows_always_without_time([]))

    async def run() -> None:
        await work

    task = asyncio.create_task(run())
    await settle()
    task.cancel()
    await settle()
    assert not task.done()
    work.abandon()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_w5_abandoned_before_the_first_step_it_never_runs():
    log: Log = []
    work: Abandonable[str] = Abandonable(waits(log))
    work.abandon()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert log == []


async def test_w5_abandoned_after_its_end_nothing_happens():
    work: Abandonable[str] = Abandonable(never_waits([]))
    assert await work == "at once"
    work.abandon()


async def test_w5_abandoned_where_it_stands_it_runs_all_its_finally_blocks():
    log: Log = []
    work: Abandonable[None] = Abandonable(waits_in_finally_for_ever(log))
    asyncio.get_running_loop().call_later(1, work.abandon)
    with pytest.raises(asyncio.CancelledError):
        await work
    assert log == ["closed"]


async def test_w5_what_it_waits_for_is_left_as_a_task_leaves_it():
    waited: asyncio.Task[Any] = asyncio.create_task(swallows_for_a_while([]))

    async def work() -> None:
        await waited

    async def run() -> None:
        await Abandonable(work())

    task = asyncio.create_task(run())
    for _ in range(5):
        await asyncio.sleep(1)
        assert waited._asyncio_future_blocking is False
        assert len(waited._callbacks) == 1
        task.cancel()
    await asyncio.wait([task])


async def test_w5_an_error_while_it_is_closed_goes_no_further():
    async def work() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            raise ValueError("no end is good enough")

    left: Abandonable[None] = Abandonable(work())
    asyncio.get_running_loop().call_later(1, left.abandon)
    with pytest.raises(asyncio.CancelledError):
        await left


@pytest.mark.parametrize("wait", [lambda: asyncio.sleep(10), lambda: asyncio.Event().wait()])
async def test_w5_a_time_limit_of_a_library_inside_is_that_librarys_timeout(wait):
    """Anyio knows its own cancellation by the message that comes with it."""

    async def work() -> None:
        with anyio.fail_after(0.01):
            await wait()

    with pytest.raises(TimeoutError):
        await Abandonable(work())
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
