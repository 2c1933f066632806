"""`make demo`: a real control plane and registry, and crossdock's example packages installed.

Every step is a command that a person could type; what the cluster answers is shown as it happens.
On a terminal the lab stays up until Ctrl-C; elsewhere everything is cleaned up and the exit code
tells whether it worked.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from controller.model.objects import IMAGE_CONFIG, PACKAGES, REVISIONS, Resource
from tests.lab.core import apply as apply_core_kinds
from tests.lab.lab import Lab

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "manifests" / "examples"
SOURCE = "xpkg.example.org/crossdock"
NAMES = ("provider-demo", "function-demo", "configuration-demo")
INSTALLED = (
    ("Configuration", "configuration-demo"),
    ("Provider", "crossdock-provider-demo"),
    ("Function", "crossdock-function-demo"),
)
DEADLINE = 120.0  # seconds for the packages to become healthy
POLL = 0.05  # seconds between looks


class Demo:
    """The steps of the demonstration, and how long each took."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started = time.monotonic()
        self.times: list[tuple[str, float]] = []
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.environment = dict(os.environ)

    def say(self, text: str, style: str = "") -> None:
        """Print a line with the time since the start."""
        codes = {"bold": "1", "dim": "2", "green": "32", "red": "31"}
        shown = f"\033[{codes[style]}m{text}\033[0m" if self.colour and style else text
        print(f"[{time.monotonic() - self.started:6.2f}s] {shown}", flush=True)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Time a step and name it."""
        begun = time.monotonic()
        self.say(title, "bold")
        yield
        self.times.append((title, time.monotonic() - begun))

    def command(self, *arguments: str, quiet: bool = False) -> str:
        """Run the command line in sight; return what it printed."""
        self.say(f"  $ crossdock {shlex.join(arguments)}", "dim")
        done = subprocess.run(
            [sys.executable, "-m", "controller", *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=ROOT,
            timeout=DEADLINE,
            check=False,
        )
        for line in (done.stdout + done.stderr).splitlines():
            if not quiet or done.returncode:
                self.say(f"    {line}")
        if done.returncode:
            raise SystemExit(f"crossdock {arguments[0]} failed with exit code {done.returncode}")
        return done.stdout

    def start_manager(self, cache: Path) -> subprocess.Popen[bytes]:
        """Start the manager as its own ServiceAccount; its log goes to a file."""
        arguments = ["start", "--as-service-account", "--cache-dir", str(cache)]
        arguments += ["--health-address", "none", "--metrics-address", "none"]
        self.say(f"  $ crossdock {shlex.join(arguments)} &", "dim")
        with (self.folder / "manager.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "controller", *arguments, "--log-format", "console"],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=ROOT,
            )

    def wait_started(self, manager: subprocess.Popen[bytes]) -> None:
        """Wait until the manager says that it works."""
        log = self.folder / "manager.log"
        deadline = time.monotonic() + DEADLINE
        while "started" not in log.read_text():
            if manager.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the manager did not start:\n{log.read_text()}")
            time.sleep(POLL)


def conditions(obj: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the conditions of an object by type."""
    return {c["type"]: c for c in (obj.get("status") or {}).get("conditions") or ()}


