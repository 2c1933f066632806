"""Packages go in, stay, and go away again."""

import signal
import socket
from typing import Any

import pytest

from controller.model.objects import (
    CONFIGURATION,
    CRD,
    FUNCTION,
    FUNCTION_REVISION,
    IMAGE_CONFIG,
    LOCK,
    PROVIDER,
    PROVIDER_REVISION,
    SECRET,
    SERVICE,
)
from tests.integration.harness import (
    NAMESPACE,
    Platform,
    conditions,
    crd,
    depends_on,
    eventually,
    meta,
    never,
)

pytestmark = pytest.mark.lab


def test_a_provider_is_installed_with_everything_it_needs(platform: Platform, group: str):
    image = platform.image("acme/provider-full")
    metadata = {
        **meta("Provider", "provider-full"),
        "metadata": {"name": "provider-full", "labels": {"pkg.crossplane.io/provider-family": "f"}},
    }
    digest = platform.push(image, [metadata, crd(group), crd(group, "others", ("v1", "v1beta1"))])
    platform.start()
    platform.install("Provider", "full", image, commonLabels={"team": "a"})
    package = platform.wait_healthy("Provider", "full")
    assert package["status"]["currentIdentifier"] == image
    assert package["status"]["resolvedPackage"] == image

    (revision,) = platform.revisions("Provider", "full")
    name = revision["metadata"]["name"]
    assert name == f"full-{digest.removeprefix('sha256:')[:12]}"
    assert package["status"]["currentRevision"] == name
    assert revision["metadata"]["labels"]["pkg.crossplane.io/provider-family"] == "f"
    assert revision["spec"]["desiredState"] == "Active"
    assert conditions(revision)["RevisionHealthy"]["reason"] == "HealthyPackageRevision"
    names = [reference["name"] for reference in revision["status"]["objectRefs"]]
    assert names == [f"things.{group}", f"others.{group}"]

    definition = platform.get(CRD, f"things.{group}")
    assert definition is not None
    assert definition["metadata"]["labels"]["team"] == "a"
    owners = {o["kind"]: o for o in definition["metadata"]["ownerReferences"]}
    assert owners["ProviderRevision"]["controller"] is True
    assert not owners["Provider"].get("controller")

    (deployment,) = platform.deployments()
    assert deployment["metadata"]["name"] == name
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert (container["name"], container["image"]) == ("package-runtime", image)
    assert platform.get(SERVICE, "full", NAMESPACE) is not None
    for secret in ("full-tls-server", "full-tls-client"):
        found = platform.get(SECRET, secret, NAMESPACE)
        assert found is not None
        assert set(found["data"]) == {"tls.crt", "tls.key", "ca.crt"}

    lock = platform.get(LOCK, "lock")
    assert lock is not None
    assert [entry["name"] for entry in lock["packages"]] == [name]
    eventually(
        lambda: {"InstallPackageRevision"} <= {e["reason"] for e in platform.events("full")},
        "an event says that the package is installed",
    )


def test_a_configuration_brings_what_it_depends_on(platform: Platform, group: str):
    provider, function = platform.image("acme/prov"), platform.image("acme/func")
    for tag in ("v1.0.0", "v1.2.0", "v2.0.0"):
        platform.push(platform.image("acme/prov", tag), [meta("Provider", "prov"), crd(group)])
    platform.push(function, [meta("Function", "func")])
    configuration = platform.image("acme/conf")
    needs = [
        depends_on("Provider", provider, ">=v1.0.0, <v2.0.0"),
        depends_on("Function", function, "^v1.0.0"),
    ]
    platform.push(configuration, [meta("Configuration", "conf", dependsOn=needs)])
    platform.start()
    platform.install("Configuration", "conf", configuration)
    platform.wait_healthy("Configuration", "conf")
    found = platform.wait_healthy("Provider", "acme-prov")
    assert found["spec"]["package"] == platform.image("acme/prov", "v1.2.0")
    platform.wait_healthy("Function", "acme-func")
    (revision,) = platform.revisions("Configuration", "conf")
    counters = {k: v for k, v in revision["status"].items() if k.endswith("Dependencies")}
    assert counters == {
        "foundDependencies": 2,
        "installedDependencies": 2,
        "invalidDependencies": 0,
    }
    (revision,) = platform.revisions("Function", "acme-func")
    assert revision["status"]["endpoint"] == f"dns:///acme-func.{NAMESPACE}:9443"
    assert revision["status"]["capabilities"] == ["composition"]
    lock = platform.get(LOCK, "lock")
    assert conditions(lock)["Resolved"]["reason"] == "DependencyResolutionSucceeded"


