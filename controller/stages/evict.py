"""The evict stage: lets a deleted revision go, after its cache entry is gone.

Key: a revision with a deletion timestamp. Owns the finalizer ``revision.pkg.crossplane.io``. The
order is fixed: Lock entry out (the resolve stage writes the Lock), cache lease dropped and entry
evicted, finalizer removed. A failed eviction keeps the finalizer and is retried.
"""

from __future__ import annotations

import asyncio

from controller.flow.worker import Again, Done, Outcome
from controller.kube.client import ApiError, KubeClient
from controller.model.conditions import EVICTED, Condition, Report
from controller.model.lock import kind_of
from controller.model.objects import (
    FINALIZER_REVISION,
    LOCK_KEY,
    JsonObject,
    Key,
    is_deleting,
    is_paused,
    name_of,
    package_kind,
    resource_of,
    uid_of,
)
from controller.registry.cache import CacheUnavailable, PackageCache
from controller.stages.cluster import Cluster

LOCK_WAIT = 0.2  # seconds until the Lock is looked at again
EVICTION_DEADLINE = 30.0  # seconds


class EvictStage:
    """Cleans up after one deleted revision and removes its finalizer."""

    def __init__(self, *, cluster: Cluster, client: KubeClient, cache: PackageCache) -> None:
        self._cluster = cluster
        self._client = client
        self._cache = cache

    async def __call__(self, key: Key) -> Outcome:
        """Evict what a deleted revision left, then let the API server remove it."""
        revision = self._cluster.get(key)
        if revision is None or not is_deleting(revision):
            return Done()
        if is_paused(revision):
            return Done()
        if self._is_locked(key):
            waiting = "the Lock still names the revision"
            return Again(waiting, after=LOCK_WAIT, next=(("resolve", LOCK_KEY),))
        try:
            async with asyncio.timeout(EVICTION_DEADLINE):
                await self._cache.release(uid_of(revision))
        except (CacheUnavailable, TimeoutError) as error:
            cause = str(error) or "the file system does not answer"
            message = f"cannot remove package image from cache: {cause}"
            failed = Condition(EVICTED, "False", "EvictionFailed", message)
            return Again(message, report=Report((failed,)))
        await self._remove_finalizer(revision)
        return Done()

    def _is_locked(self, key: Key) -> bool:
        lock = self._cluster.lock()
        packages = (lock or {}).get("packages") or ()
        mine = (key.name, package_kind(key.kind))
        return any((entry["name"], kind_of(entry)) == mine for entry in packages)

    async def _remove_finalizer(self, revision: JsonObject) -> None:
        finalizers = revision["metadata"].get("finalizers") or []
        if FINALIZER_REVISION not in finalizers:
            return
        path = f"/metadata/finalizers/{finalizers.index(FINALIZER_REVISION)}"
        operations = [
            {"op": "test", "path": "/metadata/uid", "value": uid_of(revision)},
            {"op": "test", "path": path, "value": FINALIZER_REVISION},
            {"op": "remove", "path": path},
        ]
        resource = resource_of(revision["kind"])
        try:
            await self._client.json_patch(resource, name_of(revision), operations)
        except ApiError as error:
            if not error.not_found:
                raise
