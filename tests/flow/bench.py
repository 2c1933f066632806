"""What tests of this room share: queues, counters, and an API server that can misbehave."""

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from controller.flow.commit import Committer, Conflict, Gone
from controller.flow.worker import Done, Outcome, run_workers
from controller.flow.workqueue import Backoff, QueueStatistics, WorkQueue
from controller.model.conditions import Condition, Report
from controller.model.objects import JsonObject, Key
from tests.flow.speed import measure

__all__ = ["measure"]  # called by tests.bench; the rest is for the tests of this room

A, B = Key("Provider", "a"), Key("Provider", "b")
REPORT = Report((Condition("Fetched", "True", "Fetched"),))
DEADLINE = 30.0
BASE, CAP = 1.0, 60.0
KEY = Key("ProviderRevision", "r")
OTHER = Key("ProviderRevision", "s")
WINDOW = 0.05
TRUE = Condition("Fetched", "True", "Fetched")
FALSE = Condition("Fetched", "False", "NotFound", "no such image")
PARSED = Condition("Parsed", "True", "Parsed")


def make_queue() -> WorkQueue[str]:
    return WorkQueue("test", backoff=Backoff(BASE, CAP))


def now() -> float:
    return asyncio.get_running_loop().time()


async def take(queue: WorkQueue[str], *, within: float = 0.001) -> str:
    async with asyncio.timeout(within):
        return await queue.get()


async def is_empty(queue: WorkQueue[str]) -> bool:
    try:
        await take(queue)
    except TimeoutError:
        return True
    return False


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@dataclass
class Counts:
    """Keeps what workers tell the metrics."""

    workers: dict[str, int] = field(default_factory=dict)
    active: int = 0
    results: list[str | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    halts: int = 0
    timeouts: int = 0
    panics: int = 0
    hung: int = 0
    hanging: int = 0
    queues: dict[str, Callable[[], QueueStatistics]] = field(default_factory=dict)

    def workers_started(self, stage: str, count: int) -> None:
        self.workers[stage] = count

    def pass_started(self, stage: str) -> None:
        self.active += 1

    def pass_finished(self, stage: str, result: str | None, seconds: float) -> None:
        self.active -= 1
        self.results.append(result)
        self.seconds.append(seconds)

    def pass_halted(self, stage: str) -> None:
        self.halts += 1

    def pass_timed_out(self, stage: str) -> None:
        self.timeouts += 1

    def pass_raised(self, stage: str) -> None:
        self.panics += 1

    def pass_left(self, stage: str) -> None:
        self.hung += 1
        self.hanging += 1
        self.active -= 1

    def pass_returned(self, stage: str) -> None:
        self.hanging -= 1
        self.active += 1

    def watch_queue(self, name: str, statistics: Callable[[], QueueStatistics]) -> None:
        self.queues[name] = statistics


class Unavailable(Exception):  # noqa: N818 - named for the answer
    """The API server cannot answer now."""


@dataclass
class Server:
    """Objects with resourceVersions, and server-side apply of their status by one manager."""

    objects: dict[Key, JsonObject] = field(default_factory=dict)
    shown: dict[Key, JsonObject] = field(default_factory=dict)  # what the informer's store has
    bodies: list[JsonObject] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    lagging: bool = False
    latency: float = 0.0
    version: int = 8  # so that versions grow a digit: they are numbers, not text

    def put(self, key: Key, *, uid: str = "uid-1", generation: int = 1, **status: Any) -> None:
        """Someone else creates or replaces an object."""
        self.version += 1
        self.objects[key] = {
            "apiVersion": "pkg.crossplane.io/v1",
            "kind": key.kind,
            "metadata": {
                "name": key.name,
                "uid": uid,
                "generation": generation,
                "resourceVersion": str(self.version),
            },
            "spec": {},
            "status": status,
        }
        self.show()

    def show(self) -> None:
        """Let the store catch up, unless it lags."""
        if not self.lagging:
            self.shown = copy.deepcopy(self.objects)

    def delete(self, key: Key) -> None:
        del self.objects[key]
        self.show()

    def read(self, key: Key) -> JsonObject | None:
        return self.shown.get(key)

    async def write(self, key: Key, body: JsonObject) -> JsonObject:
        self.bodies.append(copy.deepcopy(body))
        self.times.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.latency)
        if self.failures:
            raise self.failures.pop(0)
        if key not in self.objects:
            raise Gone
        obj = copy.deepcopy(self.objects[key])
        if body["metadata"]["resourceVersion"] != obj["metadata"]["resourceVersion"]:
            raise Conflict
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        obj["status"] = body["status"]  # one manager: what it leaves out goes
        self.objects[key] = obj
        self.show()
        return copy.deepcopy(obj)

    def condition(self, kind: str = "Fetched", key: Key = KEY) -> JsonObject:
        entries = self.objects[key]["status"].get("conditions", [])
        found: JsonObject = next(entry for entry in entries if entry["type"] == kind)
        return found


