"""`make bench SCENARIO=…`: real packages on a real control plane, measured from outside.

Figures come from the API server's audit log, the registry's access log and /proc, never from the
manager itself. Each package gets a fresh cache folder; all packages of a scenario share one lab.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from controller.model.objects import CRD, PACKAGES
from tests.integration.harness import NAMESPACE, Manager, Platform, conditions
from tests.lab.core import apply as apply_core_kinds
from tests.lab.lab import Lab

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "packages"
RESULTS = ROOT / "bench-results"
DEADLINE = 1800.0  # seconds for one package


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


SCENARIOS: dict[str, Callable[[Path], Iterator[tuple[str, str, Path]]]] = {
    "real-packages": real_packages,
    "install-large": large_package,
}


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


def process_tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = [pid]
    if children.exists():
        for child in children.read_text().split():
            found += process_tree(int(child))
    return found


def peak_mib(pid: int) -> float:
    """Return the sum of the peaks of a process and its living descendants, MiB."""
    total = 0.0
    for one in process_tree(pid):
        try:
            status = Path(f"/proc/{one}/status").read_text()
        except OSError:
            continue
        line = next((x for x in status.splitlines() if x.startswith("VmHWM")), "VmHWM: 0 kB")
        total += int(line.split()[1]) / 1024
    return total


def cpu_seconds(pid: int) -> float:
    """Return CPU time of a process and its ended children, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = sum(int(fields[index]) for index in (11, 12, 13, 14))
    return ticks / os.sysconf("SC_CLK_TCK")


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


def table(rows: list[Figures]) -> str:
    """Return figures as a Markdown table."""
    names = list(asdict(rows[0]))
    lines = [
        "| " + " | ".join(n.replace("_", " ") for n in names) + " |",
        "|---" * len(names) + "|",
    ]
    lines += ["| " + " | ".join(str(v) for v in asdict(row).values()) + " |" for row in rows]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run one scenario; print its table and keep it under bench-results."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("scenario", choices=sorted(SCENARIOS))
    chosen: Any = parser.parse_args(arguments)
    if not SHARED.exists():
        print(f"the real packages are not at {SHARED}: nothing to measure", file=sys.stderr)
        return 1
    rows = []
    with tempfile.TemporaryDirectory(prefix="crossdock-bench-") as name:
        folder = Path(name)
        with lab_platform(folder) as platform:
            for package, kind, source in SCENARIOS[chosen.scenario](folder / "sources"):
                rows.append(measure(platform, package, kind, source))
                print(table(rows[-1:]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{chosen.scenario}.md").write_text(table(rows) + "\n")
    content = json.dumps([asdict(row) for row in rows], indent=2)
    (RESULTS / f"{chosen.scenario}.json").write_text(content + "\n")
    print(f"\n{table(rows)}\n\nkept in {RESULTS}/{chosen.scenario}.{{md,json}}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
