"""``install``, ``list``, ``trace`` and ``uninstall`` on a real control plane.

No manager runs: what it would state, the tests state.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from controller.cli.session import connect_cluster

pytestmark = pytest.mark.lab

API = "/apis/pkg.crossplane.io/v1"
MERGE = "application/merge-patch+json"
HOST = "registry.example.com/acme"


@pytest.fixture
def crossdock(lab, crossdock, init_once):
    """Run one command line on the lab and return what a person sees."""

    def call(*argv, **more):
        more.setdefault("cluster", lambda _file, name: connect_cluster(lab.kubeconfig, name))
        return crossdock(*argv, **more)

    return call


@pytest.fixture
def state(lab):
    """State conditions and fields in an object's status, as a manager does."""

    def call(plural, name, *conditions, **fields):
        stamp = "2026-11-23T12:00:00Z"
        stated = [
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastTransitionTime": stamp,
            }
            for kind, status, reason, message in conditions
        ]
        body = {"status": {"conditions": stated, **fields}}
        lab.api.expect("PATCH", f"{API}/{plural}/{name}/status", body, content_type=MERGE)

    return call


@pytest.fixture
def packages(lab, unique_name):
    """Create packages and revisions whose names begin with the test's own; they go at its end."""
    made = []

    def create(kind, name, spec, **metadata):
        plural = f"{kind.lower()}s"
        body = {
            "apiVersion": "pkg.crossplane.io/v1",
            "kind": kind,
            "metadata": {"name": name, **metadata},
            "spec": spec,
        }
        made.append(f"{API}/{plural}/{name}")
        return lab.api.expect("POST", f"{API}/{plural}", body)

    yield create
    for path in made:
        lab.api.request("DELETE", path)


