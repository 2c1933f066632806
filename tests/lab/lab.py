"""Lab: a running control plane and registry, as tests, the demo and the benchmarks hold it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import binaries, control, credentials, logs, state
from tests.lab.apiserver import ApiServer
from tests.lab.components import HERE, NAMES, Layout
from tests.lab.errors import LabError
from tests.lab.processes import tail

ROOT = Path(__file__).parents[2]
READY_SECONDS = 180.0
STOP_SECONDS = 30.0
ACT_SECONDS = 120.0
_POLL = 0.05


class Lab:
    """A lab that this process uses; it ends with its last user, however that one ends.

    Made by :meth:`launch` or :meth:`attach`; a context manager. Methods block: in a coroutine
    call those that wait (``start``, ``restart``, ``close``) by ``asyncio.to_thread``.

    Attributes:
        kubeconfig: file of the administrator.
        server: URL of the API server.
        registry: ``host:port`` of the registry, plain HTTP.
        folder: everything of this lab.
        logs: folder of the components' logs.
        audit_log: file of the API server's audit log, None without ``audit``.
    """

    def __init__(self, layout: Layout, found: state.State, *, user_lock: int) -> None:
        self._layout = layout
        self._user_lock: int | None = user_lock
        self._control = found.control
        self.folder = layout.folder
        self.kubeconfig = Path(found.kubeconfig)
        self.server = found.server
        self.registry = found.registry
        self.logs = Path(found.logs)
        self.audit_log = Path(found.audit_log) if found.audit_log else None

    @classmethod
    def launch(
        cls,
        folder: Path,
        *,
        audit: bool = True,
        api_server_arguments: tuple[str, ...] = (),
        stages: Path = HERE / "stages",
        discard: bool = True,
        announce: Callable[[str], None] = lambda _: None,
    ) -> Lab:
        """Use the lab in a folder; the first of several processes to ask for it starts it.

        Args:
            folder: the lab's own folder, made where it is not there.
            audit: write an audit log (metadata of every request but leases and health).
            api_server_arguments: further arguments of kube-apiserver.
            stages: folder of KWOK Stage files.
            discard: what etcd and the registry stored goes when the lab ends.
            announce: called with one line of progress at a time.

        Raises:
            LabError: a binary is missing, a component failed or the lab took too long.
        """
        folder = folder.resolve()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        arguments = [f"--apiserver-arg={each}" for each in api_server_arguments]
        arguments += ["--audit"] * audit + ["--discard"] * discard
        arguments += ["--until-unused", f"--stages={stages.resolve()}"]
        # One process starts it; the others wait here.
        with exclusive(folder / state.START, seconds=READY_SECONDS):
            lock = _use(folder)
            try:
                found = state.load(folder / "lab.json")
                if found is None or not found.running or found.status != "ready":
                    found = spawn(folder, arguments, announce=announce)
                return cls(Layout(folder), found, user_lock=lock)
            except BaseException:
                os.close(lock)
                raise

    @classmethod
    def attach(cls, folder: Path) -> Lab:
        """Use the lab that runs in a folder.

        Raises:
            LabError: none is ready there.
        """
        folder = folder.resolve()
        found = state.load(folder / "lab.json")
        if found is None or found.status != "ready":
            status = found.status if found else "not started"
            raise LabError(f"no lab is ready in {folder} ({status})")
        return cls(Layout(folder), found, user_lock=_use(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop using the lab; the last user ends it and returns when it is gone."""
        if self._user_lock is None:
            return
        os.close(self._user_lock)
        self._user_lock = None
        found = state.load(self._layout.state)
        if found is None or not found.until_unused or found.supervisor is None:
            return
        last = state.try_lock(self.folder / state.USERS, fcntl.LOCK_EX)
        if last is None:
            return
        try:
            found.supervisor.send(signal.SIGTERM)
            found.supervisor.wait(seconds=STOP_SECONDS)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(found.supervisor.pid, os.WNOHANG)  # this process may have started it
        finally:
            os.close(last)

    def state(self) -> state.State:
        """Read what the supervisor tells at this moment.

        Raises:
            LabError: a component failed, so that the lab ended; the message holds its log's end.
        """
        found = state.load(self._layout.state)
        if found is None or found.failure:
            reason = found.failure if found else "its folder is gone"
            raise LabError(f"the lab in {self.folder} failed: {reason}")
        return found

    @property
    def pids(self) -> Mapping[str, int]:
        """Process ids of the components that run, by name."""
        return self.state().pids

    @property
    def token(self) -> str:
        """The administrator's bearer token."""
        return credentials.provide(self._layout.credentials).token("admin")

    @property
    def api(self) -> ApiServer:
        """Plain requests to the API server as the administrator; they block."""
        return ApiServer(self.kubeconfig)

    @property
    def authority(self) -> Path:
        """Certificate (PEM) of the authority that signed the API server's."""
        return self._layout.credentials / "ca.crt"

    def kill(self, component: str) -> None:
        """End a component at once (SIGKILL) and leave it down until :meth:`start`."""
        self._act("kill", component)

    def start(self, component: str) -> None:
        """Start a component that was killed, on its own port, and wait until it is ready.

        After etcd or the API server the components that need them are started anew as well.
        """
        self._act("start", component)

    def restart(self, component: str) -> None:
        """End a component in an orderly way, start it again and wait until it is ready."""
        self._act("restart", component)

    def pause(self, component: str) -> None:
        """Freeze a component (SIGSTOP): its connections stay open and nothing answers."""
        self._act("pause", component)

    def resume(self, component: str) -> None:
        """Let a frozen component go on (SIGCONT)."""
        self._act("resume", component)

    def mark(self) -> logs.Mark:
        """Note the present end of both logs, to read later what came after it."""
        return logs.Mark(audit=_size(self.audit_log), access=_size(self._layout.access_log))

    def audit_events(self, since: logs.Mark | None = None) -> list[logs.AuditEvent]:
        """Read the requests to the API server since a mark, all without one.

        Raises:
            LabError: the lab runs without an audit log.
        """
        if self.audit_log is None:
            raise LabError("this lab writes no audit log: launch it with audit=True")
        return list(logs.audit_events(self.audit_log, since.audit if since else 0))

    def registry_requests(self, since: logs.Mark | None = None) -> list[logs.RegistryRequest]:
        """Read the requests to the registry since a mark, all without one."""
        return list(logs.registry_requests(self._layout.access_log, since.access if since else 0))

    def _act(self, action: str, component: str) -> None:
        if component not in NAMES:
            raise LabError(f"no component {component!r}; there are {', '.join(NAMES)}")
        self.state()
        if self._control is None:
            raise LabError(f"the lab in {self.folder} does not run")
        control.ask(self._control, action=action, component=component, seconds=ACT_SECONDS)


