"""A lab is a real control plane and registry, and its components can be made to fail."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import uuid

import pytest

from tests.lab import binaries, core
from tests.lab.errors import LabError
from tests.lab.lab import Lab
from tests.lab.processes import Identity

pytestmark = pytest.mark.lab
NODE = "/api/v1/nodes/lab"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with Lab.launch(tmp_path_factory.mktemp("lab"), audit=True) as found:
        yield found


@pytest.fixture
def space(running):
    """A namespace of this test alone."""
    name = f"t-{uuid.uuid4().hex[:12]}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    running.api.expect("POST", "/api/v1/namespaces", body)
    return name


def until(condition, *, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def deployment(name):
    labels = {"app": name}
    container = {"name": "c", "image": "example.test/none:1"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"initContainers": [container | {"name": "i"}], "containers": [container]},
            },
        },
    }


def available(running, space, name):
    _, answer = running.api.request("GET", f"/apis/apps/v1/namespaces/{space}/deployments/{name}")
    conditions = answer.get("status", {}).get("conditions", [])
    return any(each["type"] == "Available" and each["status"] == "True" for each in conditions)


def test_the_node_is_ready_and_a_deployment_becomes_available(running, space):
    api = running.api
    api.expect("POST", f"/apis/apps/v1/namespaces/{space}/deployments", deployment("d"))
    until(lambda: available(running, space, "d"))
    api.expect("DELETE", f"/apis/apps/v1/namespaces/{space}/deployments/d")
    pods = f"/api/v1/namespaces/{space}/pods"
    until(lambda: api.expect("GET", pods)["items"] == [])


def test_a_namespace_can_be_deleted_with_what_is_in_it(running, space):
    path = f"/api/v1/namespaces/{space}"
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}}
    running.api.expect("POST", f"{path}/configmaps", body)
    running.api.expect("DELETE", path)
    until(lambda: running.api.request("GET", path)[0] == 404)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_the_kubeconfig_serves_kubectl(running):
    command = ["kubectl", f"--kubeconfig={running.kubeconfig}", "get", "nodes", "-o", "name"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "node/lab\n"


def test_a_service_account_has_a_token_and_only_its_own_rights(running, space):
    api = running.api
    accounts = f"/api/v1/namespaces/{space}/serviceaccounts"
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "m"}}
    api.expect("POST", accounts, body)
    wish = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    token = api.expect("POST", f"{accounts}/m/token", wish)["status"]["token"]
    review = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token},
    }
    answer = api.expect("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)
    user = f"system:serviceaccount:{space}:m"
    assert answer["status"]["user"]["username"] == user
    assert api.request("GET", f"/api/v1/namespaces/{space}/pods", as_user=user)[0] == 403


def test_a_blocking_owner_needs_the_right_to_set_its_finalizers(running, space):
    path = f"/api/v1/namespaces/{space}/configmaps"
    owner = running.api.expect(
        "POST", path, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner"}}
    )
    rule = {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "get"]}
    name = {"name": "writer"}
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{space}"
    group = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": name, "rules": [rule]}
    running.api.expect("POST", f"{rbac}/roles", role)
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": name,
        "roleRef": {"apiGroup": group, "kind": "Role", "name": "writer"},
        "subjects": [{"apiGroup": group, "kind": "User", "name": "somebody"}],
    }
    running.api.expect("POST", f"{rbac}/rolebindings", binding)
    reference = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": "owner",
        "uid": owner["metadata"]["uid"],
        "blockOwnerDeletion": True,
    }
    metadata = {"name": "owned", "ownerReferences": [reference]}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    status, answer = running.api.request("POST", path, body, as_user="somebody")
    assert status == 403
    assert "cannot set blockOwnerDeletion" in answer["message"]


@pytest.fixture
def image(running, tmp_path):
    """Pushes an image to a repository and gives its reference by digest."""
    crane = str(binaries.resolve(("crane",), announce=lambda _: None)["crane"])
    layer = tmp_path / "layer.tar"
    subprocess.run(["tar", "-cf", layer, "-C", tmp_path, "--files-from=/dev/null"], check=True)

    def push(repository: str) -> str:
        target = f"{running.registry}/{repository}"
        command = [crane, "append", "--oci-empty-base", "-f", str(layer), "-t", f"{target}:v1"]
        pushed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        return pushed.stdout.strip()

    return push


@pytest.mark.skipif(bool(binaries.absent(["crane"])), reason="crane is not built")
def test_the_registry_takes_images_gives_them_back_and_deletes_them(running, image):
    crane = str(binaries.resolve(("crane",), announce=lambda _: None)["crane"])
    mark = running.mark()
    reference = image("some/where")
    subprocess.run([crane, "validate", "--remote", reference], check=True, timeout=60)
    subprocess.run([crane, "delete", reference], check=True, timeout=60)
    requests = running.registry_requests(mark)
    assert {each.method for each in requests} >= {"PUT", "GET", "DELETE"}
    assert [each for each in requests if "/v2/some/where/manifests/" in each.path]
    assert all(each.agent.startswith("crane/") for each in requests)
    assert running.registry_requests(running.mark()) == []


def test_the_audit_log_tells_requests_since_a_mark_but_neither_leases_of_nodes_nor_health(
    running, space
):
    mark = running.mark()
    running.api.expect("GET", f"/api/v1/namespaces/{space}")
    running.api.expect("GET", "/readyz")
    leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    running.api.expect("GET", leases)

    def mine():
        events = running.audit_events(mark)
        return [each for each in events if each.user == "admin" and each.name == space]

    until(lambda: mine() != [])  # an event is written when its answer is out
    (event,) = mine()
    assert (event.verb, event.resource, event.code) == ("get", "namespaces", 200)
    everything = running.audit_events()
    others = {"kube-node-lease", "kube-system"}
    assert not [e for e in everything if e.resource.endswith("/leases") and e.namespace in others]
    assert not [each for each in everything if each.uri.startswith(("/readyz", "/healthz"))]


def test_core_kinds_are_served_and_managed_definitions_only_on_request(running):
    api = running.api
    assert core.apply(api) == core.names()
    group = "/apis/apiextensions.crossplane.io"
    assert api.request("GET", f"{group}/v2/compositeresourcedefinitions")[0] == 200
    assert api.request("GET", f"{group}/v1alpha1/managedresourcedefinitions")[0] == 404
    core.apply(api, [core.MANAGED])
    path = f"{group}/v1alpha1/managedresourcedefinitions"
    until(lambda: api.request("GET", path)[0] == 200)
    body = {
        "apiVersion": "apiextensions.crossplane.io/v1alpha1",
        "kind": "ManagedResourceDefinition",
        "metadata": {"name": "a"},
        "spec": {"group": "example.test"},
    }
    assert api.expect("POST", path, body)["spec"] == {"group": "example.test", "state": "Inactive"}
    core.remove(api, [core.MANAGED])
    assert api.request("GET", path)[0] == 404


def test_an_unknown_definition_is_refused_with_the_known_ones(running):
    with pytest.raises(LabError, match=r"no definition x; there are compositeresource"):
        core.apply(running.api, ["x"])


def test_the_api_server_comes_back_on_its_port_with_everything(running, space):
    before = running.pids
    running.kill("kube-apiserver")
    assert "kube-apiserver" not in running.pids
    with pytest.raises(LabError, match="does not answer"):
        running.api.request("GET", NODE)
    running.start("kube-apiserver")
    running.api.expect("GET", f"/api/v1/namespaces/{space}")
    assert running.pids["kube-apiserver"] != before["kube-apiserver"]
    api = running.api
    api.expect("POST", f"/apis/apps/v1/namespaces/{space}/deployments", deployment("d"))
    until(lambda: available(running, space, "d"))


@pytest.mark.parametrize("component", ["etcd", "registry", "kwok"])
def test_a_component_is_restarted_in_place(running, component):
    before = running.pids[component]
    running.restart(component)
    assert running.pids[component] != before
    running.api.expect("GET", NODE)


def test_a_frozen_component_answers_nothing_until_it_goes_on(running):
    running.pause("registry")
    try:
        process = Identity.of(running.pids["registry"])
        assert process is not None
        with pytest.raises(TimeoutError):
            ask_registry(running, seconds=0.3)
    finally:
        running.resume("registry")
    assert ask_registry(running, seconds=10).startswith(b"HTTP/1.0 200")
    assert process.alive()


def ask_registry(running, *, seconds):
    import socket

    host, _, port = running.registry.partition(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(b"GET /v2/ HTTP/1.0\r\n\r\n")
        return connection.recv(64)


def test_what_cannot_be_done_to_a_component_is_said(running):
    with pytest.raises(LabError, match="no component 'apiserver'; there are etcd"):
        running.kill("apiserver")
    running.kill("kwok")
    try:
        with pytest.raises(LabError, match="kwok does not run"):
            running.pause("kwok")
    finally:
        running.start("kwok")
    running.start("kwok")  # it runs already: nothing to do


def test_a_component_that_ends_by_itself_ends_the_lab_and_is_named(tmp_path):
    with Lab.launch(tmp_path / "lab") as lab:
        others = [Identity.of(pid) for pid in lab.pids.values()]
        os.kill(lab.pids["kube-scheduler"], signal.SIGKILL)
        until(lambda: not any(each and each.alive() for each in others))
        until(lambda: not lab_runs(lab))
        with pytest.raises(LabError) as caught:
            lab.state()
    message = str(caught.value)
    assert "kube-scheduler ended with signal 9" in message
    last = (tmp_path / "lab" / "logs" / "kube-scheduler.log").read_text().splitlines()[-1]
    assert last in message


def lab_runs(lab):
    try:
        return lab.state().running
    except LabError:
        return False
