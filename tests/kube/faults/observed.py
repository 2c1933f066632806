"""What watches do under a fault: what handlers saw, which requests were made, and when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controller.kube.client import KubeClient
from controller.kube.informer import Change, Informer
from controller.model.objects import JsonObject, Resource
from tests.kube.conftest import eventually
from tests.kube.faults.table import NAME
from tests.lab.errors import LabError
from tests.lab.lab import Lab
from tests.lab.logs import Mark

CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap", namespaced=True)
REQUESTS_A_MINUTE = 75  # of one watch: a request each 1 to 2 s while nobody listens, and lists
SETTLE_SECONDS = 90.0
AGENT = "observed/1"

Version = tuple[str, int]  # uid, resource version
Key = tuple[str, str]  # namespace, name


def version_of(obj: JsonObject) -> Version:
    """Return an object's uid and resource version."""
    return obj["metadata"]["uid"], int(obj["metadata"]["resourceVersion"])


class Ledger:
    """A handler that books every change and notes what is out of order.

    Attributes:
        alive: uid and resource version of each object that exists as far as was told.
        problems: what broke the order.
        changes: how many changes there were.
        last: event-loop time of the last one.
    """

    def __init__(self) -> None:
        self.alive: dict[Key, Version] = {}
        self.problems: list[str] = []
        self.changes = 0
        self.last = 0.0
        self._newest: dict[Key, int] = {}
        self._gone: set[str] = set()

    def __call__(self, change: Change) -> None:
        self.changes += 1
        self.last = asyncio.get_running_loop().time()
        obj = change.new if change.new is not None else change.old
        assert obj is not None
        key = (obj["metadata"].get("namespace") or "", obj["metadata"]["name"])
        uid, version = version_of(obj)
        known = self.alive.get(key)
        self._check(change, key, known)
        self._newest[key] = max(version, self._newest.get(key, 0))
        if change.new is None:
            self.alive.pop(key, None)
            self._gone.add(uid)
        else:
            self.alive[key] = (uid, version)

    def _check(self, change: Change, key: Key, known: Version | None) -> None:
        new = None if change.new is None else version_of(change.new)
        old = None if change.old is None else version_of(change.old)
        if new is not None and old != known:
            self.problems.append(f"{key}: the old state is {old}, told before was {known}")
        if new is None and (known is None or old is None or old[0] != known[0]):
            self.problems.append(f"{key}: {old} was deleted, told before was {known}")
        if new is not None and new[1] <= self._newest.get(key, 0):
            self.problems.append(f"{key}: {new} came after version {self._newest[key]}")
        if new is not None and new[0] in self._gone:
            self.problems.append(f"{key}: {new} came after its deletion")
        if new is not None and known is not None and new[0] != known[0]:
            self.problems.append(f"{key}: {new} came without the deletion of {known}")


@dataclass(frozen=True, slots=True)
class Sent:
    """A try of a request; times are the event loop's, ``status`` 0 without an answer."""

    began: float
    ended: float
    verb: str
    status: int


@dataclass(frozen=True, slots=True)
class Watch:
    """An informer, what its handler saw, and what it selects."""

    informer: Informer
    ledger: Ledger
    selection: dict[str, Any]


