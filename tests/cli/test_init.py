"""``init`` on a real control plane."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from controller import __version__
from controller.cli.init import InitFlags, singletons, skips_permissions
from controller.kube.client import KubeClient
from tests.lab.lab import Lab

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
PROVIDERS = f"{CRDS}/providers.pkg.crossplane.io"
SECRET = "/api/v1/namespaces/crossplane-system/secrets/crossplane-root-ca"
PACKAGES = "/apis/pkg.crossplane.io/v1"
MERGE = "application/merge-patch+json"
REF = "registry.example.com/acme/nop"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory):
    """A lab for these tests alone: they change kinds that all others need."""
    with Lab.launch(tmp_path_factory.mktemp("init") / "lab", audit=True) as found:
        yield found


@pytest.fixture
def init(lab, crossdock):
    """Run ``init`` on the lab and return what a person sees."""

    def call(*argv, **more):
        more.setdefault("cluster", administrator(lab))
        return crossdock("init", *argv, **more)

    return call


def administrator(lab):
    def connect(_kubeconfig, _context):
        return KubeClient.connect(kubeconfig=lab.kubeconfig, user_agent=f"crossdock/{__version__}")

    return connect


def manager(lab):
    def connect(_kubeconfig, _context):
        return KubeClient.connect(
            kubeconfig=lab.kubeconfig,
            as_service_account=("crossplane-system", "crossplane"),
            user_agent=f"crossdock/{__version__}",
        )

    return connect


def verdicts(answer):
    """Return what was done with each object."""
    lines = [line.rpartition(" ") for line in answer.out.splitlines()[:-1]]
    return {name: verdict for name, _, verdict in lines}


def writes(lab, mark):
    return [e for e in lab.audit_events(mark) if e.agent.startswith("crossdock/") and e.writes]


@pytest.mark.lab
def test_init_sets_a_cluster_up_and_run_again_writes_nothing(lab, init):
    first = init()
    assert first.code == 0, first.err
    done = verdicts(first)
    assert len(done) >= 20
    assert done["lock.pkg.crossplane.io/lock"]
    assert first.out.splitlines()[-1].startswith(
        f"{lab.state().server} is ready for crossdock in crossplane-system: "
    )
    mark = lab.mark()
    again = init()
    assert again.code == 0
    assert set(verdicts(again).values()) == {"unchanged"}
    assert writes(lab, mark) == []
    assert f"0 created, 0 updated, {len(done)} unchanged" in again.out


@pytest.mark.lab
def test_what_somebody_changed_is_put_right_and_nothing_else_is_touched(lab, init):
    assert init().code == 0
    shipped = lab.api.expect("GET", PROVIDERS)
    changed = copy.deepcopy(shipped["spec"])
    changed["versions"][0]["additionalPrinterColumns"] = []
    lab.api.expect("PATCH", PROVIDERS, {"spec": changed}, content_type=MERGE)
    labels = {"metadata": {"labels": {"somebody": "else"}}}
    lab.api.expect("PATCH", PROVIDERS, labels, content_type=MERGE)
    done = verdicts(init())
    updated = [name for name, verdict in done.items() if verdict != "unchanged"]
    assert updated == ["customresourcedefinition.apiextensions.k8s.io/providers.pkg.crossplane.io"]
    mended = lab.api.expect("GET", PROVIDERS)
    assert mended["spec"] == shipped["spec"]
    assert mended["metadata"]["labels"] == {"somebody": "else"}


@pytest.mark.lab
def test_a_version_with_stored_objects_is_never_dropped(lab, init):
    assert init().code == 0
    spec = lab.api.expect("GET", PROVIDERS)["spec"]
    newer = {**spec["versions"][0], "name": "v2", "storage": False}
    spec["versions"].append(newer)
    lab.api.expect("PATCH", PROVIDERS, {"spec": spec}, content_type=MERGE)
    status = {"status": {"storedVersions": ["v1", "v2"]}}
    lab.api.expect("PATCH", f"{PROVIDERS}/status", status, content_type=MERGE)
    try:
        mark = lab.mark()
        answer = init()
        assert answer.code == 1
        assert "providers.pkg.crossplane.io has objects stored in version v2" in answer.err
        assert "nothing was changed" in answer.err
        assert writes(lab, mark) == []
    finally:
        status = {"status": {"storedVersions": ["v1"]}}
        lab.api.expect("PATCH", f"{PROVIDERS}/status", status, content_type=MERGE)
    assert init().code == 0
    assert [v["name"] for v in lab.api.expect("GET", PROVIDERS)["spec"]["versions"]] == ["v1"]


@pytest.mark.lab
def test_an_empty_root_ca_is_filled_and_a_foreign_one_is_left_alone(lab, init):
    assert init().code == 0
    made = lab.api.expect("GET", SECRET)["data"]
    empty = {"data": dict.fromkeys(made, "")}
    lab.api.expect("PATCH", SECRET, empty, content_type=MERGE)
    assert verdicts(init())["secret/crossplane-root-ca"] == "updated"
    filled = lab.api.expect("GET", SECRET)["data"]
    assert filled["tls.crt"]
    assert filled["tls.crt"] != made["tls.crt"]
    broken = {"data": {"tls.crt": "bm90IGEgY2VydGlmaWNhdGU="}}
    lab.api.expect("PATCH", SECRET, broken, content_type=MERGE)
    answer = init()
    assert answer.code == 1
    assert "secret/crossplane-root-ca in crossplane-system is no usable authority" in answer.err
    assert lab.api.expect("GET", SECRET)["data"]["tls.crt"] == broken["data"]["tls.crt"]
    lab.api.expect("PATCH", SECRET, {"data": filled}, content_type=MERGE)


@pytest.mark.lab
def test_first_packages_are_installed_and_moved_to_the_version_given(lab, init):
    packages = ["--provider", f"{REF}:v1", "--function", f"{REF}-function:v1"]
    done = verdicts(init(*packages))
    assert done["provider.pkg.crossplane.io/acme-nop"] == "created"
    assert done["function.pkg.crossplane.io/acme-nop-function"] == "created"
    assert verdicts(init(*packages))["provider.pkg.crossplane.io/acme-nop"] == "unchanged"
    moved = verdicts(init("--provider", f"{REF}:v2"))
    assert moved["provider.pkg.crossplane.io/acme-nop"] == "updated"
    spec = lab.api.expect("GET", f"{PACKAGES}/providers/acme-nop")["spec"]
    assert spec["package"] == f"{REF}:v2"


@pytest.mark.lab
def test_a_package_of_the_same_source_keeps_its_name(lab, init):
    assert init().code == 0
    body = {
        "apiVersion": "pkg.crossplane.io/v1",
        "kind": "Configuration",
        "metadata": {"name": "mine"},
        "spec": {"package": "Registry.example.com/acme/platform:v1"},
    }
    lab.api.expect("POST", f"{PACKAGES}/configurations", body)
    answer = init("--configuration", "registry.example.com/acme/platform:v2")
    assert verdicts(answer)["configuration.pkg.crossplane.io/mine"] == "updated"


@pytest.mark.lab
def test_in_a_pod_init_works_with_the_rights_of_the_manager_alone(lab, init):
    assert init().code == 0
    lab.api.expect("DELETE", "/apis/pkg.crossplane.io/v1beta1/locks/lock")
    lab.api.expect("DELETE", SECRET)
    environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    answer = init(cluster=manager(lab), environ=environ)
    assert answer.code == 0, answer.err
    assert "left as they are" in answer.err
    done = verdicts(answer)
    assert "namespace/crossplane-system" not in done
    assert done["lock.pkg.crossplane.io/lock"] == "created"
    assert done["secret/crossplane-root-ca"] == "created"


@pytest.mark.lab
def test_without_the_right_to_make_permissions_the_remedy_is_named(lab, init):
    assert init().code == 0
    answer = init(cluster=manager(lab))
    assert answer.code == 1
    assert "ask an administrator to run init, or use --skip-rbac" in answer.err


@pytest.mark.lab
def test_a_namespace_that_does_not_exist_is_named(lab, init):
    answer = init("--skip-rbac", "--namespace", "nowhere")
    assert answer.code == 1
    assert "namespace nowhere does not exist: create it, or run init without" in answer.err


@pytest.mark.lab
def test_another_namespace_and_service_account_are_made_as_asked(lab, init):
    done = verdicts(init("-n", "elsewhere", "--service-account", "somebody"))
    assert done["namespace/elsewhere"] == "created"
    assert done["serviceaccount/somebody"] == "created"
    path = "/apis/rbac.authorization.k8s.io/v1/namespaces/elsewhere/rolebindings/crossdock"
    subject = lab.api.expect("GET", path)["subjects"][0]
    assert (subject["name"], subject["namespace"]) == ("somebody", "elsewhere")


@pytest.mark.parametrize(
    ("flags", "environ", "skips"),
    [
        (InitFlags(), {}, False),
        (InitFlags(), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, True),
        (InitFlags(), {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBECONFIG": "x"}, False),
        (InitFlags(kubeconfig=Path("x")), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        (InitFlags(skip_rbac=False), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        (InitFlags(skip_rbac=True), {}, True),
    ],
)
def test_permissions_are_left_to_the_maker_of_the_pod(make_session, flags, environ, skips):
    assert skips_permissions(flags, make_session(environ=environ)) is skips


def test_a_reference_that_cannot_be_installed_is_refused_before_any_request(crossdock):
    answer = crossdock("init", "--provider", "nop")
    assert answer.code == 2
    assert '"nop" names no registry' in answer.err


def test_what_exists_once_is_named_as_crossplane_names_it():
    assert [json.dumps(body["metadata"]) for _, body in singletons()] == [
        '{"name": "lock"}',
        '{"name": "default"}',
    ]
