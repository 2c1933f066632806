"""Waiting for the kinds of a package, and reviving definitions that are stuck."""

from typing import Any

import pytest

from controller.model.objects import CRD, Key
from controller.stages import served
from controller.stages.served import ServedKinds, is_stuck

KEY = Key("ProviderRevision", "p-1")


class FakeDiscovery:
    """Serves what a test says; a real one cannot be held half-way."""

    def __init__(self) -> None:
        self.known: set[tuple[str, str]] = set()
        self.refreshes = 0

    async def refresh(self) -> bool:
        self.refreshes += 1
        return True

    def serves(self, group: str, plural: str) -> bool:
        return (group, plural) in self.known


class FakeClient:
    """Holds definitions and notes which were touched."""

    def __init__(self, *stuck: str) -> None:
        self.stuck = set(stuck)
        self.touched: list[str] = []

    async def get(self, resource: Any, name: str) -> dict[str, Any]:
        assert resource == CRD
        return definition("Installing" if name in self.stuck else "Other", name)

    async def merge_patch(self, resource: Any, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        assert resource == CRD
        assert patch["metadata"]["resourceVersion"] == "7"
        self.touched.append(name)
        return {}


def definition(reason: str, name: str = "a.x") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "resourceVersion": "7"},
        "status": {
            "conditions": [
                {"type": "NamesAccepted", "status": "True", "reason": "NoConflicts"},
                {"type": "Established", "status": "False", "reason": reason},
            ]
        },
    }


def waiting(client: FakeClient, discovery: FakeDiscovery) -> ServedKinds:
    return ServedKinds(client=client, discovery=discovery)  # type: ignore[arg-type]  # stand-ins


async def test_kinds_that_are_served_need_no_request():
    discovery = FakeDiscovery()
    discovery.known = {("x", "a")}
    assert await waiting(FakeClient(), discovery).missing(KEY, ["a.x"]) == []
    assert discovery.refreshes == 0


async def test_kinds_that_are_not_served_are_asked_for_and_named():
    discovery = FakeDiscovery()
    discovery.known = {("x", "a")}
    assert await waiting(FakeClient(), discovery).missing(KEY, ["a.x", "b.x"]) == ["b.x"]
    assert discovery.refreshes == 1


async def test_a_definition_that_stays_half_established_is_touched_once(monkeypatch):
    monkeypatch.setattr(served, "REVIVE_AFTER", 0.0)
    client = FakeClient("a.x")
    subject = waiting(client, FakeDiscovery())
    await subject.missing(KEY, ["a.x", "b.x"])
    assert client.touched == []
    await subject.missing(KEY, ["a.x", "b.x"])
    assert client.touched == ["a.x"]


async def test_nothing_is_touched_while_kinds_keep_coming(monkeypatch):
    monkeypatch.setattr(served, "REVIVE_AFTER", 0.0)
    client, discovery = FakeClient("a.x", "b.x", "c.x"), FakeDiscovery()
    subject = waiting(client, discovery)
    for plural in ("a", "b", "c"):
        await subject.missing(KEY, ["a.x", "b.x", "c.x"])
        discovery.known.add(("x", plural))
    assert await subject.missing(KEY, ["a.x", "b.x", "c.x"]) == []
    assert client.touched == []


async def test_the_message_stays_the_same_while_kinds_come_quickly():
    subject = waiting(FakeClient(), FakeDiscovery())
    await subject.missing(KEY, ["a.x", "b.x"])
    first = subject.message(KEY, ["a.x", "b.x"])
    assert subject.message(KEY, ["b.x"]) == first
    assert subject.pause(KEY) == served.QUICK_POLL


@pytest.mark.parametrize(
    ("reason", "stuck"), [("Installing", True), ("InvalidCABundle", False), ("", False)]
)
def test_only_a_definition_that_is_being_installed_counts_as_stuck(reason: str, stuck: bool):
    assert is_stuck(definition(reason)) is stuck
    assert not is_stuck({"metadata": {}})
