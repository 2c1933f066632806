import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from controller.kube import informer as module
from controller.kube import transport
from controller.kube.client import KubeClient
from controller.kube.informer import Change, Informer, Registration
from controller.kube.watches import without_managed_fields
from controller.model.objects import CRD, JsonObject, Resource
from tests.fakes.clock import VirtualTimeLoop
from tests.fakes.wire import Wire
from tests.kube import kubeconfig
from tests.kube.conftest import eventually, running
from tests.lab.lab import Lab

CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap", namespaced=True)


def obj(name: str, *, version: int = 1, uid: str = "", **labels: str) -> JsonObject:
    metadata = {"name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    return {"metadata": {**metadata, "labels": labels}}


def unconnected(**options: Any) -> tuple[Informer, list[Change]]:
    """An informer that a test feeds itself, and what its handler saw."""
    client: Any = None
    informer = Informer(client, CRD, **options)
    changes: list[Change] = []
    informer.add_handler(changes.append)
    return informer, changes


def named(changes: list[Change]) -> list[tuple[str, str]]:
    found = []
    for change in changes:
        kind = "delete" if change.new is None else "add" if change.old is None else "update"
        found.append((kind, (change.new or change.old or {})["metadata"]["name"]))
    return found


async def listed(informer: Informer, *objects: JsonObject) -> None:
    prepared = [informer.prepare(each) for each in objects]
    await informer.replace({informer.key(each): each for each in prepared if each}, "10")


# ---- delivery ------------------------------------------------------------------------------------


async def test_s1_the_store_has_changed_when_a_handler_runs():
    informer, _ = unconnected()
    seen: list[JsonObject | None] = []
    informer.add_handler(lambda change: seen.append(informer.store.get("a")))
    informer.apply("ADDED", obj("a", version=1))
    informer.apply("MODIFIED", obj("a", version=2))
    informer.apply("DELETED", obj("a", version=3))
    assert [o and o["metadata"]["resourceVersion"] for o in seen] == ["1", "2", None]


async def test_s1_a_new_list_too_is_in_the_store_before_its_handlers_run():
    informer, _ = unconnected()
    await listed(informer, obj("a"), obj("gone"))
    agrees: list[bool] = []

    def compare(change: Change) -> None:
        name = (change.new or change.old or {})["metadata"]["name"]
        agrees.append(informer.store.get(name) is change.new)

    informer.add_handler(compare)
    await listed(informer, obj("a", version=2), obj("b"))
    assert agrees == [True] * 5  # what was there: two; gone, a and b


async def test_s2_events_of_an_object_come_in_order_and_none_is_merged_away():
    informer, changes = unconnected()
    versions = range(1, 50)
    for version in versions:
        for name in ("a", "b"):
            informer.apply("MODIFIED", obj(name, version=version))
    informer.apply("DELETED", obj("a", version=50))
    informer.apply("ADDED", obj("a", version=51, uid="another"))
    of_a = [c for c in changes if (c.new or c.old or {})["metadata"]["name"] == "a"]
    found = [c.new and c.new["metadata"]["resourceVersion"] for c in of_a]
    assert found == [*map(str, versions), None, "51"]
    for before, after in itertools.pairwise(of_a[:-1]):
        assert after.new is None or after.old is before.new


async def test_s3_vanished_objects_are_deleted_first_with_their_last_state():
    informer, changes = unconnected()
    await listed(informer, obj("a"), obj("b"), obj("same"))
    last = informer.store.get("a")
    changes.clear()
    await listed(informer, obj("b", version=2), obj("c"), obj("same"))
    assert named(changes) == [("delete", "a"), ("update", "b"), ("add", "c")]
    assert changes[0].old is last


async def test_s3_an_empty_list_deletes_everything():
    informer, changes = unconnected()
    await listed(informer, obj("a"), obj("b"))
    changes.clear()
    await listed(informer)
    assert sorted(named(changes)) == [("delete", "a"), ("delete", "b")]
    assert len(informer.store) == 0


async def test_s3_an_object_deleted_and_made_again_is_delivered_as_both():
    informer, changes = unconnected()
    await listed(informer, obj("a", uid="one"))
    changes.clear()
    await listed(informer, obj("a", uid="two", version=5))
    informer.apply("ADDED", obj("a", uid="three", version=9))
    kinds = ["delete", "add", "delete", "add"]
    assert named(changes) == [(kind, "a") for kind in kinds]


async def test_s4_synced_means_that_handlers_have_seen_everything():
    informer, changes = unconnected()
    when: list[bool] = []
    registration = informer.add_handler(lambda _: when.append(informer.synced))
    assert not registration.synced
    before = informer.synced
    await listed(informer, obj("a"), obj("b"))
    assert (before, informer.synced, registration.synced) == (False, True, True)
    assert when == [False, False]
    assert len(changes) == 2


async def test_s4_an_empty_list_counts():
    informer, _ = unconnected()
    registration = informer.add_handler(lambda _: None)
    await listed(informer)
    assert informer.synced
    assert registration.synced


async def test_s4_single_events_before_the_list_do_not_count():
    informer, _ = unconnected()
    registration = informer.add_handler(lambda _: None)
    informer.apply("ADDED", obj("a"))
    informer.apply("DELETED", obj("a"))
    assert not informer.synced
    assert not registration.synced


async def test_s4_what_belongs_to_the_first_delivery_says_so():
    informer, changes = unconnected()
    await listed(informer, obj("a"), obj("b"))
    late: list[Change] = []
    informer.add_handler(late.append)
    informer.apply("MODIFIED", obj("a", version=2))
    informer.apply("ADDED", obj("c", version=3))
    await listed(informer, obj("a", version=4), obj("d", version=4))
    assert [c.initial for c in changes] == [True] * 2 + [False] * 6
    assert [c.initial for c in late] == [True] * 2 + [False] * 6


async def test_s5_a_known_object_that_is_added_is_an_update_and_an_unknown_one_may_be_deleted():
    informer, changes = unconnected()
    informer.apply("ADDED", obj("a", version=1))
    informer.apply("ADDED", obj("a", version=2))
    informer.apply("DELETED", obj("b", version=3))
    assert named(changes) == [("add", "a"), ("update", "a"), ("delete", "b")]
    assert changes[1].old is changes[0].new
    assert len(informer.store) == 1


async def test_s5_a_deletion_carries_the_final_state():
    informer, changes = unconnected()
    informer.apply("ADDED", obj("a", version=1))
    final = obj("a", version=2, done="yes")
    informer.apply("DELETED", final)
    assert changes[-1] == Change(final, None)


async def test_s6_a_transform_runs_once_before_the_store_and_may_fail():
    calls = []

    def strip(received: JsonObject) -> JsonObject:
        calls.append(received["metadata"]["name"])
        if received["metadata"]["name"] == "odd":
            raise ValueError("no")
        return {"metadata": received["metadata"], "kept": True}

    informer, changes = unconnected(transform=strip)
    with structlog.testing.capture_logs() as logs:
        await listed(informer, obj("a"), obj("odd"))
    assert calls == ["a", "odd"]
    assert changes[0].new == informer.store.get("a")
    assert (informer.store.get("a") or {})["kept"]
    assert informer.store.get("odd") is not None
    assert [entry["event"] for entry in logs] == ["transform failed"]


async def test_s6_neither_a_new_handler_nor_a_resync_transforms_again():
    calls: list[str] = []

    def count(received: JsonObject) -> JsonObject:
        calls.append(received["metadata"]["name"])
        return received

    informer, _ = unconnected(transform=count)
    await listed(informer, obj("a"))
    informer.add_handler(lambda _: None)
    assert calls == ["a"]


def test_s6_the_transform_twice_is_the_same_as_once():
    received = obj("a")
    received["metadata"]["managedFields"] = [{"manager": "x"}]
    once = without_managed_fields(received)
    assert once == obj("a")
    assert without_managed_fields(once) == obj("a")


async def test_s10_a_handler_that_raises_is_logged_and_counted_and_hurts_nobody():
    client: Any = None
    informer = Informer(client, CRD)
    seen: list[Change] = []

    def broken(_: Change) -> None:
        raise RuntimeError("handler")

    failing = informer.add_handler(broken)
    informer.add_handler(seen.append)
    with structlog.testing.capture_logs() as logs:
        informer.apply("ADDED", obj("a"))
        await listed(informer, obj("a"), obj("b"))
    assert named(seen) == [("add", "a"), ("add", "b")]
    assert [(entry["event"], entry["name"]) for entry in logs] == [
        ("handler failed", "a"),
        ("handler failed", "b"),
    ]
    assert informer.figures().handler_failures == 2
    assert failing.synced


async def test_a_handler_that_nobody_would_await_is_refused():
    informer, _ = unconnected()

    async def handler(_: Change) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="plain functions"):
        informer.add_handler(handler)  # type: ignore[arg-type]  # that is the point


