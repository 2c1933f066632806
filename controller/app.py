"""The composition root: every object is built here once, lifetimes nested.

Watches run from the start; a pipeline (queues, stages, writers) runs while this process leads.
Lifetimes nest: what must end last is entered first, so the indentation is the order of the stop:
stages, statuses, events, then the Lease is released, then watches, connections and health end.

Source: controller-runtime's manager, order of start and stop. Losing the Lease stops all writers
and goes on as a standby; the process stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import signal
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import structlog

from controller import __version__
from controller.kube.client import ApiError, KubeClient
from controller.kube.contact import Contact
from controller.kube.discovery import Discovery
from controller.kube.informer import Change
from controller.kube.informers import MetadataInformers
from controller.kube.lease import LeaderElection
from controller.kube.watches import Watches
from controller.model.objects import CRD, LOCK, Resource
from controller.pipeline import Pipeline, Surroundings, Term
from controller.registry.ambient import ambient_keychain
from controller.registry.cache import DiskCache, NoCache, PackageCache
from controller.registry.client import RegistryClient
from controller.registry.credentials import Keychain
from controller.registry.identities import IdentityClient
from controller.registry.proxies import Proxies
from controller.settings import Election, Settings
from controller.stages.version import crossplane_version
from controller.telemetry import HealthServer, Metrics, configure_logging

__all__ = ["Election", "Settings", "run"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

API_WAIT = 2.0  # seconds between looks for the package API before `crossdock init`
END_DEADLINE = 15.0  # seconds for a pipeline that lost the Lease to end; see run_workers
RELEASE_DEADLINE = 1.0  # seconds for giving the Lease back
# A full collection walks all stores, 100 ms and more at 50,000 objects: let it come rarely.
COLLECTION = (10_000, 10, 1_000)


class Manager:
    """The running manager: watches always, a pipeline while it leads.

    Args:
        settings: what the person set.
        client: the API server.
        registry: OCI registries.
        cache: packages on disk.
        metrics: what is counted.
        tasks: parent of the tasks that live as long as the manager.
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
    ) -> None:
        self._settings = settings
        self._client = client
        self._registry = registry
        self._cache = cache
        self._metrics = metrics
        self._tasks = tasks
        self._ambient = _ambient(settings)
        self._started: set[asyncio.Task[Any]] = set()
        self._pipeline: Pipeline | None = None
        self._watches = Watches(
            client, namespace=settings.namespace, resync=settings.sync_interval or None
        )
        for kind in self._watches.stores:
            self._watches.on(kind, partial(self._changed, kind))
        self._discovery = Discovery(client)
        self._metadata = MetadataInformers(client, start=self._start, on_change=self._established)
        metrics.show_watches(lambda: self._watches.figures() | self._metadata.figures())
        self._election: LeaderElection | None = None
        if settings.election is not None:
            self._election = LeaderElection(
                client,
                namespace=settings.namespace,
                name=settings.election.lease,
                identity=settings.election.identity,
                timing=settings.election.timing,
                metrics=metrics,
            )

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # A context of its own: a stage's log fields are not those of a watch that it began.
        task = self._tasks.create_task(work, context=contextvars.Context())
        self._started.add(task)
        task.add_done_callback(self._started.discard)
        return task

    def _changed(self, kind: str, change: Change) -> None:
        if self._pipeline is not None:
            self._pipeline.changed(kind, change)

    def _established(self, _: Resource, change: Change) -> None:
        if self._pipeline is not None:
            self._pipeline.established(change)

    # ---- health ------------------------------------------------------------------------------

    def unready(self) -> str | None:
        """Return which watches have no list yet, or have been silent; None when all are alive."""
        if waiting := self._watches.unsynced():
            return f"no list yet of {', '.join(waiting)}"
        limit = self._settings.watch_silence
        silent = self._watches.silent(limit) + self._metadata.silent(limit)
        return f"nothing heard for {limit:.0f} s of {', '.join(silent)}" if silent else None

    def unled(self) -> str | None:
        """Return why nobody leads and this process cannot either; None when somebody does."""
        election = self._election
        if election is None or election.leading or election.holder or not election.error:
            return None
        return f"nobody is known to hold the lease {election.name!r}: {election.error}"

    def stale_lease(self) -> str | None:
        """Return why leadership is in doubt although this process holds on to it."""
        return self._election.stale() if self._election is not None else None

    def hanging(self) -> str | None:
        """Return the passes that do not end; None when there are none."""
        return self._pipeline.hanging() if self._pipeline is not None else None

    # ---- life --------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Watch, and work while leading, until ``stop`` is set; then end in order."""
        _ = self._start(self._metrics.sample_event_loop_lag())
        try:
            version = await self._unless(stop, self._fill())
            if version is not None:
                await self._candidate(stop, version)
        finally:
            for task in tuple(self._started):
                task.cancel()

    async def _candidate(self, stop: asyncio.Event, version: str) -> None:
        """Lead whenever the Lease is held, or always where there is no election."""
        if self._election is None:
            await self._lead(stop, version)
            return
        campaign = self._start(self._election.run())
        _ = self._start(self._warm())
        log.info("standing by", lease=self._election.name, holder=self._election.holder)
        while not stop.is_set():
            await self._unless(stop, self._election.wait_acquired())
            if not stop.is_set():
                log.info("leading", lease=self._election.name)
                await self._lead(stop, version)
        campaign.cancel()
        await asyncio.wait((campaign,))
        await self._election.release(RELEASE_DEADLINE)

    async def _warm(self) -> None:
        """Watch what most packages install before leading, so that taking over needs no list."""
        with contextlib.suppress(ApiError):  # the stage that needs it asks again, and says so
            await self._metadata.ensure(CRD)

    async def _lead(self, stop: asyncio.Event, version: str) -> None:
        """Run a pipeline until ``stop`` is set or the Lease is lost."""
        term = Term(self._election)
        pipeline = Pipeline(self._surroundings(version), self._client.guarded(term.check))
        self._pipeline = pipeline
        work = self._start(pipeline.run(stop))
        log.info("started", version=__version__)
        ends: set[asyncio.Task[None]] = {work}
        if self._election is not None:
            ends.add(self._start(self._election.wait_lost()))
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        term.end()
        self._pipeline = None
        if not work.done():
            log.warning("the lease is lost: all work stops, and this manager stands by")
        for task in ends:
            task.cancel()
        _, late = await asyncio.wait(ends, timeout=END_DEADLINE)
        if late:
            log.error("work that ended with the lease does not stop", deadline=END_DEADLINE)

    def _surroundings(self, version: str) -> Surroundings:
        return Surroundings(
            watches=self._watches,
            metadata=self._metadata,
            discovery=self._discovery,
            registry=self._registry,
            cache=self._cache,
            metrics=self._metrics,
            namespace=self._settings.namespace,
            service_account=self._settings.service_account,
            establishers=self._settings.package_establishers,
            crossplane_version=version,
            ambient=self._ambient,
        )

    async def _fill(self) -> str:
        """Wait until all stores are filled; say what is missing while they are not.

        Returns:
            The Crossplane version that packages' constraints are checked against.
        """
        while not await self._package_api():  # noqa: ASYNC110 - the cluster tells nobody
            await asyncio.sleep(API_WAIT)
        for work in self._watches.runs():
            _ = self._start(work)
        await self._watches.wait_synced()
        # What is here now stays for long: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        return await self._version()

    async def _package_api(self) -> bool:
        """Tell whether the cluster serves packages; say so when it does not."""
        try:
            await self._discovery.refresh()
        except ApiError as error:
            if not error.retryable:
                raise
            return False
        if self._discovery.served(LOCK.group, LOCK.version, LOCK.kind):
            return True
        log.warning("the cluster does not serve pkg.crossplane.io: run `crossdock init`")
        return False

    async def _version(self) -> str:
        settings = self._settings
        if settings.crossplane_version:
            return settings.crossplane_version
        while True:
            try:
                return await crossplane_version(self._client, settings.namespace)
            except ApiError as error:
                if not error.retryable:
                    raise
            await asyncio.sleep(API_WAIT)

    async def _unless(self, stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
        """Return what work gives; None when ``stop`` is set before."""
        task, stopped = self._tasks.create_task(work), self._tasks.create_task(stop.wait())
        self._started.update((task, stopped))
        try:
            await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() and not stop.is_set() else None
        finally:
            for each in (task, stopped):
                each.cancel()
                self._started.discard(each)


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
    gc.set_threshold(*COLLECTION)
    stop = asyncio.Event()
    started = _stop_on_signals(stop)
    try:
        await _run(settings, stop, started)
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    except BaseExceptionGroup as group:
        _, faults = group.split(ApiError)
        if faults is not None:
            log.exception("a part of the manager failed, and ends it", exc_info=faults)
        raise
    return 0


def _stop_on_signals(stop: asyncio.Event) -> Callable[[], None]:
    """Let SIGINT and SIGTERM set ``stop``, and cancel this task until the result is called."""
    starting = asyncio.current_task()

    def end() -> None:
        stop.set()
        if starting is not None:
            _ = starting.cancel()

    def started() -> None:
        nonlocal starting
        starting = None

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, end)
    return started


