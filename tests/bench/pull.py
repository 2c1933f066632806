"""`pull-large`, `pull-many`, `oci-tools`: what getting packages out of registries costs.

`pull-large` pulls the largest real package from a registry on loopback, then reads it from the
cache, each in a process of its own. `pull-many` pulls many small packages at once from a registry
that asks for tokens, beside a bare HTTP client that sends the same requests. `oci-tools` builds,
pushes and pulls a package beside crane. Sizes: ``PULL_CRDS``, ``PULL_PACKAGES``.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import process
from tests.bench.packages import SHARED, unpack_aws
from tests.bench.results import ROOT, keep, table
from tests.lab import binaries
from tests.registry.conftest import running_registry

DEADLINE = 600.0  # seconds for one process
SAMPLE = 0.02  # seconds between two looks at memory
COMMAND = (sys.executable, "-m", "controller")


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process cost.

    ``tree_mib`` is the most that it and its children were seen to use together.
    """

    seconds: float
    cpu_seconds: float
    tree_mib: float
    output: str


def run(*command: str, folder: Path = ROOT) -> Cost:
    """Run a program to its end; return what it cost, children that it waited for included.

    Raises:
        SystemExit: it failed; what it wrote is shown.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        sampler = _Sampler(child.pid)
        sampler.start()
        output, errors = child.communicate(timeout=DEADLINE)
        seconds = time.perf_counter() - begun
        sampler.stop()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if child.returncode:
        raise SystemExit(f"{' '.join(command[:6])} failed:\n{errors.decode()[-4000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(seconds, cpu, sampler.most, output.decode())


class _Sampler(threading.Thread):
    """Looks at the memory of a process and its children until it is stopped."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid = pid
        self._done = threading.Event()
        self.most = 0.0

    def run(self) -> None:
        while not self._done.wait(SAMPLE):
            total = 0.0
            try:
                for pid in process.process_tree(self._pid):
                    total += process.read(pid).rss_mib
            except (process.ProcessGoneError, OSError):
                continue
            self.most = max(self.most, total)

    def stop(self) -> None:
        self._done.set()
        self.join()


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    """Run the lab's registry alone; yield its address."""
    program = binaries.resolve(["registry"], announce=print)["registry"]
    with running_registry(program, folder) as address:
        yield address


def build_and_push(folder: Path, address: str) -> tuple[str, str, Path]:
    """Build and push the largest real package; return its reference, with digest, and its file."""
    count = os.environ.get("PULL_CRDS")
    source = unpack_aws(folder / "source", int(count) if count else None)
    file = folder / "package.xpkg"
    run(*COMMAND, "build", "-f", str(source), "-o", str(file))
    reference = f"{address}/real/provider-aws:v1"
    pushed = run(*COMMAND, "push", reference, "-f", str(file)).output
    digest = next(word for word in pushed.replace("@", " ").split() if word.startswith("sha256:"))
    return reference, f"{reference}@{digest}", file


def pull_large() -> int:
    """Measure one large package, cold and from the cache."""
    if not SHARED.exists():
        print(f"the real packages are not at {SHARED}: nothing to measure", file=sys.stderr)
        return 1
    measured = (sys.executable, "-m", "tests.bench.pulling")
    with tempfile.TemporaryDirectory(prefix="crossdock-bench-") as place:
        folder = Path(place)
        with registry(folder / "registry") as address:
            reference, pinned, _ = build_and_push(folder, address)
            (folder / "cache").mkdir()
            base = run(*measured, "base")
            cold = run(*measured, "pull", reference, str(folder / "cache"))
        # The registry is gone by now.
        cached = run(*measured, "cached", pinned, str(folder / "cache"))
    imported = json.loads(base.output)["peak_mib"]
    rows = [
        _row("only imports", base, imported, ""),
        _row("pull, verify, parse, store", cold, imported, "<= 5 s of CPU, <= 150 MiB"),
        _row("from the cache", cached, imported, "<= 0.6 s, <= 60 MiB above imports"),
    ]
    path = keep("pull-large", rows)
    print(f"\npull-large: event-loop lag p99 <= 50 ms\n\n{table(rows)}\n\nkept in {path}")
    return 0


