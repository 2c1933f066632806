"""Informers of many kinds: those started on demand, and those the manager always runs."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from controller.kube import informers as module
from controller.kube.client import ApiError, KubeClient
from controller.kube.informer import Change, Informer
from controller.kube.informers import MetadataInformers
from controller.kube.reflector import Reflector
from controller.kube.requests import label
from controller.kube.watches import Watches
from controller.model.objects import CRD, SECRET, JsonObject, Resource
from tests.fakes.clock import VirtualTimeLoop
from tests.kube.conftest import eventually, running
from tests.lab.lab import Lab

THING = Resource("example.org", "v1", "things", "Thing")
OTHER = Resource("example.org", "v1", "others", "Other")


def obj(name: str, version: int = 1, **more: Any) -> JsonObject:
    metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"metadata": {**metadata, **more}}


class Kinds:
    """On-demand informers that a test feeds itself, and what was told of them."""

    def __init__(self, client: Any = None) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self.changes: list[tuple[Resource, Change]] = []
        self.informers = MetadataInformers(
            client, start=self._start, on_change=lambda *told: self.changes.append(told)
        )

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.ensure_future(work))
        return self.tasks[-1]

    def of(self, resource: Resource) -> Informer:
        return self.informers._watches[resource].informer

    async def fill(self, resource: Resource, *objects: JsonObject, version: str = "10") -> None:
        informer = self.of(resource)
        prepared = [informer.prepare(each) for each in objects]
        await informer.replace({informer.key(each): each for each in prepared if each}, version)

    async def ensured(self, resource: Resource, *objects: JsonObject) -> None:
        waiting = asyncio.ensure_future(self.informers.ensure(resource))
        await asyncio.sleep(0)
        await self.fill(resource, *objects)
        await waiting

    def deletions(self) -> list[str]:
        return [c.old["metadata"]["name"] for _, c in self.changes if c.old and c.new is None]

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def kinds(client: KubeClient | None = None) -> AsyncIterator[Kinds]:
    made = Kinds(client)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Informers run and are given nothing."""

    async def run(_: Reflector) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(Reflector, "run", run)


def in_virtual_time(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main)


pytestmark = pytest.mark.usefixtures("_no_environment")


# ---- kinds on demand -----------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_server")
async def test_a_kind_is_watched_once_however_many_need_it():
    async with kinds() as made:
        waiting = [asyncio.ensure_future(made.informers.ensure(THING)) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in waiting)
        await made.fill(THING, obj("a"))
        await asyncio.gather(*waiting)
        await made.informers.ensure(THING)
        assert len(made.tasks) == 1
        assert made.informers.get(THING, "a") is not None
        assert made.informers.figures()["things.example.org"].objects == 1


@pytest.mark.usefixtures("_no_server")
def test_a_kind_whose_list_does_not_come_is_given_up_and_tried_anew():
    async def main() -> None:
        async with kinds() as made:
            with pytest.raises(
                ApiError, match=r"did not list things\.example\.org in 60 s"
            ) as error:
                await made.informers.ensure(THING)
            assert error.value.retryable
            await asyncio.sleep(0)
            assert made.tasks[0].cancelled()
            assert made.informers.figures() == {}
            assert made.informers.silent(0) == []
            await made.ensured(THING, obj("a"))
            assert made.informers.get(THING, "a") is not None

    in_virtual_time(main())


@pytest.mark.usefixtures("_no_server")
def test_who_gives_up_waiting_leaves_the_watch_to_the_others():
    async def main() -> None:
        async with kinds() as made:
            first = asyncio.ensure_future(made.informers.ensure(THING))
            await asyncio.sleep(50)
            second = asyncio.ensure_future(made.informers.ensure(THING))
            await asyncio.sleep(20)
            assert isinstance(first.exception(), ApiError)
            await made.fill(THING, obj("a"))
            await second
            assert len(made.tasks) == 1

    in_virtual_time(main())


@pytest.mark.usefixtures("_no_server")
async def test_a_cancelled_wait_leaves_no_watch_behind():
    async with kinds() as made:
        waiting = asyncio.ensure_future(made.informers.ensure(THING))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, *made.tasks, return_exceptions=True)
        assert made.informers.figures() == {}


