"""The CustomResourceDefinitions: generated, accepted, and meaning what the package API says."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.manifests.api import TABLE, Api, kubernetes_object
from tests.manifests.conftest import established
from tests.manifests.generate import committed_deployment_spec, files
from tests.manifests.shipped import MANIFESTS, load

V1 = "pkg.crossplane.io/v1"
V1BETA1 = "pkg.crossplane.io/v1beta1"
PULL_DEFAULTS = {
    "packagePullPolicy": "IfNotPresent",
    "ignoreCrossplaneConstraints": False,
    "skipDependencyResolution": False,
}
RUNTIME_DEFAULT = {"apiVersion": V1BETA1, "kind": "DeploymentRuntimeConfig", "name": "default"}
PAUSED = {"crossplane.io/paused": "true"}  # no manager in the same lab may touch what is stored
IMAGE = "registry.example.org/team/thing:v1.0.0"
MESSAGE = (
    "must be a fully qualified image name, including the registry, repository, and tag or digest."
    " For example, 'registry.example.com/repo/package:tag' or 'registry.example.com/repo/"
    "package[:tag]@sha256:1234567890abcdef1234567890abcdef1234567890abcdef1234567890abcdef'."
)


def by_name() -> dict[str, dict[str, Any]]:
    return {crd["spec"]["names"]["kind"]: crd for crd in load("crds")}


def test_the_files_are_what_the_generator_writes():
    wanted = files(committed_deployment_spec())
    found = {path.name: path.read_text() for path in (MANIFESTS / "crds").glob("*.yaml")}
    assert found == wanted


def test_there_are_nine_kinds_without_namespace_and_without_conversion():
    crds = by_name()
    assert sorted(crds) == [
        "Configuration",
        "ConfigurationRevision",
        "DeploymentRuntimeConfig",
        "Function",
        "FunctionRevision",
        "ImageConfig",
        "Lock",
        "Provider",
        "ProviderRevision",
    ]
    for crd in crds.values():
        assert crd["spec"]["scope"] == "Cluster"
        assert set(crd["spec"]) == {"group", "names", "scope", "versions"}


@pytest.mark.parametrize("kind", ["Function", "FunctionRevision"])
def test_both_versions_of_functions_have_the_same_schema(kind):
    v1, v1beta1 = by_name()[kind]["spec"]["versions"]
    assert (v1.pop("name"), v1.pop("storage")) == ("v1", True)
    assert (v1beta1.pop("name"), v1beta1.pop("storage")) == ("v1beta1", False)
    assert v1 == v1beta1


@pytest.mark.parametrize(
    ("kind", "categories", "status"),
    [
        ("Provider", ["crossplane", "pkg"], True),
        ("Configuration", ["crossplane", "pkg"], True),
        ("Function", ["crossplane", "pkg"], True),
        ("ProviderRevision", ["crossplane", "pkgrev"], True),
        ("ConfigurationRevision", ["crossplane", "pkgrev"], True),
        ("FunctionRevision", ["crossplane", "pkgrev"], True),
        ("Lock", [], True),
        ("ImageConfig", ["crossplane"], False),
        ("DeploymentRuntimeConfig", ["crossplane"], False),
    ],
)
def test_categories_and_status_subresources(kind, categories, status):
    spec = by_name()[kind]["spec"]
    assert spec["names"].get("categories", []) == categories
    for version in spec["versions"]:
        assert version.get("subresources", {}) == ({"status": {}} if status else {})


def test_every_field_of_our_own_is_described():
    def undescribed(schema: dict[str, Any], path: str) -> list[str]:
        if path.endswith(("deploymentTemplate.spec", ".metadata")):
            return []
        missing = [] if "description" in schema else [path]
        for name, value in schema.get("properties", {}).items():
            missing += undescribed(value, f"{path}.{name}")
        if "properties" in schema.get("items", {}):
            missing += undescribed(schema["items"], f"{path}[]")
        return missing

    for kind, crd in by_name().items():
        for version in crd["spec"]["versions"]:
            assert undescribed(version["schema"]["openAPIV3Schema"], kind) == []


@pytest.mark.lab
def test_the_api_server_serves_every_kind_without_complaint(api: Api):
    for crd in load("crds"):
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
        conditions = api.get(path).accepted()["status"]["conditions"]
        found = {condition["type"]: condition["status"] for condition in conditions}
        assert found == {"Established": "True", "NamesAccepted": "True"}
        assert established(api, crd)


@pytest.mark.lab
@pytest.mark.parametrize("kind", ["Provider", "Configuration", "Function"])
def test_packages_get_their_defaults(api: Api, kind):
    created = api.create(kubernetes_object(V1, kind, spec={"package": IMAGE})).accepted()
    assert created["spec"] == {
        "package": IMAGE,
        "revisionActivationPolicy": "Automatic",
        "revisionHistoryLimit": 1,
        **PULL_DEFAULTS,
        **({} if kind == "Configuration" else {"runtimeConfigRef": RUNTIME_DEFAULT}),
    }


@pytest.mark.lab
@pytest.mark.parametrize("kind", ["ProviderRevision", "ConfigurationRevision", "FunctionRevision"])
def test_revisions_get_their_defaults(api: Api, kind):
    spec = {"image": "anything", "desiredState": "", "revision": 1}
    created = api.create(kubernetes_object(V1, kind, spec=spec)).accepted()
    runtime = {} if kind == "ConfigurationRevision" else {"runtimeConfigRef": RUNTIME_DEFAULT}
    assert created["spec"] == spec | PULL_DEFAULTS | runtime


@pytest.mark.lab
def test_values_that_the_schema_leaves_open_are_kept(api: Api):
    spec = {
        "package": IMAGE,
        "revisionActivationPolicy": "Someday",
        "packagePullPolicy": "Sometimes",
        "revisionHistoryLimit": 0,
        "packagePullSecrets": [{"name": "a"}, {}],
        "commonLabels": {"a": "b"},
        "commonAnnotations": {"c": "d"},
        "runtimeConfigRef": {"name": "mine"},
    }
    stored = api.create(kubernetes_object(V1, "Provider", spec=spec)).accepted()["spec"]
    assert stored["packagePullSecrets"] == [{"name": "a"}, {"name": ""}]
    assert stored["runtimeConfigRef"] == RUNTIME_DEFAULT | {"name": "mine"}
    assert {k: stored[k] for k in ("revisionActivationPolicy", "packagePullPolicy")} == {
        "revisionActivationPolicy": "Someday",
        "packagePullPolicy": "Sometimes",
    }
    assert stored["revisionHistoryLimit"] == 0


@pytest.mark.lab
@pytest.mark.parametrize(
    "package",
    [
        "registry.example.org/team/thing:v1.0.0",
        "registry.local:5000/x:v1",
        "127.0.0.1:5000/a:v1",
        "registry.example.org/team/thing@sha256:" + "a" * 64,
        "registry.example.org/team/thing:v1@sha256:" + "a" * 64,
    ],
)
@pytest.mark.parametrize("kind", ["Provider", "Configuration", "Function"])
def test_fully_qualified_images_are_accepted(api: Api, kind, package):
    api.create(kubernetes_object(V1, kind, spec={"package": package})).accepted()


@pytest.mark.lab
@pytest.mark.parametrize(
    "package",
    ["", "thing", "team/thing:v1", "localhost:5000/x:v1", "xpkg.crossplane.io/a/b", "a.b:v1"],
)
@pytest.mark.parametrize("kind", ["Provider", "Configuration", "Function"])
def test_other_images_are_refused_with_the_rule_in_words(api: Api, kind, package):
    answer = api.create(kubernetes_object(V1, kind, spec={"package": package}))
    assert answer.code == 422
    [cause] = answer.body["details"]["causes"]
    assert cause["field"] == "spec.package"
    assert cause["message"].endswith(MESSAGE)


@pytest.mark.lab
@pytest.mark.parametrize(
    ("api_version", "kind", "fields", "missing"),
    [
        (V1, "Provider", {}, "spec"),
        (V1, "Provider", {"spec": {}}, "spec.package"),
        (V1, "ProviderRevision", {"spec": {"image": "x", "revision": 1}}, "spec.desiredState"),
        (V1, "FunctionRevision", {"spec": {"image": "x", "desiredState": ""}}, "spec.revision"),
        (V1, "ConfigurationRevision", {"spec": {"revision": 1, "desiredState": ""}}, "spec.image"),
        (
            V1BETA1,
            "Lock",
            {"packages": [{"name": "x", "source": "y", "version": "z"}]},
            "dependencies",
        ),
        (V1BETA1, "ImageConfig", {"spec": {}}, "spec.matchImages"),
        (
            V1BETA1,
            "ImageConfig",
            {"spec": {"matchImages": [{"prefix": "x"}], "rewriteImage": {}}},
            "spec.rewriteImage.prefix",
        ),
    ],
)
def test_what_is_required_must_be_there(api: Api, api_version, kind, fields, missing):
    answer = api.create(kubernetes_object(api_version, kind, **fields))
    assert answer.code == 422
    assert missing in answer.message
    assert "Required value" in answer.message


@pytest.mark.lab
def test_functions_of_the_older_version_are_the_same_objects(api: Api):
    spec = {"package": IMAGE}
    function = kubernetes_object(V1BETA1, "Function", spec=spec)
    function["metadata"]["annotations"] = PAUSED
    api.create(function, keep=True).accepted()
    try:
        path = f"/apis/{V1}/functions/{function['metadata']['name']}"
        stored = api.get(path).accepted()
        assert stored["apiVersion"] == V1
        assert stored["spec"]["runtimeConfigRef"] == RUNTIME_DEFAULT
    finally:
        api.delete(function)


@pytest.mark.lab
def test_the_lock_takes_both_forms_of_a_package_type(api: Api):
    packages: list[dict[str, Any]] = [
        {
            "name": "a-1",
            "apiVersion": V1,
            "kind": "Configuration",
            "source": "registry.example.org/a",
            "version": "v1",
            "dependencies": [
                {"package": "registry.example.org/b", "type": "Provider", "constraints": ">=v1"}
            ],
        },
        {
            "name": "b-1",
            "type": "Provider",
            "source": "registry.example.org/b",
            "version": "v1",
            "dependencies": [],
        },
    ]
    created = api.create(kubernetes_object(V1BETA1, "Lock", packages=packages)).accepted()
    assert created["packages"] == packages
    packages[1]["type"] = "Something"
    answer = api.create(kubernetes_object(V1BETA1, "Lock", packages=packages))
    assert answer.code == 422
    assert "Unsupported value" in answer.message


@pytest.mark.lab
def test_image_configs_get_their_defaults_and_need_something_to_match(api: Api):
    spec = {
        "matchImages": [{"prefix": "registry.example.org/"}],
        "registry": {"authentication": {"pullSecretRef": {"name": "s"}}},
        "rewriteImage": {"prefix": "mirror.example.org/"},
        "runtime": {"configRef": {"name": "mine"}},
        "verification": {
            "provider": "Cosign",
            "cosign": {
                "authorities": [
                    {"name": "a", "key": {"secretRef": {"name": "s", "key": "k"}}},
                    {"name": "b", "keyless": {"identities": [{"issuer": "i", "subject": "s"}]}},
                ]
            },
        },
    }
    stored = api.create(kubernetes_object(V1BETA1, "ImageConfig", spec=spec)).accepted()["spec"]
    assert stored["matchImages"] == [{"type": "Prefix", "prefix": "registry.example.org/"}]
    assert stored["runtime"]["configRef"] == RUNTIME_DEFAULT | {"name": "mine"}
    authorities = stored["verification"]["cosign"]["authorities"]
    assert authorities[0]["key"]["hashAlgorithm"] == "sha256"
    answer = api.create(kubernetes_object(V1BETA1, "ImageConfig", spec={"matchImages": []}))
    assert answer.code == 422
    assert "matchImages should have at least one element." in answer.message


def rows(api: Api, obj: dict[str, Any], path: str) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return columns and cells that the API server prints for a stored object."""
    table = api.get(f"{path}/{obj['metadata']['name']}", headers={"Accept": TABLE}).accepted()
    [row] = table["rows"]
    return table["columnDefinitions"], row["cells"]


