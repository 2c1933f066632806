"""The composition root: every object is built here once, every arrow drawn, lifetimes nested.

Flow: watches fill the informers' stores; their handlers put keys into the stages' queues; stages
read stores, act, and hand keys on; the committer writes what they report. Lifetimes nest: what must
end last is entered first, so the indentation is the order of the stop.

Source: controller-runtime's manager, order of start and stop.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import structlog

from controller import __version__
from controller.flow.commit import View
from controller.flow.lanes import LANES
from controller.flow.worker import Stage, run_workers
from controller.flow.workqueue import WorkQueue
from controller.kube.client import ApiError, KubeClient
from controller.kube.discovery import Discovery
from controller.kube.events import EventRecorder
from controller.kube.informer import Change
from controller.kube.informers import MetadataInformers
from controller.kube.watches import Watches
from controller.model import routes
from controller.model.imageconfig import ImageConfigError
from controller.model.manifest import ManifestError
from controller.model.objects import (
    DEPLOYMENT,
    LOCK,
    PACKAGES,
    REVISIONS,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    Key,
    Resource,
    key_of,
    name_of,
)
from controller.model.revision import is_active
from controller.registry.cache import DiskCache, NoCache, PackageCache
from controller.registry.client import RegistryClient
from controller.registry.failures import RegistryError
from controller.registry.proxies import Proxies
from controller.stages.backend import ImageBackend
from controller.stages.cluster import Cluster
from controller.stages.digest import DigestStage, RegistryDigester
from controller.stages.establish import EstablishStage
from controller.stages.evict import EvictStage
from controller.stages.image import ImageStage
from controller.stages.installer import DependencyInstaller
from controller.stages.owned import OwnedObjects
from controller.stages.package import PackageStage
from controller.stages.prepare import PrepareStage
from controller.stages.resolve import ResolveStage
from controller.stages.runtime import RuntimeStage
from controller.stages.runtimes import RuntimeReader
from controller.stages.status import status_committer
from controller.stages.version import crossplane_version
from controller.telemetry import HealthServer, Metrics, configure_logging
from controller.xpkg.errors import XpkgError

log = structlog.get_logger(__name__)

STOP_DEADLINE = 3.0  # seconds for stages to finish what they do
FLUSH_DEADLINE = 1.0  # seconds for the last statuses and events
KIND_SETTLE = 0.5  # seconds between a new definition and the look whether it is served
API_WAIT = 2.0  # seconds between looks for the package API before `crossdock init`


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that a person can set when starting the manager."""

    namespace: str
    service_account: str
    kubeconfig: Path | None
    context: str | None
    as_service_account: bool
    cache_dir: Path | None
    log_format: Literal["json", "console"]
    log_level: Literal["debug", "info", "warning", "error"]
    health_address: tuple[str, int] | None
    metrics_address: tuple[str, int] | None
    ca_bundle: Path | None
    insecure_registries: tuple[str, ...]
    crossplane_version: str | None
    package_establishers: int
    user_agent: str


EXPECTED = (ApiError, RegistryError, XpkgError, ManifestError, ImageConfigError)


