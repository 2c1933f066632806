"""Fixtures of this room: a scripted peer, clients of it and of the lab, and a check for leaks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from controller.kube.client import KubeClient
from tests.fakes.apiserver import ScriptedServer
from tests.kube import kubeconfig
from tests.lab.lab import Lab


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the machine's own cluster and proxies out of the tests."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest_asyncio.fixture
async def scripted() -> AsyncIterator[ScriptedServer]:
    """A peer that answers what the test tells it to."""
    async with ScriptedServer.running() as server:
        yield server


@pytest_asyncio.fixture
async def client(scripted: ScriptedServer, tmp_path: Path) -> AsyncIterator[KubeClient]:
    """A client of the scripted peer; it leaves no task behind."""
    config = kubeconfig.write(tmp_path / "config", scripted.url, user={"token": "secret-token"})
    before = asyncio.all_tasks()
    async with KubeClient.connect(kubeconfig=config, user_agent="test/1") as connected:
        yield connected
    await asyncio.sleep(0)
    assert not [t for t in asyncio.all_tasks() - before if "controller" in repr(t.get_coro())]


@pytest_asyncio.fixture
async def cluster(lab: Lab) -> AsyncIterator[KubeClient]:
    """A client of the lab's API server, as its administrator."""
    async with KubeClient.connect(kubeconfig=lab.kubeconfig, user_agent="test/1") as connected:
        yield connected


@contextlib.asynccontextmanager
async def running(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines for as long as the context lasts."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def eventually(check: Callable[[], object], *, seconds: float = 30.0) -> None:
    """Wait until a check holds."""
    async with asyncio.timeout(seconds):
        while not check():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.01)
