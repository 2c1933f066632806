"""Every rule of how a DeploymentRuntimeConfig and a revision make a Deployment."""

from __future__ import annotations

import copy

import pytest

from controller.model.deployment import deployment, uses_built_service_account
from controller.model.runtime import Runtime

SELECTORS = {
    "pkg.crossplane.io/revision": "provider-x-123",
    "pkg.crossplane.io/provider": "provider-x",
}


def build(kind="Provider", *, spec=None, pod=None, template=None, container=None, **fields):
    """Build a Deployment; the arguments are parts of its template in the configuration."""
    name = f"{kind.lower()}-x"
    revision = {
        "metadata": {"name": f"{name}-123", "uid": "rev-uid"},
        "spec": fields.pop("revision", {}),
    }
    pod = dict(pod or {})
    if container is not None:
        pod["containers"] = [{"name": "package-runtime"} | container]
    given = {"selector": {}, "template": {"spec": pod} | (template or {})} | (spec or {})
    config = {"deploymentTemplate": {"metadata": fields.pop("metadata", None), "spec": given}}
    values = {"namespace": "crossplane-system", "image": "x.io/p:v1", "config": config} | fields
    runtime = Runtime(package_kind=kind, package=name, revision=revision, **values)
    before = copy.deepcopy(runtime.config)
    built = deployment(runtime)
    assert runtime.config == before
    assert deployment(runtime) == built
    return built


def pod_of(built):
    return built["spec"]["template"]["spec"]


def runtime_of(built):
    return pod_of(built)["containers"][0]


def env_of(built):
    return {entry["name"]: entry for entry in runtime_of(built)["env"]}


def ports_of(built):
    return [(p.get("name"), p["containerPort"]) for p in runtime_of(built)["ports"]]


def test_without_configuration():
    """The whole object once; the tests below are about one rule each."""
    security = {"runAsNonRoot": True, "runAsUser": 2000, "runAsGroup": 2000}
    field = "metadata.labels['pkg.crossplane.io/{}']".format
    expected = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": "provider-x-123",
            "namespace": "crossplane-system",
            "labels": {"app.kubernetes.io/managed-by": "crossdock"},
            "ownerReferences": [
                {
                    "apiVersion": "pkg.crossplane.io/v1",
                    "kind": "ProviderRevision",
                    "name": "provider-x-123",
                    "uid": "rev-uid",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": SELECTORS},
            "template": {
                "metadata": {
                    "labels": SELECTORS,
                    "annotations": {
                        "prometheus.io/scrape": "true",
                        "prometheus.io/port": "8080",
                        "prometheus.io/path": "/metrics",
                    },
                },
                "spec": {
                    "serviceAccountName": "provider-x-123",
                    "securityContext": security,
                    "containers": [
                        {
                            "name": "package-runtime",
                            "image": "x.io/p:v1",
                            "imagePullPolicy": "IfNotPresent",
                            "securityContext": security
                            | {"allowPrivilegeEscalation": False, "privileged": False},
                            "ports": [
                                {"name": "metrics", "containerPort": 8080, "protocol": "TCP"}
                            ],
                            "env": [
                                {"name": "POD_NAMESPACE", "valueFrom": ref("metadata.namespace")},
                                {"name": "PROVIDER_NAME", "valueFrom": ref(field("provider"))},
                                {"name": "REVISION_NAME", "valueFrom": ref(field("revision"))},
                                {"name": "REVISION_UID", "value": "rev-uid"},
                            ],
                        }
                    ],
                },
            },
        },
    }
    assert build(config=None) == expected
    for config in ({}, {"deploymentTemplate": None}, {"deploymentTemplate": {"spec": None}}):
        assert build(config=config) == expected
    assert build() == expected


def ref(path):
    return {"fieldRef": {"fieldPath": path}}


def test_1_the_runtime_container_is_moved_to_the_front():
    others = [{"name": "side"}, {"name": "package-runtime", "args": ["-d"]}, {"name": "car"}]
    built = build(pod={"containers": others})
    assert [c["name"] for c in pod_of(built)["containers"]] == ["package-runtime", "side", "car"]
    assert runtime_of(built)["args"] == ["-d"]
    assert pod_of(built)["containers"][1] == {"name": "side"}


