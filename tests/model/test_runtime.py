from __future__ import annotations

import copy

import pytest

from controller.model.conditions import Condition
from controller.model.objects import DEPLOYMENT, SERVICE
from controller.model.runtime import (
    AWAITING_MESSAGE,
    Runtime,
    RuntimeConfigError,
    is_awaiting_activation,
    runtime_conditions,
    runtime_config_name,
    service,
    service_account,
    tls_secret,
    to_delete,
)

OWNER = {
    "apiVersion": "pkg.crossplane.io/v1",
    "kind": "ProviderRevision",
    "name": "provider-x-123",
    "uid": "rev-uid",
    "controller": True,
    "blockOwnerDeletion": True,
}


def runtime(kind="Provider", **fields):
    name = f"{kind.lower()}-x"
    revision = {"metadata": {"name": f"{name}-123", "uid": "rev-uid"}, "spec": {}}
    revision["spec"] |= fields.pop("spec", {})
    values = {"namespace": "crossplane-system", "image": "x.io/p:v1"} | fields
    return Runtime(package_kind=kind, package=name, revision=revision, **values)


def named(template, **metadata):
    return {template: {"metadata": metadata}}


def test_the_service_of_a_provider():
    assert service(runtime()) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "provider-x",
            "namespace": "crossplane-system",
            "labels": {"app.kubernetes.io/managed-by": "crossdock"},
            "ownerReferences": [OWNER],
        },
        "spec": {
            "selector": {
                "pkg.crossplane.io/revision": "provider-x-123",
                "pkg.crossplane.io/provider": "provider-x",
            },
            "ports": [
                {"name": "webhook", "port": 9443, "protocol": "TCP", "targetPort": "webhook"}
            ],
        },
    }


def test_the_service_of_a_function_is_headless():
    built = service(runtime("Function"))
    assert built["metadata"]["ownerReferences"] == [
        OWNER | {"kind": "FunctionRevision", "name": "function-x-123"}
    ]
    assert built["spec"] == {
        "clusterIP": "None",
        "selector": {
            "pkg.crossplane.io/revision": "function-x-123",
            "pkg.crossplane.io/function": "function-x",
        },
        "ports": [
            {
                "name": "grpc",
                "port": 9443,
                "protocol": "TCP",
                "targetPort": "grpc",
                "appProtocol": "tls",
            }
        ],
    }


def test_the_service_takes_name_labels_and_annotations_of_its_template():
    labels = {"team": "a", "app.kubernetes.io/managed-by": "me"}
    config = named("serviceTemplate", name="svc", labels=labels, annotations={"x": "y"})
    metadata = service(runtime(config=config))["metadata"]
    assert metadata["name"] == "svc"
    assert metadata["labels"] == {"team": "a", "app.kubernetes.io/managed-by": "crossdock"}
    assert metadata["annotations"] == {"x": "y"}


def test_endpoint_and_server_names_follow_the_service_name():
    plain, renamed = (
        runtime("Function", config=config)
        for config in (None, named("serviceTemplate", name="svc"))
    )
    assert plain.endpoint == "dns:///function-x.crossplane-system:9443"
    assert renamed.endpoint == "dns:///svc.crossplane-system:9443"
    assert renamed.server_dns_names == ("svc", "svc.crossplane-system", "svc.crossplane-system.svc")


def test_the_service_account_pulls_with_all_secrets():
    built = service_account(
        runtime(
            spec={"packagePullSecrets": [{"name": "a"}, {"name": "b"}, {"name": ""}]},
            crossplane_pull_secrets=["b", "c"],
            image_config_pull_secret="not-here",
        )
    )
    assert built == {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {
            "name": "provider-x-123",
            "namespace": "crossplane-system",
            "labels": {"app.kubernetes.io/managed-by": "crossdock"},
            "ownerReferences": [OWNER],
        },
        "imagePullSecrets": [{"name": "a"}, {"name": "b"}, {"name": "c"}],
    }


def test_secrets_of_the_live_service_account_are_kept():
    live = {"imagePullSecrets": [{"name": "added-by-hand"}, {"name": "c"}]}
    built = service_account(runtime(crossplane_pull_secrets=["c", "d"]), live=live)
    assert [s["name"] for s in built["imagePullSecrets"]] == ["added-by-hand", "c", "d"]
    assert "imagePullSecrets" not in service_account(runtime(), live={"metadata": {}})


def test_the_service_account_takes_name_labels_and_annotations_of_its_template():
    config = named("serviceAccountTemplate", name="sa", labels={"a": "b"}, annotations={"c": "d"})
    metadata = service_account(runtime(config=config))["metadata"]
    assert (metadata["name"], metadata["annotations"]) == ("sa", {"c": "d"})
    assert metadata["labels"]["a"] == "b"