def test_restarting_with_everything_installed_writes_nothing_and_asks_no_registry(
    platform: Platform, group: str
):
    provider = platform.image("acme/calm")
    platform.push(provider, [meta("Provider", "calm"), crd(group)])
    configuration = platform.image("acme/calm-conf")
    needs = [depends_on("Provider", provider, "v1.0.0")]
    platform.push(configuration, [meta("Configuration", "conf", dependsOn=needs)])
    first = platform.start()
    platform.install("Configuration", "conf", configuration)
    platform.wait_healthy("Configuration", "conf")
    platform.wait_healthy("Provider", "acme-calm")
    never(lambda: first.process.poll() is not None, "the manager goes on", 1.0)
    assert first.stop() == 0
    mark = platform.lab.mark()
    second = platform.start()
    never(lambda: platform.writes(mark), "a write after the restart", 3.0)
    assert platform.lab.registry_requests(mark) == []
    assert second.stop() == 0


def test_a_deleted_package_leaves_nothing_behind(platform: Platform, group: str):
    image = platform.image("acme/gone")
    platform.push(image, [meta("Provider", "gone"), crd(group)])
    platform.start()
    platform.install("Provider", "gone", image)
    platform.wait_healthy("Provider", "gone")
    entries = [path for path in platform.cache.rglob("*") if path.is_file()]
    assert any("records" in str(path) or "entries" in str(path) for path in entries), entries
    platform.delete(PROVIDER, "gone")
    eventually(lambda: not platform.revisions("Provider", "gone"), "the revision goes")
    lock = platform.get(LOCK, "lock")
    assert lock is not None
    assert lock.get("packages") in ([], None)
    eventually(lambda: platform.get(CRD, f"things.{group}") is None, "the definition goes", 90)
    eventually(lambda: not platform.deployments(), "the Deployment goes", 90)
    left = [p for p in platform.cache.rglob("*.gz") if p.is_file()]
    assert left == []


def test_an_upgrade_moves_the_objects_and_keeps_them(platform: Platform, group: str):
    for tag, kinds in (("v1.0.0", ["things"]), ("v2.0.0", ["things", "others"])):
        definitions = [crd(group, plural) for plural in kinds]
        if tag == "v2.0.0":
            definitions[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] = "2"
        image = platform.image("acme/up", tag)
        platform.push(image, [meta("Provider", "up"), *definitions])
    platform.start()
    platform.install("Provider", "up", platform.image("acme/up", "v1.0.0"))
    platform.wait_healthy("Provider", "up")
    before = platform.get(CRD, f"things.{group}")
    platform.patch(PROVIDER, "up", {"spec": {"package": platform.image("acme/up", "v2.0.0")}})
    platform.wait_healthy("Provider", "up")
    old, new = platform.revisions("Provider", "up")
    assert (old["spec"]["desiredState"], new["spec"]["desiredState"]) == ("Inactive", "Active")
    after = platform.get(CRD, f"things.{group}")
    assert before is not None
    assert after is not None
    assert before["metadata"]["uid"] == after["metadata"]["uid"]
    controllers = [o["uid"] for o in after["metadata"]["ownerReferences"] if o.get("controller")]
    assert controllers == [new["metadata"]["uid"]]
    eventually(
        lambda: (
            [d["metadata"]["name"] for d in platform.deployments()] == [new["metadata"]["name"]]
        ),
        "only the new Deployment runs",
    )


def test_a_version_that_cannot_work_leaves_the_running_one_alone(platform: Platform, group: str):
    good, bad = platform.image("acme/safe", "v1.0.0"), platform.image("acme/safe", "v2.0.0")
    platform.push(good, [meta("Provider", "safe"), crd(group)])
    needs = [depends_on("Provider", platform.image("acme/nowhere"), ">=v1.0.0")]
    platform.push(bad, [meta("Provider", "safe", dependsOn=needs), crd(group)])
    platform.start()
    platform.install("Provider", "safe", good)
    platform.wait_healthy("Provider", "safe")
    (running,) = platform.deployments()
    platform.patch(PROVIDER, "safe", {"spec": {"package": bad}})
    platform.wait_condition(PROVIDER, "safe", "Upgradeable", "False", "acme/nowhere")
    stated = conditions(platform.get(PROVIDER, "safe"))
    assert (stated["Healthy"]["status"], stated["Healthy"]["observedGeneration"]) == ("True", 1)
    assert [d["metadata"]["uid"] for d in platform.deployments()] == [running["metadata"]["uid"]]
    platform.patch(PROVIDER, "safe", {"spec": {"package": good}})
    platform.wait_healthy("Provider", "safe")