def spawn(folder: Path, arguments: list[str], *, announce: Callable[[str], None]) -> state.State:
    """Start a supervisor in the background and wait until its lab is ready.

    Args:
        folder: the lab's folder, existing.
        arguments: of ``python -m tests.lab up``.
        announce: called with one line of progress at a time.

    Returns:
        The state of the ready lab.

    Raises:
        LabError: it failed or took too long; then nothing of it is left.
    """
    binaries.resolve(binaries.LAB, announce=announce)
    layout = Layout(folder)
    layout.logs.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.lab", "up", "--dir", str(folder), *arguments]
    with layout.log("lab").open("ab") as stream:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    return _ready(process, layout)


def _ready(process: subprocess.Popen[bytes], layout: Layout) -> state.State:
    """Wait until the supervisor that was just started says that its lab is ready."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        code = process.poll()
        found = state.load(layout.state)
        # Until it writes its own, the folder holds the state of an earlier lab, or none.
        ours = found and found.supervisor and found.supervisor.pid == process.pid
        if code is not None:
            reason = (found.failure if found and ours else None) or tail(layout.log("lab"))
            raise LabError(f"the lab in {layout.folder} did not start: {reason}")
        if found and ours and found.status == "ready":
            process.returncode = 0  # it lives on: this object does not wait for it
            return found
        time.sleep(_POLL)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    last = tail(layout.log("lab"))
    raise LabError(f"the lab in {layout.folder} is not ready in {READY_SECONDS:.0f} s: {last}")


def end(folder: Path, *, seconds: float = STOP_SECONDS) -> state.State | None:
    """End the lab that runs in a folder and nothing else.

    Args:
        folder: the lab's folder.
        seconds: how long it may take before its supervisor is killed, and the rest with it.

    Returns:
        The state after it; None when the folder never held a lab.
    """
    layout = Layout(folder.resolve())
    found = state.load(layout.state)
    if found is not None and found.running and found.supervisor is not None:
        found.supervisor.send(signal.SIGTERM)
        if not found.supervisor.wait(seconds=seconds):
            found.supervisor.send(signal.SIGKILL)
            found.supervisor.wait(seconds=seconds)
    return state.load(layout.state)


@contextlib.contextmanager
def exclusive(path: Path, *, seconds: float) -> Iterator[None]:
    """Hold a lock file, waited for at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while (descriptor := state.try_lock(path, fcntl.LOCK_EX)) is None:
        if time.monotonic() > deadline:
            raise LabError(f"another process has held {path} for {seconds:.0f} s")
        time.sleep(_POLL)
    try:
        yield
    finally:
        os.close(descriptor)


def _use(folder: Path) -> int:
    """Count this process among the users; a lab that is about to end is let end first."""
    deadline = time.monotonic() + STOP_SECONDS
    while (descriptor := state.try_lock(folder / state.USERS, fcntl.LOCK_SH)) is None:
        if time.monotonic() > deadline:
            raise LabError(f"the lab in {folder} is ending and does not come to an end")
        time.sleep(_POLL)
    return descriptor


def _size(path: Path | None) -> int:
    try:
        return path.stat().st_size if path else 0
    except FileNotFoundError:
        return 0


def pretty(value: object) -> str:
    """Write a value as JSON for a person or a program to read."""
    return json.dumps(value, indent=2)
