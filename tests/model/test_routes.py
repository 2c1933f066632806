"""Which keys a change wakes."""

from typing import Any

import pytest

from controller.model.objects import LOCK_KEY, Key
from controller.model.routes import (
    on_established,
    on_image_config,
    on_lock,
    on_owned,
    on_package,
    on_revision,
    on_runtime_config,
)

PACKAGE = Key("Provider", "prov")
REVISION = Key("ProviderRevision", "prov-1")
SOURCE = "xpkg.example.org/acme/prov:v1"


def package(generation: int = 1, source: str = SOURCE, **status: Any) -> dict[str, Any]:
    return {
        "kind": "Provider",
        "metadata": {"name": "prov", "uid": "u", "generation": generation},
        "spec": {"package": source},
        "status": status,
    }


def revision(generation: int = 1, **status: Any) -> dict[str, Any]:
    return {
        "kind": "ProviderRevision",
        "metadata": {
            "name": "prov-1",
            "uid": "r",
            "generation": generation,
            "labels": {"pkg.crossplane.io/package": "prov"},
        },
        "spec": {"image": SOURCE, "runtimeConfigRef": {"name": "big"}},
        "status": status,
    }


def condition(kind: str, status: str, message: str = "") -> list[dict[str, str]]:
    return [{"type": kind, "status": status, "message": message}]


def test_a_new_package_is_reconciled_and_its_dependants_looked_at():
    assert list(on_package(None, package())) == [("package", PACKAGE), ("resolve", LOCK_KEY)]


def test_an_edited_package_is_reconciled():
    assert list(on_package(package(1), package(2))) == [("package", PACKAGE)]


def test_our_own_status_write_wakes_nobody():
    healthy = package(conditions=condition("Healthy", "True"))
    assert list(on_package(package(), healthy)) == []


@pytest.mark.parametrize(
    "status",
    [{"conditions": condition("Resolved", "False", "no tag")}, {"currentIdentifier": SOURCE}],
)
def test_what_the_digest_stage_said_wakes_the_package(status):
    assert list(on_package(package(), package(**status))) == [("package", PACKAGE)]


def test_a_revision_is_checked_and_its_package_and_the_lock_follow():
    active = revision()
    active["spec"]["desiredState"] = "Active"
    assert list(on_revision(None, active)) == [
        ("image", REVISION),
        ("package", PACKAGE),
        ("resolve", LOCK_KEY),
    ]


def test_an_inactive_revision_lets_go_of_its_objects_whatever_its_content_is():
    assert ("establish", REVISION) in list(on_revision(None, revision()))


def test_a_condition_of_a_revision_wakes_its_package_only():
    changed = revision(conditions=condition("RevisionHealthy", "True"))
    assert list(on_revision(revision(), changed)) == [("package", PACKAGE)]


def test_a_deleted_revision_is_evicted():
    deleting = revision()
    deleting["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert ("evict", REVISION) in list(on_revision(revision(), deleting))


def test_a_lock_wakes_the_resolver_only_for_its_packages():
    assert list(on_lock({"packages": []}, {"packages": [{"name": "a"}]})) == [("resolve", LOCK_KEY)]
    assert list(on_lock({"packages": []}, {"packages": [], "status": {}})) == []


def image_config(prefix: str, generation: int = 1) -> dict[str, Any]:
    return {
        "metadata": {"name": "c", "generation": generation},
        "spec": {"matchImages": [{"prefix": prefix}]},
    }


def test_an_image_config_wakes_all_packages_and_revisions():
    woken = [
        ("package", PACKAGE),
        ("digest", PACKAGE),
        ("image", REVISION),
        ("resolve", LOCK_KEY),
    ]
    config = image_config("xpkg.example.org/")
    assert list(on_image_config(None, config, [package()], [revision()])) == woken
    assert list(on_image_config(config, None, [package()], [revision()])) == woken
    assert list(on_image_config(config, config, [package()], [revision()])) == []


def test_a_runtime_configuration_that_an_image_config_prescribes_wakes_its_revisions():
    prescribed = revision(appliedImageConfigRefs=[{"name": "c", "reason": "ConfigureRuntime"}])
    small = {"metadata": {"name": "small", "generation": 1}}
    assert list(on_runtime_config(None, small, [prescribed])) == [("prepare", REVISION)]


def test_a_runtime_configuration_wakes_the_revisions_that_name_it():
    big = {"metadata": {"name": "big", "generation": 1}}
    small = {"metadata": {"name": "small", "generation": 1}}
    assert list(on_runtime_config(None, big, [revision()])) == [("prepare", REVISION)]
    assert list(on_runtime_config(None, small, [revision()])) == []


def owned(generation: int = 1, **metadata: Any) -> dict[str, Any]:
    owner = {"kind": "ProviderRevision", "name": "prov-1", "uid": "r", "controller": True}
    return {
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": "x",
            "generation": generation,
            "ownerReferences": [owner],
            **metadata,
        },
    }


def test_an_owned_object_wakes_its_controller():
    assert list(on_owned("runtime", None, owned())) == [("runtime", REVISION)]
    other = owned(ownerReferences=[{"kind": "Deployment", "name": "d", "controller": True}])
    assert list(on_owned("runtime", None, other)) == []


@pytest.mark.parametrize(
    ("old", "new", "woken"),
    [
        (None, owned(), False),
        (owned(), owned(resourceVersion="2"), False),
        (owned(), owned(2), True),
        (owned(), owned(labels={"a": "b"}), True),
        (owned(), owned(ownerReferences=[]), True),
        (owned(), None, True),
    ],
)
def test_an_object_of_a_package_wakes_its_revision_when_somebody_touched_it(old, new, woken):
    assert bool(list(on_established(old, new))) is woken
