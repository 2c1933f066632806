"""What acts while this manager leads: queues, stages, and the arrows between them.

Flow: changes that the watches deliver put keys into the stages' queues; stages read stores, act,
and hand keys on; the committer writes what they report. A pipeline is made when leadership begins
and ends with it: whatever a stage remembers of an earlier time of leading is not used again.

Where next: ``controller.app`` makes one, feeds it, and ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from controller.flow.commit import View
from controller.flow.hanging import HangingPasses
from controller.flow.lanes import LANES
from controller.flow.worker import Stage, run_workers
from controller.flow.workqueue import LOW, NORMAL, WorkQueue
from controller.kube.client import ApiError, KubeClient
from controller.kube.discovery import Discovery
from controller.kube.events import EventRecorder
from controller.kube.informer import Change
from controller.kube.informers import MetadataInformers
from controller.kube.lease import LeaderElection
from controller.kube.reflector import Pacer
from controller.kube.watches import Watches
from controller.model import routes
from controller.model.imageconfig import ImageConfigError
from controller.model.manifest import ManifestError
from controller.model.objects import (
    DEPLOYMENT,
    IMAGE_CONFIG,
    LOCK,
    PACKAGES,
    REVISIONS,
    RUNTIME_CONFIG,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    JsonObject,
    Key,
    key_of,
    name_of,
    uid_of,
)
from controller.model.revision import is_active
from controller.registry.cache import CacheUnavailable, PackageCache
from controller.registry.client import RegistryClient
from controller.registry.credentials import Keychain
from controller.registry.failures import RegistryError
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
from controller.telemetry import Metrics
from controller.xpkg.errors import XpkgError

log = structlog.get_logger(__name__)

STOP_DEADLINE = 1.0  # seconds for stages to finish what they do
FLUSH_DEADLINE = 0.3  # seconds for the last statuses, and again for the last events
CACHE_INTERVAL = 6 * 3600.0  # seconds between two repairs of the cache
KIND_SETTLE = 0.5  # seconds between a new definition and the look whether it is served

EXPECTED = (ApiError, RegistryError, XpkgError, ManifestError, ImageConfigError)

_OWNED = {
    DEPLOYMENT.kind: (DEPLOYMENT, "runtime"),
    SERVICE_ACCOUNT.kind: (SERVICE_ACCOUNT, "runtime"),
    SERVICE.kind: (SERVICE, "prepare"),
    SECRET.kind: (SECRET, "prepare"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What outlives a pipeline and is handed to the next one.

    Attributes:
        watches: stores of what is watched in full.
        metadata: stores of what packages install.
        discovery: which kinds are served.
        registry: OCI registries.
        cache: packages on disk.
        metrics: what is counted.
        namespace: where runtimes live.
        service_account: of the manager.
        establishers: objects of packages that are written at a time.
        crossplane_version: what packages' constraints are checked against.
        ambient: credentials of the process itself, for registries.
    """

    watches: Watches
    metadata: MetadataInformers
    discovery: Discovery
    registry: RegistryClient
    cache: PackageCache
    metrics: Metrics
    namespace: str
    service_account: str
    establishers: int
    crossplane_version: str
    ambient: Keychain


class Term:
    """One time of leading: its writes are refused once it is over, even if another one begins.

    Args:
        election: whose Lease must be held; None where nobody else is a candidate.
    """

    def __init__(self, election: LeaderElection | None) -> None:
        self._election = election
        self._over = False

    def check(self) -> None:
        """Raise ``ApiError`` unless a write may be sent now."""
        if self._over:
            text = "this manager does not lead any more"
            raise ApiError(status=0, reason="NotLeader", message=text)
        if self._election is not None:
            self._election.check()

    def end(self) -> None:
        """Refuse all writes from now on."""
        self._over = True