def condition(type_: str, status: str) -> dict[str, str]:
    return {
        "type": type_,
        "status": status,
        "reason": "Test",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }


REVISION_SPEC = {"image": IMAGE, "desiredState": "Inactive", "revision": 3}
REVISION_STATUS = {
    "conditions": [
        condition("RevisionHealthy", "True"),
        condition("RuntimeHealthy", "False"),
        condition("RuntimeActive", "Unknown"),
    ],
    "foundDependencies": 2,
    "installedDependencies": 1,
}
PACKAGE_STATUS = {"conditions": [condition("Installed", "True"), condition("Healthy", "False")]}
SHORT = ["HEALTHY", "IMAGE", "STATE", "AGE"]
LONG = ["HEALTHY", "RUNTIME-HEALTHY", "RUNTIME-ACTIVE", "IMAGE", "STATE", "AGE"]
WIDE = ["REVISION", "DEP-FOUND", "DEP-INSTALLED"]


@pytest.mark.lab
@pytest.mark.parametrize(
    ("kind", "spec", "status", "columns", "cells"),
    [
        *(
            (
                kind,
                {"package": IMAGE},
                PACKAGE_STATUS,
                ["INSTALLED", "HEALTHY", "PACKAGE", "AGE"],
                ["True", "False", IMAGE],
            )
            for kind in ("Provider", "Configuration", "Function")
        ),
        *(
            (
                kind,
                REVISION_SPEC,
                REVISION_STATUS,
                LONG,
                ["True", "False", "Unknown", IMAGE, "Inactive"],
            )
            for kind in ("ProviderRevision", "FunctionRevision")
        ),
        (
            "ConfigurationRevision",
            REVISION_SPEC,
            REVISION_STATUS,
            SHORT,
            ["True", IMAGE, "Inactive"],
        ),
    ],
)
def test_kubectl_get_prints_what_matters(api: Api, kind, spec, status, columns, cells):
    obj = kubernetes_object(V1, kind, spec=spec)
    obj["metadata"]["annotations"] = PAUSED
    api.create(obj, keep=True).accepted()
    path = f"/apis/{V1}/{kind.lower()}s"
    try:
        del obj["spec"]
        api.apply(obj | {"status": status}, subresource="/status").accepted()
        definitions, found = rows(api, obj, path)
        narrow = [d["name"].upper() for d in definitions if d["priority"] == 0][1:]
        wide = [d["name"].upper() for d in definitions if d["priority"] == 1]
        assert narrow == columns
        assert wide == (WIDE if "Revision" in kind else [])
        assert found[1 : 1 + len(cells)] == cells
        if wide:
            assert found[-3:] == ["3", "2", "1"]
    finally:
        api.delete(obj)


@pytest.mark.lab
def test_conditions_are_merged_by_their_type(api: Api):
    obj = kubernetes_object(V1, "Configuration", spec={"package": IMAGE})
    obj["metadata"]["annotations"] = PAUSED
    api.create(obj, keep=True).accepted()
    try:
        path = f"/apis/{V1}/configurations/{obj['metadata']['name']}/status"
        del obj["spec"]
        for manager, type_ in (("one", "Installed"), ("two", "Healthy")):
            body = obj | {"status": {"conditions": [condition(type_, "True")]}}
            stored = api.request(
                "PATCH",
                path,
                content=json.dumps(body),
                params={"fieldManager": manager},
                headers={"Content-Type": "application/apply-patch+yaml"},
            ).accepted()
        found = [each["type"] for each in stored["status"]["conditions"]]
        assert sorted(found) == ["Healthy", "Installed"]
    finally:
        api.delete(obj)
