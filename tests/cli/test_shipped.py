"""The manifests that come with crossdock, and how a stored object is compared with one."""

from __future__ import annotations

from copy import deepcopy

import pytest

from controller.cli.session import CommandError
from controller.cli.shipped import (
    ANNOTATION_MANIFEST,
    Desired,
    covers,
    is_current,
    is_established,
    lost_versions,
    manifests_folder,
    read_folder,
    retargeted,
    stamped,
)
from controller.model.objects import CRD, NAMESPACE


def definition(*versions, stored=()):
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.org"},
        "spec": {"versions": [{"name": version, "served": True} for version in versions]},
        "status": {"storedVersions": list(stored)},
    }


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        ({"a": 1, "b": 2}, {"a": 1}),
        ({"a": [{"b": 1, "default": 0}]}, {"a": [{"b": 1}]}),
        ({"a": {}}, {"a": {}}),
        ([], []),
        ("x", "x"),
    ],
)
def test_mappings_may_have_more_than_is_wanted(live, wanted):
    assert covers(live, wanted)


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 2}),
        ({"a": [1, 2]}, {"a": [1]}),
        ({"a": [2, 1]}, {"a": [1, 2]}),
        ({"a": "x"}, {"a": {"b": 1}}),
        ({"a": True}, {"a": 1}),
        ({"a": None}, {"a": []}),
    ],
)
def test_anything_else_has_to_be_equal(live, wanted):
    assert not covers(live, wanted)


def test_the_same_manifest_needs_no_write_whatever_the_server_added():
    desired = stamped(Desired(CRD, definition("v1")))
    live = deepcopy(desired.body)
    live["metadata"] |= {"uid": "1", "generation": 1}
    live["spec"]["conversion"] = {"strategy": "None"}
    assert is_current(live, desired)


def test_a_changed_field_needs_a_write():
    desired = stamped(Desired(CRD, definition("v1")))
    live = deepcopy(desired.body)
    live["spec"]["versions"][0]["served"] = False
    assert not is_current(live, desired)


def test_a_field_that_the_manifest_no_longer_has_needs_a_write():
    old = definition("v1")
    old["spec"]["preserveUnknownFields"] = False
    live = stamped(Desired(CRD, old)).body
    assert not is_current(live, stamped(Desired(CRD, definition("v1"))))


def test_an_object_of_somebody_else_needs_a_write():
    assert not is_current(definition("v1"), stamped(Desired(CRD, definition("v1"))))


def test_stamping_leaves_the_manifest_as_it_is():
    desired = Desired(CRD, definition("v1"))
    assert stamped(desired).body["metadata"]["annotations"][ANNOTATION_MANIFEST]
    assert "annotations" not in desired.body["metadata"]


def test_versions_in_which_objects_are_stored_must_not_be_lost():
    desired = Desired(CRD, definition("v1"))
    assert lost_versions(definition("v1", stored=["v1"]), desired) == []
    assert lost_versions(definition("v1", "v2", stored=["v1", "v2"]), desired) == ["v2"]
    assert lost_versions({"spec": {}}, desired) == []


def test_established_is_a_condition():
    found = definition("v1")
    assert not is_established(found)
    found["status"]["conditions"] = [{"type": "Established", "status": "False"}]
    assert not is_established(found)
    found["status"]["conditions"][0]["status"] = "True"
    assert is_established(found)


def test_the_shipped_definitions_are_all_kinds_of_the_package_api():
    found = read_folder(manifests_folder() / "crds")
    assert {d.body["spec"]["names"]["kind"] for d in found} == {
        "Provider",
        "ProviderRevision",
        "Configuration",
        "ConfigurationRevision",
        "Function",
        "FunctionRevision",
        "Lock",
        "ImageConfig",
        "DeploymentRuntimeConfig",
    }


def test_the_shipped_permissions_begin_with_the_namespace():
    found = read_folder(manifests_folder() / "rbac")
    assert found[0].resource == NAMESPACE
    assert str(found[0]) == "namespace/crossplane-system"


def test_permissions_go_where_they_are_wanted():
    moved = [
        retargeted(d, namespace="there", service_account="somebody")
        for d in read_folder(manifests_folder() / "rbac")
    ]
    text = repr([d.body for d in moved])
    assert "crossplane-system" not in text
    assert {d.namespace for d in moved} == {None, "there", "default"}
    subjects = [s for d in moved for s in d.body.get("subjects", ())]
    assert {(s["name"], s["namespace"]) for s in subjects} == {("somebody", "there")}
    assert {d.name for d in moved if d.resource.kind == "ServiceAccount"} == {"somebody"}


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(CommandError, match=r"cannot read .*a\.yaml: .*document 1"):
        read_folder(tmp_path)


def test_a_kind_that_init_does_not_know_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n")
    with pytest.raises(CommandError, match=r"a\.yaml: init does not set up Pod objects"):
        read_folder(tmp_path)