def changes(
    lab: Lab, seen: dict[tuple[str, str, str], tuple[str, str]]
) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield each condition that changed since the last call."""
    resources: list[Resource] = [*PACKAGES.values(), *REVISIONS.values()]
    for resource in resources:
        for obj in lab.api.expect("GET", resource.path())["items"]:
            name = obj["metadata"]["name"]
            for kind, condition in conditions(obj).items():
                value = (condition["status"], condition.get("message", ""))
                if seen.get((resource.kind, name, kind)) != value:
                    seen[resource.kind, name, kind] = value
                    yield resource.kind, name, kind, *value


def watch_until_healthy(demo: Demo, lab: Lab, manager: subprocess.Popen[bytes]) -> None:
    """Show conditions as they change until all packages are installed and healthy."""
    seen: dict[tuple[str, str, str], tuple[str, str]] = {}
    deadline = time.monotonic() + DEADLINE
    while True:
        for kind, name, condition, status, message in changes(lab, seen):
            style = {"True": "green", "False": "red"}.get(status, "")
            text = f"    {kind}/{name} {condition}={status}"
            demo.say(f"{text} {message}".rstrip()[:160], style)
        done = all(
            seen.get((kind, name, wanted), ("",))[0] == "True"
            for kind, name in INSTALLED
            for wanted in ("Installed", "Healthy")
        )
        if done:
            return
        if manager.poll() is not None or time.monotonic() > deadline:
            log = (demo.folder / "manager.log").read_text().splitlines()[-20:]
            raise SystemExit(
                "the packages did not become healthy; the manager's log ends:\n" + "\n".join(log)
            )
        time.sleep(POLL)


def run(demo: Demo, lab: Lab) -> subprocess.Popen[bytes]:
    """Show all steps; return the running manager."""
    demo.environment["KUBECONFIG"] = str(lab.kubeconfig)
    demo.say(f"  API server {lab.server}, registry {lab.registry}")
    with demo.step("initialise the cluster: API, permissions, Lock, root CA"):
        apply_core_kinds(lab.api)
        demo.command("init")
    with demo.step("build and push the example packages"):
        for name in NAMES:
            output = demo.folder / f"{name}.xpkg"
            demo.command("build", "-f", str(EXAMPLES / name), "-o", str(output))
            demo.command("push", f"{lab.registry}/crossdock/{name}:v1.0.0", "-f", str(output))
    with demo.step("start the manager, with the permissions that manifests/rbac gives it"):
        cache = demo.folder / "cache"
        cache.mkdir()
        manager = demo.start_manager(cache)
        try:
            demo.wait_started(manager)
        except BaseException:
            stop(manager)
            raise
    try:
        with demo.step("install the configuration; the provider and the function come with it"):
            rewrite = {
                "apiVersion": IMAGE_CONFIG.api_version,
                "kind": IMAGE_CONFIG.kind,
                "metadata": {"name": "crossdock-examples"},
                "spec": {
                    "matchImages": [{"prefix": f"{SOURCE}/"}],
                    "rewriteImage": {"prefix": f"{lab.registry}/crossdock/"},
                },
            }
            lab.api.expect("POST", IMAGE_CONFIG.path(), rewrite)
            demo.say(f"  an ImageConfig fetches {SOURCE}/… from {lab.registry}/crossdock/…")
            reference = f"{SOURCE}/configuration-demo:v1.0.0"
            demo.command("install", "configuration", reference, "configuration-demo")
            watch_until_healthy(demo, lab, manager)
        demo.say("what is installed", "bold")
        demo.command("list")
        demo.command("trace", "configuration", "configuration-demo")
    except BaseException:
        stop(manager)
        raise
    return manager


def stop(manager: subprocess.Popen[bytes]) -> None:
    """End the manager in an orderly way."""
    if manager.poll() is None:
        manager.send_signal(signal.SIGTERM)
    try:
        manager.wait(10)
    except subprocess.TimeoutExpired:
        manager.kill()
        manager.wait(10)


def wait_for_ctrl_c(demo: Demo, lab: Lab) -> None:
    """Leave everything up until a person ends it."""
    print(
        f"\nThe lab stays up until Ctrl-C. In another terminal, in {ROOT}:\n\n"
        f"  export KUBECONFIG={lab.kubeconfig}\n"
        f"  export PATH={ROOT}/.venv/bin:$PATH\n"
        "  kubectl get pkg\n"
        "  crossdock trace configuration configuration-demo\n"
        f"  tail -f {demo.folder}/manager.log\n",
        flush=True,
    )
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(0.5):
        lab.state()


def main() -> int:
    """Run the demonstration."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="crossdock-demo-") as folder:
        demo = Demo(Path(folder))
        demo.say("start a control plane and a registry on loopback", "bold")
        with Lab.launch(Path(folder) / "lab", audit=False) as lab:
            demo.times.append(("control plane and registry", time.monotonic() - demo.started))
            manager = run(demo, lab)
            try:
                demo.say("how long it took", "bold")
                for title, seconds in demo.times:
                    demo.say(f"  {seconds:6.2f} s  {title}")
                if sys.stdout.isatty():
                    wait_for_ctrl_c(demo, lab)
            finally:
                stop(manager)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
