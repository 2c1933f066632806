"""What integration tests do: run the manager as a process, push packages, read the cluster."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from controller.model.objects import (
    CRD,
    DEPLOYMENT,
    LABEL_MANAGED_BY,
    LOCK,
    MANAGED_BY,
    PACKAGES,
    REVISIONS,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    Resource,
)
from tests.lab.lab import Lab

NAMESPACE = "crossplane-system"
WAIT = 60.0  # seconds for anything to come true
KEPT_GROUPS = ("pkg.crossplane.io", "apiextensions.crossplane.io", "ops.crossplane.io")
MERGE = "application/merge-patch+json"

Object = dict[str, Any]
Objects = list[Object]
Texts = list[str]


class NotYetError(AssertionError):
    """What a test waited for did not come true in time."""


class Manager:
    """One manager process, talking as its own ServiceAccount."""

    def __init__(
        self, lab: Lab, folder: Path, cache: Path, *flags: str, health: str = "none"
    ) -> None:
        self.log = folder / f"manager-{uuid.uuid4().hex[:6]}.log"
        command = [
            *(sys.executable, "-m", "controller", "start", "--as-service-account"),
            *("--kubeconfig", str(lab.kubeconfig), "--cache-dir", str(cache)),
            *("--log-format", "json", "--log-level", "debug"),
            *("--health-address", health, "--metrics-address", "none", *flags),
        ]
        environment = {**os.environ, "HOME": str(folder)}
        if "PYTEST_CURRENT_TEST" in os.environ:  # not where something is measured
            environment["CROSSDOCK_CACHE_MUTATION_DETECTOR"] = "1"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def wait_started(self) -> None:
        """Wait until the manager works."""
        eventually(lambda: self.said("started"), f"the manager starts\n{self.tail()}")

    def said(self, event: str) -> bool:
        """Tell whether the log holds an event."""
        return any(line.get("event") == event for line in self.lines())

    def lines(self) -> Iterator[Object]:
        """Yield the log's lines as values."""
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)

    def tail(self) -> str:
        """Return the end of the log."""
        return self.log.read_text()[-4000:] if self.log.exists() else ""

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End the manager and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise


