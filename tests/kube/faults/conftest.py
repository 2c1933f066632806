"""Fixtures of the tests of faults: observed clients, and a check for what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytest_asyncio

from controller.kube.client import KubeClient
from tests.kube import kubeconfig
from tests.kube.conftest import eventually
from tests.kube.faults.observed import Observed
from tests.kube.faults.process import memory, open_files
from tests.lab.lab import Lab

BLOCKS_LEFT = 100_000  # values that a test may leave: 50,000 objects have a million and more
MEMORY_LEFT = 96.0  # MiB that a test may leave: caches and what the allocator keeps
MANY_LEFT = 256.0  # after a test of 50,000 objects: the allocator keeps what it had for them

Observe: TypeAlias = Callable[..., AbstractAsyncContextManager[Observed]]


@pytest_asyncio.fixture(autouse=True)
async def _nothing_left(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """No task, no socket, no file, no value and no memory stays behind."""
    files, before, blocks = open_files(), memory(), sys.getallocatedblocks()
    yield
    me = asyncio.current_task()
    with contextlib.suppress(TimeoutError):  # sockets close a turn of the event loop later
        await eventually(lambda: asyncio.all_tasks() <= {me} and not left(files), seconds=5)
    assert asyncio.all_tasks() <= {me}
    assert left(files) == []
    many = request.node.path.stem == "test_many_objects"
    assert memory() - before < (MANY_LEFT if many else MEMORY_LEFT)
    assert sys.getallocatedblocks() - blocks < BLOCKS_LEFT


def left(before: dict[str, str]) -> list[str]:
    """Return the files and sockets that were not open before."""
    return [value for value in open_files().values() if value not in before.values()]


@pytest.fixture
def observe(
    tmp_path: Path, record_property: Callable[[str, Any], None]
) -> Callable[..., AbstractAsyncContextManager[Observed]]:
    """Make an observed client of a lab whose requests go to another address."""

    def make(
        fault: str, lab: Lab, near: KubeClient, url: str, *, config: Path | None = None
    ) -> AbstractAsyncContextManager[Observed]:
        name = "".join(letter for letter in fault if letter.isalnum())
        path = config or kubeconfig.moved(lab.kubeconfig, tmp_path / name, url)
        return Observed.through(fault, near, path, record=record_property)

    return make


@pytest_asyncio.fixture
async def near_own(own_lab: Lab) -> AsyncIterator[KubeClient]:
    """An administrator of the test's own lab whom no fault of the network touches."""
    async with KubeClient.connect(kubeconfig=own_lab.kubeconfig, user_agent="near/1") as client:
        yield client
