"""How long a key's way through the work queue takes: add, get, done, its figures counted.

`python -m tests.flow.speed` prints one line for each way of queueing; run it on an idle core.
"""

import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

from controller.flow.workqueue import LOW, NORMAL, Backoff, WorkQueue
from controller.telemetry import Metrics

KEYS = 1000  # of a round: all are added, then each is taken and given back
ROUNDS = 50  # of a sample
SAMPLES = 7
TARGET = 5.0  # microseconds for one key

Round = Callable[[], Awaitable[None]]


def _work_queue(metrics: Metrics, name: str) -> WorkQueue[str]:
    return WorkQueue(name, backoff=Backoff(1, 60), metrics=metrics)


def _plain(metrics: Metrics) -> Round:
    queue, keys = _work_queue(metrics, "plain"), [f"key-{number}" for number in range(KEYS)]

    async def one_round() -> None:
        for key in keys:
            queue.add(key)
        for _ in keys:
            queue.done(await queue.get())

    return one_round


def _with_priorities(metrics: Metrics) -> Round:
    """One key in three is low, one is raised from low to normal, one is normal at once."""
    queue, keys = _work_queue(metrics, "priorities"), [f"key-{number}" for number in range(KEYS)]
    low = [(key, NORMAL if number % 3 == 2 else LOW) for number, key in enumerate(keys)]
    raised = keys[1::3]

    async def one_round() -> None:
        for key, priority in low:
            queue.add(key, priority=priority)
        for key in raised:
            queue.add(key)
        for _ in keys:
            queue.done(await queue.get())

    return one_round


def _asyncio_queue(_: Metrics) -> Round:
    """Neither collapses keys, nor keeps two workers off one key, nor counts anything."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    keys = [f"key-{number}" for number in range(KEYS)]

    async def one_round() -> None:
        for key in keys:
            queue.put_nowait(key)
        for _ in keys:
            _ = await queue.get()
            queue.task_done()

    return one_round


_WAYS: dict[str, Callable[[Metrics], Round]] = {
    "work queue": _plain,
    "work queue with priorities": _with_priorities,
    "asyncio.Queue": _asyncio_queue,
}


async def _sample(one_round: Round) -> float:
    """Return the microseconds of processor time that one key took."""
    gc.collect()
    started = time.process_time()
    for _ in range(ROUNDS):
        await one_round()
    return (time.process_time() - started) / (ROUNDS * KEYS) * 1e6


async def _measure() -> dict[str, float]:
    metrics = Metrics()
    rounds = {name: make(metrics) for name, make in _WAYS.items()}
    samples: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(SAMPLES):
        for name, one_round in rounds.items():  # in turns, so that a busy moment hits all alike
            samples[name].append(await _sample(one_round))
    metrics.render()
    return {name: round(statistics.median(found), 3) for name, found in samples.items()}


def measure() -> dict[str, float]:
    """Return the microseconds of one core that a key takes, by the way it is queued.

    The median of several samples; takes a second or two, and an event loop of its own.
    """
    return asyncio.run(_measure())


def report(figures: dict[str, float]) -> str:
    """Return the figures as lines to print."""
    lines = [f"{name:<28}{figure:6.2f} µs a key" for name, figure in figures.items()]
    return "\n".join([*lines, f"{'target':<28}{TARGET:6.2f} µs a key"])


if __name__ == "__main__":
    sys.stdout.write(report(measure()) + "\n")