@pytest.mark.usefixtures("_no_server")
async def test_a_kind_whose_definition_is_deleted_is_watched_no_more():
    async with kinds() as made:
        await made.ensured(CRD, obj(label(THING)), obj(label(OTHER)))
        await made.ensured(THING, obj("a"), obj("b"))
        await made.ensured(OTHER, obj("c"))
        made.informers.note(THING, obj("d", version=20))
        made.of(CRD).apply("DELETED", obj(label(THING), version=11))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert set(made.informers.figures()) == {label(CRD), label(OTHER)}
        assert made.tasks[1].cancelled()
        assert sorted(made.deletions()) == ["a", "b", label(THING)]
        assert [made.informers.get(THING, name) for name in ("a", "d")] == [None, None]
        made.informers.note(THING, obj("d", version=20))  # a write whose answer comes late
        await made.ensured(THING)
        assert made.informers.get(THING, "d") is None


@pytest.mark.usefixtures("_no_server")
def test_a_silent_kind_is_named():
    async def main() -> None:
        async with kinds() as made:
            await made.ensured(THING)
            await made.ensured(OTHER)
            await asyncio.sleep(100)
            made.of(OTHER).progress("11")
            await asyncio.sleep(50)
            assert made.informers.silent(200) == []
            assert made.informers.silent(150) == ["things.example.org"]
            assert made.informers.silent(50) == ["things.example.org", "others.example.org"]

    in_virtual_time(main())


@pytest.mark.usefixtures("_no_server")
def test_a_kind_that_is_not_served_any_more_is_not_called_silent():
    async def main() -> None:
        async with kinds() as made:
            await made.ensured(THING)
            await asyncio.sleep(200)
            assert made.informers.silent(150) == ["things.example.org"]
            made.of(THING)._reflector.served = False
            assert made.informers.silent(150) == []

    in_virtual_time(main())


# ---- our own writes ------------------------------------------------------------------------------


@pytest.mark.usefixtures("_no_server")
async def test_s9_our_own_write_counts_until_the_watch_has_seen_it():
    async with kinds() as made:
        await made.ensured(THING, obj("a"))
        written = obj("a", version=12, labels={"x": "y"}, managedFields=[{}])
        made.informers.note(THING, written)
        found = made.informers.get(THING, "a")
        assert found is not None
        assert (found["kind"], found["metadata"]["labels"]) == ("Thing", {"x": "y"})
        assert "managedFields" not in found["metadata"]
        assert "managedFields" in written["metadata"]
        made.of(THING).apply("MODIFIED", obj("a", version=11))
        made.of(THING).progress("11")
        assert made.informers.get(THING, "a") is found
        made.of(THING).apply("MODIFIED", obj("a", version=12))
        assert made.informers.get(THING, "a") is made.of(THING).store.get("a")
        assert made.informers._written == {}


@pytest.mark.usefixtures("_no_server")
async def test_s9_a_bookmark_shows_that_a_written_object_is_gone():
    async with kinds() as made:
        await made.ensured(THING)
        made.informers.note(THING, obj("a", version=12))
        assert made.informers.get(THING, "a") is not None
        made.of(THING).progress("13")
        assert made.informers.get(THING, "a") is None
        made.informers.note(THING, obj("b", version=13))
        assert made.informers.get(THING, "b") is None


# ---- what is kept --------------------------------------------------------------------------------

APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def owned(name: str, owner: str = "p") -> JsonObject:
    return obj(
        name,
        ownerReferences=[{"kind": "Provider", "name": owner, "uid": owner}],
        managedFields=[{"manager": "x"}],
        annotations={APPLIED: "{}", "kept": "yes"},
    )


@pytest.mark.usefixtures("_no_server")
async def test_s6_what_nobody_reads_is_not_kept_and_equal_owners_are_kept_once():
    async with kinds() as made:
        await made.ensured(THING, owned("a"), owned("b"), owned("c", "q"), obj("d"))
        a, b, c, _ = (each["metadata"] for each in made.of(THING).store.list())
        assert "managedFields" not in a
        assert a["annotations"] == {"kept": "yes"}
        assert a["ownerReferences"] is b["ownerReferences"]
        assert c["ownerReferences"] == owned("c", "q")["metadata"]["ownerReferences"]