class Manager:
    """The running manager: queues, watches, stages, and the arrows between them.

    Args:
        settings: what the person set.
        client: the API server.
        registry: OCI registries.
        cache: packages on disk.
        metrics: what is counted.
        tasks: parent of the tasks that live as long as the manager.
        crossplane_version: what packages' constraints are checked against.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        client: KubeClient,
        registry: RegistryClient,
        cache: PackageCache,
        metrics: Metrics,
        tasks: asyncio.TaskGroup,
        crossplane_version: str,
    ) -> None:
        self._metrics = metrics
        self._crossplane_version = crossplane_version
        self._tasks = tasks
        self._started: set[asyncio.Task[None]] = set()
        self._queues: dict[str, WorkQueue[Key]] = {
            name: WorkQueue(name, backoff=lane.backoff, metrics=metrics)
            for name, lane in LANES.items()
        }
        self.watches = Watches(client, namespace=settings.namespace)
        self._cluster = Cluster(stores=self.watches.stores, view=self._view)
        self._recorder = EventRecorder(client, component="crossdock")
        self._committer = status_committer(client, self._cluster, self._recorder, metrics)
        self._discovery = Discovery(client)
        self._metadata = MetadataInformers(
            client, start=self._start, on_change=lambda _, change: self._established(change)
        )
        namespace = settings.namespace
        self._owned = OwnedObjects(cluster=self._cluster, client=client, namespace=namespace)
        backend = ImageBackend(
            cluster=self._cluster,
            client=client,
            registry=registry,
            cache=cache,
            namespace=namespace,
            service_account=settings.service_account,
        )
        self._establish = self._make_establish(settings, client, backend)
        self._stages = self._make_stages(settings, client, backend, cache)
        self._draw_arrows()

    def _view(self, key: Key) -> View:
        return self._committer.view(key)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks.create_task(work)
        self._started.add(task)
        task.add_done_callback(self._started.discard)
        return task

    def _make_establish(
        self, settings: Settings, client: KubeClient, backend: ImageBackend
    ) -> EstablishStage:
        return EstablishStage(
            cluster=self._cluster,
            client=client,
            backend=backend,
            discovery=self._discovery,
            metadata=self._metadata,
            namespace=settings.namespace,
            writers=settings.package_establishers,
        )

    def _make_stages(
        self, settings: Settings, client: KubeClient, backend: ImageBackend, cache: PackageCache
    ) -> dict[str, Stage]:
        cluster = self._cluster
        digester = RegistryDigester(backend)
        version = self._crossplane_version
        installer = DependencyInstaller(client=client, backend=backend)
        return {
            "package": PackageStage(cluster=cluster, client=client),
            "digest": DigestStage(
                cluster=cluster, client=client, backend=backend, digester=digester
            ),
            "image": ImageStage(
                cluster=cluster, client=client, backend=backend, crossplane_version=version
            ),
            "resolve": ResolveStage(
                cluster=cluster,
                client=client,
                backend=backend,
                installer=installer,
                report=self._committer.report,
            ),
            "install": installer,
            "establish": self._establish,
            "evict": EvictStage(cluster=cluster, client=client, cache=cache),
            **self._make_runtime_stages(settings, client),
        }

    def _make_runtime_stages(self, settings: Settings, client: KubeClient) -> dict[str, Stage]:
        cluster, owned, namespace = self._cluster, self._owned, settings.namespace
        runtimes = RuntimeReader(
            cluster=cluster,
            client=client,
            namespace=namespace,
            service_account=settings.service_account,
        )
        return {
            "prepare": PrepareStage(
                cluster=cluster, client=client, runtimes=runtimes, owned=owned, namespace=namespace
            ),
            "runtime": RuntimeStage(cluster=cluster, runtimes=runtimes, owned=owned),
        }

    def _draw_arrows(self) -> None:
        """Join watches to queues: which change wakes which key."""
        cluster, on, wake = self._cluster, self.watches.on, self._wake
        revisions = cluster.all_revisions
        for kind in PACKAGES:
            on(kind, lambda c: wake(routes.on_package(c.old, c.new)))
            on(kind, self._forget)
        for kind in REVISIONS:
            on(kind, lambda c: wake(routes.on_revision(c.old, c.new)))
            on(kind, self._forget)
        on("Lock", lambda c: wake(routes.on_lock(c.old, c.new)))
        on(
            "ImageConfig",
            lambda c: wake(routes.on_image_config(c.old, c.new, cluster.packages(), revisions())),
        )
        on(
            "DeploymentRuntimeConfig",
            lambda c: wake(routes.on_runtime_config(c.old, c.new, revisions())),
        )
        for resource in (DEPLOYMENT, SERVICE, SERVICE_ACCOUNT, SECRET):
            stage = "runtime" if resource in (DEPLOYMENT, SERVICE_ACCOUNT) else "prepare"
            on(resource.kind, partial(self._owned_changed, resource, stage))

    def _wake(self, keys: Iterable[tuple[str, Key]]) -> None:
        for queue, key in keys:
            self._queues[queue].add(key)

    def _forget(self, change: Change) -> None:
        if change.new is None and change.old is not None:
            self._committer.forget(key_of(change.old))

    def _owned_changed(self, resource: Resource, stage: str, change: Change) -> None:
        if change.new is None and change.old is not None:
            self._owned.deleted(resource, name_of(change.old))
            # Another package may have waited for the name, or shared the object.
            self._wake((stage, key_of(r)) for r in self._cluster.all_revisions() if is_active(r))
        self._wake(routes.on_owned(stage, change.old, change.new))

    def _established(self, change: Change) -> None:
        """Wake revisions whose objects changed, and those that wait for a kind to be served."""
        self._wake(routes.on_established(change.old, change.new))
        for key in self._establish.waiting_for_kinds:
            self._queues["establish"].add_after(key, KIND_SETTLE)

    def unready(self) -> str | None:
        """Return what the manager waits for before it works; None when it works."""
        waiting = self.watches.unsynced()
        return f"no list yet of {', '.join(waiting)}" if waiting else None

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then end in order: stages, statuses, events."""
        services = (
            self._metrics.sample_event_loop_lag(),
            self._recorder.run(),
            self._committer.run(),
        )
        for work in (*services, *self.watches.runs()):
            _ = self._start(work)  # it ends with the manager
        filled = self._start(self._fill())
        stopped = self._start(_wait(stop))
        await asyncio.wait((filled, stopped), return_when=asyncio.FIRST_COMPLETED)
        if filled.done() and not stop.is_set():
            log.info("started", version=__version__)
            workers = [self._start(self._work(name)) for name in LANES]
            await stopped
            log.info("stopping")
            await self._finish(workers)
        for task in tuple(self._started):
            task.cancel()

    async def _fill(self) -> None:
        """Wait until all stores are filled; say what is missing while they are not."""
        await self._discovery.refresh()
        while not self._discovery.served(LOCK.group, LOCK.version, LOCK.kind):
            log.warning("the cluster does not serve pkg.crossplane.io: run `crossdock init`")
            await asyncio.sleep(API_WAIT)
            await self._discovery.refresh()
        await self.watches.wait_synced()

    async def _finish(self, workers: list[asyncio.Task[None]]) -> None:
        for queue in self._queues.values():
            queue.shut_down(discard=True)
        _, late = await asyncio.wait(workers, timeout=STOP_DEADLINE)
        for task in late:
            task.cancel()
        await self._committer.drain(FLUSH_DEADLINE)
        await self._recorder.drain(FLUSH_DEADLINE)

    async def _work(self, name: str) -> None:
        lane = LANES[name]
        await run_workers(
            name=name,
            queue=self._queues[name],
            stage=self._stages[name],
            count=lane.workers,
            deadline=lane.deadline,
            hand_over=lambda queue, key: self._queues[queue].add(key),
            report=self._committer.report,
            metrics=self._metrics,
            expected=EXPECTED,
        )


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def run(settings: Settings) -> int:
    """Run the manager until SIGINT or SIGTERM.

    Args:
        settings: what the person set.

    Returns:
        The exit code, 0 after an orderly stop.

    Raises:
        ConfigError: there is no usable access to a cluster.
        ListenError: an address for health or metrics cannot be listened on.
        CacheUnavailable: the cache folder cannot be used at all.
    """
    configure_logging(format=settings.log_format, level=settings.log_level)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    metrics = Metrics()
    account = (settings.namespace, settings.service_account)
    async with (
        HealthServer(
            health=settings.health_address,
            metrics=settings.metrics_address,
            render=metrics.render,
        ) as health,
        NoCache() if settings.cache_dir is None else DiskCache(settings.cache_dir) as cache,
        KubeClient.connect(
            kubeconfig=settings.kubeconfig,
            context=settings.context,
            as_service_account=account if settings.as_service_account else None,
            user_agent=settings.user_agent,
            observe=metrics.api_observer("apiserver"),
        ) as client,
        _registry(settings, metrics) as registry,
        asyncio.TaskGroup() as tasks,
    ):
        manager = Manager(
            settings,
            client=client,
            registry=registry,
            cache=cache,
            metrics=metrics,
            tasks=tasks,
            crossplane_version=await _version(settings, client),
        )
        health.add_readiness("informers", manager.unready)
        await manager.run(stop)
    return 0


async def _version(settings: Settings, client: KubeClient) -> str:
    return settings.crossplane_version or await crossplane_version(client, settings.namespace)


def _registry(settings: Settings, metrics: Metrics) -> RegistryClient:
    return RegistryClient(
        user_agent=settings.user_agent,
        ca_bundle=settings.ca_bundle,
        insecure_registries=settings.insecure_registries,
        observe=metrics.observe_registry,
        proxies=Proxies.from_environment(os.environ),
    )
