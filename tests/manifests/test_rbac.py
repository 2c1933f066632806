"""The manager's permissions: all that it needs, nothing that would make it more than it is."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.manifests.api import Api, kubernetes_object
from tests.manifests.shipped import load

SYSTEM = "crossplane-system"
CRDS = "apiextensions.k8s.io"
WEBHOOKS = "admissionregistration.k8s.io"
PKG = "pkg.crossplane.io"
CORE = "apiextensions.crossplane.io"
OPS = "ops.crossplane.io"
RBAC = "rbac.authorization.k8s.io"

READ = ("get", "list", "watch")
OWN = (*READ, "create", "patch", "delete")

ALLOWED: list[tuple[str, str, tuple[str, ...], str]] = [
    *((PKG, kind, (*READ, "create", "patch"), "") for kind in ("providers", "functions", "locks")),
    *((PKG, f"{kind}revisions", OWN, "") for kind in ("provider", "configuration", "function")),
    *(
        (PKG, f"{kind}/status", ("patch",), "")
        for kind in ("providers", "functionrevisions", "locks")
    ),
    *((PKG, f"{kind}/finalizers", ("update",), "") for kind in ("providers", "providerrevisions")),
    (PKG, "imageconfigs", READ, ""),
    (PKG, "deploymentruntimeconfigs", (*READ, "create"), ""),
    (CRDS, "customresourcedefinitions", OWN, ""),
    (WEBHOOKS, "validatingwebhookconfigurations", OWN, ""),
    (WEBHOOKS, "mutatingwebhookconfigurations", OWN, ""),
    (CORE, "managedresourcedefinitions", OWN, ""),
    (CORE, "compositeresourcedefinitions", OWN, ""),
    (CORE, "compositions", OWN, ""),
    (CORE, "managedresourceactivationpolicies", OWN, ""),
    (OPS, "operations", OWN, ""),
    (OPS, "cronoperations", OWN, ""),
    (OPS, "watchoperations", OWN, ""),
    ("", "secrets", OWN, SYSTEM),
    ("", "services", OWN, SYSTEM),
    ("", "serviceaccounts", OWN, SYSTEM),
    ("apps", "deployments", OWN, SYSTEM),
    ("coordination.k8s.io", "leases", ("get", "create", "update"), SYSTEM),
    ("", "events", ("create", "patch"), SYSTEM),
    ("", "events", ("create", "patch"), "default"),
]

REFUSED: list[tuple[str, str, tuple[str, ...], str]] = [
    *(
        ("", "secrets", (*OWN, "update", "deletecollection"), namespace)
        for namespace in ("", "default", "kube-system")
    ),
    *(
        ("apps", "deployments", ("get", "create", "patch", "delete"), namespace)
        for namespace in ("", "default", "kube-system")
    ),
    ("", "serviceaccounts", ("create", "get"), "kube-system"),
    ("", "serviceaccounts/token", ("create",), SYSTEM),
    ("", "pods", ("get", "create", "delete"), SYSTEM),
    ("", "pods/exec", ("create",), SYSTEM),
    ("", "namespaces", ("create", "delete", "patch"), ""),
    ("", "nodes", ("get", "list"), ""),
    ("", "events", ("list", "delete"), ""),
    ("", "users", ("impersonate",), ""),
    *(
        (RBAC, resource, ("create", "patch", "update", "delete", "bind", "escalate"), "")
        for resource in ("clusterroles", "clusterrolebindings")
    ),
    *(
        (RBAC, resource, ("create", "patch", "update", "bind", "escalate"), SYSTEM)
        for resource in ("roles", "rolebindings")
    ),
    (PKG, "providers", ("delete", "deletecollection"), ""),
    (PKG, "imageconfigs", ("create", "patch", "delete"), ""),
    (PKG, "deploymentruntimeconfigs", ("patch", "update", "delete"), ""),
    (PKG, "providerrevisions", ("deletecollection",), ""),
    (CRDS, "customresourcedefinitions", ("deletecollection",), ""),
    (CRDS, "customresourcedefinitions/status", ("patch", "update"), ""),
    (WEBHOOKS, "validatingadmissionpolicies", ("create", "delete"), ""),
    ("apiregistration.k8s.io", "apiservices", ("create", "patch"), ""),
    ("certificates.k8s.io", "certificatesigningrequests", ("create",), ""),
]


def named(row: tuple[str, str, tuple[str, ...], str]) -> Any:
    group, resource, _, namespace = row
    return pytest.param(*row, id=f"{resource}-{group or 'core'}-{namespace or 'everywhere'}")


@pytest.fixture(scope="module")
def manager(api: Api) -> Iterator[Api]:
    """The API server as the manager's own ServiceAccount sees it."""
    answer = api.request(
        "POST",
        f"/api/v1/namespaces/{SYSTEM}/serviceaccounts/crossplane/token",
        body={
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        },
    ).accepted()
    with api.as_token(answer["status"]["token"]) as client:
        yield client


