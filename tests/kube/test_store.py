"""The store: indexes, and how far the API server's history it is."""

import asyncio
from collections.abc import Iterable

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from controller.kube import store as module
from controller.kube.store import Store
from controller.model.objects import JsonObject, labels_of


def obj(name: str, **labels: str) -> JsonObject:
    return {"metadata": {"name": name, "labels": labels}}


def team(stored: JsonObject) -> list[str]:
    value = labels_of(stored).get("team")
    return value.split("_") if value else []


def names(objects: Iterable[JsonObject]) -> list[str]:
    return [each["metadata"]["name"] for each in objects]


# ---- indexes -------------------------------------------------------------------------------------


def test_s8_an_object_leaves_its_old_index_values_in_one_step():
    store = Store({"team": team})
    store.put(("", "a"), obj("a", team="x_y"))
    store.put(("", "b"), obj("b", team="y"))
    assert names(store.by_index("team", "y")) == ["a", "b"]
    store.put(("", "a"), obj("a", team="z"))
    assert store.by_index("team", "x") == []
    assert names(store.by_index("team", "y")) == ["b"]
    assert names(store.by_index("team", "z")) == ["a"]
    with pytest.raises(KeyError):
        store.by_index("unknown", "x")


def test_s8_empty_sets_are_dropped_and_others_kept():
    store = Store({"team": team})
    store.put(("", "a"), obj("a", team="x"))
    store.put(("", "b"), obj("b", team="x_y"))
    store.put(("", "b"), None)
    assert set(store._indexes["team"]) == {"x"}
    store.put(("", "a"), None)
    assert store._indexes["team"] == {}


def test_s8_a_function_may_return_many_values_and_the_same_one_twice():
    store = Store({"team": lambda _: ["x", "y", "x"]})
    store.put(("", "a"), obj("a"))
    assert names(store.by_index("team", "x")) == names(store.by_index("team", "y")) == ["a"]
    store.put(("", "a"), None)
    assert store.by_index("team", "x") == []


def test_s8_adding_an_index_finds_what_is_stored_already():
    store = Store()
    store.put(("", "a"), obj("a", team="x_y"))
    store.put(("", "b"), obj("b", team="y"))
    store.add_index("team", team)
    assert names(store.by_index("team", "y")) == ["a", "b"]
    store.put(("", "a"), None)
    assert names(store.by_index("team", "y")) == ["b"]
    with pytest.raises(ValueError, match="team"):
        store.add_index("team", team)


def test_s8_several_indexes_are_kept_apart():
    store = Store({"team": team, "name": lambda o: (o["metadata"]["name"],)})
    store.put(("", "a"), obj("a", team="b"))
    store.put(("", "b"), obj("b", team="a"))
    assert names(store.by_index("team", "a")) == ["b"]
    assert names(store.by_index("name", "a")) == ["a"]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.none() | st.sampled_from(["x", "y", "x_y"])),
        max_size=30,
    ),
    st.integers(0, 30),
)
def test_s8_the_index_is_always_what_the_objects_say(
    steps: list[tuple[str, str | None]], late: int
):
    store = Store({"team": team})
    model: dict[str, JsonObject] = {}
    for number, (name, value) in enumerate(steps):
        if number == late:
            store.add_index("late", team)
        if value is None:
            model.pop(name, None)
            store.put(("", name), None)
        else:
            model[name] = obj(name, team=value)
            store.put(("", name), model[name])
    for index in store._indexes:
        for value in ("x", "y", "z"):
            expected = {n for n, o in model.items() if value in team(o)}
            assert set(names(store.by_index(index, value))) == expected
        assert all(store._indexes[index].values())
    assert store.list() == list(model.values())


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


def test_a_snapshot_stays_as_it_is():
    store = Store()
    store.put(("", "a"), obj("a"))
    kept = store.snapshot()
    store.put(("", "a"), None)
    assert names(kept.values()) == ["a"]


# ---- how far it is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reached", "version", "seen"),
    [
        ("", "1", False),
        ("9", "10", False),
        ("10", "9", True),
        ("10", "10", True),
        ("100000000000000000000", "99999999999999999999", True),
        ("10", "", False),
        ("10", "ten", False),
        ("ten", "10", False),
    ],
)
async def test_s9_versions_are_compared_as_whole_numbers(reached: str, version: str, seen: bool):
    store = Store()
    store.resource_version = reached
    assert store.seen(version) is seen
    assert await store.wait_seen(version, 0.001) is seen


async def test_s9_a_writer_waits_until_the_store_has_seen_its_write():
    store = Store()
    store.resource_version = "5"
    async with asyncio.TaskGroup() as tasks:
        early, late = (tasks.create_task(store.wait_seen(v, 30.0)) for v in ("7", "9"))
        await asyncio.sleep(0)
        store.resource_version = "6"
        await asyncio.sleep(0)
        assert not early.done()
        store.resource_version = "8"  # a bookmark, or a later change
        await early
        assert not late.done()
        store.resource_version = "9"
    assert early.result()
    assert late.result()
    assert store._waiters == {}


async def test_s9_a_wait_ends_with_its_deadline_and_leaves_nothing():
    store = Store()
    assert not await store.wait_seen("7", 0.001)
    assert store._waiters == {}


async def test_s9_a_cancelled_wait_leaves_nothing():
    store = Store()
    waiting = asyncio.ensure_future(store.wait_seen("7", 30.0))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert store._waiters == {}
    store.resource_version = "7"


async def test_s9_a_waiter_that_is_cancelled_while_its_version_comes_hurts_nobody():
    store = Store()
    first, second = (asyncio.ensure_future(store.wait_seen("7", 30.0)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    store.resource_version = "7"
    store.resource_version = "8"
    assert await second
    await asyncio.gather(first, return_exceptions=True)
    assert store._waiters == {}


async def test_s9_only_so_many_wait_at_a_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "WAITERS_MAX", 2)
    store = Store()
    waiting = [asyncio.ensure_future(store.wait_seen("7", 30.0)) for _ in range(3)]
    await asyncio.sleep(0)
    assert [each.done() for each in waiting] == [False, False, True]
    assert not waiting[2].result()
    store.resource_version = "7"
    assert await asyncio.gather(*waiting) == [True, True, False]