def test_a_tls_secret_is_controlled_by_the_revision():
    built = tls_secret(runtime(), "provider-x-tls-server", {"tls.crt": "eA=="})
    assert built["kind"] == "Secret"
    assert built["metadata"]["ownerReferences"] == [OWNER]
    assert built["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "crossdock"}
    assert built["data"] == {"tls.crt": "eA=="}


@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"serviceTemplate": None, "serviceAccountTemplate": {}, "deploymentTemplate": None},
        {"serviceTemplate": {"metadata": None}, "serviceAccountTemplate": {"metadata": {}}},
        named("serviceTemplate", labels=None, annotations=None, name=""),
    ],
)
def test_empty_templates_are_no_templates(config):
    assert service(runtime(config=config)) == service(runtime())
    assert service_account(runtime(config=config)) == service_account(runtime())


def test_the_configuration_is_not_changed():
    config = named("serviceTemplate", labels={"a": "b"}, annotations={"a": "b"})
    before = copy.deepcopy(config)
    service(runtime(config=config))["metadata"]["annotations"]["x"] = "y"
    assert config == before


def status(*conditions):
    return {"status": {"conditions": [dict(zip(KEYS, c, strict=False)) for c in conditions]}}


KEYS = ("type", "status", "message")
HEALTHY = Condition("RuntimeHealthy", "True", "HealthyPackageRevision")
PREFIX = "post establish runtime hook failed for package: "


def unhealthy(text):
    return Condition("RuntimeHealthy", "False", "UnhealthyPackageRevision", PREFIX + text)


@pytest.mark.parametrize(
    ("kind", "live", "awaiting", "expected"),
    [
        (
            "Provider",
            status(("Available", "True")),
            False,
            (HEALTHY, Condition("RuntimeActive", "True", "ActiveRuntime")),
        ),
        (
            "Provider",
            status(("Available", "True")),
            True,
            (
                HEALTHY,
                Condition("RuntimeActive", "False", "AwaitingActivation", AWAITING_MESSAGE),
            ),
        ),
        (
            "Provider",
            status(("Progressing", "True"), ("Available", "False", "no pods")),
            False,
            (unhealthy("provider package deployment is unavailable with message: no pods"),),
        ),
        (
            "Function",
            status(("Available", "Unknown")),
            False,
            (unhealthy("function package deployment is unavailable with message: "),),
        ),
        (
            "Function",
            status(("Progressing", "True")),
            False,
            (unhealthy('function package deployment has no condition of type "Available" yet'),),
        ),
        (
            "Provider",
            None,
            False,
            (unhealthy('provider package deployment has no condition of type "Available" yet'),),
        ),
        (
            "Provider",
            {"metadata": {}},
            True,
            (unhealthy('provider package deployment has no condition of type "Available" yet'),),
        ),
    ],
)
def test_readiness_follows_from_the_deployment(kind, live, awaiting, expected):
    assert runtime_conditions(kind, live, awaiting_activation=awaiting) == expected


ACTIVE = Condition("RuntimeActive", "True", "ActiveRuntime")
WAITING = Condition("RuntimeActive", "False", "AwaitingActivation")


@pytest.mark.parametrize(
    ("capabilities", "active", "states", "expected"),
    [
        (["safe-start"], None, ["Inactive"], True),
        (["SafeStart"], None, ["Inactive", ""], True),
        (["other", "safe start"], WAITING, ["Inactive"], True),
        (["safe-start"], ACTIVE, ["Inactive"], False),
        (["safe-start"], None, ["Inactive", "Active"], False),
        (["safe-start"], None, [], False),
        (["safe-started"], None, ["Inactive"], False),
        ([], None, ["Inactive"], False),
    ],
)
def test_a_runtime_waits_for_its_first_active_definition(capabilities, active, states, expected):
    assert is_awaiting_activation(capabilities, active, states) is expected


def controlled(uid):
    return {"metadata": {"name": "x", "ownerReferences": [{"uid": uid, "controller": True}]}}


@pytest.mark.parametrize(
    ("live", "goes"),
    [
        (controlled("rev-uid"), True),
        (controlled("another"), False),
        ({"metadata": {"ownerReferences": [{"uid": "rev-uid"}]}}, False),
        ({"metadata": {}}, False),
        (None, False),
    ],
)
def test_an_inactive_revision_deletes_only_what_it_controls(live, goes):
    revision = runtime().revision
    assert to_delete(revision, deployment=live) == (((DEPLOYMENT, live),) if goes else ())
    assert to_delete(revision, deployment=None, service=live) == (
        ((SERVICE, live),) if goes else ()
    )


@pytest.mark.parametrize(
    "reference",
    [
        {"name": "big"},
        {
            "apiVersion": "pkg.crossplane.io/v1beta1",
            "kind": "DeploymentRuntimeConfig",
            "name": "big",
        },
    ],
)
def test_a_reference_names_a_runtime_configuration(reference):
    assert runtime_config_name(reference) == "big"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (None, "no deployment runtime config set"),
        ({}, "no deployment runtime config set"),
        (
            {"name": "x", "kind": "Other"},
            "runtime config is set but is an unknown apiVersion and kind",
        ),
        (
            {"name": "x", "apiVersion": "v1"},
            "runtime config is set but is an unknown apiVersion and kind",
        ),
    ],
)
def test_a_reference_that_cannot_be_followed_is_refused(reference, message):
    with pytest.raises(RuntimeConfigError, match=message):
        runtime_config_name(reference)