class Pipeline:
    """Queues, stages, committer and event recorder of one time of leading.

    Args:
        around: what outlives it.
        client: the API server; its writes are refused when leadership has ended.
    """

    def __init__(self, around: Surroundings, client: KubeClient) -> None:
        self._around = around
        self._client = client
        self._hanging = HangingPasses()
        self._queues: dict[str, WorkQueue[Key]] = {
            name: WorkQueue(name, backoff=lane.backoff, metrics=around.metrics)
            for name, lane in LANES.items()
        }
        self._cluster = Cluster(stores=around.watches.stores, view=self._view)
        self._recorder = EventRecorder(client, component="crossdock")
        self._committer = status_committer(client, self._cluster, self._recorder, around.metrics)
        self._owned = OwnedObjects(cluster=self._cluster, client=client, namespace=around.namespace)
        self._backend = ImageBackend(
            cluster=self._cluster,
            client=client,
            registry=around.registry,
            cache=around.cache,
            namespace=around.namespace,
            service_account=around.service_account,
            ambient=around.ambient,
        )
        self._establish = EstablishStage(
            cluster=self._cluster,
            client=client,
            backend=self._backend,
            discovery=around.discovery,
            metadata=around.metadata,
            namespace=around.namespace,
            writers=around.establishers,
        )
        self._stages = {**self._package_stages(), **self._runtime_stages()}

    def _view(self, key: Key) -> View:
        return self._committer.view(key)

    def _package_stages(self) -> dict[str, Stage]:
        cluster, client, backend = self._cluster, self._client, self._backend
        version = self._around.crossplane_version
        installer = DependencyInstaller(client=client, backend=backend)
        return {
            "package": PackageStage(cluster=cluster, client=client),
            "digest": DigestStage(
                cluster=cluster, client=client, backend=backend, digester=RegistryDigester(backend)
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
            "evict": EvictStage(cluster=cluster, client=client, cache=self._around.cache),
        }

    def _runtime_stages(self) -> dict[str, Stage]:
        cluster, owned, namespace = self._cluster, self._owned, self._around.namespace
        runtimes = RuntimeReader(
            cluster=cluster,
            client=self._client,
            namespace=namespace,
            service_account=self._around.service_account,
        )
        return {
            "prepare": PrepareStage(
                cluster=cluster,
                client=self._client,
                runtimes=runtimes,
                owned=owned,
                namespace=namespace,
            ),
            "runtime": RuntimeStage(cluster=cluster, runtimes=runtimes, owned=owned),
        }

    # ---- arrows: which change wakes which key ------------------------------------------------

    def changed(self, kind: str, change: Change) -> None:
        """Wake the keys that a change of a watched object concerns.

        What is only looked at again waits behind what has changed.
        """
        again = change.old is change.new
        old = None if again else change.old
        priority = LOW if change.initial or again else NORMAL
        if change.new is None and change.old is not None and kind in PACKAGES | REVISIONS:
            self._committer.forget(key_of(change.old))
        if kind in _OWNED:
            self._owned_changed(kind, change)
        self._wake(self._routed(kind, old, change.new), priority)

    def _routed(
        self, kind: str, old: JsonObject | None, new: JsonObject | None
    ) -> Iterable[routes.Wake]:
        cluster = self._cluster
        if kind in PACKAGES:
            return routes.on_package(old, new)
        if kind in REVISIONS:
            return routes.on_revision(old, new)
        if kind == LOCK.kind:
            return routes.on_lock(old, new)
        if kind == IMAGE_CONFIG.kind:
            return routes.on_image_config(old, new, cluster.packages(), cluster.all_revisions())
        if kind == RUNTIME_CONFIG.kind:
            return routes.on_runtime_config(old, new, cluster.all_revisions())
        return routes.on_owned(_OWNED[kind][1], old, new)

    def _owned_changed(self, kind: str, change: Change) -> None:
        resource, stage = _OWNED[kind]
        if change.new is None and change.old is not None:
            self._owned.deleted(resource, name_of(change.old))
            # Another package may have waited for the name, or shared the object.
            active = (r for r in self._cluster.all_revisions() if is_active(r))
            self._wake(((stage, key_of(revision)) for revision in active), NORMAL)

    def established(self, change: Change) -> None:
        """Wake revisions whose objects changed, and those that wait for a kind to be served."""
        priority = LOW if change.initial else NORMAL
        self._wake(routes.on_established(change.old, change.new), priority)
        for key in self._establish.waiting_for_kinds:
            self._queues["establish"].add_after(key, KIND_SETTLE)

    def _wake(self, keys: Iterable[routes.Wake], priority: int) -> None:
        for queue, key in keys:
            self._queues[queue].add(key, priority=priority)

    async def _refill(self) -> None:
        """Wake every key once: the stores were filled before this pipeline was made."""
        pacer = Pacer()
        for kind, store in self._around.watches.stores.items():
            for obj in store.list():
                self.changed(kind, Change(None, obj, initial=True))
                await pacer.pause()

    async def _tend_cache(self) -> None:
        """Let go what deleted revisions held, and repair the cache now and then."""
        cache = self._around.cache
        while True:
            try:
                await cache.release_others({uid_of(r) for r in self._cluster.all_revisions()})
                await cache.sweep()
            except CacheUnavailable as error:
                log.warning("the cache cannot be tended to", error=str(error))
            await asyncio.sleep(CACHE_INTERVAL)

    # ---- life --------------------------------------------------------------------------------

    def hanging(self) -> str | None:
        """Return the passes that do not end although their time is over; None when all is well."""
        return self._hanging.check()

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then end in order: stages, statuses, events.

        Cancelled, it ends at once: keys in work stay undone, statuses unwritten.
        """
        async with asyncio.TaskGroup() as tasks:
            services = [tasks.create_task(self._recorder.run(), name="events")]
            services.append(tasks.create_task(self._committer.run(self._hanging), name="statuses"))
            services.append(tasks.create_task(self._refill(), name="refill"))
            services.append(tasks.create_task(self._tend_cache(), name="cache"))
            workers = [tasks.create_task(self._work(name), name=name) for name in LANES]
            await stop.wait()
            for queue in self._queues.values():
                queue.shut_down(discard=True)
            _, late = await asyncio.wait(workers, timeout=STOP_DEADLINE)
            for task in late:
                task.cancel()
            await self._committer.drain(FLUSH_DEADLINE)
            await self._recorder.drain(FLUSH_DEADLINE)
            for task in services:
                task.cancel()

    async def _work(self, name: str) -> None:
        lane = LANES[name]
        try:
            await run_workers(
                name=name,
                queue=self._queues[name],
                stage=self._stages[name],
                count=lane.workers,
                deadline=lane.deadline,
                hand_over=lambda queue, key: self._queues[queue].add(key),
                report=self._committer.report,
                metrics=self._around.metrics,
                expected=EXPECTED,
                hanging=self._hanging,
            )
        finally:
            # What nobody works on is not shown as waiting, and no timer is left for it.
            self._queues[name].shut_down(discard=True)
