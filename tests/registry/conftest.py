"""Fixtures: a fake registry, real registries, and clients that wait for nothing."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from controller.registry.client import RegistryClient
from controller.registry.credentials import Credential, Keychain
from controller.registry.reference import Reference, parse_reference
from controller.registry.transport import Transport
from controller.registry.wire import Limits
from tests.fakes.registry import FakeRegistry, Server, serve
from tests.lab import binaries
from tests.lab.ports import PortLease

ANONYMOUS = Keychain.anonymous()
QUICK = Limits(connect_seconds=2, read_seconds=2, metadata_seconds=5, blob_seconds=5)


@dataclass
class Pauses:
    """A clock that sleeping moves on, and the list of all sleeps."""

    now: float = 1000.0
    taken: list[float] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.taken.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


@dataclass(frozen=True)
class FixedSource:
    """Credentials that are the same for every reference."""

    credentials: tuple[Credential, ...]

    async def credentials_for(self, reference: Reference) -> list[Credential]:
        return list(self.credentials)


def keychain(*credentials: Credential) -> Keychain:
    return Keychain((FixedSource(credentials),))


@contextlib.asynccontextmanager
async def connected(
    pauses: Pauses | None = None, limits: Limits = QUICK, **options: object
) -> AsyncIterator[RegistryClient]:
    """A client whose pauses take no time."""
    pauses = pauses or Pauses()
    transport = Transport(
        user_agent="crossdock/test",
        limits=limits,
        clock=pauses.clock,
        sleep=pauses.sleep,
        **options,  # type: ignore[arg-type]  # passed on by name
    )
    async with RegistryClient(user_agent="crossdock/test", transport=transport) as client:
        yield client


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def fake() -> FakeRegistry:
    return FakeRegistry()


@pytest_asyncio.fixture
async def server(fake: FakeRegistry) -> AsyncIterator[Server]:
    async with serve(fake) as running:
        yield running


@pytest_asyncio.fixture
async def client(pauses: Pauses) -> AsyncIterator[RegistryClient]:
    async with connected(pauses) as opened:
        yield opened


@pytest.fixture
def image(server: Server) -> Reference:
    return parse_reference(f"{server.address}/acme/demo:v1")


def registry_programs() -> dict[str, Path]:
    found = {}
    if "registry" not in binaries.absent(["registry"]):
        found["distribution v3"] = binaries.resolve(["registry"], announce=print)["registry"]
    packaged = shutil.which("docker-registry")
    if packaged:
        found["docker-registry 2.8"] = Path(packaged)
    return found


@contextlib.contextmanager
def running_registry(
    program: Path, folder: Path, http: str = "", *, more: str = ""
) -> Iterator[str]:
    """A real registry process; gives its host and port.

    ``http`` adds to that section of its configuration, ``more`` further sections.
    """
    lease = PortLease()
    port = lease.reserve()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}', secret: tests, {http}}}\n{more}"
    )
    quiet = {**os.environ, "OTEL_TRACES_EXPORTER": "none"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "serve", str(config)], stdout=log, stderr=log, env=quiet
        )
    try:
        _wait_until_up(port, process, folder / "log")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
        lease.close()


def _wait_until_up(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise AssertionError(log.read_text())
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError(f"registry does not listen: {log.read_text()}")


@pytest.fixture(scope="session", params=["distribution v3", "docker-registry 2.8"])
def real_registry(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    programs = registry_programs()
    if request.param not in programs:
        pytest.skip(f"{request.param} is not installed")
    folder = tmp_path_factory.mktemp("registry")
    with running_registry(programs[request.param], folder) as address:
        yield address
