"""`idle`: what the manager costs while nothing happens, with 1,000 packages installed.

The packages are real installs: 600 Configurations with a Composition each, 200 Providers with a
definition each and 200 Functions, each from a repository of its own, installed by the manager that
is then measured; 400 of them have a Deployment, a Service, an account and Secrets. When all are
healthy and nothing has been written for a while, the manager is left alone for two minutes. Beside
it stand a process that holds as many watches and throws away what they send (what the watches
alone cost), and Kubernetes' controller manager over the same time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from controller.model.objects import CONFIGURATION, FUNCTION, PROVIDER, Resource
from tests.bench import process
from tests.bench.manager import MeasuredManager
from tests.bench.packages import lab_platform
from tests.bench.results import keep, row_of, table
from tests.integration.harness import (
    NAMESPACE,
    Manager,
    Platform,
    conditions,
    crd,
    meta,
)
from tests.integration.images import push_image
from tests.lab.lab import Lab
from tests.lab.logs import Mark

COUNTS: dict[str, int] = {"Configuration": 600, "Provider": 200, "Function": 200}
KINDS: dict[str, Resource] = {r.kind: r for r in (CONFIGURATION, PROVIDER, FUNCTION)}
PARALLEL = 4  # packages created at once
INSTALL_DEADLINE = 1800.0  # seconds for all packages
QUIET_SECONDS = 20.0  # without a write of the manager
QUIET_DEADLINE = 600.0  # seconds until it is quiet
WINDOW = float(os.environ.get("IDLE_SECONDS", "120"))
TARGET = "manager <= 1 % of one core"
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:"


@dataclass(frozen=True, slots=True)
class Figures:
    """What one process cost while nothing happened.

    ``cpu_percent`` is of one core; ``requests_per_minute`` counts a watch when it is opened; the
    renewal of the leader's lease is in it.
    """

    process: str
    packages: int
    watches: int
    cpu_percent: float
    cpu_ms_per_minute: float
    wakeups_per_minute: float
    rss_mib: float
    requests_per_minute: float | None


@dataclass(frozen=True, slots=True)
class Package:
    """One package to be installed."""

    kind: str
    name: str
    image: str


def run(*, profile: bool = False) -> int:
    """Install, settle, measure; print the table and keep it.

    Args:
        profile: show what the manager's time goes to instead; its figures are then too high.
    """
    scale = int(os.environ.get("IDLE_PACKAGES", "1000")) / sum(COUNTS.values())
    with tempfile.TemporaryDirectory(prefix="crossdock-bench-") as place:
        folder = Path(place)
        with lab_platform(folder) as platform:
            manager = start(platform, folder / "profile" if profile else None)
            begun = time.monotonic()
            count = install(platform, {kind: round(n * scale) for kind, n in COUNTS.items()})
            say(f"{count} packages installed in {time.monotonic() - begun:.0f} s")
            watches = settle(platform)
            with bystander(platform.lab, watches) as reader:
                pids = {
                    "crossdock, idle": manager.process.pid,
                    f"{len(watches)} watches read and thrown away": reader.pid,
                    "kube-controller-manager": platform.lab.pids["kube-controller-manager"],
                }
                time.sleep(5)
                if profile:
                    manager.process.send_signal(signal.SIGUSR1)
                rows = measure(platform, pids, count, len(watches))
            if profile:
                print(profiled(manager, folder / "profile"))
            manager.stop()
    if profile:
        print(table(rows))
        return 0
    print(
        f"\nidle: target {TARGET}\n\n{table(rows)}\n\nkept in {keep('idle', rows, target=TARGET)}"
    )
    return 0


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, flush=True)


def start(platform: Platform, profile: Path | None) -> MeasuredManager:
    """Start the manager that is measured."""
    manager = MeasuredManager(
        platform.lab.kubeconfig, platform.folder, platform.cache, profile=profile
    )
    platform.managers.append(manager)
    manager.wait_started()
    return manager


def install(platform: Platform, counts: dict[str, int]) -> int:
    """Push and create all packages, and wait until every one is healthy; return how many."""
    packages = [
        Package(kind, f"{kind.lower()}-{number}", "")
        for kind, count in counts.items()
        for number in range(count)
    ]
    with ThreadPoolExecutor(PARALLEL) as pool:
        images = list(pool.map(lambda package: push(platform, package), packages))
        say(f"{len(images)} images pushed")
        for _ in pool.map(
            lambda pair: platform.install(pair[0].kind, pair[0].name, pair[1]),
            zip(packages, images, strict=True),
        ):
            pass
    deadline = time.monotonic() + INSTALL_DEADLINE
    while (healthy := count_healthy(platform)) < len(packages):
        if time.monotonic() > deadline:
            raise SystemExit(f"only {healthy} of {len(packages)} packages became healthy")
        say(f"{healthy} of {len(packages)} healthy")
        time.sleep(10)
    return len(packages)


def push(platform: Platform, package: Package) -> str:
    """Push the image of one package, with one small object where its kind has any."""
    group = f"{package.name}.idle.example.org"
    documents: list[dict[str, Any]] = [meta(package.kind, package.name)]
    if package.kind == "Provider":
        documents.append(crd(group))
    if package.kind == "Configuration":
        documents.append(composition(package.name, group))
    content = yaml.safe_dump_all(documents).encode()
    repository = f"idle/{package.name}"
    push_image(platform.lab.registry, repository, "v1.0.0", {"package.yaml": content})
    return platform.image(repository)


def composition(name: str, group: str, kind: str = "Thing") -> dict[str, Any]:
    """Return a small Composition."""
    return {
        "apiVersion": "apiextensions.crossplane.io/v1",
        "kind": "Composition",
        "metadata": {"name": name},
        "spec": {
            "compositeTypeRef": {"apiVersion": f"{group}/v1", "kind": kind},
            "mode": "Pipeline",
            "pipeline": [{"step": "only", "functionRef": {"name": "none"}}],
        },
    }


def count_healthy(platform: Platform) -> int:
    """Return how many packages are installed and healthy."""
    return sum(
        all(
            conditions(package).get(c, {}).get("status") == "True" for c in ("Installed", "Healthy")
        )
        for resource in KINDS.values()
        for package in platform.list(resource)
    )


def settle(platform: Platform) -> list[str]:
    """Wait until the manager has stopped writing; return the paths of its watches.

    A watch that was opened again counts once: by path, without its query but for the selector.
    """
    deadline = time.monotonic() + QUIET_DEADLINE
    mark = platform.lab.mark()
    while True:
        time.sleep(QUIET_SECONDS)
        later = platform.lab.mark()
        writes = platform.writes(mark)
        if not writes:
            break
        if time.monotonic() > deadline:
            raise SystemExit(f"the manager does not come to rest: {Counter(writes).most_common(5)}")
        mark = later
    found = {
        event.uri.partition("?")[0]: event.uri
        for event in platform.lab.audit_events()
        if event.verb == "watch" and event.user.startswith(ACCOUNT)
    }
    return sorted(found.values())


@contextmanager
def bystander(lab: Lab, watches: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that opens the same watches from now on and reads them."""
    command = [sys.executable, "-m", "tests.bench.reader", str(lab.kubeconfig), *watches]
    reader = subprocess.Popen(command)
    try:
        yield reader
    finally:
        reader.kill()
        reader.wait(10)