async def test_s6_compacting_twice_is_the_same_as_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SHARED_MAX", 2)
    made = Kinds()
    for number in range(5):
        once = made.informers._compact(owned("a", str(number)))
        twice = made.informers._compact({**once, "metadata": {**once["metadata"]}})
        assert twice == once
        assert len(made.informers._shared) <= 2


# ---- the kinds that are always watched -----------------------------------------------------------


@pytest.mark.usefixtures("_no_server")
def test_all_watches_tell_who_is_unsynced_and_who_is_silent():
    async def main() -> None:
        client: Any = None
        watches = Watches(client, namespace="ns", resync=3600.0)
        seen: list[Change] = []
        registration = watches.on("Secret", seen.append)
        informer = watches._informers["Secret"]
        assert {each._resync for each in watches._informers.values()} == {3600.0}
        async with running(*watches.runs()):
            await asyncio.sleep(100)
            prepared = informer.prepare(obj("a", namespace="ns", managedFields=[]))
            assert prepared is not None
            await informer.replace({("ns", "a"): prepared}, "5")
            assert registration.synced
            assert "Secret" not in watches.unsynced()
            assert len(watches.unsynced()) == len(watches.stores) - 1
            assert set(watches.silent(100)) == set(watches.stores) - {"Secret"}
            assert watches.silent(101) == []
            assert watches.figures()["Secret"].objects == 1
            await asyncio.sleep(2 * 3600)
        assert seen[0] == Change(None, obj_of(watches), initial=True)
        assert seen[1] == Change(obj_of(watches), obj_of(watches))

    in_virtual_time(main())


def obj_of(watches: Watches) -> JsonObject:
    found = watches.stores[SECRET.kind].get("a")
    assert found is not None
    assert "managedFields" not in found["metadata"]
    return found


# ---- on a real API server ------------------------------------------------------------------------


def definition(group: str) -> JsonObject:
    schema = {"openAPIV3Schema": {"type": "object"}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    names = {"plural": "things", "singular": "thing", "kind": "Thing", "listKind": "ThingList"}
    return {
        "apiVersion": CRD.api_version,
        "kind": CRD.kind,
        "metadata": {"name": f"things.{group}"},
        "spec": {"group": group, "scope": "Cluster", "names": names, "versions": [version]},
    }


@pytest.mark.lab
async def test_a_deleted_definition_ends_the_watch_of_its_kind(cluster: KubeClient, namespace: str):
    thing = Resource(f"{namespace}.example.org", "v1", "things", "Thing")
    name = label(thing)
    await cluster.create(CRD, definition(thing.group))
    body = {"apiVersion": thing.api_version, "kind": "Thing", "metadata": {"name": "a"}}

    async with kinds(cluster) as made:
        await made.informers.ensure(CRD)
        await made.informers.ensure(thing)
        await cluster.create(thing, body)
        await eventually(lambda: made.informers.get(thing, "a"))
        await cluster.delete(CRD, name)
        await eventually(lambda: name not in made.informers.figures())
        await eventually(lambda: {"a", name} <= set(made.deletions()))
        assert made.informers.get(thing, "a") is None


@pytest.mark.lab
async def test_a_kind_that_is_not_served_costs_few_requests_and_then_none(
    lab: Lab, cluster: KubeClient, namespace: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "SYNC_DEADLINE", 3.0)
    thing = Resource(f"{namespace}.example.org", "v1", "things", "Thing")

    def requests() -> int:
        return sum(thing.group in event.raw["requestURI"] for event in lab.audit_events(mark))

    mark = lab.mark()
    async with kinds(cluster) as made:
        with pytest.raises(ApiError, match="did not list things"):
            await made.informers.ensure(thing)
        count = await asyncio.to_thread(requests)
        assert 1 <= count <= 5
        await asyncio.sleep(3)
        assert await asyncio.to_thread(requests) <= count + 1