@dataclass
class Bench:
    """A running committer and what it told."""

    server: Server
    committer: Committer
    transitions: list[tuple[str, Condition | None, Condition]]

    async def settle(self, seconds: float = 1.0) -> None:
        await asyncio.sleep(seconds)

    def say(
        self, *conditions: Condition, stage: str = "image", key: Key = KEY, **more: Any
    ) -> None:
        self.committer.report(key, stage, Report(conditions, more))


def no_roll_up(obj: JsonObject, conditions: Mapping[str, Condition]) -> list[Condition]:
    return []


@asynccontextmanager
async def bench(server: Server | None = None, **options: Any) -> AsyncIterator[Bench]:
    if server is None:
        server = Server()
        server.put(KEY)
        server.put(OTHER, uid="uid-2")
    transitions: list[tuple[str, Condition | None, Condition]] = []
    settings: dict[str, Any] = {"roll_up": no_roll_up, "expected": (Unavailable,)}
    committer = Committer(
        read=server.read,
        write=server.write,
        on_transition=lambda obj, old, new: transitions.append((obj["kind"], old, new)),
        metrics=Counts(),
        backoff=Backoff(1.0, 8.0),
        now=lambda: datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
        **(settings | options),
    )
    running = asyncio.create_task(committer.run())
    try:
        yield Bench(server, committer, transitions)
        await committer.drain(5)
        await running
    finally:
        running.cancel()
        await asyncio.wait([running])


class ServerSaysNo(Exception):  # noqa: N818 - named for the answer
    """What a stage may meet."""


@dataclass
class Line:
    """A stage with its queue, run by workers, and everything they did."""

    stage: Callable[[Key], Awaitable[Outcome]]
    count: int = 2
    options: dict[str, Any] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    handed: list[tuple[str, Key]] = field(default_factory=list)
    reports: list[tuple[Key, str, Report]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.queue: WorkQueue[Key] = WorkQueue("image", backoff=Backoff(BASE, 60))

    def start(self) -> "asyncio.Task[None]":
        settings: dict[str, Any] = {
            "hand_over": lambda queue, key: self.handed.append((queue, key)),
            "report": lambda key, stage, report: self.reports.append((key, stage, report)),
            "deadline": DEADLINE,
        }
        return asyncio.create_task(
            run_workers(
                name="image",
                queue=self.queue,
                stage=self.stage,
                count=self.count,
                metrics=self.counts,
                **(settings | self.options),
            )
        )

    async def run(self, *keys: Key, seconds: float = 0.1) -> None:
        """Work on keys for some time, then stop."""
        running = self.start()
        for key in keys:
            self.queue.add(key)
        await asyncio.sleep(seconds)
        self.queue.shut_down()
        await running


class Script:
    """A stage that answers from a list and remembers when it was called."""

    def __init__(self, *answers: Outcome | BaseException) -> None:
        self.answers = list(answers)
        self.calls: list[tuple[Key, float]] = []

    async def __call__(self, key: Key) -> Outcome:
        self.calls.append((key, asyncio.get_running_loop().time()))
        answer = self.answers.pop(0) if self.answers else Done()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def gaps(self) -> list[float]:
        times = [when for _, when in self.calls]
        return [round(b - a, 3) for a, b in itertools.pairwise(times)]