class Platform:
    """A cluster with crossdock's API, a registry, and a folder for a test's files."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.api = lab.api
        self.folder = folder
        self.cache = folder / "cache"
        self.cache.mkdir()
        self.managers: list[Manager] = []

    def start(self, *flags: str, cache: Path | None = None) -> Manager:
        """Start a manager and wait until it works."""
        manager = Manager(self.lab, self.folder, cache or self.cache, *flags)
        self.managers.append(manager)
        manager.wait_started()
        return manager

    def command(self, *arguments: str, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run the command line as a person would."""
        environment = {
            **os.environ,
            "KUBECONFIG": str(self.lab.kubeconfig),
            "HOME": str(self.folder),
        }
        done = subprocess.run(
            [sys.executable, "-m", "controller", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            cwd=self.folder,
            timeout=120,
            check=False,
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def image(self, repository: str, tag: str = "v1.0.0") -> str:
        """Return the reference of an image in the lab's registry."""
        return f"{self.lab.registry}/{repository}:{tag}"

    def push(self, reference: str, documents: Objects | str, *flags: str) -> str:
        """Build a package from documents (or YAML text) and push it; return its digest."""
        root = self.folder / f"source-{uuid.uuid4().hex[:6]}"
        root.mkdir()
        text = documents if isinstance(documents, str) else yaml.safe_dump_all(documents)
        (root / "crossplane.yaml").write_text(text)
        return self.push_folder(reference, root, *flags)

    def push_folder(self, reference: str, root: Path, *flags: str) -> str:
        """Build a package from a folder and push it; return its digest."""
        output = self.folder / f"{uuid.uuid4().hex[:6]}.xpkg"
        self.command("build", "-f", str(root), "-o", str(output), *flags)
        pushed = self.command("push", reference, "-f", str(output))
        return pushed.stdout.strip().rpartition("@")[2].split()[0]

    def create(self, resource: Resource, name: str, spec: Object, **metadata: Any) -> Object:
        """Create an object as the administrator."""
        body = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": {"name": name, **metadata},
            "spec": spec,
        }
        return self.api.expect("POST", resource.path(), body)

    def install(self, kind: str, name: str, image: str, **spec: Any) -> Object:
        """Create a package object."""
        return self.create(PACKAGES[kind], name, {"package": image, **spec})

    def patch(self, resource: Resource, name: str, change: Object) -> Object:
        """Merge a change into an object."""
        return self.api.expect("PATCH", resource.path(name), change, content_type=MERGE)

    def delete(self, resource: Resource, name: str) -> None:
        """Delete an object."""
        self.api.expect("DELETE", resource.path(name))

    def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object | None:
        """Read an object, None when it does not exist."""
        status, answer = self.api.request("GET", resource.path(name, namespace=namespace))
        if status == 404:
            return None
        assert status == 200, answer
        return answer

    def list(
        self, resource: Resource, query: str = "", namespace: str | None = None
    ) -> list[Object]:
        """Read all objects of a kind."""
        found = self.api.expect("GET", f"{resource.path(namespace=namespace)}{query}")
        return found["items"]

    def revisions(self, kind: str, package: str) -> Objects:
        """Read the revisions of a package, lowest number first."""
        resource = REVISIONS[f"{kind}Revision"]
        query = f"?labelSelector=pkg.crossplane.io/package={package}"
        return sorted(self.list(resource, query), key=lambda r: r["spec"]["revision"])

    def deployments(self) -> Objects:
        """Read the Deployments of package runtimes."""
        return self.list(DEPLOYMENT, namespace=NAMESPACE)

    def events(self, name: str) -> Objects:
        """Read the events about a cluster-scoped object."""
        query = f"?fieldSelector=involvedObject.name={name}"
        return self.api.expect("GET", f"/api/v1/namespaces/default/events{query}")["items"]

    def wait_condition(
        self, resource: Resource, name: str, kind: str, status: str, text: str = ""
    ) -> Object:
        """Wait for a condition of a status, and for a text in its message; return it."""
        seen: Object = {}

        def holds() -> bool:
            seen.clear()
            seen.update(conditions(self.get(resource, name)).get(kind, {}))
            return seen.get("status") == status and text in seen.get("message", "")

        def state() -> str:
            return f"{resource.kind}/{name} {kind}={status} {text!r}; it is {seen}\n{self.tails()}"

        eventually(holds, state)
        return seen

    def wait_healthy(self, kind: str, name: str) -> Object:
        """Wait until a package is installed and healthy for its present spec; return it."""
        found: Object = {}

        def holds() -> bool:
            package = self.get(PACKAGES[kind], name)
            if package is None:
                return False
            found.clear()
            found.update(package)
            stated = conditions(package)
            return all(
                stated.get(wanted, {}).get("status") == "True"
                and stated[wanted].get("observedGeneration") == package["metadata"]["generation"]
                for wanted in ("Installed", "Healthy")
            )

        def state() -> str:
            return f"{kind}/{name} healthy; it is {found.get('status')}\n{self.tails()}"

        eventually(holds, state)
        return found

    def tails(self) -> str:
        """Return the ends of the managers' logs."""
        return "\n".join(manager.tail() for manager in self.managers)

    def writes(self, since: Any) -> Texts:
        """Return the manager's writes since a mark of the lab, as text."""
        account = f"system:serviceaccount:{NAMESPACE}:"
        return [
            f"{event.verb} {event.resource} {event.name} {event.code}"
            for event in self.lab.audit_events(since)
            if event.user.startswith(account)
            and event.writes
            and "events" not in event.resource
            and "leases" not in event.resource
            and "/token" not in event.resource
        ]

    def clean(self) -> None:
        """End the managers and remove everything that a test left in the cluster."""
        for manager in self.managers:
            manager.stop(signal.SIGKILL)
            assert not manager.said("stored object was changed in place"), manager.tail()
        for resource in (*PACKAGES.values(), *REVISIONS.values()):
            for obj in self.list(resource):
                path = resource.path(obj["metadata"]["name"])
                self.api.request("DELETE", f"{path}?propagationPolicy=Background")
                free = {"metadata": {"finalizers": None}}
                self.api.request("PATCH", path, free, content_type=MERGE)
        query = f"?labelSelector={LABEL_MANAGED_BY}={MANAGED_BY}&propagationPolicy=Background"
        for resource in (DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, SECRET):
            self.api.request("DELETE", f"{resource.path(namespace=NAMESPACE)}{query}")
        for obj in self.list(CRD):
            if obj["spec"]["group"] not in KEPT_GROUPS:
                self.api.request("DELETE", CRD.path(obj["metadata"]["name"]))
        lock: Object = {"packages": []}
        self.api.request("PATCH", LOCK.path("lock"), lock, content_type=MERGE)
        kinds = (*PACKAGES.values(), *REVISIONS.values())
        eventually(lambda: not any(self.list(kind) for kind in kinds), "the packages go")
        eventually(lambda: not self.deployments(), "the Deployments go")


def conditions(obj: Object | None) -> Mapping[str, Object]:
    """Return the conditions of an object by type."""
    found = ((obj or {}).get("status") or {}).get("conditions") or ()
    return {condition["type"]: condition for condition in found}


def eventually(
    holds: Callable[[], object], what: str | Callable[[], str], seconds: float = WAIT
) -> None:
    """Wait until something holds.

    Raises:
        NotYetError: it did not come true in time; the text says what was waited for.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise NotYetError(what if isinstance(what, str) else what())
        time.sleep(0.05)


def never(holds: Callable[[], object], what: str, seconds: float) -> None:
    """See to it that something does not come true for a while."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert not holds(), what
        time.sleep(0.1)


def meta(kind: str, name: str, **spec: Any) -> Object:
    """Return the metadata object of a package."""
    return {
        "apiVersion": "meta.pkg.crossplane.io/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"crossplane": {"version": ">=v2.0.0"}, **spec},
    }


def crd(group: str, plural: str = "things", versions: tuple[str, ...] = ("v1",)) -> Object:
    """Return a definition of a kind."""
    kind = plural.removesuffix("s").capitalize()
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
            },
            "scope": "Cluster",
            "versions": [
                {
                    "name": version,
                    "served": True,
                    "storage": index == 0,
                    "schema": {"openAPIV3Schema": schema},
                }
                for index, version in enumerate(versions)
            ],
        },
    }


def depends_on(kind: str, image: str, constraint: str) -> Object:
    """Return an entry of ``spec.dependsOn``."""
    return {
        "apiVersion": "pkg.crossplane.io/v1",
        "kind": kind,
        "package": image.rpartition(":")[0],
        "version": constraint,
    }
