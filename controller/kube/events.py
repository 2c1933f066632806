"""Events about objects, written in the background.

Guarantees:
    ``record`` never waits and never raises. At most 1,000 events wait; what comes on top is
    dropped and counted. An event that repeats an earlier one raises that one's count, many that
    differ by message only become one, and what an object causes beyond its share is not written,
    but counted. An event that the API server rejects is not sent again.
Assumptions:
    Events are recorded when something has changed, not at each look at an object.

Source: the promises of client-go's event recorder; core ``v1`` Events, which ``kubectl describe``
shows. Kubernetes wants those about cluster-scoped objects in the namespace ``default``; writing
them needs the verbs create and patch on core events there.
"""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from controller.kube.apierror import ApiError
from controller.kube.client import KubeClient
from controller.kube.correlation import EventCorrelator, Happening, Observation, shortened
from controller.model.objects import EVENT, JsonObject

WAITING_MAX = 1000
TRIES_MAX = 12
RETRY_SECONDS = 10.0
NAME_MAX = 253

_log = structlog.get_logger("controller.kube")


class EventRecorder:
    """Writes events; made and used in one event loop.

    Args:
        client: the API server.
        component: who reports.
        namespace: where events about cluster-scoped objects go.
        sleep: waits; for tests.

    Attributes:
        dropped: how many events were not written because too many waited.
        filtered: how many events were not written because their object caused too many.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        component: str,
        namespace: str = "default",
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._component = component
        self._instance = os.environ.get("POD_NAME") or os.uname().nodename
        self._namespace = namespace
        self._sleep = sleep
        self._clock = asyncio.get_running_loop().time
        self._correlator = EventCorrelator()
        self._queue: asyncio.Queue[Observation] = asyncio.Queue(WAITING_MAX)
        self.dropped = 0
        self.filtered = 0

    def record(self, regarding: JsonObject, *, type: str, reason: str, message: str) -> None:  # noqa: A002 - Kubernetes' word
        """Note that something happened to an object.

        Args:
            regarding: the object; needs ``apiVersion``, ``kind`` and ``metadata.name``.
            type: ``Normal`` or ``Warning``.
            reason: one word in CamelCase.
            message: for people; cut at 1,024 bytes.
        """
        metadata = regarding.get("metadata") or {}
        happening = Happening(
            api_version=regarding.get("apiVersion", ""),
            kind=regarding.get("kind", ""),
            name=metadata.get("name", ""),
            namespace=metadata.get("namespace", ""),
            uid=metadata.get("uid", ""),
            type=type,
            reason=reason,
            message=shortened(message),
        )
        observation = self._correlator.correlate(
            happening,
            now=self._clock(),
            stamp=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            fresh_name=_fresh_name(happening.name),
        )
        if observation is None:
            self.filtered += 1
            return
        try:
            self._queue.put_nowait(observation)
        except asyncio.QueueFull:
            self.dropped += 1
            if self.dropped == 1:
                _log.warning("events are dropped: too many wait", waiting=WAITING_MAX)

    async def run(self) -> None:
        """Write events until cancelled."""
        while True:
            observation = await self._queue.get()
            try:
                await self._deliver(observation)
            finally:
                self._queue.task_done()

    async def drain(self, deadline: float) -> bool:
        """Wait until all events are written, while ``run`` runs.

        Args:
            deadline: seconds at most.

        Returns:
            Whether all were written, or given up, in time.
        """
        try:
            async with asyncio.timeout(deadline):
                await self._queue.join()
        except TimeoutError:
            _log.warning("events not written in time", left=self._queue.qsize())
            return False
        return True

    async def _deliver(self, observation: Observation) -> None:
        """Write one event; try again while the API server is not to be reached."""
        happening = observation.happening
        for number in range(1, TRIES_MAX + 1):
            try:
                await self._write(observation)
                return
            except ApiError as error:
                if not error.retryable or number == TRIES_MAX:
                    _log.warning(
                        "event not written",
                        object=f"{happening.kind}/{happening.name}",
                        reason=happening.reason,
                        error=str(error),
                    )
                    return
            except Exception:  # noqa: BLE001 - one event must not end all others
                _log.exception("event not written", reason=happening.reason)
                return
            # The first pause is random, so that not all wait for the same moment.
            share = random.random() if number == 1 else 1.0  # noqa: S311 - jitter
            await self._sleep(RETRY_SECONDS * share)

    async def _write(self, observation: Observation) -> None:
        if observation.count > 1:
            try:
                await self._client.merge_patch(
                    EVENT,
                    observation.name,
                    _repeated(observation),
                    namespace=self._namespace_of(observation.happening),
                )
                return
            except ApiError as error:
                if not error.not_found:
                    raise
            # The API server forgets events after an hour, and has none that was held back.
        try:
            await self._client.create(
                EVENT,
                self._event(observation),
                namespace=self._namespace_of(observation.happening),
            )
        except ApiError as error:
            if not error.already_exists:  # the name is ours: an answer was lost
                raise

    def _namespace_of(self, happening: Happening) -> str:
        return happening.namespace or self._namespace

    def _event(self, observation: Observation) -> JsonObject:
        happening = observation.happening
        namespace = self._namespace_of(happening)
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": observation.name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": happening.api_version,
                "kind": happening.kind,
                "name": happening.name,
                "uid": happening.uid,
                **({"namespace": happening.namespace} if happening.namespace else {}),
            },
            "type": happening.type,
            "reason": happening.reason,
            "message": happening.message,
            "firstTimestamp": observation.first,
            "lastTimestamp": observation.last,
            "count": observation.count,
            "source": {"component": self._component, "host": self._instance},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
        }


def _repeated(observation: Observation) -> dict[str, Any]:
    """Return what changes in an event that comes again."""
    patch: dict[str, Any] = {"count": observation.count, "lastTimestamp": observation.last}
    if observation.combined:
        patch["message"] = observation.happening.message
    return patch


def _fresh_name(about: str) -> str:
    """Return a name that no event has, which begins with that of its object."""
    return f"{about[: NAME_MAX - 17].rstrip('.-')}.{uuid.uuid4().hex[:16]}"
