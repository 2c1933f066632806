"""The runtime stage: runs the controller of a package, and tells whether it is ready.

Key: a revision. Owns ``RuntimeHealthy`` and ``RuntimeActive``, the ServiceAccount and the
Deployment. A Provider's Deployment starts when that of the revision before is gone, since two of
them would reconcile the same resources.
"""

from __future__ import annotations

from controller.flow.worker import Again, Done, Outcome
from controller.kube.client import ApiError
from controller.model.conditions import (
    FALSE,
    REASON_UNHEALTHY,
    REVISION_HEALTHY,
    RUNTIME_HEALTHY,
    Condition,
    Report,
    is_true,
)
from controller.model.deployment import deployment, uses_built_service_account
from controller.model.objects import (
    DEPLOYMENT,
    KINDS_WITH_RUNTIME,
    SERVICE_ACCOUNT,
    JsonObject,
    Key,
    is_deleting,
    is_paused,
    key_of,
    name_of,
    package_kind,
    uid_of,
)
from controller.model.revision import is_active
from controller.model.runtime import (
    Runtime,
    RuntimeConfigError,
    runtime_conditions,
    service_account,
)
from controller.stages.cluster import Cluster
from controller.stages.owned import OwnedObjects
from controller.stages.runtimes import RuntimeReader

NOT_HEALTHY_YET = "Package revision is not healthy yet"
HAND_OVER_POLL = 0.5  # seconds between looks whether the Deployment before is gone


class RuntimeStage:
    """Runs or stops the runtime of one revision."""

    def __init__(self, *, cluster: Cluster, runtimes: RuntimeReader, owned: OwnedObjects) -> None:
        self._cluster = cluster
        self._runtimes = runtimes
        self._owned = owned

    async def __call__(self, key: Key) -> Outcome:
        """Run the runtime of an active revision, stop that of an inactive one."""
        revision = self._cluster.get(key)
        if revision is None or is_deleting(revision) or is_paused(revision):
            return Done()
        if package_kind(key.kind) not in KINDS_WITH_RUNTIME:
            return Done()
        if not is_active(revision):
            for running in self._owned.owned_by(DEPLOYMENT, uid_of(revision)):
                if not is_deleting(running):
                    await self._owned.delete(DEPLOYMENT, running)
            return Done()
        package = self._cluster.package_of(revision)
        if package is None or not self._cluster.is_claimant(revision):
            return Done()
        if not is_true(self._cluster.conditions(key), REVISION_HEALTHY):
            return Done(_unhealthy(NOT_HEALTHY_YET))
        before = self._before(key, package)
        if before is not None:
            message = f"waiting for Deployment {name_of(before)} of the revision before to go"
            return Again(message, after=HAND_OVER_POLL, report=_unhealthy(message))
        return await self._run(revision, package)

    def _before(self, key: Key, package: JsonObject) -> JsonObject | None:
        """Return a Deployment that another revision of the Provider still runs."""
        if package["kind"] != "Provider":
            return None
        for revision in self._cluster.revisions(key_of(package)):
            if name_of(revision) != key.name:
                for running in self._owned.owned_by(DEPLOYMENT, uid_of(revision)):
                    return running
        return None

    async def _run(self, revision: JsonObject, package: JsonObject) -> Outcome:
        step = "cannot prepare runtime"
        kind = package["kind"].lower()
        try:
            runtime = await self._runtimes.read(revision, name_of(package))
            built = deployment(runtime)
            if uses_built_service_account(runtime, built):
                step = f"cannot apply {kind} package service account"
                await self._ensure_account(runtime)
            step = f"cannot apply {kind} package deployment"
            live = await self._owned.ensure(DEPLOYMENT, built)
        except (ApiError, RuntimeConfigError) as error:
            message = f"{step}: {error}"
            return Again(message, report=_unhealthy(message))
        return Done(Report(runtime_conditions(package["kind"], live)))

    async def _ensure_account(self, runtime: Runtime) -> None:
        live = self._owned.get(SERVICE_ACCOUNT, runtime.service_account_name)
        if self._owned.held_by_another(live, uid_of(runtime.revision)) is not None:
            return  # packages may share an account: the first one keeps it
        await self._owned.ensure(SERVICE_ACCOUNT, service_account(runtime, live=live))


def _unhealthy(message: str) -> Report:
    return Report((Condition(RUNTIME_HEALTHY, FALSE, REASON_UNHEALTHY, message),))