def _row(name: str, cost: Cost, imported: float, target: str) -> dict[str, Any]:
    found = json.loads(cost.output)
    return {
        "work": name,
        "objects": found.get("objects"),
        "seconds": found.get("seconds"),
        "cpu_seconds": found.get("cpu_seconds"),
        "peak_mib": found["peak_mib"],
        "above_imports_mib": found["peak_mib"] - imported,
        "parse_worker_mib": found["worker_peak_mib"] or None,
        "all_processes_mib": cost.tree_mib,
        "lag_p99_ms": found.get("lag_p99_ms"),
        "lag_max_ms": found.get("lag_max_ms"),
        "target": target,
    }


def pull_many() -> int:
    """Measure many small packages at once, beside a bare HTTP client."""
    count = int(os.environ.get("PULL_PACKAGES", "1000"))
    measured = (sys.executable, "-m", "tests.bench.pullmany")
    rows = []
    for _ in range(int(os.environ.get("PULL_ROUNDS", "3"))):
        # In turn, so that both see the same machine.
        for client in ("bare", "crossdock"):
            found = json.loads(run(*measured, client, str(count)).output)
            rows.append({"client": client, "packages": count, **found})
    best = {
        client: min(row["seconds"] for row in rows if row["client"] == client)
        for client in ("bare", "crossdock")
    }
    ratio = best["crossdock"] / best["bare"]
    path = keep("pull-many", rows, ratio=ratio)
    print(
        "\npull-many: <= 16 connections, no token twice, wall <= 1.3 x bare\n\n"
        f"{table(rows)}\n\nbest of each: {ratio:.2f} x bare\n\nkept in {path}"
    )
    return 0


def oci_tools() -> int:
    """Measure build, push and pull of one package beside crane."""
    if not SHARED.exists():
        print(f"the real packages are not at {SHARED}: nothing to measure", file=sys.stderr)
        return 1
    crane = str(binaries.resolve(["crane"], announce=print)["crane"])
    with tempfile.TemporaryDirectory(prefix="crossdock-bench-") as place:
        folder = Path(place)
        with registry(folder / "registry") as address:
            _, _, file = build_and_push(folder, address)
            layer = layer_of(folder / "source", folder / "layer.tar.gz")
            ours, theirs = f"{address}/tools/ours:v1", f"{address}/tools/theirs:v1"
            image, pulled = str(folder / "crane.tar"), str(folder / "pulled")
            again = str(folder / "again.xpkg")
            source = str(folder / "source")
            costs = {
                ("build", "crossdock"): run(*COMMAND, "build", "-f", source, "-o", again),
                ("build", "crane append"): run(
                    crane, "append", "--new_layer", str(layer), "-t", theirs, "-o", image
                ),
                ("push", "crossdock"): run(*COMMAND, "push", ours, "-f", str(file)),
                ("push", "crane push"): run(crane, "push", image, theirs, "--insecure"),
                ("pull", "crossdock"): run(*COMMAND, "pull", ours, "-o", f"{pulled}.xpkg"),
                ("pull", "crane pull"): run(crane, "pull", theirs, f"{pulled}.tar", "--insecure"),
            }
    rows = [
        {
            "work": work,
            "tool": tool,
            "seconds": cost.seconds,
            "cpu_seconds": cost.cpu_seconds,
            "memory_mib": cost.tree_mib,
        }
        for (work, tool), cost in costs.items()
    ]
    path = keep("oci-tools", rows)
    note = "crane append packs a layer that is ready; crossdock build reads and checks YAML"
    print(f"\noci-tools: {note}\n\n{table(rows)}\n\nkept in {path}")
    return 0


def layer_of(source: Path, target: Path) -> Path:
    """Pack a package's YAML as one compressed layer, as crane takes it."""
    stream = target.with_name("package.yaml")
    with stream.open("wb") as out:
        for path in [source / "crossplane.yaml", *sorted((source / "crds").iterdir())]:
            out.write(b"---\n" + path.read_bytes() + b"\n")
    with tarfile.open(target, "w:gz", compresslevel=6) as archive:
        archive.add(stream, "package.yaml")
    return target
