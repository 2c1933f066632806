"""A manager that cannot work yet: what it says, how it ends, and that it begins when it can."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controller.model.objects import Resource
from tests.integration.harness import NAMESPACE, Manager, Platform, eventually
from tests.lab.core import apply as apply_core_kinds
from tests.lab.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]
ROLE = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role", namespaced=True)


@pytest.fixture
def fresh(own_lab: Lab, tmp_path: Path) -> Iterator[Platform]:
    """A cluster of the test's own."""
    (tmp_path / "home").mkdir()
    platform = Platform(own_lab, tmp_path / "home")
    try:
        yield platform
    finally:
        for manager in platform.managers:
            manager.stop(signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


def begin(platform: Platform, *flags: str, health: str = "none") -> Manager:
    """Start a manager without waiting until it works."""
    manager = Manager(platform.lab, platform.folder, platform.cache, *flags, health=health)
    platform.managers.append(manager)
    return manager


def probe(port: int, path: str) -> tuple[int, str]:
    """Ask a health endpoint; status 0 while nobody listens."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


@contextmanager
def paused(lab: Lab) -> Iterator[None]:
    lab.pause("kube-apiserver")
    try:
        yield
    finally:
        lab.resume("kube-apiserver")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_b7_a_manager_that_still_connects_ends_when_it_is_asked_to(fresh: Platform, number: int):
    fresh.command("init")
    port = free_port()
    with paused(fresh.lab):
        manager = begin(fresh, health=f"127.0.0.1:{port}")
        eventually(lambda: probe(port, "/healthz")[0] == 200, "it listens, and waits for a token")
        manager.process.send_signal(number)
        assert manager.process.wait(10) == 0


def test_b7_before_init_it_waits_and_says_so_and_then_it_works(fresh: Platform):
    manager = begin_as_administrator(fresh)
    said = "the cluster does not serve pkg.crossplane.io: run `crossdock init`"
    eventually(lambda: manager.said(said), f"it says what is missing\n{manager.tail()}")
    fresh.command("init")
    apply_core_kinds(fresh.lab.api)
    manager.wait_started()
    assert manager.stop() == 0


def begin_as_administrator(platform: Platform) -> Manager:
    """Start a manager before there is a ServiceAccount that it could work as."""
    manager = Manager.__new__(Manager)
    manager.log = platform.folder / "administrator.log"
    command = [
        *(sys.executable, "-m", "controller", "start"),
        *("--kubeconfig", str(platform.lab.kubeconfig), "--cache-dir", str(platform.cache)),
        *("--log-format", "json", "--health-address", "none", "--metrics-address", "none"),
    ]
    with manager.log.open("wb") as log:
        manager.process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ}
        )
    platform.managers.append(manager)
    return manager


def test_l8_a_candidate_that_may_not_touch_leases_is_not_ready_and_says_why(fresh: Platform):
    fresh.command("init")
    apply_core_kinds(fresh.lab.api)
    path = ROLE.path("crossdock", namespace=NAMESPACE)
    role = fresh.api.expect("GET", path)
    kept = [rule for rule in role["rules"] if rule["resources"] != ["leases"]]
    assert len(kept) < len(role["rules"])
    fresh.api.expect("PUT", path, {**role, "rules": kept})
    port = free_port()
    manager = begin(fresh, "--leader-election", health=f"127.0.0.1:{port}")
    eventually(
        lambda: "[-]lease failed: nobody is known to hold" in probe(port, "/readyz")[1],
        lambda: f"it is not ready\n{manager.tail()}",
    )
    status, text = probe(port, "/readyz")
    assert status == 503
    assert "forbidden" in text
    assert probe(port, "/healthz")[0] == 200
    now = fresh.api.expect("GET", path)
    fresh.api.expect("PUT", path, {**now, "rules": role["rules"]})
    manager.wait_started()
    eventually(lambda: probe(port, "/readyz")[0] == 200, "it is ready")


def test_a_part_that_fails_ends_the_process_with_its_traceback_in_the_log(
    fresh: Platform, tmp_path: Path
):
    fresh.command("init")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import controller.kube.events as events\n"
        "async def run(self):\n    raise KeyError('boom')\n"
        "events.EventRecorder.run = run\n"
    )
    command = [
        *(sys.executable, "-m", "controller", "start", "--as-service-account"),
        *("--kubeconfig", str(fresh.lab.kubeconfig), "--cache-dir", str(fresh.cache)),
        *("--log-format", "json", "--health-address", "none", "--metrics-address", "none"),
    ]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(broken)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["event"].startswith("a part of the manager failed")]
    assert "boom" in json.dumps(line)
    assert done.stderr.splitlines()[-1].startswith("crossdock: error: ")
