"""The tree of a package, from packages, revisions and the Lock."""

from __future__ import annotations

from pathlib import Path

from controller.cli.dependencies import Node, Shown, Snapshot, package_tree
from controller.cli.render import Branch
from controller.cli.trace import document_of, tree_lines
from controller.model.objects import revision_resource

HOST = "registry.example.com/acme"


def package(kind, name, *, version="v1.0.0", revision="", installed="True", healthy="True", why=""):
    revision = revision or f"{name}-aaaaaaaaaaaa"
    return {
        "apiVersion": "pkg.crossplane.io/v1",
        "kind": kind,
        "metadata": {"name": name, "generation": 1},
        "spec": {"package": f"{HOST}/{name}:{version}"},
        "status": {
            "currentRevision": revision,
            "conditions": [
                {"type": "Installed", "status": installed, "reason": "ActivePackageRevision"},
                {
                    "type": "Healthy",
                    "status": healthy,
                    "reason": "HealthyPackageRevision" if healthy == "True" else "Unhealthy",
                    "message": why,
                },
            ],
        },
    }


def revision(
    kind, package_name, *, suffix="aaaaaaaaaaaa", state="Active", number=1, version="v1.0.0"
):
    return {
        "apiVersion": "pkg.crossplane.io/v1",
        "kind": revision_resource(kind).kind,
        "metadata": {
            "name": f"{package_name}-{suffix}",
            "labels": {"pkg.crossplane.io/package": package_name},
            "creationTimestamp": f"2026-11-23T12:00:0{number}Z",
        },
        "spec": {
            "image": f"{HOST}/{package_name}:{version}",
            "desiredState": state,
            "revision": number,
        },
        "status": {
            "conditions": [
                {"type": "RevisionHealthy", "status": "True", "reason": "HealthyPackageRevision"}
            ]
        },
    }


def lock(needs):
    entries = []
    for name, dependencies in needs.items():
        entries.append(
            {
                "name": f"{name}-aaaaaaaaaaaa",
                "source": f"{HOST}/{name}",
                "version": "v1.0.0",
                "dependencies": [
                    {"kind": kind, "package": f"{HOST}/{source}", "constraints": ">=v1.0.0"}
                    for kind, source in dependencies
                ],
            }
        )
    return {"kind": "Lock", "metadata": {"name": "lock"}, "packages": entries}


def platform():
    """A configuration on a provider and a function, which needs the provider too."""
    return [
        package("Configuration", "platform"),
        package("Provider", "nop", healthy="False", why="the runtime is not ready: " + "x" * 80),
        package("Function", "patch"),
        revision("Configuration", "platform", suffix="000000000000", state="Inactive"),
        revision("Configuration", "platform", number=2),
        revision("Provider", "nop"),
        revision("Function", "patch"),
        lock(
            {
                "platform": [("Provider", "nop"), ("Function", "patch"), ("Function", "absent")],
                "nop": [],
                "patch": [("Provider", "nop")],
            }
        ),
    ]


def grown(shown: Shown, objects=None) -> Branch[Node]:
    snapshot = Snapshot.of(objects or platform())
    return package_tree(snapshot.packages[0], snapshot, shown)


GOLDEN = Path(__file__).with_name("trace.txt")


def test_a_tree_shows_revisions_and_each_dependency_once():
    assert tree_lines([grown(Shown())], wide=False) == GOLDEN.read_text().splitlines()


def test_the_wide_form_has_references_and_whole_messages():
    lines = tree_lines([grown(Shown())], wide=True)
    assert lines[0].split()[:3] == ["NAME", "PACKAGE", "VERSION"]
    assert f"{HOST}/nop:v1.0.0" in lines[3]
    assert lines[3].endswith("Unhealthy: the runtime is not ready: " + "x" * 80)


def names(branch: Branch[Node]):
    return [f"{c.value.kind}/{c.value.name}" for c in branch.children]


def test_all_shows_a_dependency_wherever_it_is_needed():
    branch = grown(Shown(dependencies="all", revisions="none"))
    assert names(branch) == ["Provider/nop", "Function/patch", "Function/acme-absent"]
    assert names(branch.children[1]) == ["Provider/nop"]


def test_none_shows_no_dependencies():
    assert names(grown(Shown(dependencies="none", revisions="none"))) == []


def test_inactive_revisions_are_shown_when_all_are_asked_for_oldest_first():
    branch = grown(Shown(dependencies="none", revisions="all"))
    assert names(branch) == [
        "ConfigurationRevision/platform-000000000000",
        "ConfigurationRevision/platform-aaaaaaaaaaaa",
    ]


def test_a_circle_of_dependencies_ends():
    objects = [
        package("Configuration", "a"),
        package("Configuration", "b"),
        revision("Configuration", "a"),
        revision("Configuration", "b"),
        lock({"a": [("Configuration", "b")], "b": [("Configuration", "a")]}),
    ]
    for mode in ("unique", "all"):
        branch = grown(Shown(dependencies=mode, revisions="none"), objects)
        assert names(branch) == ["Configuration/b"]
        assert names(branch.children[0]) == []


def test_a_dependency_is_found_by_its_source_however_it_is_spelled():
    objects = platform()
    objects[-1]["packages"][1]["source"] = "docker.io/acme/nop"
    objects[-1]["packages"][0]["dependencies"][0]["package"] = "index.docker.io/acme/nop"
    assert names(grown(Shown(revisions="none"), objects))[0] == "Provider/nop"


def test_a_dependency_is_found_by_name_while_the_lock_has_no_entry_for_it():
    objects = [
        package("Configuration", "platform"),
        package("Provider", "acme-nop"),
        lock({"platform": [("Provider", "nop")]}),
    ]
    branch = grown(Shown(), objects)
    assert branch.children[0].value.object is objects[1]


def test_a_package_without_a_lock_has_no_dependencies():
    assert names(grown(Shown(), [package("Provider", "nop")])) == []


def test_json_nests_objects_and_children_and_says_what_is_missing():
    document = document_of(grown(Shown(revisions="none")))
    assert document["object"]["metadata"]["name"] == "platform"
    missing = document["children"][2]
    assert missing["object"] == {"kind": "Function", "metadata": {"name": "acme-absent"}}
    assert missing["error"].startswith("not installed: needs")
    assert "children" not in missing