def test_1_the_runtime_container_is_inserted_at_the_front():
    built = build(pod={"containers": [{"name": "side"}]})
    assert [c["name"] for c in pod_of(built)["containers"]] == ["package-runtime", "side"]


@pytest.mark.parametrize(("given", "name"), [({}, "provider-x-123"), ({"name": "mine"}, "mine")])
def test_2_name_is_optional(given, name):
    assert build(metadata=given)["metadata"]["name"] == name


@pytest.mark.parametrize(
    ("given", "replicas"), [({}, 1), ({"replicas": 3}, 3), ({"replicas": 0}, 0)]
)
def test_3_replicas_are_optional(given, replicas):
    assert build(spec=given)["spec"]["replicas"] == replicas


@pytest.mark.parametrize("given", [{}, {"fsGroup": 7}])
def test_4_a_security_context_of_the_pod_is_taken_whole(given):
    assert pod_of(build(pod={"securityContext": given}))["securityContext"] == given


def test_5_a_pull_policy_of_the_template_serves_where_the_revision_has_none():
    built = build(container={"imagePullPolicy": "Always"})
    assert runtime_of(built)["imagePullPolicy"] == "Always"


@pytest.mark.parametrize("given", [{}, {"runAsUser": 7}])
def test_6_a_security_context_of_the_container_is_taken_whole(given):
    assert runtime_of(build(container={"securityContext": given}))["securityContext"] == given


def test_7_the_service_account_is_the_one_that_is_built():
    config = {"serviceAccountTemplate": {"metadata": {"name": "sa"}}}
    assert pod_of(build(config=config))["serviceAccountName"] == "sa"


@pytest.mark.parametrize(
    ("pod_account", "template_account", "ours"),
    [(None, None, True), (None, "sa", True), ("sa", "sa", True), ("irsa", None, False)],
)
def test_7_a_service_account_of_the_template_is_the_users(pod_account, template_account, ours):
    pod = {"serviceAccountName": pod_account} if pod_account else {}
    metadata = {"name": template_account} if template_account else {}
    runtime = Runtime(
        package_kind="Provider",
        package="provider-x",
        revision={"metadata": {"name": "provider-x-123", "uid": "u"}, "spec": {}},
        namespace="crossplane-system",
        config={
            "deploymentTemplate": {"spec": {"template": {"spec": pod}}},
            "serviceAccountTemplate": {"metadata": metadata},
        },
    )
    assert uses_built_service_account(runtime, deployment(runtime)) is ours


def test_8_and_9_namespace_and_owner_are_forced():
    metadata = {"namespace": "mine", "ownerReferences": [{"uid": "x"}], "finalizers": ["f"]}
    built = build(metadata=metadata)["metadata"]
    assert built["namespace"] == "crossplane-system"
    assert [o["uid"] for o in built["ownerReferences"]] == ["rev-uid"]
    assert "finalizers" not in built


def test_10_selectors_replace_labels_and_keep_expressions():
    expressions = [{"key": "a", "operator": "Exists"}]
    built = build(
        spec={"selector": {"matchLabels": {"a": "b"}, "matchExpressions": expressions}},
        template={"metadata": {"labels": {"a": "b", "pkg.crossplane.io/revision": "old"}}},
    )
    assert built["spec"]["selector"] == {
        "matchLabels": SELECTORS,
        "matchExpressions": expressions,
    }
    assert built["spec"]["template"]["metadata"]["labels"] == {"a": "b"} | SELECTORS


