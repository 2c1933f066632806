"""What a deletion takes along, what needs it and what stays."""

from __future__ import annotations

from controller.cli.dependencies import Snapshot
from controller.cli.uninstall import consequences
from tests.cli.test_dependencies import lock, package, platform, revision


def told(name, objects):
    snapshot = Snapshot.of(objects)
    return consequences(next(p for p in objects if p["metadata"]["name"] == name), snapshot)


def with_objects(kind, *names):
    found = revision("Provider", "nop")
    found["status"]["objectRefs"] = [
        {"apiVersion": "example.org/v1", "kind": kind, "name": name} for name in names
    ]
    return found


def test_a_configuration_leaves_what_it_depends_on():
    assert told("platform", platform()) == [
        "goes: 2 revisions",
        "stays: Provider/nop, Function/patch, which it depends on",
    ]


def test_who_still_needs_a_package_is_named():
    assert told("nop", platform())[-1] == (
        "still needed by Configuration/platform, Function/patch: it may be installed again for them"
    )


def test_definitions_take_their_objects_along():
    objects = [
        package("Provider", "nop"),
        with_objects("CustomResourceDefinition", "a", "b"),
        with_objects("CustomResourceDefinition", "b", "c"),
        lock({}),
    ]
    assert told("nop", objects) == [
        "goes: 2 revisions, 3 CustomResourceDefinitions",
        "goes: every object of the kinds that these definitions define",
    ]


def test_other_objects_are_counted_by_kind():
    objects = [package("Provider", "nop"), with_objects("Composition", "a")]
    assert told("nop", objects) == ["goes: 1 revision, 1 Composition"]
