"""Real packages on a real control plane: `install-large` and `real-packages`.

Figures come from the API server's audit log, the registry's access log and /proc, never from the
manager itself. Each package gets a fresh cache folder; all packages of a scenario share one lab.
"""

from __future__ import annotations

import json
import signal
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from controller.model.objects import CRD, PACKAGES
from tests.bench.process import cpu_seconds, peak_mib
from tests.bench.results import ROOT, keep, row_of, table
from tests.integration.harness import NAMESPACE, Manager, Platform, conditions
from tests.lab.core import apply as apply_core_kinds
from tests.lab.lab import Lab

SHARED = ROOT.parent / "shared" / "packages"
DEADLINE = 1800.0  # seconds for one package

Sources = Callable[[Path], Iterator[tuple[str, str, Path]]]


@dataclass(frozen=True, slots=True)
class Figures:
    """What one install cost."""

    package: str
    objects: int
    seconds_first_object: float
    seconds_to_healthy: float
    manager_cpu_seconds: float
    manager_peak_mib: float
    api_requests: int
    api_writes: int
    registry_requests: int
    restart_writes: int
    restart_registry_requests: int


def real_packages(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield name, kind and source folder of the small real packages."""
    for name, kind in (
        ("provider-nop", "Provider"),
        ("provider-kubernetes", "Provider"),
        ("function-patch-and-transform", "Function"),
    ):
        yield name, kind, SHARED / name / "package"
    yield "provider-aws-300", "Provider", unpack_aws(folder / "aws-300", 300)


def large_package(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Yield the largest real package."""
    yield "provider-aws", "Provider", unpack_aws(folder / "aws", None)


def unpack_aws(root: Path, count: int | None) -> Path:
    """Unpack the definitions of provider-aws, the first ``count`` of them."""
    (root / "crds").mkdir(parents=True)
    metadata = (SHARED / "provider-aws" / "crossplane.yaml").read_text()
    (root / "crossplane.yaml").write_text(metadata)
    with tarfile.open(SHARED / "provider-aws" / "crds.tar.xz") as archive:
        members = sorted((m for m in archive if m.isfile()), key=lambda m: m.name)
        for member in members[:count]:
            content = archive.extractfile(member)
            assert content is not None
            (root / "crds" / Path(member.name).name).write_bytes(content.read())
    return root


@contextmanager
def lab_platform(folder: Path) -> Iterator[Platform]:
    """Start a lab with crossdock's API."""
    with Lab.launch(folder / "lab", audit=True) as lab:
        (folder / "home").mkdir()
        platform = Platform(lab, folder / "home")
        platform.command("init")
        apply_core_kinds(lab.api)
        try:
            yield platform
        finally:
            for manager in platform.managers:
                manager.stop(signal.SIGKILL)


def wait_healthy(
    platform: Platform, manager: Manager, kind: str, name: str, group_count: int
) -> tuple[float, float, float]:
    """Wait for a package; return seconds to the first object and to healthy, and peak memory."""
    begun = time.monotonic()
    first, peak = 0.0, 0.0
    while time.monotonic() - begun < DEADLINE:
        peak = max(peak, peak_mib(manager.process.pid))
        package = platform.get(PACKAGES[kind], name)
        stated = conditions(package)
        if not first and count_definitions(platform) > group_count:
            first = time.monotonic() - begun
        if all(stated.get(c, {}).get("status") == "True" for c in ("Installed", "Healthy")):
            return first, time.monotonic() - begun, peak
        if manager.process.poll() is not None:
            break
        time.sleep(0.1)
    raise SystemExit(f"{name} did not become healthy: {stated}\n{manager.tail()}")


def count_definitions(platform: Platform) -> int:
    """Return how many definitions there are, without reading them."""
    answer = platform.api.expect("GET", f"{CRD.path()}?limit=1")
    return len(answer["items"]) + int(answer["metadata"].get("remainingItemCount") or 0)


def measure(platform: Platform, name: str, kind: str, source: Path) -> Figures:
    """Build, push and install one package, then restart the manager; return what it cost."""
    reference = platform.image(f"real/{name}", "v1.0.0")
    platform.push_folder(reference, source)
    cache = platform.folder / f"cache-{name}"
    cache.mkdir()
    manager = platform.start(cache=cache)
    definitions = count_definitions(platform)
    mark = platform.lab.mark()
    platform.install(kind, name, reference)
    first, healthy, peak = wait_healthy(platform, manager, kind, name, definitions)
    time.sleep(1)
    cpu = cpu_seconds(manager.process.pid)
    account = f"system:serviceaccount:{NAMESPACE}:"
    requests = [e for e in platform.lab.audit_events(mark) if e.user.startswith(account)]
    pulls = [r for r in platform.lab.registry_requests(mark) if "crossdock" in (r.agent or "")]
    verbs = Counter(f"{e.verb} {e.resource}" for e in requests)
    print(json.dumps(dict(verbs.most_common(12))), file=sys.stderr)
    manager.stop()
    mark = platform.lab.mark()
    again = platform.start(cache=cache)
    time.sleep(3)
    restart_writes = platform.writes(mark)
    restart_pulls = platform.lab.registry_requests(mark)
    again.stop()
    (revision,) = platform.revisions(kind, name)
    return Figures(
        package=name,
        objects=len(revision["status"].get("objectRefs") or ()),
        seconds_first_object=round(first, 2),
        seconds_to_healthy=round(healthy, 2),
        manager_cpu_seconds=round(cpu, 2),
        manager_peak_mib=round(peak, 1),
        api_requests=len(requests),
        api_writes=len([e for e in requests if e.writes]),
        registry_requests=len(pulls),
        restart_writes=len(restart_writes),
        restart_registry_requests=len(restart_pulls),
    )


def run(name: str, sources: Sources) -> int:
    """Install the packages of one scenario, print the table and keep it."""
    if not SHARED.exists():
        print(f"the real packages are not at {SHARED}: nothing to measure", file=sys.stderr)
        return 1
    rows = []
    with tempfile.TemporaryDirectory(prefix="crossdock-bench-") as place:
        folder = Path(place)
        with lab_platform(folder) as platform:
            for package, kind, source in sources(folder / "sources"):
                rows.append(row_of(measure(platform, package, kind, source)))
                print(table(rows[-1:]), flush=True)
    print(f"\n{table(rows)}\n\nkept in {keep(name, rows)}")
    return 0