def test_manual_activation_waits_for_a_person(platform: Platform, group: str):
    image = platform.image("acme/manual")
    platform.push(image, [meta("Provider", "manual"), crd(group)])
    platform.start()
    platform.install("Provider", "manual", image, revisionActivationPolicy="Manual")
    found = platform.wait_condition(PROVIDER, "manual", "Installed", "False", "Package is inactive")
    assert found["reason"] == "InactivePackageRevision"
    assert platform.get(CRD, f"things.{group}") is None
    (revision,) = platform.revisions("Provider", "manual")
    name = revision["metadata"]["name"]
    platform.patch(PROVIDER_REVISION, name, {"spec": {"desiredState": "Active"}})
    platform.wait_healthy("Provider", "manual")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_manager_ends_in_an_orderly_way(platform: Platform, number: signal.Signals):
    manager = platform.start()
    assert manager.stop(number) == 0
    assert "Traceback" not in manager.tail()


def test_a_changed_or_removed_object_is_put_right(platform: Platform, group: str):
    image = platform.image("acme/drift")
    platform.push(image, [meta("Provider", "drift"), crd(group)])
    platform.start()
    platform.install("Provider", "drift", image, commonLabels={"team": "alpha"})
    platform.wait_healthy("Provider", "drift")
    name = f"things.{group}"
    first = platform.get(CRD, name)
    assert first is not None

    def now() -> dict[str, Any]:
        return platform.get(CRD, name) or {"metadata": {}, "spec": {"names": {}}}

    platform.delete(CRD, name)
    eventually(
        lambda: now()["metadata"].get("uid") not in (None, first["metadata"]["uid"]),
        "the definition comes back",
    )
    platform.wait_healthy("Provider", "drift")
    platform.patch(CRD, name, {"spec": {"names": {"shortNames": ["foreign"]}}})
    generation = now()["metadata"]["generation"]
    eventually(
        lambda: now()["metadata"]["annotations"]["crossdock.io/applied"].endswith(f".{generation}"),
        "the foreign change is looked at and noted",
    )
    foreign = crd(group)["spec"]["versions"]
    foreign[0]["schema"]["openAPIV3Schema"] = {"type": "object", "description": "foreign"}
    platform.patch(CRD, name, {"spec": {"versions": foreign}})
    eventually(
        lambda: now()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].get(
            "x-kubernetes-preserve-unknown-fields"
        ),
        "the content comes back",
    )
    platform.patch(CRD, name, {"metadata": {"ownerReferences": None}})
    eventually(
        lambda: any(o.get("controller") for o in now()["metadata"].get("ownerReferences", ())),
        "the owner comes back",
    )
    platform.patch(CRD, name, {"metadata": {"labels": None}})
    eventually(
        lambda: now()["metadata"].get("labels", {}).get("team") == "alpha",
        "the label comes back",
    )


def test_a_rewritten_source_keeps_its_name(platform: Platform, group: str):
    platform.push(platform.image("mirror/func"), [meta("Function", "func")])
    platform.create(
        IMAGE_CONFIG,
        f"rewrite-{group.partition('.')[0]}",
        {
            "matchImages": [{"prefix": "xpkg.example.org/acme/"}],
            "rewriteImage": {"prefix": f"{platform.lab.registry}/mirror/"},
        },
    )
    platform.start()
    platform.install("Function", "func", "xpkg.example.org/acme/func:v1.0.0")
    package = platform.wait_healthy("Function", "func")
    assert package["status"]["resolvedPackage"] == platform.image("mirror/func")
    assert package["status"]["appliedImageConfigRefs"][0]["reason"] == "RewriteImage"
    (revision,) = platform.revisions("Function", "func")
    assert revision["spec"]["image"] == "xpkg.example.org/acme/func:v1.0.0"
    platform.delete(IMAGE_CONFIG, f"rewrite-{group.partition('.')[0]}")


def test_a_package_that_a_policy_wants_verified_is_not_installed(platform: Platform, group: str):
    image = platform.image("acme/unsigned")
    platform.push(image, [meta("Provider", "unsigned"), crd(group)])
    policy = f"verify-{group.partition('.')[0]}"
    key = {"secretRef": {"name": "key", "key": "cosign.pub"}, "hashAlgorithm": "sha256"}
    authorities = [{"name": "a", "key": key}]
    platform.create(
        IMAGE_CONFIG,
        policy,
        {
            "matchImages": [{"prefix": image.rpartition(":")[0]}],
            "verification": {"provider": "Cosign", "cosign": {"authorities": authorities}},
        },
    )
    platform.start()
    platform.install("Provider", "unsigned", image)
    platform.wait_condition(PROVIDER, "unsigned", "Healthy", "False", policy)
    assert platform.get(CRD, f"things.{group}") is None
    platform.delete(IMAGE_CONFIG, policy)
    platform.wait_healthy("Provider", "unsigned")


