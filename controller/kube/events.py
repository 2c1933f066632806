"""Events about objects, written in the background.

Guarantees:
    ``record`` never waits and never raises. At most 1,000 events wait; what comes on top is
    dropped and counted. An event that repeats an earlier one raises that one's count. An event
    that the API server rejects is not sent again.
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
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from controller.kube.apierror import ApiError
from controller.kube.client import KubeClient
from controller.model.objects import EVENT, JsonObject

WAITING_MAX = 1000
REMEMBERED_MAX = 4096  # events whose repetition is counted
TRIES_MAX = 12
RETRY_SECONDS = 10.0
MESSAGE_MAX = 1024  # bytes, of the API server's rule
NAME_MAX = 253

_log = structlog.get_logger("controller.kube")


@dataclass(frozen=True, slots=True)
class Happening:
    """What is said about an object; two equal ones are the same event."""

    api_version: str
    kind: str
    name: str
    namespace: str
    uid: str
    type: str
    reason: str
    message: str


class EventRecorder:
    """Writes events.

    Args:
        client: the API server.
        component: who reports.
        namespace: where events about cluster-scoped objects go.
        sleep: waits; for tests.

    Attributes:
        dropped: how many events were not written because too many waited.
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
        self._queue: asyncio.Queue[tuple[Happening, str]] = asyncio.Queue(WAITING_MAX)
        self._written: OrderedDict[Happening, tuple[str, int]] = OrderedDict()  # name, count
        self.dropped = 0

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
        try:
            self._queue.put_nowait((happening, _now()))
        except asyncio.QueueFull:
            self.dropped += 1
            if self.dropped == 1:
                _log.warning("events are dropped: too many wait", waiting=WAITING_MAX)

    async def run(self) -> None:
        """Write events until cancelled."""
        while True:
            happening, time = await self._queue.get()
            try:
                await self._deliver(happening, time)
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

    async def _deliver(self, happening: Happening, time: str) -> None:
        """Write one event; try again while the API server is not to be reached."""
        for number in range(1, TRIES_MAX + 1):
            try:
                await self._write(happening, time)
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

    async def _write(self, happening: Happening, time: str) -> None:
        known = self._written.get(happening)
        if known is not None:
            name, count = known[0], known[1] + 1
            try:
                await self._client.merge_patch(
                    EVENT,
                    name,
                    {"count": count, "lastTimestamp": time},
                    namespace=self._namespace_of(happening),
                )
                self._remember(happening, name, count)
                return
            except ApiError as error:
                if not error.not_found:
                    raise
            del self._written[happening]  # the API server forgets events after an hour
        name = f"{happening.name[: NAME_MAX - 17]}.{uuid.uuid4().hex[:16]}"
        event = self._event(happening, name, time)
        try:
            await self._client.create(EVENT, event, namespace=self._namespace_of(happening))
        except ApiError as error:
            if not error.already_exists:  # the name is ours: an answer was lost
                raise
        self._remember(happening, name, 1)

    def _remember(self, happening: Happening, name: str, count: int) -> None:
        self._written[happening] = (name, count)
        self._written.move_to_end(happening)
        if len(self._written) > REMEMBERED_MAX:
            self._written.popitem(last=False)

    def _namespace_of(self, happening: Happening) -> str:
        return happening.namespace or self._namespace

    def _event(self, happening: Happening, name: str, time: str) -> JsonObject:
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": name, "namespace": self._namespace_of(happening)},
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
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
            "source": {"component": self._component, "host": self._instance},
            "reportingComponent": self._component,
            "reportingInstance": self._instance,
        }


def shortened(message: str) -> str:
    """Return a message of at most 1,024 bytes."""
    encoded = message.encode()
    if len(encoded) <= MESSAGE_MAX:
        return message
    return encoded[: MESSAGE_MAX - 3].decode(errors="ignore") + "…"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