async def test_a_long_list_lets_other_tasks_run():
    informer, _ = unconnected()
    informer.add_handler(lambda _: time.sleep(0.0005))
    waits: list[float] = []

    async def heartbeat() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            waits.append(time.perf_counter() - before)

    async with running(heartbeat()):
        await listed(informer, *(obj(f"o{number}") for number in range(500)))
    assert len(waits) > 10


# ---- handlers that come and go -------------------------------------------------------------------


@pytest.fixture
def _one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliver one object in a slice."""
    monkeypatch.setattr(module, "DELIVERY_SECONDS", 0.0)


async def filled(*stored: str) -> Informer:
    informer, _ = unconnected()
    await listed(informer, *map(obj, stored))
    return informer


async def test_a_handler_that_comes_later_sees_what_is_there_at_once():
    informer = await filled("a", "b")
    late: list[Change] = []
    registration = informer.add_handler(late.append)
    assert late == [Change(None, stored, initial=True) for stored in informer.store.list()]
    assert registration.synced


@pytest.mark.usefixtures("_one_by_one")
async def test_s4_a_late_handler_has_a_flag_of_its_own():
    informer = await filled("a", "b", "c")
    late: list[Change] = []
    registration = informer.add_handler(late.append)
    assert informer.synced
    steps = [(len(late), registration.synced)]
    for _ in range(3):
        await asyncio.sleep(0)
        steps.append((len(late), registration.synced))
    assert steps == [(1, False), (2, False), (3, True), (3, True)]
    await asyncio.wait_for(registration.wait_synced(), 1)


@pytest.mark.usefixtures("_one_by_one")
async def test_s2_what_changes_before_its_turn_is_delivered_once_in_its_newest_state():
    informer = await filled("a", "b", "c", "d")
    late: list[Change] = []
    registration = informer.add_handler(late.append)
    informer.apply("MODIFIED", obj("a", version=2))  # seen: a change
    informer.apply("MODIFIED", obj("b", version=3))  # its turn comes
    informer.apply("DELETED", obj("c", version=4))  # never heard of
    informer.apply("ADDED", obj("e", version=5))  # new to all
    informer.apply("DELETED", obj("d", version=6))
    informer.apply("ADDED", obj("d", version=7, uid="another"))
    await registration.wait_synced()
    informer.apply("MODIFIED", obj("b", version=8))
    found = [(kind, name, c.initial) for (kind, name), c in zip(named(late), late, strict=True)]
    assert found == [
        ("add", "a", True),
        ("update", "a", False),
        ("add", "e", False),
        ("add", "d", False),
        ("add", "b", True),
        ("update", "b", False),
    ]
    assert [(c.new or {})["metadata"]["resourceVersion"] for c in late] == list("125738")


@pytest.mark.usefixtures("_one_by_one")
async def test_s4_a_handler_that_comes_during_the_first_list_waits_for_all_of_it():
    informer, changes = unconnected()
    late: list[Change] = []
    registrations: list[Registration] = []

    def join(_: Change) -> None:
        if len(changes) == 3:
            registrations.append(informer.add_handler(late.append))

    informer.add_handler(join)
    await listed(informer, *map(obj, "abcde"))
    assert [informer.synced, registrations[0].synced] == [True, False]
    await registrations[0].wait_synced()
    assert sorted(named(late)) == [("add", name) for name in "abcde"]
    assert all(change.initial for change in late)


@pytest.mark.usefixtures("_one_by_one")
async def test_s4_a_handler_is_synced_when_the_rest_has_been_deleted():
    informer = await filled("a", "b")
    registration = informer.add_handler(lambda _: None)
    informer.apply("DELETED", obj("b", version=2))
    await asyncio.wait_for(registration.wait_synced(), 1)


async def test_a_removed_handler_is_called_no_more():
    informer = await filled("a")
    seen: list[Change] = []
    registration = informer.add_handler(seen.append)
    registration.remove()
    registration.remove()
    informer.apply("MODIFIED", obj("a", version=2))
    assert named(seen) == [("add", "a")]
    assert len(informer._registrations) == 1


@pytest.mark.usefixtures("_one_by_one")
async def test_a_handler_that_is_removed_during_its_first_delivery_is_called_no_more():
    informer = await filled("a", "b", "c")
    seen: list[Change] = []
    registration = informer.add_handler(seen.append)
    registration.remove()
    for _ in range(5):
        await asyncio.sleep(0)
    assert named(seen) == [("add", "a")]
    assert not registration.synced


async def test_a_handler_may_remove_others_and_itself():
    informer, _ = unconnected()
    seen: list[Change] = []
    registrations: list[Registration] = []

    def last(_: Change) -> None:
        for registration in registrations:
            registration.remove()

    registrations += [informer.add_handler(last), informer.add_handler(seen.append)]
    informer.apply("ADDED", obj("a"))
    informer.apply("ADDED", obj("b"))
    assert seen == []


async def test_a_late_handler_of_many_objects_lets_other_tasks_run():
    informer = await filled(*(f"o{number}" for number in range(200)))
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with running(count()):
        registration = informer.add_handler(lambda _: time.sleep(0.001))
        await registration.wait_synced()
    assert turns > 20


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abcd"), st.sampled_from(["one", "two"])),
        st.tuples(st.just("delete"), st.sampled_from("abcd"), st.just("")),
        st.tuples(st.just("list"), st.sets(st.sampled_from("abcd")).map(sorted), st.just("")),
        st.tuples(st.just("join"), st.just(""), st.just("")),
        st.tuples(st.just("pause"), st.just(""), st.just("")),
    ),
    max_size=40,
)


class Mirror:
    """Rebuilds the objects from the changes that a handler is told, and checks each one."""

    def __init__(self, informer: Informer) -> None:
        self.objects: dict[str, JsonObject] = {}
        self._informer = informer
        self.registration = informer.add_handler(self.take)

    def take(self, change: Change) -> None:
        obj = change.new or change.old
        assert obj is not None
        name = obj["metadata"]["name"]
        assert self._informer.store.get(name) is change.new
        if change.new is None:
            self.objects.pop(name, None)
            return
        assert self.objects.get(name) is change.old
        self.objects[name] = change.new


@given(STEPS)
def test_s1_s2_every_handler_can_rebuild_the_store_from_its_changes(steps: list[Any]):
    async def main() -> None:
        client: Any = None
        informer = Informer(client, CRD)
        mirrors = [Mirror(informer)]
        for version, (act, what, uid) in enumerate(steps, 1):
            match act:
                case "put":
                    informer.apply("MODIFIED", obj(what, version=version, uid=uid))
                case "delete":
                    informer.apply("DELETED", obj(what, version=version))
                case "list":
                    await listed(informer, *(obj(name, version=version) for name in what))
                case "join":
                    mirrors.append(Mirror(informer))
                case _:
                    await asyncio.sleep(0)
        await listed(informer, *informer.store.list())
        for mirror in mirrors:
            await asyncio.wait_for(mirror.registration.wait_synced(), 10)
            assert list(mirror.objects.values()) == unsorted(informer, mirror)
        assert informer.figures().handler_failures == 0

    def unsorted(informer: Informer, mirror: Mirror) -> list[JsonObject | None]:
        assert len(informer.store) == len(mirror.objects)
        return [informer.store.get(name) for name in mirror.objects]

    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setattr(module, "DELIVERY_SECONDS", 0.0)
        runner.run(main())


# ---- resync, signs of life -----------------------------------------------------------------------


def in_virtual_time(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main)


def without_server(**options: Any) -> tuple[Informer, list[Change]]:
    """An informer that can run, and what its handler saw."""
    informer, changes = unconnected(**options)
    informer._reflector.run = asyncio.Event().wait  # type: ignore[method-assign,assignment]  # no server
    return informer, changes


def test_r13_a_resync_delivers_the_store_as_updates_that_change_nothing():
    async def main() -> None:
        informer, changes = without_server(resync=100.0)
        await listed(informer, obj("a"), obj("b"))
        changes.clear()
        async with running(informer.run()):
            await asyncio.sleep(89)
            assert changes == []
            await asyncio.sleep(22)
            assert [(c.old, c.new, c.initial) for c in changes] == [
                (stored, stored, False) for stored in informer.store.list()
            ]
            assert all(c.old is c.new for c in changes)
            await asyncio.sleep(1000)
            assert 2 * 9 <= len(changes) <= 2 * 12
        count = len(changes)
        await asyncio.sleep(1000)
        assert len(changes) == count

    in_virtual_time(main())


def test_r13_a_resync_that_takes_longer_than_its_time_is_not_stacked():
    async def main() -> None:
        informer, changes = without_server(resync=10.0)
        await listed(informer, *map(obj, "abc"))
        changes.clear()
        loop: Any = asyncio.get_running_loop()

        def slow(change: Change) -> None:
            if change.old is change.new:
                loop._jumping.now += 30.0

        informer.add_handler(slow)
        async with running(informer.run()):
            await asyncio.sleep(500)
        assert [name for _, name in named(changes[:9])] == list("abcabcabc")

    in_virtual_time(main())


def test_r13_without_it_nothing_is_delivered_again():
    async def main() -> None:
        informer, changes = without_server()
        await listed(informer, obj("a"))
        async with running(informer.run()):
            await asyncio.sleep(100_000)
        assert len(changes) == 1

    in_virtual_time(main())


def test_silence_is_counted_from_the_start_and_from_every_sign_of_life():
    async def main() -> None:
        informer, _ = without_server()
        assert informer.silent_seconds() == 0
        await asyncio.sleep(50)
        assert informer.silent_seconds() == 0
        async with running(informer.run()):
            await asyncio.sleep(30)
            assert informer.silent_seconds() == pytest.approx(30)
            await listed(informer, obj("a"))
            assert informer.silent_seconds() == 0
            await asyncio.sleep(20)
            informer.progress("11")  # a bookmark
            await asyncio.sleep(5)
            assert informer.silent_seconds() == pytest.approx(5)
            figures = informer.figures()
            assert figures.objects == 1
            assert figures.silent_seconds == pytest.approx(5)

    in_virtual_time(main())


async def test_s9_a_write_counts_as_seen_when_its_handlers_have_been_called():
    informer, changes = unconnected()
    await listed(informer)
    waiting = asyncio.ensure_future(informer.store.wait_seen("11", 30))
    await asyncio.sleep(0)
    informer.apply("ADDED", obj("a", version=11))
    assert not informer.store.seen("11")
    informer.progress("11")
    assert await waiting
    assert named(changes) == [("add", "a")]


# ---- on a real API server ------------------------------------------------------------------------


def config_map(name: str, value: str = "", **labels: str) -> JsonObject:
    metadata = {"name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"x": value}}


def only(changes: list[Change], name: str) -> list[str]:
    return [kind for kind, each in named(changes) if each == name]


def recorded(client: KubeClient, namespace: str, **options: Any) -> tuple[Informer, list[Change]]:
    informer = Informer(client, CONFIG_MAP, namespace=namespace, **options)
    changes: list[Change] = []
    informer.add_handler(changes.append)
    return informer, changes


def value(informer: Informer, name: str) -> str | None:
    found = informer.store.get(name)
    return None if found is None else str(found["data"]["x"])


@pytest.mark.lab
async def test_creations_changes_and_deletions_are_seen(cluster: KubeClient, namespace: str):
    await cluster.create(CONFIG_MAP, config_map("before", "1"), namespace=namespace)
    informer, changes = recorded(cluster, namespace)
    async with running(informer.run()):
        await informer.wait_synced()
        stored = informer.store.get("before")
        assert stored is not None
        assert (stored["apiVersion"], stored["kind"]) == ("v1", "ConfigMap")
        await cluster.create(CONFIG_MAP, config_map("a", "1"), namespace=namespace)
        written = await cluster.merge_patch(
            CONFIG_MAP, "a", {"data": {"x": "2"}}, namespace=namespace
        )
        await eventually(lambda: value(informer, "a") == "2")
        assert int(informer.store.resource_version) >= int(written["metadata"]["resourceVersion"])
        await cluster.delete(CONFIG_MAP, "a", namespace=namespace)
        await eventually(lambda: only(changes, "a")[-1:] == ["delete"])
    assert only(changes, "a") == ["add", "update", "delete"]
    assert only(changes, "before") == ["add"]


@pytest.mark.lab
async def test_labels_and_fields_select(cluster: KubeClient, namespace: str):
    labelled, labelled_changes = recorded(cluster, namespace, label_selector="team=x")
    field, _ = recorded(cluster, namespace, field_selector="metadata.name=b")
    async with running(labelled.run(), field.run()):
        await labelled.wait_synced()
        await field.wait_synced()
        await cluster.create(CONFIG_MAP, config_map("a", team="x"), namespace=namespace)
        await cluster.create(CONFIG_MAP, config_map("b", team="y"), namespace=namespace)
        await eventually(lambda: labelled.store.get("a") and field.store.get("b"))
        relabel = {"metadata": {"labels": {"team": "y"}}}
        await cluster.merge_patch(CONFIG_MAP, "a", relabel, namespace=namespace)
        await eventually(lambda: labelled.store.get("a") is None)
    assert named(labelled_changes) == [("add", "a"), ("delete", "a")]
    assert [each["metadata"]["name"] for each in field.store.list()] == ["b"]


@pytest.mark.lab
async def test_metadata_alone_is_watched_and_named_by_its_own_kind(
    cluster: KubeClient, namespace: str
):
    informer, _ = recorded(cluster, namespace, metadata_only=True)
    await cluster.create(CONFIG_MAP, config_map("before", "1"), namespace=namespace)
    async with running(informer.run()):
        await informer.wait_synced()
        await cluster.create(CONFIG_MAP, config_map("a", "1"), namespace=namespace)
        await eventually(lambda: informer.store.get("a"))
    for name in ("before", "a"):
        stored = informer.store.get(name)
        assert stored is not None
        assert set(stored) == {"apiVersion", "kind", "metadata"}
        assert stored["kind"] == "ConfigMap"


@pytest.mark.lab
async def test_2000_objects_are_listed_by_stream_and_in_pages(cluster: KubeClient, namespace: str):
    names = iter([f"c{number:04}" for number in range(2000)])

    async def create() -> None:
        for name in names:
            body = config_map(name, many="yes")
            await cluster.create(CONFIG_MAP, body, namespace=namespace)

    streamed, changes = recorded(cluster, namespace, label_selector="many")
    async with running(streamed.run()):
        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(create())
        await eventually(lambda: len(streamed.store) == 2000)
        assert len(changes) == 2000
        relisted, _ = recorded(cluster, namespace, label_selector="many")
        paged, _ = recorded(cluster, namespace, label_selector="many")
        state = paged._reflector.state
        paged._reflector.state = type(state)(phase=state.phase.PAGES, streaming=False)
        async with running(relisted.run(), paged.run()):
            await relisted.wait_synced()
            await paged.wait_synced()
            for each in (relisted, paged):
                assert each.store.list() == unordered(each, streamed)
            await cluster.merge_patch(
                CONFIG_MAP, "c0007", {"data": {"x": "new"}}, namespace=namespace
            )
            await eventually(
                lambda: all(value(each, "c0007") == "new" for each in (streamed, relisted, paged))
            )


def unordered(informer: Informer, other: Informer) -> list[JsonObject]:
    """The other's objects in the order of the first."""
    assert len(informer.store) == len(other.store)
    return [other.store.lookup(informer.key(each)) or {} for each in informer.store.list()]