def measure(
    platform: Platform, pids: dict[str, int], packages: int, watches: int
) -> list[dict[str, Any]]:
    """Leave everything alone for a while and return what each process did in it."""
    mark, begun = platform.lab.mark(), time.monotonic()
    before = {name: process.read(pid) for name, pid in pids.items()}
    time.sleep(WINDOW)
    after = {name: process.read(pid) for name, pid in pids.items()}
    minutes = (time.monotonic() - begun) / 60
    requests = count_requests(platform, mark)
    say(f"requests of the manager: {dict(requests)}")
    rows = []
    for name in pids:
        old, new = before[name], after[name]
        cpu = (new.cpu_seconds - old.cpu_seconds) / minutes
        ours = name.startswith("crossdock")
        figures = Figures(
            process=name,
            packages=packages,
            watches=watches if not name.startswith("kube") else 0,
            cpu_percent=round(cpu / 60 * 100, 3),
            cpu_ms_per_minute=round(cpu * 1000, 1),
            wakeups_per_minute=round((new.wakeups - old.wakeups) / minutes, 1),
            rss_mib=round(new.rss_mib, 1),
            requests_per_minute=round(requests.total() / minutes, 2) if ours else None,
        )
        rows.append(row_of(figures))
    return rows


def count_requests(platform: Platform, mark: Mark) -> Counter[str]:
    """Count the manager's requests since a mark by verb and resource; a watch when it is opened."""
    return Counter(
        f"{event.verb} {event.resource}"
        for event in platform.lab.audit_events(mark)
        if event.user.startswith(ACCOUNT)
        and (event.verb != "watch" or event.stage == "ResponseStarted")
    )


def profiled(manager: Manager, path: Path) -> str:
    """Let a profiled manager write down what it did; return that as text."""
    manager.process.send_signal(signal.SIGUSR2)
    deadline = time.monotonic() + 10
    while not path.exists():
        if time.monotonic() > deadline:
            return "the manager wrote no profile"
        time.sleep(0.1)
    time.sleep(0.5)
    return path.read_text()