@pytest.mark.parametrize(
    ("own", "config_secret", "expected"),
    [
        ([], None, None),
        (["a", "b"], None, ["a", "b"]),
        (["a"], "c", ["a", "c"]),
        ([], "c", ["c"]),
        (["c", "a"], "c", ["c", "a"]),
    ],
)
def test_11_and_14_pull_secrets_are_the_revisions_and_the_image_configs(
    own, config_secret, expected
):
    built = build(
        pod={"imagePullSecrets": [{"name": "dropped"}]},
        revision={"packagePullSecrets": [{"name": name} for name in own]},
        image_config_pull_secret=config_secret,
        crossplane_pull_secrets=["of-crossplane"],
    )
    secrets = pod_of(built).get("imagePullSecrets")
    assert (secrets and [s["name"] for s in secrets]) == expected


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        (None, [("metrics", 8080)]),
        ([], [("metrics", 8080)]),
        ([("metrics", 9999)], [("metrics", 9999)]),
        ([("http", 80)], [("http", 80), ("metrics", 8080)]),
        ([("http", 8080)], [("http", 8080)]),
        ([(None, 8080)], [("metrics", 8080)]),
    ],
)
def test_12_a_metrics_port_is_added_once(ports, expected):
    given = ports and [{"containerPort": n} | ({"name": name} if name else {}) for name, n in ports]
    assert ports_of(build(container={"ports": given})) == expected


def test_13_awaiting_activation_beats_the_template():
    assert build(spec={"replicas": 3}, awaiting_activation=True)["spec"]["replicas"] == 0


def test_15_the_pull_policy_of_the_revision_is_forced():
    built = build(container={"imagePullPolicy": "Never"}, revision={"packagePullPolicy": "Always"})
    assert runtime_of(built)["imagePullPolicy"] == "Always"


@pytest.mark.parametrize("role", ["client", "server"])
@pytest.mark.parametrize("kind", ["Provider", "Function"])
def test_16_and_17_tls_secrets_are_mounted(role, kind):
    built = build(kind, **{f"tls_{role}_secret": "secret-name"})
    assert pod_of(built)["volumes"] == [
        {
            "name": f"tls-{role}-certs",
            "secret": {
                "secretName": "secret-name",
                "items": [{"key": k, "path": k} for k in ("tls.crt", "tls.key", "ca.crt")],
            },
        }
    ]
    assert runtime_of(built)["volumeMounts"] == [
        {"name": f"tls-{role}-certs", "mountPath": f"/tls/{role}", "readOnly": True}
    ]
    variable = f"TLS_{role.upper()}_CERTS_DIR"
    assert env_of(built)[variable] == {"name": variable, "value": f"/tls/{role}"}


def test_17_volumes_and_variables_of_the_user_come_first():
    built = build(
        pod={"volumes": [{"name": "mine", "emptyDir": {}}]},
        container={
            "env": [{"name": "MINE", "value": "1"}],
            "volumeMounts": [{"name": "mine", "mountPath": "/mine"}],
        },
        tls_server_secret="s",
        tls_client_secret="c",
    )
    assert [v["name"] for v in pod_of(built)["volumes"]] == [
        "mine",
        "tls-client-certs",
        "tls-server-certs",
    ]
    mounts = [m["mountPath"] for m in runtime_of(built)["volumeMounts"]]
    assert mounts == ["/mine", "/tls/client", "/tls/server"]
    assert list(env_of(built)) == [
        "MINE", "TLS_CLIENT_CERTS_DIR", "TLS_SERVER_CERTS_DIR", "POD_NAMESPACE", "PROVIDER_NAME",
        "REVISION_NAME", "REVISION_UID", "WEBHOOK_TLS_CERT_DIR",
    ]  # fmt: skip


def test_entries_of_the_user_with_keys_of_ours_give_way():
    """Server-side apply refuses a list in which a key stands twice."""
    built = build(
        pod={"volumes": [{"name": "tls-server-certs", "emptyDir": {}}]},
        container={
            "env": [{"name": "POD_NAMESPACE", "value": "x"}, {"name": "TLS_SERVER_CERTS_DIR"}],
            "volumeMounts": [{"name": "other", "mountPath": "/tls/server"}],
        },
        tls_server_secret="s",
    )
    names = [e["name"] for e in runtime_of(built)["env"]]
    assert len(names) == len(set(names))
    assert env_of(built)["POD_NAMESPACE"]["valueFrom"] == ref("metadata.namespace")
    assert [v["secret"]["secretName"] for v in pod_of(built)["volumes"]] == ["s"]
    assert [m["name"] for m in runtime_of(built)["volumeMounts"]] == ["tls-server-certs"]


