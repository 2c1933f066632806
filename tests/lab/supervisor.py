"""The supervisor: one process that starts a lab's components, watches them and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.lab import components, credentials, probe, state
from tests.lab.components import API_SERVER, NAMES, Component, Layout, Options, Ports
from tests.lab.control import serve
from tests.lab.errors import ComponentError, LabError, StopRequestedError
from tests.lab.ports import PortLease
from tests.lab.processes import Identity, spawn, tail

START_SECONDS = 90.0
STOP_SECONDS = 3.0
TICK = 0.05
IDLE_TICK = 0.2
PORT_ATTEMPTS = 3
_STORES = frozenset({"etcd", API_SERVER})
_LEASE = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/lab"
_CLIENTS = ("kube-controller-manager", "kube-scheduler", "kwok")


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How a lab's end is decided.

    ``until_unused``: it ends when no process holds the users' lock any more. ``discard``: what
    etcd and the registry stored goes with it, the logs stay.
    """

    until_unused: bool = False
    discard: bool = False


class Supervisor:
    """Runs one lab from start to end; used once.

    Args:
        layout: the lab's folder, existing.
        binaries: path of each component's program.
        options: what the caller chose.
        lifetime: how its end is decided.
        announce: called with one line at each step.
        ready: called once with what a client needs to know, when the lab is ready.
    """

    def __init__(
        self,
        *,
        layout: Layout,
        binaries: Mapping[str, Path],
        options: Options,
        lifetime: Lifetime,
        announce: Callable[[str], None],
        ready: Callable[[state.State], None],
    ) -> None:
        self._layout = layout
        self._binaries = binaries
        self._options = options
        self._lifetime = lifetime
        self._announce = announce
        self._ready = ready
        self._begin = time.monotonic()
        self._stop = asyncio.Event()
        self._hurry = False
        self._components: dict[str, Component] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._down: set[str] = set()
        self._lost: set[str] = set()
        self._outage: set[str] = set()  # stores that are down or were, and not all is back
        self._busy = asyncio.Lock()
        self._state = state.State(dir=str(layout.folder), until_unused=lifetime.until_unused)
        self._tls: dict[str, ssl.SSLContext] = {}

    async def run(self) -> int:
        """Run the lab until it is asked to stop or a component fails.

        Returns:
            The exit code of the process: 0 after a requested stop, 1 after a failure.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        with self._alone(), contextlib.closing(PortLease()) as lease:
            try:
                await self._live(lease)
            except StopRequestedError:
                return await self._end(None)
            except LabError as error:
                self._announce(str(error))
                return await self._end(str(error))
            except BaseException:
                await self._end("the supervisor failed; see lab.log in the logs folder")
                raise
        return 0

    async def act(self, action: str, component: str) -> dict[str, int]:
        """Do one thing to one component for a client.

        Args:
            action: kill, start, restart, pause or resume.
            component: one of NAMES.

        Returns:
            The pids by component after it.

        Raises:
            LabError: no such action or component, or it did not become ready again.
        """
        if component not in NAMES:
            raise LabError(f"no component {component!r}; there are {', '.join(NAMES)}")
        async with self._busy:
            match action:
                case "kill":
                    await self._kill(component)
                case "start":
                    await self._start_again(component)
                case "restart":
                    await self._finish((component,), grace=STOP_SECONDS)
                    await self._start_again(component)
                case "pause" | "resume":
                    number = signal.SIGSTOP if action == "pause" else signal.SIGCONT
                    os.killpg(self._running(component).pid, number)
                case _:
                    raise LabError(f"no action {action!r} for {component}")
        self._save(self._state.status)
        return self._pids()

    async def _live(self, lease: PortLease) -> None:
        token = secrets.token_urlsafe(24)
        async with serve(token=token, act=self.act) as control:
            self._state.control = (control, token)
            await self._bring_up_somewhere(lease)
            self._save("ready")
            self._say("ready")
            self._ready(self._state)
            while True:
                self._check()
                if self._lifetime.until_unused and self._unused():
                    raise StopRequestedError
                if not self._layout.state.exists():
                    raise LabError(f"{self._layout.folder} was removed while its lab ran")
                await asyncio.sleep(IDLE_TICK)

    async def _bring_up_somewhere(self, lease: PortLease) -> None:
        for attempt in range(PORT_ATTEMPTS):
            try:
                return await self._bring_up(lease)
            except ComponentError as error:
                if not error.port_taken or attempt == PORT_ATTEMPTS - 1:
                    raise
                self._say(f"{error.component}: its port is taken, trying others")
                await self._finish(tuple(self._processes), grace=0)
        return None

    async def _bring_up(self, lease: PortLease) -> None:
        ports = Ports(*(lease.reserve() for _ in range(len(Ports.__dataclass_fields__))))
        self._prepare(ports)
        for name in ("etcd", "registry"):
            self._spawn(name)
        await self._healthy("etcd")
        self._spawn(API_SERVER)
        await self._healthy("registry")
        await self._healthy(API_SERVER)
        await self._create_node()
        await self._start_clients(_CLIENTS)

    def _prepare(self, ports: Ports) -> None:
        layout = self._layout
        for folder in (layout.logs, layout.credentials, *layout.data):
            folder.mkdir(mode=0o700, exist_ok=True)
        found = credentials.provide(layout.credentials)
        components.write_files(layout=layout, ports=ports, credentials=found, options=self._options)
        self._components = components.plan(
            binaries=self._binaries,
            layout=layout,
            ports=ports,
            credentials=found,
            options=self._options,
        )
        trusted = probe.trusting(found.authority.read_text())
        self._tls = dict.fromkeys(NAMES, probe.trusting_any()) | {API_SERVER: trusted}
        self._state.kubeconfig = str(layout.kubeconfig)
        self._state.server = f"https://127.0.0.1:{ports.api_server}"
        self._state.registry = f"127.0.0.1:{ports.registry}"
        self._state.logs = str(layout.logs)
        self._state.audit_log = str(layout.audit_log) if self._options.audit else None
        self._save("starting")

    def _spawn(self, name: str) -> None:
        if self._stop.is_set():  # a client's wish must not start what is being ended
            raise StopRequestedError
        component = self._components[name]
        log = self._layout.log(name)
        self._processes[name] = spawn(
            component.command,
            stdout=self._layout.access_log if name == "registry" else log,
            stderr=log,
            environment=component.environment,
            folder=self._layout.folder,
        )
        self._down.discard(name)
        self._lost.discard(name)

    async def _healthy(self, name: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        url = self._components[name].health
        while time.monotonic() < deadline:
            self._check()
            with contextlib.suppress(probe.UnreachableError):
                status, _ = await probe.request("GET", url, tls=self._tls[name])
                if status == 200:
                    return self._say(f"{name} ready")
            await asyncio.sleep(TICK)
        raise ComponentError(name, code=None, log=tail(self._layout.log(name)))

    async def _api(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        token = credentials.provide(self._layout.credentials).token("lab")
        url = f"{self._state.server}{path}"
        try:
            return await probe.request(
                method, url, tls=self._tls[API_SERVER], token=token, body=body, seconds=10
            )
        except probe.UnreachableError as error:
            raise LabError(f"the API server does not answer: {error}") from error

    async def _create_node(self) -> None:
        status, answer = await self._api("POST", "/api/v1/nodes", components.node())
        if status not in (201, 409):
            raise LabError(f"the Node object was refused ({status}): {answer.decode()}")

    async def _settled(self) -> None:
        """Wait until pods can be made: node untainted and kept by KWOK, default account there."""
        deadline = time.monotonic() + START_SECONDS
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        while time.monotonic() < deadline:
            self._check()
            with contextlib.suppress(LabError):
                _, node = await self._api("GET", "/api/v1/nodes/lab")
                found = [(await self._api("GET", path))[0] for path in (account, _LEASE)]
                if found == [200, 200] and state.node_ready(node):
                    return
            await asyncio.sleep(TICK)
        raise ComponentError("kwok", code=None, log=tail(self._layout.log("kwok")))

    def _check(self) -> None:
        """Raise when a component ended by itself or the lab was asked to stop."""
        if self._stop.is_set():
            raise StopRequestedError
        for name, process in self._processes.items():
            code = process.poll()
            if code is None or name in self._down | self._lost:
                continue
            needed = {"etcd"} if name == API_SERVER else _STORES if name in _CLIENTS else set()
            if needed & self._outage:
                # Without what they need the others may give up: they come back with it.
                self._lost.add(name)
                self._say(f"{name} ended while {', '.join(sorted(self._outage))} was down")
                continue
            raise ComponentError(name, code=code, log=tail(self._layout.log(name)))

    async def _kill(self, name: str) -> None:
        process = self._running(name)
        self._mark_down((name,))
        os.killpg(process.pid, signal.SIGKILL)
        await self._gone(name, seconds=STOP_SECONDS)

    async def _start_again(self, name: str) -> None:
        if name in self._processes and self._processes[name].poll() is None:
            return None
        if name in _CLIENTS:
            return await self._start_clients((name,))
        self._spawn(name)
        await self._healthy(name)
        if name in _STORES and API_SERVER not in self._down:
            if API_SERVER in self._lost:
                self._spawn(API_SERVER)
            await self._healthy(API_SERVER)
            # After an outage they would sit out a back-off of up to 30 s: started anew.
            clients = tuple(each for each in _CLIENTS if each not in self._down)
            await self._finish(clients, grace=0)
            await self._start_clients(clients)
            self._outage.clear()
        return None

    def _mark_down(self, names: tuple[str, ...]) -> None:
        self._down.update(names)
        self._outage.update(_STORES.intersection(names))

    async def _start_clients(self, names: tuple[str, ...]) -> None:
        """Start components that need the API server and wait until pods can be made."""
        if API_SERVER in self._down:
            raise LabError(f"{', '.join(names)} cannot work while {API_SERVER} is down")
        if "kwok" in names:
            # A new KWOK waits for the lease of its predecessor to run out, unless it is gone.
            await self._api("DELETE", _LEASE)
        for name in names:
            self._spawn(name)
        for name in names:
            await self._healthy(name)
        if not self._down:
            await self._settled()

    async def _finish(self, names: tuple[str, ...], *, grace: float) -> None:
        """End components: asked first where there is a grace period, then killed."""
        self._mark_down(names)
        running = [name for name in names if self._processes[name].poll() is None]
        for name in running:
            group = self._processes[name].pid  # not waited for yet: the id is still its own
            os.killpg(group, signal.SIGTERM if grace else signal.SIGKILL)
            os.killpg(group, signal.SIGCONT)
        deadline = time.monotonic() + grace
        while grace and time.monotonic() < deadline and not self._hurry:
            if all(self._processes[name].poll() is not None for name in running):
                return
            await asyncio.sleep(TICK / 2)
        for name in running:
            if self._processes[name].poll() is None:
                os.killpg(self._processes[name].pid, signal.SIGKILL)
            await self._gone(name, seconds=10)

    async def _gone(self, name: str, *, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._processes[name].poll() is None:
            if time.monotonic() > deadline:
                raise LabError(f"{name} (pid {self._processes[name].pid}) does not end")
            await asyncio.sleep(TICK / 5)

    async def _end(self, failure: str | None) -> int:
        self._stop.set()
        self._state.failure = failure
        self._save("stopping")
        grace = 0.0 if self._lifetime.discard else STOP_SECONDS
        others = tuple(name for name in self._processes if name != "etcd")
        await self._finish(others, grace=grace)
        await self._finish(tuple(set(self._processes) - set(others)), grace=grace)
        if self._lifetime.discard:
            for folder in self._layout.data:
                shutil.rmtree(folder, ignore_errors=True)
        self._save("failed" if failure else "stopped")
        self._say("stopped")
        return 1 if failure else 0

    def _running(self, name: str) -> subprocess.Popen[bytes]:
        process = self._processes.get(name)
        if process is None or process.poll() is not None:
            raise LabError(f"{name} does not run; start it first")
        return process

    def _pids(self) -> dict[str, int]:
        return {name: p.pid for name, p in self._processes.items() if p.poll() is None}

    def _save(self, status: str) -> None:
        self._state.status = status
        self._state.supervisor = Identity.of(os.getpid())
        self._state.pids = self._pids()
        with contextlib.suppress(FileNotFoundError):  # the folder may be gone at the end
            state.save(self._layout.state, self._state)

    def _say(self, text: str) -> None:
        self._announce(f"[{time.monotonic() - self._begin:6.2f} s] {text}")

    def _on_signal(self) -> None:
        self._hurry = self._stop.is_set()
        self._stop.set()

    def _unused(self) -> bool:
        """Tell whether nobody uses the lab; once true, nobody can begin to."""
        descriptor = state.try_lock(self._layout.folder / state.USERS, fcntl.LOCK_EX)
        return descriptor is not None  # kept until this process ends

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        descriptor = state.try_lock(self._layout.folder / state.SUPERVISOR, fcntl.LOCK_EX)
        if descriptor is None:
            raise LabError(
                f"a lab runs in {self._layout.folder} already: end it with "
                f"`python -m tests.lab down --dir {self._layout.folder}` or choose another folder"
            )
        try:
            yield
        finally:
            os.close(descriptor)
