"""S7: cached objects are read only, and who changes one is found."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import structlog

from controller.kube import mutation
from controller.kube.informer import Informer
from controller.kube.mutation import MutationDetector
from controller.kube.store import Store
from controller.model.objects import SECRET, JsonObject
from tests.fakes.clock import VirtualTimeLoop
from tests.kube.conftest import running

KEY = ("ns", "a")


def secret() -> JsonObject:
    return {
        "metadata": {"name": "a", "namespace": "ns", "labels": {"team": "x"}},
        "data": {"password": "aHVudGVyMg=="},
    }


def guarded() -> tuple[Store, MutationDetector]:
    detector = MutationDetector("Secret")
    return Store(detector=detector), detector


def changed_data(obj: JsonObject) -> None:
    obj["data"]["password"] = "Y29ycmVjdA=="


def changed_label(obj: JsonObject) -> None:
    obj["metadata"]["labels"]["team"] = "y"


def removed_field(obj: JsonObject) -> None:
    del obj["data"]


def added_field(obj: JsonObject) -> None:
    obj["status"] = {}


def no_json(obj: JsonObject) -> None:
    obj["data"] = {"a", "set"}


@pytest.mark.parametrize(
    ("act", "field"),
    [
        (changed_data, "data"),
        (changed_label, "metadata.labels"),
        (removed_field, "data"),
        (added_field, "status"),
        (no_json, "data"),
    ],
)
def test_s7_a_changed_object_is_named_by_its_field_and_never_by_its_content(
    act: Callable[[JsonObject], None], field: str
):
    store, detector = guarded()
    store.put(KEY, secret())
    stored = store.lookup(KEY)
    assert stored is not None
    act(stored)
    with structlog.testing.capture_logs() as logs:
        store.put(KEY, secret())
        store.put(KEY, None)
    assert detector.violations == 1
    assert logs == [
        {
            "event": "stored object was changed in place",
            "log_level": "error",
            "kind": "Secret",
            "namespace": "ns",
            "name": "a",
            "field": field,
        }
    ]


def test_s7_a_removal_is_a_last_look():
    store, detector = guarded()
    store.put(KEY, secret())
    changed_data(store.list()[0])
    with structlog.testing.capture_logs() as logs:
        store.put(KEY, None)
        store.put(KEY, None)
    assert detector.violations == len(logs) == 1
    assert detector._kept == {}


def test_s7_reading_replacing_and_reordering_is_no_violation():
    store, detector = guarded()
    store.put(KEY, secret())
    stored = store.list()[0]
    store.put(KEY, {**stored, "data": {}})
    kept = store.list()[0]
    kept["metadata"] = kept.pop("metadata")  # the same content in another order
    store.put(KEY, None)
    assert detector.violations == 0


def test_s7_a_change_is_found_within_a_second_and_told_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mutation, "ENABLED", True)

    async def main() -> list[Any]:
        client: Any = None
        informer = Informer(client, SECRET)
        informer._reflector.run = asyncio.Event().wait  # type: ignore[method-assign,assignment]  # no server
        prepared = informer.prepare(secret())
        assert prepared is not None
        await informer.replace({KEY: prepared}, "1")
        async with running(informer.run()):
            await asyncio.sleep(1.5)
            assert informer.figures().violations == 0
            changed_label(informer.store.list()[0])
            with structlog.testing.capture_logs() as logs:
                await asyncio.sleep(mutation.PERIOD)
                assert informer.figures().violations == 1
                await asyncio.sleep(10 * mutation.PERIOD)
                assert informer.figures().violations == 1
        return logs

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        logs = runner.run(main())
    assert [entry["field"] for entry in logs] == ["metadata.labels"]


@pytest.mark.parametrize(("value", "enabled"), [("1", True), ("0", False), (None, False)])
def test_s7_the_environment_switches_it_on(value: str | None, enabled: bool):
    environment = {} if value is None else {mutation.VARIABLE: value}
    assert mutation.wanted(environment) is enabled


async def test_s7_without_it_nothing_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mutation, "ENABLED", False)
    client: Any = None
    informer = Informer(client, SECRET)
    assert informer.store._detector is None
    assert informer.figures().violations == 0
