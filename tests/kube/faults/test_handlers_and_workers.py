"""Faults on this side: a handler that raises and a worker that hangs, on a real API server."""

import asyncio
import contextlib
from typing import Any

import pytest
import structlog

from controller.flow.worker import Done, Outcome, run_workers
from controller.flow.workqueue import Backoff, WorkQueue
from controller.kube.client import KubeClient
from controller.kube.informer import Change
from controller.model.objects import Key
from tests.kube.conftest import eventually
from tests.kube.faults.conftest import Observe
from tests.kube.faults.observed import (
    CONFIG_MAP,
    Version,
    change,
    config_map,
    prepare,
    version_of,
)
from tests.lab.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]


async def test_a_handler_that_raises_stops_neither_the_watch_nor_other_handlers(
    lab: Lab, cluster: KubeClient, namespace: str, observe: Observe
):
    calls: list[str] = []

    def broken(change: Change) -> None:
        obj = change.new if change.new is not None else change.old
        assert obj is not None
        calls.append(obj["metadata"]["name"])
        raise RuntimeError("handler")

    with structlog.testing.capture_logs() as logs:
        async with observe("a handler that raises", lab, cluster, lab.server) as seen:
            watch = await seen.watch(namespace=namespace)
            watch.informer.add_handler(broken)
            seen.begins()
            seen.back()
            await prepare(cluster, namespace)
            await change(cluster, namespace)
            await seen.caught_up()
            seen.what = f"raised {len(calls)} times, {seen.requests} new requests"
            assert seen.requests == 0
    assert len(calls) >= watch.ledger.changes - 1
    assert sum(entry["log_level"] == "error" for entry in logs) == len(calls)


class Stage:
    """Acts on ConfigMaps by name; the first pass over some of them hangs.

    Attributes:
        acted: the version of the last pass over each key; None for a deletion.
        wrong: what was out of order.
        passes: how many passes there were of each key.
        released: lets the pass end that is deaf to its cancellation.
    """

    def __init__(self, lookup: Any) -> None:
        self._lookup = lookup
        self.acted: dict[str, Version | None] = {}
        self.wrong: list[str] = []
        self.passes: dict[str, int] = {}
        self.released = asyncio.Event()

    async def __call__(self, key: Key) -> Outcome:
        count = self.passes[key.name] = self.passes.get(key.name, 0) + 1
        if key.name == "hangs" and count == 1:
            await asyncio.Event().wait()
        while key.name == "deaf" and count == 1 and not self.released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.released.wait()
        obj = self._lookup(key.name)
        before, now = self.acted.get(key.name), None if obj is None else version_of(obj)
        if before is not None and now is not None and now[1] < before[1]:
            self.wrong.append(f"{key}: {now} after {before}")
        self.acted[key.name] = now
        return Done()


class Nothing:
    """Metrics that count nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


async def test_a_worker_that_hangs_holds_up_nobody_and_its_object_is_acted_on_later(
    lab: Lab, cluster: KubeClient, namespace: str, observe: Observe
):
    """One pass hangs until its deadline, another is deaf to that as well."""
    queue: WorkQueue[Key] = WorkQueue("faults", backoff=Backoff(0.1, 1))
    nothing: Any = Nothing()
    async with observe("workers that hang", lab, cluster, lab.server) as seen:
        watch = await seen.watch(namespace=namespace)
        stage = Stage(watch.informer.store.get)
        watch.informer.add_handler(lambda each: queue.add(Key("ConfigMap", name(each))))
        seen.begins()
        workers = run_workers(
            name="faults",
            queue=queue,
            stage=stage,
            count=2,
            deadline=1.0,
            hand_over=lambda *_: None,
            report=lambda *_: None,
            metrics=nothing,
            grace=0.5,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(workers)
            for each in ("hangs", "deaf"):
                await cluster.create(CONFIG_MAP, config_map(each, "1"), namespace=namespace)
            await eventually(lambda: {"hangs", "deaf"} <= stage.passes.keys())
            seen.back()
            await prepare(cluster, namespace)
            await change(cluster, namespace)
            await seen.caught_up()
            others = {key[1] for key in watch.ledger.alive} - {"deaf"}
            await eventually(lambda: settled(stage, watch.informer.store.get, others))
            held = asyncio.get_running_loop().time() - seen.began
            assert "deaf" not in stage.acted
            stage.released.set()
            await eventually(lambda: settled(stage, watch.informer.store.get, {*others, "deaf"}))
            assert stage.acted["c-goes"] is None
            queue.shut_down()
        seen.what = f"2 of 2 workers hung, all other objects acted on after {held:.1f} s"
    assert stage.wrong == []
    assert stage.passes["hangs"] == 2


def name(change: Change) -> str:
    """Return the name of the object that changed."""
    obj = change.new if change.new is not None else change.old
    assert obj is not None
    value: str = obj["metadata"]["name"]
    return value


def settled(stage: Stage, lookup: Any, names: set[str]) -> bool:
    """Whether the newest state of each object was acted on."""
    return all(
        each in stage.acted and stage.acted[each] == version_of(lookup(each)) for each in names
    )
