import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from controller.kube import transport
from controller.kube.client import KubeClient
from controller.kube.informer import Change, Informer, Store
from controller.model.objects import CRD, JsonObject, Resource, labels_of
from tests.fakes.wire import Wire
from tests.kube import kubeconfig
from tests.kube.conftest import eventually, running
from tests.lab.lab import Lab

CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap", namespaced=True)


def obj(name: str, *, version: int = 1, uid: str = "", **labels: str) -> JsonObject:
    metadata = {"name": name, "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    return {"metadata": {**metadata, "labels": labels}}


def team(stored: JsonObject) -> list[str]:
    value = labels_of(stored).get("team")
    return value.split("_") if value else []


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


# ---- the store -----------------------------------------------------------------------------------


def test_s8_an_object_leaves_its_old_index_values():
    store = Store({"team": team})
    store.put(("", "a"), obj("a", team="x_y"))
    store.put(("", "b"), obj("b", team="y"))
    assert [o["metadata"]["name"] for o in store.by_index("team", "y")] == ["a", "b"]
    store.put(("", "a"), obj("a", team="z"))
    assert store.by_index("team", "x") == []
    assert [o["metadata"]["name"] for o in store.by_index("team", "y")] == ["b"]
    store.put(("", "b"), None)
    assert set(store._indexes["team"]) == {"z"}
    with pytest.raises(KeyError):
        store.by_index("unknown", "x")


def test_an_index_function_that_raises_hurts_only_its_index():
    def broken(_: JsonObject) -> list[str]:
        raise ValueError("no")

    store = Store({"broken": broken, "team": team})
    with structlog.testing.capture_logs() as logs:
        store.put(("", "a"), obj("a", team="x"))
    assert len(store.by_index("team", "x")) == 1
    assert logs[0]["event"] == "index function failed"


def test_a_store_of_one_namespace_answers_names_alone():
    store = Store(namespace="ns")
    store.put(("ns", "a"), obj("a"))
    assert store.get("a") is store.get("a", "ns") is not None
    assert store.get("a", "other") is None
    assert len(store) == 1


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.none() | st.sampled_from(["x", "y", "x_y"])),
        max_size=30,
    )
)
def test_s8_the_index_is_always_what_the_objects_say(steps: list[tuple[str, str | None]]):
    store = Store({"team": team})
    model: dict[str, JsonObject] = {}
    for name, value in steps:
        if value is None:
            model.pop(name, None)
            store.put(("", name), None)
        else:
            model[name] = obj(name, team=value)
            store.put(("", name), model[name])
    for value in ("x", "y", "z"):
        expected = {n for n, o in model.items() if value in team(o)}
        assert {o["metadata"]["name"] for o in store.by_index("team", value)} == expected
    assert store.list() == list(model.values())


# ---- delivery ------------------------------------------------------------------------------------


async def test_s1_the_store_has_changed_when_a_handler_runs():
    informer, _ = unconnected()
    seen: list[JsonObject | None] = []
    informer.add_handler(lambda change: seen.append(informer.store.get("a")))
    informer.apply("ADDED", obj("a", version=1))
    informer.apply("MODIFIED", obj("a", version=2))
    informer.apply("DELETED", obj("a", version=3))
    assert [o and o["metadata"]["resourceVersion"] for o in seen] == ["1", "2", None]


async def test_s3_vanished_objects_are_deleted_first_with_their_last_state():
    informer, changes = unconnected()
    await listed(informer, obj("a"), obj("b"), obj("same"))
    last = informer.store.get("a")
    changes.clear()
    await listed(informer, obj("b", version=2), obj("c"), obj("same"))
    assert named(changes) == [("delete", "a"), ("update", "b"), ("add", "c")]
    assert changes[0].old is last


async def test_an_object_deleted_and_made_again_is_delivered_as_both():
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
    informer.add_handler(lambda _: when.append(informer.synced))
    before = informer.synced
    await listed(informer, obj("a"), obj("b"))
    assert (before, informer.synced) == (False, True)
    assert when == [False, False]
    assert len(changes) == 2
    empty, _ = unconnected()
    await listed(empty)
    assert empty.synced


async def test_s5_a_known_object_that_is_added_is_an_update_and_an_unknown_one_may_be_deleted():
    informer, changes = unconnected()
    informer.apply("ADDED", obj("a", version=1))
    informer.apply("ADDED", obj("a", version=2))
    informer.apply("DELETED", obj("b", version=3))
    assert named(changes) == [("add", "a"), ("update", "a"), ("delete", "b")]
    assert len(informer.store) == 1


async def test_a_deletion_carries_the_final_state():
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


async def test_s10_a_handler_that_raises_is_logged_and_hurts_nobody():
    client: Any = None
    informer = Informer(client, CRD)
    seen: list[Change] = []

    def broken(_: Change) -> None:
        raise RuntimeError("handler")

    informer.add_handler(broken)
    informer.add_handler(seen.append)
    with structlog.testing.capture_logs() as logs:
        informer.apply("ADDED", obj("a"))
        informer.apply("ADDED", obj("b"))
    assert named(seen) == [("add", "a"), ("add", "b")]
    assert [(entry["event"], entry["name"]) for entry in logs] == [
        ("handler failed", "a"),
        ("handler failed", "b"),
    ]


async def test_a_handler_that_comes_later_sees_what_is_there():
    informer, _ = unconnected()
    await listed(informer, obj("a"))
    late: list[Change] = []
    informer.add_handler(late.append)
    assert named(late) == [("add", "a")]


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