def test_18_a_provider_knows_itself():
    env = env_of(build())
    assert env["POD_NAMESPACE"]["valueFrom"] == ref("metadata.namespace")
    label = "metadata.labels['pkg.crossplane.io/provider']"
    assert env["PROVIDER_NAME"]["valueFrom"] == ref(label)
    assert env["REVISION_UID"]["value"] == "rev-uid"


def test_18_a_function_knows_itself():
    built = build("Function")
    label = "metadata.labels['pkg.crossplane.io/function']"
    assert env_of(built)["FUNCTION_NAME"]["valueFrom"] == ref(label)
    assert set(env_of(built)) == {"FUNCTION_NAME", "REVISION_NAME", "REVISION_UID"}
    assert ports_of(built) == [("metrics", 8080), ("grpc", 9443)]
    assert "annotations" not in built["spec"]["template"]["metadata"]


@pytest.mark.parametrize(
    ("annotations", "ports", "expected"),
    [
        (None, [], ("true", "8080", "/metrics")),
        ({}, [{"name": "metrics", "containerPort": 9999}], ("true", "9999", "/metrics")),
        ({"prometheus.io/scrape": "false"}, [], ("false", None, None)),
        ({"prometheus.io/port": "1"}, [], ("true", "8080", "/metrics")),
    ],
)
def test_19_scrape_annotations_are_optional_as_a_group(annotations, ports, expected):
    built = build(template={"metadata": {"annotations": annotations}}, container={"ports": ports})
    found = built["spec"]["template"]["metadata"]["annotations"]
    keys = ("prometheus.io/scrape", "prometheus.io/port", "prometheus.io/path")
    assert tuple(found.get(key) for key in keys) == expected


@pytest.mark.parametrize("kind", ["Provider", "Function"])
def test_20_the_image_is_optional(kind):
    assert runtime_of(build(kind))["image"] == "x.io/p:v1"
    assert runtime_of(build(kind, container={"image": "mine:v2"}))["image"] == "mine:v2"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], [("metrics", 8080), ("webhook", 9443)]),
        ([("webhook", 1234)], [("webhook", 1234), ("metrics", 8080)]),
        ([("https", 9443)], [("webhook", 9443), ("metrics", 8080)]),
    ],
)
def test_21_a_provider_with_a_server_certificate_serves_webhooks(given, expected):
    ports = [{"name": name, "containerPort": number} for name, number in given]
    built = build(container={"ports": ports}, tls_server_secret="s")
    assert ports_of(built) == expected
    assert env_of(built)["WEBHOOK_TLS_CERT_DIR"]["value"] == "$(TLS_SERVER_CERTS_DIR)"


def test_21_a_port_of_another_protocol_may_have_the_number():
    ports = [{"name": "quic", "containerPort": 9443, "protocol": "UDP"}]
    built = build("Function", container={"ports": ports})
    assert ports_of(built) == [("quic", 9443), ("metrics", 8080), ("grpc", 9443)]


def test_labels_and_annotations_of_the_deployment_come_from_the_template():
    built = build(metadata={"labels": {"a": "b"}, "annotations": {"c": "d"}})["metadata"]
    assert built["labels"] == {"a": "b", "app.kubernetes.io/managed-by": "crossdock"}
    assert built["annotations"] == {"c": "d"}


def test_everything_else_of_the_template_stays():
    strategy = {"type": "Recreate"}
    pod = {"nodeSelector": {"a": "b"}, "initContainers": [{"name": "i"}]}
    container = {"args": ["-d"], "resources": {"limits": {"cpu": "1"}}, "envFrom": [{"x": 1}]}
    built = build(spec={"strategy": strategy, "minReadySeconds": 5}, pod=pod, container=container)
    assert built["spec"]["strategy"] == strategy
    assert built["spec"]["minReadySeconds"] == 5
    assert pod.items() <= pod_of(built).items()
    assert container.items() <= runtime_of(built).items()