def may(manager: Api, group: str, resource: str, verb: str, namespace: str) -> bool:
    """Ask the API server whether the manager may do something."""
    name, _, subresource = resource.partition("/")
    attributes = {
        "group": group,
        "resource": name,
        "subresource": subresource,
        "verb": verb,
        "namespace": namespace,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "metadata": {},
        "spec": {"resourceAttributes": attributes},
    }
    return bool(manager.create(review, keep=True).accepted()["status"]["allowed"])


def test_permissions_are_spelt_out_and_grant_none():
    rules = [rule for obj in load("rbac") for rule in obj.get("rules", [])]
    assert rules
    for rule in rules:
        words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert not [word for word in words if "*" in word]
        assert RBAC not in rule["apiGroups"]
        assert not {"bind", "escalate", "impersonate", "deletecollection"} & set(rule["verbs"])


def test_what_has_no_namespace_excludes_secrets_and_workloads():
    [role] = [obj for obj in load("rbac") if obj["kind"] == "ClusterRole"]
    for rule in role["rules"]:
        assert not {"", "apps"} & set(rule["apiGroups"])


def test_every_binding_is_of_the_managers_account_to_a_role_that_is_here():
    objects = load("rbac")
    roles = {(o["kind"], o["metadata"]["name"]) for o in objects if "rules" in o}
    bindings = [o for o in objects if "roleRef" in o]
    assert {(b["roleRef"]["kind"], b["roleRef"]["name"]) for b in bindings} == roles
    account = {"kind": "ServiceAccount", "name": "crossplane", "namespace": SYSTEM}
    assert all(binding["subjects"] == [account] for binding in bindings)
    names = {(o["kind"], o["metadata"]["name"]) for o in objects}
    assert {("ServiceAccount", "crossplane"), ("Namespace", SYSTEM)} <= names


def test_files_apply_in_the_order_of_their_names():
    kinds = [obj["kind"] for obj in load("rbac")]
    assert kinds[:2] == ["Namespace", "ServiceAccount"]
    assert kinds.index("ClusterRole") < kinds.index("ClusterRoleBinding")
    assert kinds.index("Role") < kinds.index("RoleBinding")


@pytest.mark.lab
@pytest.mark.parametrize(("group", "resource", "verbs", "where"), [named(row) for row in ALLOWED])
def test_the_manager_may(manager: Api, group, resource, verbs, where):
    assert [verb for verb in verbs if not may(manager, group, resource, verb, where)] == []


@pytest.mark.lab
@pytest.mark.parametrize(("group", "resource", "verbs", "where"), [named(row) for row in REFUSED])
def test_the_manager_may_not(manager: Api, group, resource, verbs, where):
    assert [verb for verb in verbs if may(manager, group, resource, verb, where)] == []


def owned_by(kind: str) -> dict[str, Any]:
    """Return a definition whose deletion blocks that of its owner."""
    plural = f"t{uuid.uuid4().hex[:12]}s"
    version = "v1beta1" if kind in {"DeploymentRuntimeConfig", "Lock"} else "v1"
    names = {"kind": "Test", "plural": plural, "listKind": "TestList", "singular": plural[:-1]}
    schema = {"openAPIV3Schema": {"type": "object"}}
    return {
        "apiVersion": f"{CRDS}/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.test.crossdock.io",
            "ownerReferences": [
                {
                    "apiVersion": f"{PKG}/{version}",
                    "kind": kind,
                    "name": "owner",
                    "uid": str(uuid.uuid4()),
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "group": "test.crossdock.io",
            "scope": "Cluster",
            "names": names,
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }


@pytest.mark.lab
@pytest.mark.parametrize(
    "owner", ["ProviderRevision", "ConfigurationRevision", "FunctionRevision", "Provider"]
)
def test_the_manager_may_create_what_blocks_the_deletion_of_its_owner(manager: Api, owner):
    manager.create(owned_by(owner)).accepted()


@pytest.mark.lab
def test_blocking_other_owners_is_refused(manager: Api):
    answer = manager.create(owned_by("DeploymentRuntimeConfig"))
    assert answer.code == 403
    assert "blockOwnerDeletion" in answer.message


@pytest.mark.lab
def test_the_manager_cannot_read_a_secret_elsewhere(api: Api, manager: Api, namespace: str):
    secret = kubernetes_object("v1", "Secret", stringData={"password": "hidden"})
    api.create(secret, namespace=namespace, keep=True).accepted()
    path = f"/api/v1/namespaces/{namespace}/secrets"
    for answer in (
        manager.get(f"{path}/{secret['metadata']['name']}"),
        manager.get(path),
        manager.get("/api/v1/secrets"),
    ):
        assert answer.code == 403
        assert "hidden" not in str(answer.body)


@pytest.mark.lab
def test_the_manager_cannot_raise_its_own_rights(manager: Api):
    [role] = [obj for obj in load("rbac") if obj["kind"] == "ClusterRole"]
    role["rules"].append({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]})
    binding = {
        "apiVersion": f"{RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "crossdock-is-admin"},
        "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "crossplane", "namespace": SYSTEM}],
    }
    assert manager.apply(role).code == 403
    assert manager.apply(binding).code == 403
    assert manager.create(binding).code == 403
