"""DeploymentRuntimeConfig: the whole DeploymentSpec of Kubernetes, as a structural schema."""

from __future__ import annotations

from typing import Any

import pytest

from tests.manifests.api import Api, kubernetes_object
from tests.manifests.deployment_spec import structural
from tests.manifests.generate import committed_deployment_spec

V1BETA1 = "pkg.crossplane.io/v1beta1"


@pytest.mark.lab
def test_runtime_configs_take_the_idioms_for_what_the_package_manager_fills_in(api: Api):
    spec = {
        "deploymentTemplate": {
            "metadata": {"name": "d", "labels": {"a": "b"}, "annotations": {"c": "d"}},
            "spec": {
                "selector": {},
                "replicas": 2,
                "template": {
                    "metadata": {"labels": {"e": "f"}, "annotations": {"g": "h"}},
                    "spec": {
                        "containers": [],
                        "hostAliases": [{"ip": "127.0.0.1", "hostnames": ["x"]}],
                        "imagePullSecrets": [{"name": "s"}],
                    },
                },
            },
        },
        "serviceTemplate": {"metadata": {"name": "s"}},
        "serviceAccountTemplate": {"metadata": {"name": "a"}},
    }
    created = api.create(kubernetes_object(V1BETA1, "DeploymentRuntimeConfig", spec=spec))
    assert created.accepted()["spec"] == spec
    empty = api.create(kubernetes_object(V1BETA1, "DeploymentRuntimeConfig", spec={})).accepted()
    assert empty["spec"] == {}
    api.create(kubernetes_object(V1BETA1, "DeploymentRuntimeConfig")).accepted()


def runtime_config(pod: dict[str, Any]) -> dict[str, Any]:
    template = {"spec": {"selector": {}, "template": {"spec": {"containers": []} | pod}}}
    return kubernetes_object(
        V1BETA1, "DeploymentRuntimeConfig", spec={"deploymentTemplate": template}
    )


@pytest.mark.lab
def test_runtime_configs_take_quantities_numbers_and_fields_of_every_depth(api: Api):
    container = {
        "name": "package-runtime",
        "resources": {"limits": {"memory": "2Gi", "cpu": 1}, "requests": {"cpu": "100m"}},
        "ports": [{"containerPort": 1}, {"containerPort": 1, "protocol": "UDP"}],
        "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"key": "k"}}}],
        "livenessProbe": {"httpGet": {"path": "/", "port": "http"}},
        "readinessProbe": {"tcpSocket": {"port": 8080}},
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
    }
    volume = {"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1.5Gi"}}
    pod = {"containers": [container], "volumes": [volume]}
    stored = api.create(runtime_config(pod)).accepted()
    pod_spec = stored["spec"]["deploymentTemplate"]["spec"]["template"]["spec"]
    found = pod_spec["containers"][0]
    assert found["resources"] == container["resources"]
    assert [port["protocol"] for port in found["ports"]] == ["TCP", "UDP"]
    assert found["env"][0]["valueFrom"]["configMapKeyRef"] == {"key": "k", "name": ""}
    assert (found["livenessProbe"], found["readinessProbe"]) == (
        container["livenessProbe"],
        container["readinessProbe"],
    )
    assert pod_spec["volumes"] == [volume]


@pytest.mark.lab
@pytest.mark.parametrize(
    ("pod", "complaint"),
    [
        ({"hostAliases": [{"hostnames": ["x"]}]}, "hostAliases[0].ip: Required value"),
        ({"containers": [{"image": "x"}]}, "containers[0].name: Required value"),
        ({"containers": [{"name": "a"}, {"name": "a"}]}, "Duplicate value"),
        (
            {"containers": [{"name": "a", "resources": {"limits": {"memory": "much"}}}]},
            "should match",
        ),
        ({"containers": None}, "containers: Required value"),
    ],
)
def test_runtime_configs_that_no_deployment_could_follow_are_refused(api: Api, pod, complaint):
    answer = api.create(runtime_config(pod))
    assert answer.code == 422
    assert complaint in answer.message


@pytest.mark.lab
def test_a_misspelt_field_of_a_runtime_config_is_reported(api: Api):
    answer = api.create(runtime_config({"nodeSelektor": {"a": "b"}}))
    assert answer.code == 400
    assert "nodeSelektor" in answer.message


@pytest.mark.lab
def test_the_deployment_spec_is_the_one_that_the_api_server_publishes(api: Api):
    version = api.get("/version").accepted()
    if (version["major"], version["minor"]) != ("1", "36"):
        pytest.skip(f"the API server is {version['gitVersion']}; the schema is that of 1.36")
    openapi = api.get("/openapi/v3/apis/apps/v1").accepted()
    assert committed_deployment_spec() == structural(openapi)
