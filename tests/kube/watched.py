"""An informer that watches a cluster in miniature in virtual time, and what it did."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import aiohttp

from controller.kube.client import KubeClient
from controller.kube.informer import Change, Informer
from controller.kube.transport import Transport
from controller.model.objects import SECRET
from tests.fakes.clock import VirtualTimeLoop
from tests.fakes.cluster import Cluster

NAMESPACE = "n"


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in virtual time; it leaves no task behind."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def checked() -> None:
            await test(*args, **kwargs)
            await asyncio.sleep(1)
            left = [repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()}]
            assert not [task for task in left if "aiohttp/web_protocol" not in task]

        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(checked())

    return run


class Anybody:
    """Credentials of nobody."""

    async def authorization(self) -> str | None:
        return None

    async def renew(self, refused: str | None) -> bool:
        return False


class PlainSession:
    """An HTTP session without threads and files, which have no place in virtual time."""

    def __init__(self, http: aiohttp.ClientSession, server: str) -> None:
        self.server = server
        self.request = http.request


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[KubeClient]:
    """Give a client of a server on loopback."""
    async with aiohttp.ClientSession(read_bufsize=256 * 1024) as http:
        session: Any = PlainSession(http, url)
        yield KubeClient(Transport(session, Anybody()), server=url, namespace="default")
        assert http.connector is not None
        assert not http.connector._acquired, "a connection was not given back"


class Watched:
    """A cluster and an informer of its Secrets; the informer starts with ``running``."""

    def __init__(self, cluster: Cluster, client: KubeClient, **selection: Any) -> None:
        self.cluster = cluster
        self.informer = Informer(client, SECRET, **selection)
        self.changes: list[tuple[str, str]] = []
        self.informer.add_handler(self._note)

    @classmethod
    @contextlib.asynccontextmanager
    async def beside(cls, *, streaming: bool = True, **selection: Any) -> AsyncIterator[Watched]:
        async with Cluster.running(SECRET) as cluster, connected(cluster.url) as client:
            cluster.streaming = streaming
            yield cls(cluster, client, **selection)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the informer for as long as the context lasts."""
        task = asyncio.ensure_future(self.informer.run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def synced(self) -> None:
        """Wait until the store holds exactly the cluster's objects, at most ten minutes."""
        await self.until(lambda: self.informer.synced and self.stored == self.served)

    async def until(self, check: Callable[[], object], *, seconds: float = 600) -> None:
        """Wait until a check holds."""
        async with asyncio.timeout(seconds):
            while not check():  # noqa: ASYNC110 - what is waited for tells nobody
                await asyncio.sleep(0.02)

    async def watching(self, count: int = 1) -> None:
        """Wait until a watch that brought all objects, or follows on a list, is open."""
        await self.until(lambda: self.informer.synced and len(self.cluster.open) == count)
        await asyncio.sleep(0.01)

    @property
    def stored(self) -> dict[tuple[str, str], str]:
        objects = (obj["metadata"] for obj in self.informer.store.list())
        return {
            (each.get("namespace", ""), each["name"]): each["resourceVersion"] for each in objects
        }

    @property
    def served(self) -> dict[tuple[str, str], str]:
        found = self.cluster.objects(SECRET).items()
        return {key: obj["metadata"]["resourceVersion"] for key, obj in found}

    def put(self, name: str, **more: Any) -> None:
        self.cluster.put(SECRET, name, NAMESPACE, **more)

    def delete(self, name: str) -> None:
        self.cluster.delete(SECRET, name, NAMESPACE)

    def gaps(self, *verbs: str) -> list[float]:
        """Return the seconds between requests."""
        times = [seen.at for seen in self.cluster.requests if not verbs or seen.verb in verbs]
        return [after - before for before, after in itertools.pairwise(times)]

    def verbs(self) -> list[str]:
        return [seen.verb for seen in self.cluster.requests]

    def _note(self, change: Change) -> None:
        kind = "delete" if change.new is None else "add" if change.old is None else "update"
        self.changes.append((kind, (change.new or change.old or {})["metadata"]["name"]))
