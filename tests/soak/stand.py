"""The stand of the soak: a lab, a manager, and a wire between them that can be cut."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import yaml

from tests.bench.manager import MeasuredManager
from tests.bench.packages import lab_platform
from tests.fakes.wire import Wire
from tests.integration.harness import NAMESPACE, Platform
from tests.lab.lab import Lab
from tests.lab.logs import whole_lines

WIRE_SECONDS = 10.0  # for the wire to be there, and to be gone
_ACCOUNT = f'"username":"system:serviceaccount:{NAMESPACE}:'.encode()


class WireThread:
    """A wire to the API server, in a thread of its own."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._ready, self._ended = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="wire", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._wire: Wire

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(WIRE_SECONDS):
            raise SystemExit("the wire to the API server does not come up")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join(WIRE_SECONDS)

    @property
    def port(self) -> int:
        """Where the manager connects to."""
        return self._wire.port

    @property
    def connections(self) -> int:
        """How many connections there were."""
        return self._wire.connections

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        self._do(self._wire.cut)

    def tear(self, after: int) -> None:
        """Reset each connection when so many more bytes came from the API server."""
        self._do(self._wire.tear, after)

    def silence(self) -> None:
        """Pass nothing on for now; connections stay open."""
        self._do(self._wire.silence)

    def swallow(self) -> None:
        """Acknowledge everything and pass nothing on; these connections never recover."""
        self._do(self._wire.swallow)

    def drop(self) -> None:
        """Drop all packets unanswered; these connections never recover."""
        self._do(self._wire.drop)

    def mend(self) -> None:
        """Pass everything on again."""
        self._do(self._wire.mend)

    def _do(self, act: Callable[..., Awaitable[None] | None], *arguments: int) -> None:
        """Do something to the wire in its thread; return when it is done."""

        async def done() -> None:
            waiting = act(*arguments)
            if waiting is not None:
                await waiting

        asyncio.run_coroutine_threadsafe(done(), self._loop).result(WIRE_SECONDS)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with Wire.to(self._server) as self._wire:
            self._ready.set()
            await self._ended.wait()


class Requests:
    """Counts the manager's requests in the API server's audit log, each once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size

    def read(self) -> Counter[str]:
        """Return the requests since the last call by verb and resource.

        A watch counts when it begins.
        """
        found: Counter[str] = Counter()
        for line in whole_lines(self._path, self._offset):
            self._offset += len(line)
            if _ACCOUNT not in line:
                continue
            event = json.loads(line)
            if event["verb"] == "watch" and event["stage"] != "ResponseStarted":
                continue
            target = event.get("objectRef", {})
            found[f"{event['verb']} {target.get('resource', event['requestURI'])}"] += 1
        return found


class Stand:
    """A lab with crossdock's API and one manager, which talks to it through a wire."""

    def __init__(
        self, lab: Lab, platform: Platform, wire: WireThread, manager: MeasuredManager
    ) -> None:
        self.lab = lab
        self.platform = platform
        self.wire = wire
        self.manager = manager
        assert lab.audit_log is not None
        self.requests = Requests(lab.audit_log)
        self.etcd = _etcd(lab)

    @property
    def pid(self) -> int:
        """The manager's process id."""
        return self.manager.process.pid


@contextmanager
def running(folder: Path) -> Iterator[Stand]:
    """Start a lab, a wire and a manager; end them all."""
    with lab_platform(folder) as platform, WireThread(platform.lab.server) as wire:
        config = yaml.safe_load(platform.lab.kubeconfig.read_text())
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{wire.port}"
        kubeconfig = platform.folder / "kubeconfig"
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(json.dumps(config))
        manager = MeasuredManager(kubeconfig, platform.folder, platform.cache)
        try:
            manager.wait_started()
            yield Stand(platform.lab, platform, wire, manager)
        finally:
            wire.mend()
            manager.stop(signal.SIGKILL)


def _etcd(lab: Lab) -> tuple[str, int]:
    """Return host and port of the lab's etcd."""
    arguments = Path(f"/proc/{lab.pids['etcd']}/cmdline").read_bytes().split(b"\0")
    prefix = b"--listen-client-urls="
    found = next(each for each in arguments if each.startswith(prefix))
    host, _, port = os.fsdecode(found).rpartition("/")[2].partition(":")
    return host, int(port)
