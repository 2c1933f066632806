"""State of a lab as its folder tells it: what a client needs, who uses it, whether it runs."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.lab.credentials import write_json
from tests.lab.processes import Identity

USERS = "users.lock"
SUPERVISOR = "supervisor.lock"
START = "start.lock"


@dataclass(slots=True)
class State:
    """What the supervisor writes into ``lab.json``.

    ``status`` is one of starting, ready, stopping, stopped, failed; ``until_unused`` tells that it
    ends with its last user; ``control`` holds the port and the token of the supervisor's service.
    """

    dir: str
    status: str = "starting"
    kubeconfig: str = ""
    server: str = ""
    registry: str = ""
    logs: str = ""
    audit_log: str | None = None
    until_unused: bool = False
    pids: dict[str, int] = field(default_factory=dict)
    supervisor: Identity | None = None
    control: tuple[int, str] | None = None
    failure: str | None = None

    def public(self) -> dict[str, object]:
        """Give what may be shown: everything but the means to control the supervisor."""
        value = asdict(self)
        for name in ("control", "supervisor", "until_unused"):
            value.pop(name)
        value["pid"] = self.supervisor.pid if self.supervisor and self.running else None
        return value

    @property
    def running(self) -> bool:
        """Whether its supervisor runs at this moment."""
        return self.supervisor is not None and self.supervisor.alive()


def save(path: Path, value: State) -> None:
    """Write the state, whole or not at all, readable by its owner alone."""
    write_json(path, asdict(value))


def load(path: Path) -> State | None:
    """Read the state; None when the folder never held a lab.

    A lab whose supervisor ended without saying so is told as ``stopped``, without pids.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    supervisor = value.pop("supervisor")
    control = value.pop("control")
    found = State(
        **value,
        supervisor=Identity(**supervisor) if supervisor else None,
        control=tuple(control) if control else None,
    )
    if not found.running:
        found.pids = {}
        found.status = "failed" if found.failure else "stopped"
    return found


def try_lock(path: Path, kind: int) -> int | None:
    """Take a lock on a file of the lab without waiting.

    Args:
        path: the lock file, made where it is not there.
        kind: fcntl.LOCK_SH or fcntl.LOCK_EX.

    Returns:
        The descriptor that holds the lock, to be closed by the caller; None when it is taken.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def node_ready(body: bytes) -> bool:
    """Tell from a Node object (JSON) whether pods are scheduled to it."""
    try:
        node = json.loads(body)
    except ValueError:
        return False
    conditions = node.get("status", {}).get("conditions", [])
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and not node.get("spec", {}).get("taints")
