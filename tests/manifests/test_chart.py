"""The Helm chart: what it renders for several values."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.chart import (
    CACHE,
    CHART,
    SYSTEM,
    environment,
    init,
    manager,
    mount,
    pod,
    run,
    template,
    volume,
)
from tests.manifests.shipped import MANIFESTS, load


@pytest.fixture
def refuse(helm: Path, tmp_path: Path) -> Callable[..., str]:
    """Render the chart with values that it must refuse, and return what it says."""

    def refused(**values: Any) -> str:
        done = template(helm, tmp_path, values)
        assert done.returncode != 0
        return done.stderr

    return refused


def test_helm_lint_finds_nothing(helm, tmp_path):
    done = run(helm, tmp_path, "lint", str(CHART), "--strict")
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


def test_the_chart_runs_the_version_of_this_project():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((MANIFESTS.parent / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]


def test_a_packed_chart_renders_the_same(helm, tmp_path, render):
    done = run(helm, tmp_path, "package", str(CHART), "--destination", str(tmp_path))
    assert done.returncode == 0, done.stderr
    [archive] = tmp_path.glob("*.tgz")
    packed = template(helm, tmp_path, {}, chart=archive)
    assert packed.returncode == 0, packed.stderr
    objects = [obj for obj in yaml.safe_load_all(packed.stdout) if obj]
    assert {(o["kind"], o["metadata"]["name"]): o for o in objects} == render()


def test_the_cache_is_an_empty_dir_on_disk_where_the_manager_looks_for_it(render):
    rendered = render()
    assert volume(rendered, "package-cache") == {"emptyDir": {"medium": "", "sizeLimit": "1Gi"}}
    assert mount(rendered, "package-cache") == {"mountPath": CACHE}
    assert f"--cache-dir={CACHE}" in manager(rendered)["args"]
    assert "--cache-max-bytes=800Mi" in manager(rendered)["args"]


def test_the_caches_medium_and_size_limit_are_values(render):
    rendered = render(packageCache={"medium": "Memory", "sizeLimit": "300Mi"})
    expected = {"emptyDir": {"medium": "Memory", "sizeLimit": "300Mi"}}
    assert volume(rendered, "package-cache") == expected


def test_the_cache_may_be_a_claim(render):
    rendered = render(packageCache={"pvc": "packages"})
    expected = {"persistentVolumeClaim": {"claimName": "packages"}}
    assert volume(rendered, "package-cache") == expected
    assert mount(rendered, "package-cache") == {"mountPath": CACHE}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"packageCache": {"sizeLimit": "much"}}, "/packageCache/sizeLimit"),
        ({"packageCache": {"medium": "Tape"}}, "/packageCache/medium"),
        ({"packageCache": {"sizelimit": "1Gi"}}, "sizelimit"),
        ({"replicas": -1}, "/replicas"),
        ({"replicas": 2, "leaderElection": False}, "need leaderElection"),
        ({"deploymentStrategy": "OnDelete"}, "/deploymentStrategy"),
        ({"logging": {"level": "loud"}}, "/logging/level"),
        ({"registryCaBundleConfig": {"name": "ca"}}, "registryCaBundleConfig.key"),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(refuse, values, named):
    assert named in refuse(**values)


def test_a_new_manager_stands_by_until_the_old_one_ends(render):
    spec = render()["Deployment", "crossdock"]["spec"]
    surge = {"maxSurge": 1, "maxUnavailable": 0}
    assert (spec["replicas"], spec["strategy"]) == (
        1,
        {"type": "RollingUpdate", "rollingUpdate": surge},
    )
    env = environment(manager(render()))
    assert env["LEADER_ELECTION"] == "true"
    assert env["POD_NAME"]["fieldRef"]["fieldPath"] == "metadata.name"


def test_a_volume_for_one_pod_can_have_the_old_manager_ended_first(render):
    spec = render(deploymentStrategy="Recreate")["Deployment", "crossdock"]["spec"]
    assert spec["strategy"] == {"type": "Recreate"}


def test_the_manager_is_told_where_and_who_it_is(render):
    rendered = render()
    for container in (init(rendered), manager(rendered)):
        env = environment(container)
        assert env["POD_NAMESPACE"]["fieldRef"]["fieldPath"] == "metadata.namespace"
        assert env["POD_SERVICE_ACCOUNT"]["fieldRef"]["fieldPath"] == "spec.serviceAccountName"
    assert init(rendered)["args"][0] == "init"
    assert manager(rendered)["args"][0] == "start"
    assert pod(rendered)["serviceAccountName"] == "crossplane"


def test_first_packages_go_to_init(render):
    rendered = render(
        provider={"packages": ["r.example.org/a:v1", "r.example.org/b:v1"]},
        configuration={"packages": ["r.example.org/c:v1"]},
        function={"packages": ["r.example.org/d:v1"]},
    )
    assert init(rendered)["args"][3:] == [
        "--provider=r.example.org/a:v1",
        "--provider=r.example.org/b:v1",
        "--configuration=r.example.org/c:v1",
        "--function=r.example.org/d:v1",
    ]


def test_arguments_and_variables_of_the_user_are_added(render):
    rendered = render(
        args=["--crossplane-version=v2.3.4"],
        extraEnvVarsCrossplane={"HTTPS_PROXY": "http://proxy:3128", "RETRIES": 3},
        extraEnvVarsCrossplaneInit={"NO_PROXY": "10.0.0.0/8"},
        logging={"level": "debug", "format": "console"},
    )
    arguments = manager(rendered)["args"]
    assert arguments[-1] == "--crossplane-version=v2.3.4"
    assert {"--log-level=debug", "--log-format=console"} <= set(arguments)
    env = environment(manager(rendered))
    assert (env["HTTPS_PROXY"], env["RETRIES"]) == ("http://proxy:3128", "3")
    assert environment(init(rendered))["NO_PROXY"] == "10.0.0.0/8"


def test_authorities_of_registries_come_from_a_config_map(render):
    rendered = render(registryCaBundleConfig={"name": "authorities", "key": "ca.crt"})
    assert environment(manager(rendered))["CA_BUNDLE_PATH"] == "/certs/ca.crt"
    assert mount(rendered, "ca-certs") == {"mountPath": "/certs", "readOnly": True}
    items = [{"key": "ca.crt", "path": "ca.crt"}]
    expected = {"configMap": {"name": "authorities", "items": items}}
    assert volume(rendered, "ca-certs") == expected


def test_metrics_stay_in_the_pod_unless_they_are_asked_for(render):
    quiet = render()
    assert "--metrics-address=127.0.0.1:8080" in manager(quiet)["args"]
    assert [port["name"] for port in manager(quiet)["ports"]] == ["readyz"]
    assert "annotations" not in quiet["Deployment", "crossdock"]["spec"]["template"]["metadata"]
    served = render(metrics={"enabled": True, "port": 9090})
    assert "--metrics-address=0.0.0.0:9090" in manager(served)["args"]
    assert {"name": "metrics", "containerPort": 9090} in manager(served)["ports"]
    metadata = served["Deployment", "crossdock"]["spec"]["template"]["metadata"]
    assert metadata["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/path": "/metrics",
        "prometheus.io/port": "9090",
    }


def test_probes_ask_the_health_address(render):
    rendered = render(readiness={"port": 18081})
    container = manager(rendered)
    assert "--health-address=0.0.0.0:18081" in container["args"]
    assert {"name": "readyz", "containerPort": 18081} in container["ports"]
    paths = {
        probe: container[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert paths == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    assert {container[probe]["httpGet"]["port"] for probe in paths} == {"readyz"}


def test_pull_secrets_are_those_of_the_service_account(render):
    rendered = render(imagePullSecrets=["one", "two"])
    expected = [{"name": "one"}, {"name": "two"}]
    assert rendered["ServiceAccount", "crossplane"]["imagePullSecrets"] == expected
    assert pod(rendered)["imagePullSecrets"] == expected


def test_an_existing_service_account_is_used_and_not_made(render):
    rendered = render(serviceAccount={"create": False, "name": "mine"})
    assert "ServiceAccount" not in {kind for kind, _ in rendered}
    assert pod(rendered)["serviceAccountName"] == "mine"
    assert rendered["ClusterRoleBinding", "crossdock"]["subjects"] == [
        {"kind": "ServiceAccount", "name": "mine", "namespace": SYSTEM}
    ]


def test_permissions_are_those_of_the_plain_manifests(render):
    rendered = render()
    plain = [obj for obj in load("rbac") if obj["kind"] not in {"Namespace", "ServiceAccount"}]
    assert plain
    for obj in plain:
        found = rendered.pop((obj["kind"], obj["metadata"]["name"]))
        del found["metadata"]["labels"]
        assert found == obj
    assert {kind for kind, _ in rendered} == {"ServiceAccount", "Deployment"}


def test_permissions_follow_the_release_into_its_namespace(helm, tmp_path):
    done = template(helm, tmp_path, {}, "--namespace", "elsewhere")
    objects = [obj for obj in yaml.safe_load_all(done.stdout) if obj]
    places = {
        (obj["kind"], obj["metadata"]["name"]): obj["metadata"].get("namespace") for obj in objects
    }
    assert places["Role", "crossdock"] == "elsewhere"
    assert places["Role", "crossdock-events"] == "default"
    assert places["ClusterRole", "crossdock"] is None
    subjects = [subject for obj in objects for subject in obj.get("subjects", [])]
    assert {subject["namespace"] for subject in subjects} == {"elsewhere"}


def test_permissions_may_be_somebody_elses_task(render):
    kinds = {kind for kind, _ in render(rbac={"create": False})}
    assert kinds == {"ServiceAccount", "Deployment"}


def test_where_the_pod_runs_is_for_the_user_to_say(render):
    toleration = {"key": "dedicated", "operator": "Exists"}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": None}}
    resources = {"limits": {"memory": "2Gi"}}
    rendered = render(
        nodeSelector={"disk": "fast"},
        tolerations=[toleration],
        affinity=affinity,
        priorityClassName="system-cluster-critical",
        resourcesCrossplane=resources,
        customLabels={"team": "platform"},
        customAnnotations={"note": "x"},
    )
    spec = pod(rendered)
    assert spec["nodeSelector"] == {"disk": "fast"}
    assert spec["tolerations"] == [toleration]
    assert "nodeAffinity" in spec["affinity"]
    assert spec["priorityClassName"] == "system-cluster-critical"
    assert manager(rendered)["resources"]["limits"]["memory"] == "2Gi"
    metadata = rendered["Deployment", "crossdock"]["spec"]["template"]["metadata"]
    assert (metadata["labels"]["team"], metadata["annotations"]["note"]) == ("platform", "x")


def test_images_are_named_as_the_user_says(render):
    assert manager(render())["image"] == "crossdock:v0.1.0"
    image = {"repository": "r.example.org/crossdock", "tag": "v9"}
    assert manager(render(image=image))["image"] == "r.example.org/crossdock:v9"
    pinned = {"repository": "r.example.org/crossdock@sha256:abc", "ignoreTag": True}
    assert manager(render(image=pinned))["image"] == "r.example.org/crossdock@sha256:abc"


def test_notes_warn_about_a_cache_in_memory(helm, tmp_path):
    more = ("install", "crossdock", str(CHART), "--dry-run=client", "--namespace", SYSTEM)
    plain = run(helm, tmp_path, *more)
    assert "kubectl get pkg" in plain.stdout
    assert "counts towards the memory limit" not in plain.stdout
    memory = run(helm, tmp_path, *more, "--set", "packageCache.medium=Memory")
    assert "counts towards the memory limit" in memory.stdout