@pytest.fixture
def owned_revision(packages):
    """Create the first revision of a provider, owned by it as the manager has it."""

    def create(owner, **metadata):
        name = owner["metadata"]["name"]
        reference = {
            "apiVersion": "pkg.crossplane.io/v1",
            "kind": "Provider",
            "name": name,
            "uid": owner["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        return packages(
            "ProviderRevision",
            f"{name}-1",
            {"image": f"{HOST}/nop:v1", "desiredState": "Active", "revision": 1},
            labels={"pkg.crossplane.io/package": name},
            ownerReferences=[reference],
            **metadata,
        )

    return create


@pytest.fixture
def gone_at_the_end(lab):
    """Delete providers by name at the test's end."""
    names: list[str] = []
    yield names.append
    for name in names:
        lab.api.request("DELETE", f"{API}/providers/{name}")


INSTALLED = ("Installed", "True", "ActivePackageRevision", "")
HEALTHY = ("Healthy", "True", "HealthyPackageRevision", "")


def test_install_creates_the_object_and_says_so(lab, crossdock, unique_name, gone_at_the_end):
    gone_at_the_end(f"acme-{unique_name}")
    ref = f"{HOST}/{unique_name}:v1"
    answer = crossdock("install", "provider", ref)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == f"provider.pkg.crossplane.io/acme-{unique_name} created\n"
    spec = lab.api.expect("GET", f"{API}/providers/acme-{unique_name}")["spec"]
    assert spec["package"] == ref
    assert spec["revisionActivationPolicy"] == "Automatic"
    assert spec["revisionHistoryLimit"] == 1  # the kind's own default: nothing was sent
    assert "packagePullSecrets" not in spec


def test_install_sends_what_was_asked_for(lab, crossdock, unique_name, gone_at_the_end):
    gone_at_the_end(unique_name)
    words = f"-m -r 0 --package-pull-secrets a,b --runtime-config big {unique_name}".split()
    answer = crossdock("xpkg", "install", "provider", f"{HOST}/nop:v1", *words)
    assert answer.code == 0, answer.err
    spec = lab.api.expect("GET", f"{API}/providers/{unique_name}")["spec"]
    assert spec["revisionActivationPolicy"] == "Manual"
    assert spec["revisionHistoryLimit"] == 0
    assert spec["packagePullSecrets"] == [{"name": "a"}, {"name": "b"}]
    assert spec["runtimeConfigRef"]["name"] == "big"


def test_a_package_that_exists_is_named_with_the_way_to_change_it(crossdock, unique_name, packages):
    packages("Provider", unique_name, {"package": f"{HOST}/nop:v1"})
    answer = crossdock("install", "provider", f"{HOST}/nop:v2", unique_name)
    assert answer.code == 1
    assert answer.err == (
        f"crossdock: error: cannot create provider.pkg.crossplane.io/{unique_name}: it exists "
        f"already with {HOST}/nop:v1; give another NAME to install it beside, or change the "
        f"version with: kubectl patch provider.pkg.crossplane.io/{unique_name} --type merge -p "
        f'\'{{"spec":{{"package":"{HOST}/nop:v2"}}}}\'\n'
    )
    answer = crossdock("install", "provider", f"{HOST}/nop:v1", unique_name)
    assert answer.err.endswith(f"already with {HOST}/nop:v1, the very package asked for\n")


def test_install_waits_until_the_package_is_healthy(
    lab, crossdock, unique_name, gone_at_the_end, state
):
    gone_at_the_end(unique_name)
    steps = [
        [("Installed", "False", "UnpackingPackage", "no such tag")],
        [INSTALLED, ("Healthy", "False", "UnhealthyPackageRevision", "the runtime is not ready")],
        [INSTALLED, HEALTHY],
    ]

    async def sleep(_seconds):
        state("providers", unique_name, *steps.pop(0))

    answer = crossdock(
        "install", "provider", f"{HOST}/nop:v1", unique_name, "--wait", "5m", sleep=sleep
    )
    target = f"provider.pkg.crossplane.io/{unique_name}"
    assert answer.code == 0, answer.err
    created, healthy = answer.out.splitlines()
    assert created == f"{target} created"
    assert healthy.startswith(f"{target} installed and healthy after ")
    assert answer.err.splitlines() == [
        f"waiting for {target}: no answer from the manager yet",
        f"waiting for {target}: UnpackingPackage: no such tag",
        f"waiting for {target}: UnhealthyPackageRevision: the runtime is not ready",
    ]


def test_a_wait_that_is_over_ends_with_3_and_the_cause(
    crossdock, unique_name, gone_at_the_end, state
):
    gone_at_the_end(unique_name)
    now = [0.0]

    async def sleep(seconds):
        now[0] += seconds
        state("providers", unique_name, ("Installed", "False", "UnpackingPackage", "no such tag"))

    words = ["install", "provider", f"{HOST}/nop:v1", unique_name, "-w", "3s"]
    answer = crossdock(*words, sleep=sleep, monotonic=lambda: now[0])
    assert answer.code == 3
    assert answer.err.splitlines()[-1] == (
        f"crossdock: error: provider.pkg.crossplane.io/{unique_name} did not become healthy "
        "within 3s: UnpackingPackage: no such tag"
    )


def test_a_package_that_is_deleted_meanwhile_is_not_waited_for(lab, crossdock, unique_name):
    async def sleep(_seconds):
        lab.api.expect("DELETE", f"{API}/providers/{unique_name}")

    words = ["install", "provider", f"{HOST}/nop:v1", unique_name, "-w", "5m"]
    answer = crossdock(*words, sleep=sleep)
    assert answer.code == 1
    assert "was deleted while waiting for it" in answer.err


def test_an_interrupt_while_waiting_ends_with_130_and_no_traceback(
    lab, init_once, unique_name, gone_at_the_end
):
    gone_at_the_end(unique_name)
    words = ["install", "provider", f"{HOST}/nop:v1", unique_name, "-w", "5m"]
    process = subprocess.Popen(
        [sys.executable, "-m", "controller", *words],
        env={**os.environ, "KUBECONFIG": str(lab.kubeconfig)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, and what they start, have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - the tests run no threads here
    )
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("waiting for provider.pkg.crossplane.io/")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()
    assert (process.returncode, err) == (130, "")
    assert out == f"provider.pkg.crossplane.io/{unique_name} created\n"


def test_list_shows_every_kind(crossdock, unique_name, packages, state):
    packages("Provider", unique_name, {"package": f"{HOST}/nop:v1.2"})
    packages("Function", unique_name, {"package": f"{HOST}/patch:v3"})
    state("providers", unique_name, INSTALLED, HEALTHY, currentRevision="nop-1")
    answer = crossdock("list")
    rows = [line.split() for line in answer.out.splitlines() if unique_name in line]
    assert answer.out.splitlines()[0].split() == [
        "KIND", "NAME", "INSTALLED", "HEALTHY", "VERSION", "PACKAGE", "AGE",
    ]  # fmt: skip
    assert [row[:-1] for row in rows] == [
        ["Function", unique_name, "-", "-", "v3", f"{HOST}/patch:v3"],
        ["Provider", unique_name, "True", "True", "v1.2", f"{HOST}/nop:v1.2"],
    ]
    wide = crossdock("list", "provider", "-o", "wide").out.splitlines()
    assert not any(line.startswith("Function") for line in wide)
    row = next(line for line in wide if unique_name in line)
    assert row.split()[-2:] == ["nop-1", "HealthyPackageRevision"]


def test_list_as_json_is_a_list_of_whole_objects(crossdock, unique_name, packages):
    packages("Provider", unique_name, {"package": f"{HOST}/nop:v1"})
    document = json.loads(crossdock("list", "providers", "-o", "json").out)
    assert (document["apiVersion"], document["kind"]) == ("v1", "List")
    found = next(o for o in document["items"] if o["metadata"]["name"] == unique_name)
    assert (found["apiVersion"], found["kind"]) == ("pkg.crossplane.io/v1", "Provider")
    assert found["spec"]["package"] == f"{HOST}/nop:v1"


def test_trace_shows_revisions(crossdock, unique_name, packages, state):
    packages("Provider", unique_name, {"package": f"{HOST}/nop:v1"})
    state("providers", unique_name, INSTALLED, HEALTHY, currentRevision=f"{unique_name}-1")
    labels = {"pkg.crossplane.io/package": unique_name}
    spec = {"image": f"{HOST}/nop:v1", "desiredState": "Active", "revision": 1}
    packages("ProviderRevision", f"{unique_name}-1", spec, labels=labels)
    for target in (["provider", unique_name], [f"provider.pkg.crossplane.io/{unique_name}"]):
        lines = crossdock("trace", *target).out.splitlines()
        assert [line.split() for line in lines] == [
            ["NAME", "VERSION", "INSTALLED", "HEALTHY", "STATE", "STATUS"],
            [f"Provider/{unique_name}", "v1", "True", "True", "-", "HealthyPackageRevision"],
            ["└─", f"ProviderRevision/{unique_name}-1", "v1", "-", "-", "Active"],
        ]
    document = json.loads(crossdock("resource", "trace", *target, "-o", "json").out)
    assert document["children"][0]["object"]["kind"] == "ProviderRevision"


@pytest.mark.parametrize("verb", ["trace", "uninstall"])
def test_a_package_that_does_not_exist_is_named(crossdock, verb, unique_name):
    answer = crossdock(verb, "provider", unique_name)
    assert answer.code == 1
    assert answer.err == (
        f"crossdock: error: provider.pkg.crossplane.io/{unique_name} does not exist in this "
        "cluster: 'crossdock list' shows what does, --context chooses another cluster\n"
    )


def test_uninstall_says_what_goes_and_waits_until_it_is_gone(
    lab, crossdock, unique_name, packages, owned_revision, state
):
    owner = packages("Provider", unique_name, {"package": f"{HOST}/nop:v1"})
    owned_revision(owner)
    crd = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
    refs = [{**crd, "name": "a.example.org"}, {**crd, "name": "b.example.org"}]
    state("providerrevisions", f"{unique_name}-1", objectRefs=refs)
    answer = crossdock("uninstall", "provider", unique_name, "--wait", "1m")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines() == [
        f"provider.pkg.crossplane.io/{unique_name} deleted",
        f"provider.pkg.crossplane.io/{unique_name} gone",
    ]
    assert answer.err.splitlines()[:2] == [
        "goes: 1 revision, 2 CustomResourceDefinitions",
        "goes: every object of the kinds that these definitions define",
    ]
    status, _ = lab.api.request("GET", f"{API}/providerrevisions/{unique_name}-1")
    assert status == 404


def test_foreground_deletion_keeps_the_package_until_its_revisions_are_gone(
    lab, crossdock, unique_name, packages, owned_revision
):
    owner = packages("Provider", unique_name, {"package": f"{HOST}/nop:v1"})
    owned_revision(owner, finalizers=["example.org/x"])
    answer = crossdock("uninstall", "provider", unique_name, "--cascade", "foreground")
    assert answer.code == 0, answer.err
    kept = lab.api.expect("GET", f"{API}/providers/{unique_name}")
    assert kept["metadata"]["finalizers"] == ["foregroundDeletion"]
    free: dict[str, Any] = {"metadata": {"finalizers": []}}
    path = f"{API}/providerrevisions/{unique_name}-1"
    lab.api.expect("PATCH", path, free, content_type=MERGE)


def test_what_is_not_gone_in_time_ends_with_3_and_its_name(lab, crossdock, unique_name, packages):
    packages("Provider", unique_name, {"package": f"{HOST}/nop:v1"}, finalizers=["example.org/x"])
    answer = crossdock("uninstall", "provider", unique_name, "--wait", "10ms")
    lab.api.expect(
        "PATCH",
        f"{API}/providers/{unique_name}",
        {"metadata": {"finalizers": []}},
        content_type=MERGE,
    )
    assert answer.code == 3
    assert f"not gone within 0.01s: Provider/{unique_name} still there" in answer.err


def test_a_context_that_does_not_exist_is_named(lab, crossdock):
    answer = crossdock("list", "--context", "nowhere")
    assert answer.code == 1
    assert "there is no context named nowhere" in answer.err
