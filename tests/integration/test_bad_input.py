"""Bad input ends in a condition to act on, then in success once its cause is gone."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from controller.model.objects import CONFIGURATION, CRD, FUNCTION, PROVIDER, PROVIDER_REVISION
from tests.integration.harness import (
    Platform,
    conditions,
    crd,
    depends_on,
    eventually,
    meta,
)
from tests.integration.images import push_image
from tests.lab.core import apply as apply_core_kinds
from tests.lab.core import remove as remove_core_kinds

pytestmark = pytest.mark.lab


def text(*documents: Mapping[str, object]) -> bytes:
    return yaml.safe_dump_all([dict(document) for document in documents]).encode()


def push_text(platform: Platform, repository: str, content: bytes, tag: str = "v1.0.0") -> str:
    push_image(platform.lab.registry, repository, tag, {"package.yaml": content})
    return platform.image(repository, tag)


def healthy_neighbour(platform: Platform) -> None:
    """Install a package that must not be harmed."""
    image = platform.image("acme/neighbour")
    platform.push(image, [meta("Function", "neighbour")])
    platform.install("Function", "neighbour", image)
    platform.wait_healthy("Function", "neighbour")


def test_a_tag_that_appears_later_is_installed_then(platform: Platform):
    platform.start()
    healthy_neighbour(platform)
    image = platform.image("acme/later")
    platform.install("Function", "later", image)
    found = platform.wait_condition(FUNCTION, "later", "Installed", "False", "not found")
    assert found["reason"] == "UnpackingPackage"
    assert image in found["message"]
    platform.push(image, [meta("Function", "later")])
    platform.wait_healthy("Function", "later")
    platform.wait_healthy("Function", "neighbour")


def test_a_registry_that_comes_up_later_is_asked_again(platform: Platform):
    image = platform.image("acme/outage")
    platform.push(image, [meta("Function", "outage")])
    platform.start()
    healthy_neighbour(platform)
    platform.lab.kill("registry")
    try:
        platform.install("Function", "outage", image)
        platform.wait_condition(FUNCTION, "outage", "Installed", "False", platform.lab.registry)
        neighbour = conditions(platform.get(FUNCTION, "neighbour"))
        assert neighbour["Healthy"]["status"] == "True"
    finally:
        platform.lab.start("registry")
    platform.wait_healthy("Function", "outage")


CASES = {
    "no package": ({"README": b"hello"}, "package.yaml"),
    "entirely empty": (None, "package.yaml"),
    "syntax error": ({"package.yaml": b"a: b\n---\na: [1\n"}, "document"),
    "two metadata objects": (
        {"package.yaml": text(meta("Function", "a"), meta("Function", "b"))},
        "not exactly one package meta type",
    ),
    "unknown kind": (
        {"package.yaml": text(meta("Function", "a"), {"apiVersion": "x.io/v1", "kind": "Odd"})},
        "Odd",
    ),
    "another kind of package": (
        {"package.yaml": text(meta("Provider", "a"))},
        "package meta type is not Function",
    ),
    "needs a newer Crossplane": (
        {"package.yaml": text(meta("Function", "a", crossplane={"version": ">=v99.0.0"}))},
        "incompatible Crossplane version",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_image_that_is_no_good_package_is_named_and_replaced(platform: Platform, case: str):
    files, message = CASES[case]
    platform.start()
    push_image(platform.lab.registry, "acme/bad", "v1.0.0", files)
    platform.install("Function", "bad", platform.image("acme/bad"))
    platform.wait_condition(FUNCTION, "bad", "Healthy", "False", message)
    good = push_text(platform, "acme/bad", text(meta("Function", "bad")), "v1.0.1")
    platform.patch(FUNCTION, "bad", {"spec": {"package": good}})
    platform.wait_healthy("Function", "bad")


def test_a_tag_that_named_no_package_is_looked_at_again(platform: Platform):
    platform.start()
    push_image(platform.lab.registry, "acme/fixed", "v1.0.0", {"README": b"oops"})
    platform.install("Function", "fixed", platform.image("acme/fixed"))
    platform.wait_condition(FUNCTION, "fixed", "Healthy", "False", "package.yaml")
    push_text(platform, "acme/fixed", text(meta("Function", "fixed")))
    platform.wait_healthy("Function", "fixed")


def test_a_known_kind_that_may_not_be_installed_is_dropped_and_named(
    platform: Platform, group: str
):
    composition = {
        "apiVersion": "apiextensions.crossplane.io/v1",
        "kind": "Composition",
        "metadata": {"name": "misplaced"},
        "spec": {},
    }
    content = text(meta("Provider", "mixed"), crd(group), composition)
    image = push_text(platform, "acme/mixed", content)
    platform.start()
    platform.install("Provider", "mixed", image)
    platform.wait_healthy("Provider", "mixed")
    (revision,) = platform.revisions("Provider", "mixed")
    linted = conditions(revision)["Linted"]
    assert linted["status"] == "False"
    assert "misplaced" in linted["message"]
    assert platform.get(CRD, f"things.{group}") is not None


def test_a_definition_that_the_api_server_rejects_is_named_and_the_fixed_one_installed(
    platform: Platform, group: str
):
    broken = crd(group)
    broken["spec"]["versions"][0]["schema"] = {"openAPIV3Schema": {"type": "nonsense"}}
    bad = push_text(platform, "acme/rejected", text(meta("Provider", "r"), broken))
    platform.start()
    healthy_neighbour(platform)
    platform.install("Provider", "rejected", bad)
    message = platform.wait_condition(PROVIDER, "rejected", "Healthy", "False", "nonsense")
    assert f"things.{group}" in message["message"]
    good = push_text(platform, "acme/rejected", text(meta("Provider", "r"), crd(group)), "v1.0.1")
    platform.patch(PROVIDER, "rejected", {"spec": {"package": good}})
    platform.wait_healthy("Provider", "rejected")
    platform.wait_healthy("Function", "neighbour")


def test_a_dependency_that_does_not_exist_is_named_and_installed_when_it_does(platform: Platform):
    missing = platform.image("acme/missing")
    image = platform.image("acme/parent")
    needs = [depends_on("Function", missing, ">=v1.0.0")]
    platform.push(image, [meta("Configuration", "parent", dependsOn=needs)])
    platform.start()
    platform.install("Configuration", "parent", image)
    platform.wait_condition(CONFIGURATION, "parent", "Healthy", "False", "acme/missing")
    platform.push(missing, [meta("Function", "missing")])
    platform.wait_healthy("Configuration", "parent")
    platform.wait_healthy("Function", "acme-missing")


def test_a_kind_that_the_cluster_does_not_serve_is_waited_for(platform: Platform, group: str):
    operation = {
        "apiVersion": "ops.crossplane.io/v1alpha1",
        "kind": "Operation",
        "metadata": {"name": f"op-{group.partition('.')[0]}"},
        "spec": {"mode": "Pipeline"},
    }
    remove_core_kinds(platform.api, ["operations.ops.crossplane.io"])
    try:
        image = platform.image("acme/ops")
        platform.push(image, [meta("Configuration", "ops"), operation])
        platform.start()
        platform.install("Configuration", "ops", image)
        platform.wait_condition(
            CONFIGURATION, "ops", "Healthy", "False", "does not serve Operation"
        )
    finally:
        apply_core_kinds(platform.api)
    platform.wait_healthy("Configuration", "ops")


def test_another_packages_objects_are_not_taken(platform: Platform, group: str):
    for name in ("first", "second"):
        platform.push(platform.image(f"acme/{name}"), [meta("Provider", name), crd(group)])
    platform.start()
    platform.install("Provider", "first", platform.image("acme/first"))
    platform.wait_healthy("Provider", "first")
    platform.install("Provider", "second", platform.image("acme/second"))
    found = platform.wait_condition(
        PROVIDER, "second", "Healthy", "False", "already controlled by ProviderRevision first-"
    )
    assert f"things.{group}" in found["message"]
    platform.wait_healthy("Provider", "first")
    platform.delete(PROVIDER, "first")
    platform.wait_healthy("Provider", "second")


def test_a_full_cache_folder_is_no_obstacle(platform: Platform, group: str, tmp_path: Path):
    mount = tmp_path / "tiny"
    mount.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(mount)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        image = platform.image("acme/big")
        definition = crd(group)
        noise = "".join(os.urandom(64).hex() + " " for _ in range(1000))
        definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] = noise
        platform.push(image, [meta("Provider", "big"), definition])
        manager = platform.start(cache=mount)
        platform.install("Provider", "big", image)
        platform.wait_healthy("Provider", "big")
        (revision,) = platform.revisions("Provider", "big")
        cached = conditions(platform.get(PROVIDER_REVISION, revision["metadata"]["name"]))["Cached"]
        assert (cached["status"], cached["reason"]) == ("False", "CacheUnavailable")
        platform.delete(PROVIDER, "big")
        eventually(lambda: not platform.revisions("Provider", "big"), "the revision goes")
        manager.stop()
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.parametrize(("mode", "cause"), [(0o000, "read"), (None, "does not exist")])
def test_a_cache_folder_that_cannot_be_used_stops_the_start_with_one_line(
    platform: Platform, tmp_path: Path, mode: int | None, cause: str
):
    folder = tmp_path / "locked"
    if mode is not None:
        folder.mkdir()
        folder.chmod(mode)
    command = [sys.executable, "-m", "controller", "start", "--cache-dir", str(folder)]
    command += ["--kubeconfig", str(platform.lab.kubeconfig)]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("setpriv is missing: a user without rights cannot be played")
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
        for parent in (tmp_path, *tmp_path.parents):
            if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
                parent.chmod(0o755)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "HOME": "/nonexistent"},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert str(folder) in done.stderr
    assert cause in done.stderr