async def _run(settings: Settings, stop: asyncio.Event, started: Callable[[], None]) -> None:
    """Connect, say so by ``started``, and run the manager until ``stop`` is set."""
    metrics = Metrics()
    account = (settings.namespace, settings.service_account)
    async with (
        HealthServer(
            health=settings.health_address,
            metrics=settings.metrics_address,
            render=metrics.render,
        ) as health,
        _cache(settings) as cache,
        KubeClient.connect(
            kubeconfig=settings.kubeconfig,
            context=settings.context,
            as_service_account=account if settings.as_service_account else None,
            user_agent=settings.user_agent,
            observe=metrics.observe_api,
            contact=Contact(),
        ) as client,
        _registry(settings, metrics) as registry,
        asyncio.TaskGroup() as tasks,
    ):
        metrics.show_cache(cache.statistics)
        metrics.api_host = urlsplit(client.server).netloc
        manager = Manager(
            settings, client=client, registry=registry, cache=cache, metrics=metrics, tasks=tasks
        )
        health.add_readiness("informers", manager.unready)
        health.add_readiness("lease", manager.unled)
        health.add_liveness("lease", manager.stale_lease)
        health.add_liveness("workers", manager.hanging)
        started()
        await manager.run(stop)


def _cache(settings: Settings) -> NoCache | DiskCache:
    if settings.cache_dir is None:
        return NoCache()
    return DiskCache(
        settings.cache_dir,
        max_bytes=settings.cache_max_bytes,
        retention=settings.cache_retention,
    )


def _ambient(settings: Settings) -> Keychain:
    """Return the credentials of the process: its login files and its identities in clouds."""
    client = IdentityClient(
        user_agent=settings.user_agent,
        ca_bundle=settings.ca_bundle,
        proxies=Proxies.from_environment(os.environ),
    )
    home = Path(os.environ.get("HOME") or os.sep)
    return ambient_keychain(os.environ, home, client=client, clouds=settings.cloud_identities)


def _registry(settings: Settings, metrics: Metrics) -> RegistryClient:
    return RegistryClient(
        user_agent=settings.user_agent,
        ca_bundle=settings.ca_bundle,
        certificates=settings.registry_certificates,
        insecure_registries=settings.insecure_registries,
        registry_policy=settings.registry_policy,
        private_redirects=settings.private_redirects,
        trusted_token_realms=settings.trusted_token_realms,
        limits=settings.registry_limits,
        observe=metrics.observe_registry,
        proxies=Proxies.from_environment(os.environ),
    )