@dataclass
class Observed:
    """Watches of one client under a fault.

    Attributes:
        fault: its name in the table.
        client: whose watches these are; the fault lies between it and the API server.
        near: a client that the fault does not touch.
        what: what happened, for the table.
    """

    fault: str
    near: KubeClient
    client: KubeClient = field(init=False)
    what: str = ""
    sent: list[Sent] = field(default_factory=list)
    watches: list[Watch] = field(default_factory=list)
    faults: list[float] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    _back: float = 0.0
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    @contextlib.asynccontextmanager
    async def through(
        cls, fault: str, near: KubeClient, kubeconfig: Path, *, record: Callable[[str, Any], None]
    ) -> AsyncIterator[Observed]:
        """Observe a client of a kubeconfig; at the end all that must hold is checked.

        Args:
            fault: its name in the table.
            near: a client that the fault does not touch.
            kubeconfig: how the observed client finds the API server.
            record: pytest's ``record_property``; takes the row of the table.
        """
        seen = cls(fault, near)
        async with KubeClient.connect(
            kubeconfig=kubeconfig, user_agent=AGENT, observe=seen._observe
        ) as client:
            seen.client = client
            try:
                yield seen
            finally:
                for task in seen._tasks:
                    task.cancel()
                await asyncio.gather(*seen._tasks, return_exceptions=True)
        seen._check()
        seen.report(record)

    def _observe(self, verb: str, resource: str, status: int, seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        self.sent.append(Sent(now - seconds, now, verb, status))

    async def watch(
        self, *, resource: Resource = CONFIG_MAP, wait: bool = True, **selection: Any
    ) -> Watch:
        """Start one more watch; by default wait until it is synced."""
        watch = Watch(Informer(self.client, resource, **selection), Ledger(), selection)
        watch.informer.add_handler(watch.ledger)
        self.watches.append(watch)
        self._tasks.append(asyncio.ensure_future(watch.informer.run()))
        if wait:
            async with asyncio.timeout(SETTLE_SECONDS):
                await watch.informer.wait_synced()
        return watch

    # ---- the course of a fault ---------------------------------------------------------------

    def begins(self) -> None:
        """Note that the fault begins, or begins anew."""
        self.faults.append(asyncio.get_running_loop().time())

    def back(self) -> None:
        """Note that the server can be reached again."""
        self._back = asyncio.get_running_loop().time()

    @property
    def began(self) -> float:
        """When the fault began for the first time; the beginning of all time before it."""
        return self.faults[0] if self.faults else 0.0

    @property
    def noticed(self) -> float | None:
        """Seconds from a fault to the first new request, the most of all; None without one."""
        ends = [*self.faults[1:], float("inf")]
        first = [
            min(
                (each.began - begin for each in self.sent if begin < each.began < end), default=None
            )
            for begin, end in zip(self.faults, ends, strict=True)
        ]
        return max((seconds for seconds in first if seconds is not None), default=None)

    async def wait_noticed(self, seconds: float) -> None:
        """Wait for the first new request under the fault, at most so long."""
        await eventually(lambda: self.noticed is not None, seconds=seconds)

    async def caught_up(self, *, seconds: float = SETTLE_SECONDS) -> None:
        """Wait until handlers and stores are where the API server is, and note how long it took.

        Noted is the longer of two times: from the server's return until the watches were open
        again, and from this call, when all changes are written, until the last one was told.
        """
        asked = asyncio.get_running_loop().time()
        truths = [await self._truth(watch) for watch in self.watches]
        pairs = list(zip(self.watches, truths, strict=True))
        try:
            await eventually(
                lambda: all(_state(watch) == (truth, truth) for watch, truth in pairs),
                seconds=seconds,
            )
        except TimeoutError:
            missing = [
                {"told": _less(told, truth), "stored": _less(stored, truth)}
                for (told, stored), truth in ((_state(watch), truth) for watch, truth in pairs)
            ]
            raise AssertionError(
                f"{self.fault}: not caught up after {seconds} s: {missing}"
            ) from None
        if not self._back:
            return
        last = max(watch.ledger.last for watch in self.watches)
        opened = [e.ended for e in self.sent if e.status == 200 and e.ended > self._back]
        reopened = sorted(opened)[: len(self.watches)][-1:]
        self.recoveries.append(max(0.0, last - asked, *(each - self._back for each in reopened)))

    async def _truth(self, watch: Watch) -> dict[Key, Version]:
        selection = {**watch.selection}
        for name in ("transform", "indexes"):
            selection.pop(name, None)
        selection["metadata_only"] = True
        found = await self.near.list(watch.informer.resource, **selection)
        return {
            (each["metadata"].get("namespace") or "", each["metadata"]["name"]): version_of(each)
            for each in found["items"]
        }

    # ---- what must hold ----------------------------------------------------------------------

    def _check(self) -> None:
        problems = [each for watch in self.watches for each in watch.ledger.problems]
        assert problems == [], self.fault
        allowed = REQUESTS_A_MINUTE * max(1, len(self.watches))
        assert self.busiest_minute <= allowed, self.fault

    @property
    def busiest_minute(self) -> int:
        """The most requests in any 60 s since the fault began."""
        times = sorted(each.began for each in self.sent if each.began >= self.began)
        first, most = 0, 0
        for number, moment in enumerate(times):
            while moment - times[first] > 60:
                first += 1
            most = max(most, number - first + 1)
        return most

    @property
    def requests(self) -> int:
        """Requests since the fault began."""
        return sum(each.began >= self.began for each in self.sent)

    def report(self, record: Callable[[str, Any], None]) -> None:
        """Hand over the row of the table."""
        row = {
            "fault": self.fault,
            "what happened": self.what,
            "notice s": self.noticed,
            "recover s": max(self.recoveries, default=None),
            "requests": self.requests,
            "busiest minute": self.busiest_minute,
        }
        record(NAME, row)


def _state(watch: Watch) -> tuple[dict[Key, Version], dict[Key, Version]]:
    """Return what the handler was told and what the store holds."""
    if len(watch.ledger.alive) != len(watch.informer.store):
        return watch.ledger.alive, {}
    stored = {
        (each["metadata"].get("namespace") or "", each["metadata"]["name"]): version_of(each)
        for each in watch.informer.store.list()
    }
    return watch.ledger.alive, stored


def _less(mine: dict[Key, Version], truth: dict[Key, Version]) -> dict[str, Any]:
    differ = {key for key in mine.keys() | truth.keys() if mine.get(key) != truth.get(key)}
    return {str(key): (mine.get(key), truth.get(key)) for key in sorted(differ)[:5]}


# ---- changes that a watch must not miss ------------------------------------------------------


def config_map(name: str, value: str = "", **labels: str) -> JsonObject:
    """Return a ConfigMap with one value and labels."""
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"x": value}}