@pytest.mark.lab
async def test_a_cut_connection_goes_on_without_a_new_list(
    lab: Lab, cluster: KubeClient, namespace: str, tmp_path: Path
):
    async with far(lab, tmp_path) as (wire, client):
        informer, changes = recorded(client, namespace)
        async with running(informer.run()):
            await informer.wait_synced()
            wire.cut()
            await cluster.create(CONFIG_MAP, config_map("a", "1"), namespace=namespace)
            await cluster.delete(CONFIG_MAP, "a", namespace=namespace)
            await cluster.create(CONFIG_MAP, config_map("b", "1"), namespace=namespace)
            mark = lab.mark()
            wire.mend()
            await eventually(lambda: value(informer, "b") == "1")
            assert named(changes)[-3:] == [("add", "a"), ("delete", "a"), ("add", "b")]
    lists = [
        event
        for event in lab.audit_events(mark)
        if event.agent == "far/1" and "sendInitialEvents" in event.raw["requestURI"]
    ]
    assert lists == []


@pytest.mark.lab
async def test_a_peer_that_falls_silent_is_given_up(
    lab: Lab,
    cluster: KubeClient,
    namespace: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(transport, "IDLE_DEADLINE", 1.0)
    async with far(lab, tmp_path) as (wire, client):
        informer, _ = recorded(client, namespace)
        async with running(informer.run()):
            await informer.wait_synced()
            wire.silence()
            await cluster.create(CONFIG_MAP, config_map("a", "1"), namespace=namespace)
            connections = wire.connections
            await eventually(lambda: wire.connections > connections)
            wire.mend()
            await eventually(lambda: value(informer, "a") == "1")


@contextlib.asynccontextmanager
async def far(lab: Lab, folder: Path) -> AsyncIterator[tuple[Wire, KubeClient]]:
    """A wire to the lab's API server and a client that uses it."""
    async with Wire.to(lab.server) as wire:
        config = kubeconfig.moved(lab.kubeconfig, folder / "far", f"https://127.0.0.1:{wire.port}")
        async with KubeClient.connect(kubeconfig=config, user_agent="far/1") as client:
            yield wire, client


@pytest.mark.lab
async def test_a_restarted_server_is_followed_with_all_that_vanished(own_lab: Lab, tmp_path: Path):
    """The restarted server has forgotten old versions: a real 410 leads to a new list."""
    lab, namespace = own_lab, "default"
    async with (
        KubeClient.connect(kubeconfig=lab.kubeconfig, user_agent="near/1") as near,
        far(lab, tmp_path) as (wire, client),
    ):
        for name in ("stays", "goes", "again"):
            await near.create(CONFIG_MAP, config_map(name, "1"), namespace=namespace)
        with structlog.testing.capture_logs() as logs:
            informer, changes = recorded(client, namespace)
            async with running(informer.run()):
                await informer.wait_synced()
                last = informer.store.get("goes")
                wire.cut()
                await near.delete(CONFIG_MAP, "goes", namespace=namespace)
                await near.delete(CONFIG_MAP, "again", namespace=namespace)
                for name in ("again", "new"):
                    await near.create(CONFIG_MAP, config_map(name, "2"), namespace=namespace)
                changes.clear()
                await asyncio.to_thread(lab.kill, "kube-apiserver")
                wire.mend()
                await asyncio.to_thread(lab.start, "kube-apiserver")
                await eventually(lambda: value(informer, "new") == "2", seconds=60)
                await eventually(lambda: only(changes, "again") == ["delete", "add"])
                assert only(changes, "goes") == ["delete"]
                assert any(change.old is last for change in changes)
                assert only(changes, "stays") == []
                assert informer.store.get("goes") is None
                patch = {"data": {"x": "3"}}
                await near.merge_patch(CONFIG_MAP, "new", patch, namespace=namespace)
                await eventually(lambda: value(informer, "new") == "3")
    assert "expired" in {entry.get("end") for entry in logs}
