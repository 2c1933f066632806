"""The Helm chart: an API server takes what it renders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.manifests.api import Api
from tests.manifests.chart import manager, pod

VALUE_SETS: list[dict[str, Any]] = [
    {},
    {"packageCache": {"medium": "Memory", "sizeLimit": "300Mi"}, "metrics": {"enabled": True}},
    {"packageCache": {"pvc": "packages"}, "imagePullSecrets": ["one"], "revisionHistoryLimit": 0},
    {
        "packageCache": {"sizeLimit": "2Gi"},
        "args": ["--debug"],
        "registryCaBundleConfig": {"name": "authorities", "key": "ca.crt"},
        "extraEnvVarsCrossplane": {"HTTPS_PROXY": "http://proxy:3128"},
        "extraVolumesCrossplane": [{"name": "extra", "emptyDir": {}}],
        "extraVolumeMountsCrossplane": [{"name": "extra", "mountPath": "/extra"}],
        "tolerations": [{"operator": "Exists"}],
        "priorityClassName": "system-cluster-critical",
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
    },
]


@pytest.mark.lab
@pytest.mark.parametrize("values", VALUE_SETS)
def test_the_api_server_takes_what_is_rendered(api: Api, render, values):
    for obj in render(**values).values():
        obj["metadata"]["name"] += "-dry"  # the plain manifests' objects are there already
        api.create(obj).accepted()


@pytest.fixture
def restricted(api: Api, unique_name: str) -> Iterator[str]:
    """A namespace whose Pods must keep the strictest Pod Security Standard."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"name": unique_name, "labels": labels}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "crossplane"}}
    api.create(space, keep=True).accepted()
    api.create(account, namespace=unique_name, keep=True).accepted()
    yield unique_name
    api.delete(space)


@pytest.mark.lab
@pytest.mark.parametrize("values", VALUE_SETS[:3])
def test_the_pod_keeps_the_restricted_pod_security_standard(api: Api, restricted, render, values):
    rendered = render(**values)
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "crossdock"},
        "spec": pod(rendered),
    }
    api.create(body, namespace=restricted).accepted()
    assert manager(rendered)["securityContext"]["readOnlyRootFilesystem"] is True
    manager(rendered)["securityContext"]["allowPrivilegeEscalation"] = True
    refused = api.create(body, namespace=restricted)
    assert refused.code == 403
    assert "restricted" in refused.message