def test_a_paused_package_is_left_alone_until_it_goes_on(platform: Platform):
    image = platform.image("acme/paused")
    platform.push(image, [meta("Function", "paused")])
    platform.start()
    platform.create(
        FUNCTION, "paused", {"package": image}, annotations={"crossplane.io/paused": "true"}
    )
    found = platform.wait_condition(FUNCTION, "paused", "Synced", "False")
    assert found["reason"] == "ReconcilePaused"
    assert platform.list(FUNCTION_REVISION) == []
    platform.patch(
        FUNCTION, "paused", {"metadata": {"annotations": {"crossplane.io/paused": None}}}
    )
    platform.wait_healthy("Function", "paused")


def test_a_history_beyond_the_limit_goes(platform: Platform):
    for number in (1, 2, 3):
        content = [meta("Configuration", f"history-{number}")]
        platform.push(platform.image("acme/history", f"v{number}.0.0"), content)
    platform.start()
    platform.install("Configuration", "history", platform.image("acme/history", "v1.0.0"))
    platform.wait_healthy("Configuration", "history")
    for number in (2, 3):
        image = platform.image("acme/history", f"v{number}.0.0")
        platform.patch(CONFIGURATION, "history", {"spec": {"package": image}})
        platform.wait_healthy("Configuration", "history")
    eventually(
        lambda: (
            [r["spec"]["revision"] for r in platform.revisions("Configuration", "history")]
            == [2, 3]
        ),
        "the first revision is collected",
    )


def test_a_persons_own_service_of_the_same_name_is_left_alone(platform: Platform, group: str):
    image = platform.image("acme/taken")
    platform.push(image, [meta("Provider", "taken"), crd(group)])
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "taken"},
        "spec": {"selector": {"app": "mine"}, "ports": [{"port": 80}]},
    }
    platform.api.expect("POST", SERVICE.path(namespace=NAMESPACE), body)
    platform.start()
    platform.install("Provider", "taken", image)
    platform.wait_condition(PROVIDER, "taken", "Healthy", "False", "was not made by crossdock")
    kept = platform.get(SERVICE, "taken", NAMESPACE)
    assert kept is not None
    assert kept["spec"]["selector"] == {"app": "mine"}
    platform.api.expect("DELETE", SERVICE.path("taken", namespace=NAMESPACE))
    platform.wait_healthy("Provider", "taken")


def test_a_source_that_is_changed_back_leaves_no_failure_behind(platform: Platform, group: str):
    image = platform.image("acme/back")
    platform.push(image, [meta("Provider", "back"), crd(group)])
    platform.start()
    platform.install("Provider", "back", image)
    platform.wait_healthy("Provider", "back")
    missing = platform.image("acme/back", "v9.9.9")
    platform.patch(PROVIDER, "back", {"spec": {"package": missing}})
    platform.wait_condition(PROVIDER, "back", "Upgradeable", "False", "not found")
    platform.patch(PROVIDER, "back", {"spec": {"package": image}})
    platform.wait_healthy("Provider", "back")
    platform.wait_condition(PROVIDER, "back", "Upgradeable", "True")


def test_a_slow_registry_of_one_dependency_holds_up_nobody_else(platform: Platform):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        needs = [depends_on("Function", f"{address}/acme/slow:v1", ">=v1.0.0")]
        slow = platform.image("acme/slow-parent")
        platform.push(slow, [meta("Configuration", "slow", dependsOn=needs)])
        dependency, quick = platform.image("acme/quick-dep"), platform.image("acme/quick-parent")
        platform.push(dependency, [meta("Function", "quick")])
        needs = [depends_on("Function", dependency, ">=v1.0.0")]
        platform.push(quick, [meta("Configuration", "quick", dependsOn=needs)])
        platform.start()
        platform.install("Configuration", "slow", slow)
        platform.wait_condition(CONFIGURATION, "slow", "Healthy", "False", "missing dependencies")
        platform.install("Configuration", "quick", quick)
        platform.wait_healthy("Configuration", "quick")
        stated = conditions(platform.get(CONFIGURATION, "slow"))
        assert stated["Healthy"]["status"] == "False"