async def prepare(near: KubeClient, namespace: str, mark: str = "c", **labels: str) -> None:
    """Make the objects that ``change`` needs."""
    for name in ("stays", "changes", "goes", "again"):
        body = config_map(f"{mark}-{name}", "1", **labels)
        await near.create(CONFIG_MAP, body, namespace=namespace)


async def change(near: KubeClient, namespace: str, mark: str = "c", **labels: str) -> None:
    """Change, delete, delete and make again, make and delete, and make objects."""
    for value in ("2", "3"):
        patch = {"data": {"x": value}}
        await near.merge_patch(CONFIG_MAP, f"{mark}-changes", patch, namespace=namespace)
    await near.delete(CONFIG_MAP, f"{mark}-goes", namespace=namespace)
    await near.delete(CONFIG_MAP, f"{mark}-again", namespace=namespace)
    for name in ("again", "new", "flash"):
        body = config_map(f"{mark}-{name}", "2", **labels)
        await near.create(CONFIG_MAP, body, namespace=namespace)
    await near.delete(CONFIG_MAP, f"{mark}-flash", namespace=namespace)


async def ready(lab: Lab, *, seconds: float = 60.0) -> None:
    """Wait until the API server of a lab is ready, looking every few milliseconds."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(_is_ready, lab):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.02)


def _is_ready(lab: Lab) -> bool:
    try:
        return lab.api.request("GET", "/readyz")[0] == 200
    except LabError:
        return False


def counted_lists(lab: Lab, mark: Mark) -> int:
    """Count the lists of observed clients since a mark, streaming ones too."""
    return sum(
        event.agent == AGENT
        and (
            event.verb == "list"
            or (event.stage == "ResponseStarted" and "sendInitialEvents" in event.uri)
        )
        for event in lab.audit_events(mark)
    )
