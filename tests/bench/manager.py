"""The manager as it runs in a pod, but for where it runs: probes, metrics and leases are on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.integration.harness import Manager, NotYetError


class MeasuredManager(Manager):
    """A manager whose metrics can be read, in a process group of its own.

    Args:
        kubeconfig: how to reach the API server.
        folder: takes the log.
        cache: its cache of packages.
        profile: a file for the profile of ``tests.bench.profiled``; None for no profiler.

    Attributes:
        health_port: where it serves its probes.
        metrics_port: where it serves its metrics.
    """

    def __init__(
        self, kubeconfig: Path, folder: Path, cache: Path, *, profile: Path | None = None
    ) -> None:
        self.log = folder / "manager.log"
        self.health_port, self.metrics_port = free_port(), free_port()
        module = ["controller"] if profile is None else ["tests.bench.profiled", str(profile)]
        command = [
            *(sys.executable, "-m", *module, "start", "--as-service-account"),
            *("--kubeconfig", str(kubeconfig), "--cache-dir", str(cache)),
            *("--leader-election", "--log-format", "json", "--log-level", "info"),
            *("--health-address", f"127.0.0.1:{self.health_port}"),
            *("--metrics-address", f"127.0.0.1:{self.metrics_port}"),
        ]
        environment = {**os.environ, "HOME": str(folder)}
        with self.log.open("wb") as log:
            # Ctrl-C on the terminal is for the measurement, which then ends the manager.
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def wait_started(self) -> None:
        """Wait until the manager works; end the program with its log when it does not."""
        try:
            super().wait_started()
        except NotYetError:
            raise SystemExit(f"the manager does not start:\n{self.tail()}") from None


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
