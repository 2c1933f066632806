"""Leader election: which of several processes works, by a Lease.

Guarantees:
    At most one process leads at any time. ``leading`` ends by this process's own clock,
    ``renew_deadline`` after the last successful renewal was sent: others wait for ``duration``,
    which is longer, from when they saw it. Nothing has to run for it to end. Every write names the
    resource version that it replaces, so a process that was stopped for long cannot take the Lease
    from another. Losing the Lease ends nothing here: the process is a candidate again.
Assumptions:
    The event loop's clock goes on while the process is stopped (CLOCK_MONOTONIC does). Nobody
    deletes a Lease that is held: a candidate that never saw it takes a missing one at once.

A watch of the one Lease tells candidates at once that it was released, and makes polling needless
as long as its holder renews it. It is only a hint: nothing is written without a read or a known
version, and without a working watch a candidate asks every ``retry`` to 1.2 ``retry`` seconds.

Source: Kubernetes' rules for electing a leader with a ``coordination.k8s.io/v1`` Lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

import structlog

from controller.kube.apierror import ApiError
from controller.kube.client import KubeClient
from controller.kube.informer import Change, Informer
from controller.kube.leadership import (
    JITTER_MAX,
    LEASE,
    LeaseTiming,
    NotLeader,
    Observation,
    claim,
    may_take,
    micro_time,
    next_try,
    observe,
    released,
    version_of,
)
from controller.kube.leaseclient import LeaseClient
from controller.model.objects import JsonObject

__all__ = ["LeaderElection", "LeaderMetrics", "LeaseTiming", "NotLeader"]

STALE_GRACE = 20.0  # seconds that a Lease may be overdue before the process counts as unwell
RELEASE_PAUSE = 0.02  # seconds between two tries to release
_NEVER = float("-inf")

_log = structlog.get_logger("controller.kube")


class LeaderMetrics(Protocol):
    """Where leadership is counted; see ``Metrics``."""

    def leader_changed(self, name: str, leading: bool) -> None:  # noqa: FBT001 - a state, no option
        """Show whether this process leads."""

    def leader_slow_path(self, name: str) -> None:
        """Count a renewal that had to read the Lease first."""


class LeaderElection:
    """One candidate for one Lease.

    Args:
        client: the API server; not one whose writes this election guards.
        namespace: of the Lease.
        name: of the Lease.
        identity: this process among all candidates; no other may ever have it.
        timing: see ``LeaseTiming``.
        metrics: where leadership is counted.

    Attributes:
        name: of the Lease.
        identity: this process among all candidates.
        error: why the last try failed; empty when it did not.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        timing: LeaseTiming = LeaseTiming(),  # noqa: B008 - a frozen value
        metrics: LeaderMetrics | None = None,
    ) -> None:
        if not identity:
            raise ValueError("a candidate needs an identity: an empty one means nobody")
        self.name = name
        self.identity = identity
        self._namespace = namespace
        self._timing = timing
        self._metrics = metrics
        self._clock = asyncio.get_running_loop().time
        self._lease = LeaseClient(client, namespace=namespace, name=name)
        self._log = _log.bind(lease=name, identity=identity)
        self._informer = Informer(
            client, LEASE, namespace=namespace, field_selector=f"metadata.name={name}"
        )
        self._informer.add_handler(self._watched)
        self._known: Observation | None = None
        self._in_doubt = False  # a write was sent whose effect is not known
        self._elected = False  # acquired, and the end not yet noticed
        self._term = 0  # how often this process was elected
        self._renewed_at = _NEVER  # start of the last successful write
        self._valid_until = _NEVER
        self._tried_at = _NEVER
        self._heard_at = _NEVER  # the watch delivered the Lease
        self._spread = timing.retry  # pause of a candidate, jitter included
        self.error = ""
        self._news = asyncio.Event()
        if metrics is not None:
            metrics.leader_changed(name, leading=False)

    # ---- what others ask ---------------------------------------------------------------------

    @property
    def leading(self) -> bool:
        """Whether a write may be sent at this moment."""
        return self._clock() < self._valid_until

    @property
    def holder(self) -> str:
        """Identity of the holder as last seen; empty when there is none."""
        return self._known.holder if self._known is not None else ""

    def check(self) -> None:
        """Refuse unless this process leads at this moment; called right before each write.

        Raises:
            NotLeader: it does not.
        """
        if not self.leading:
            raise NotLeader(self.name)

    def stale(self) -> str | None:
        """Return why this process counts as unwell: it holds on to a Lease long overdue."""
        age = self._clock() - self._renewed_at
        if not self._elected or age <= self._timing.duration + STALE_GRACE:
            return None
        return (
            f"the lease {self.name!r} was last renewed {age:.0f} s ago, and this process has not "
            "noticed that it no longer leads"
        )

    async def wait_acquired(self) -> None:
        """Wait until this process leads."""
        while not self.leading:
            await self._news.wait()

    async def wait_lost(self) -> None:
        """Wait until this process no longer leads, be it only for a moment."""
        term = self._term
        while self.leading and self._term == term:
            await self._wait(self._valid_until)

    # ---- the election ------------------------------------------------------------------------

    async def run(self) -> None:
        """Campaign, lead, and campaign again until cancelled; the Lease is not released."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            while True:
                await self._campaign()
                await self._lead()

    async def _campaign(self) -> None:
        """Try to acquire the Lease until this process leads."""
        while not self.leading:
            self._spread = self._timing.retry * random.uniform(1, JITTER_MAX)  # noqa: S311 - jitter
            await self._pause(self._next_try)
            await self._try()

    def _next_try(self) -> float:
        return next_try(
            self._known,
            self.identity,
            self._timing,
            tried_at=self._tried_at,
            heard_at=self._heard_at,
            pause=self._spread,
        )

    async def _lead(self) -> None:
        """Renew the Lease for as long as that succeeds in time."""
        while self.leading:
            await self._pause(self._next_renewal)
            if self.leading:
                await self._try()
        self._end("not renewed in time")
        # What this process did as the leader gets time to stop before it may lead again.
        self._tried_at = self._clock()

    def _next_renewal(self) -> float:
        return min(self._tried_at + self._timing.retry, self._valid_until)

    async def _try(self) -> None:
        """Acquire or renew the Lease once, if that can be."""
        self._tried_at = self._clock()
        try:
            started = await self._attempt()
        except ApiError as error:
            self._tell(str(error))
        except Exception:  # noqa: BLE001 - one odd answer must not end the election
            self._log.exception("election failed unexpectedly")
        else:
            self.error = ""
            if started is not None:
                self._held(started)

    async def _attempt(self) -> float | None:
        """Write the Lease if this process may hold it.

        Returns:
            When the write was sent that made or kept it the holder; None when it is not.

        Raises:
            ApiError: a request was refused or not answered, or a write met another's.
        """
        renewing, known = self._elected, self._known
        if renewing and known is not None and known.lease is not None and not self._in_doubt:
            try:
                return await self._write()
            except ApiError as error:
                if not error.conflict:
                    raise
        if renewing and self._metrics is not None:
            self._metrics.leader_slow_path(self.name)
        await self._read(self._limit())
        ended = renewing and not self._elected
        if ended or not may_take(self._known, self.identity, self._timing, self._clock()):
            return None
        return await self._write()

    def _held(self, started: float) -> None:
        """Take in that a write, sent at ``started``, made or kept this process the holder."""
        if self._elected and not self.leading:
            return  # too late: what was a renewal may not bring leadership back
        self._renewed_at = started
        self._valid_until = started + self._timing.renew_deadline
        if self._elected or not self.leading:
            return
        self._elected = True
        self._term += 1
        self._log.info("lease acquired")
        self._changed(leading=True)

    def _end(self, reason: str = "") -> None:
        self._valid_until = _NEVER
        if not self._elected:
            return
        self._elected = False
        if reason:
            self._log.warning("lease no longer held", reason=reason, holder=self.holder)
        self._changed(leading=False)

    def _changed(self, *, leading: bool) -> None:
        if self._metrics is not None:
            self._metrics.leader_changed(self.name, leading=leading)
        self._notify()

    # ---- the Lease ---------------------------------------------------------------------------

    async def _read(self, deadline: float) -> None:
        """Take in the newest state of the Lease.

        Raises:
            ApiError: no answer, or a refusal.
        """
        lease = await self._lease.read(deadline=deadline)
        self._in_doubt = False
        self._observe(lease)

    async def _write(self) -> float:
        """Write this process into the Lease as last seen; return when that was sent.

        Raises:
            ApiError: ``conflict`` or ``already_exists`` when another was faster, or a failure.
        """
        body = claim(
            self._known,
            namespace=self._namespace,
            name=self.name,
            identity=self.identity,
            timing=self._timing,
            now=micro_time(datetime.now(UTC)),
        )
        started = self._clock()
        await self._send(body, self._limit())
        return started

    async def _send(self, body: JsonObject, deadline: float) -> None:
        self._in_doubt = True
        lease = await self._lease.write(body, deadline=deadline)
        self._in_doubt = False
        self._observe(lease)

    def _limit(self) -> float:
        """Return how long a request may take: two fit into the renew deadline, and it ends there.

        Raises:
            NotLeader: the renew deadline has passed.
        """
        half = self._timing.renew_deadline / 2
        if not self._elected:
            return half
        self.check()
        return min(half, self._valid_until - self._clock())

    def _observe(self, lease: JsonObject | None) -> None:
        before = self.holder
        self._known = observe(self._known, lease, self._clock())
        if self.holder not in {before, self.identity, ""}:
            self._log.info("another process holds the lease", holder=self.holder)
        if self._elected and lease is not None and self.holder != self.identity:
            self._end("another holds it" if self.holder else "it was released")
        self._notify()

    async def release(self, deadline: float = 1.0) -> None:
        """Give the Lease back, if this process holds it, so that another need not wait.

        Called after all that needs the Lease has ended, and ``run`` was cancelled.

        Args:
            deadline: seconds for all tries together.
        """
        self._end()
        end = self._clock() + deadline
        try:
            async with asyncio.timeout_at(end):
                await self._release(end)
        except (ApiError, TimeoutError) as error:
            self._log.warning("lease not given back", error=str(error) or "no time left")

    async def _release(self, end: float) -> None:
        while True:
            if self._in_doubt:
                await self._read(end - self._clock())
            known = self._known
            if known is None or known.lease is None or known.holder != self.identity:
                return
            body = released(known.lease, micro_time(datetime.now(UTC)))
            try:
                await self._send(body, end - self._clock())
                self._log.info("lease given back")
                return
            except ApiError as error:
                if not error.conflict:
                    raise
            await asyncio.sleep(RELEASE_PAUSE)

    # ---- the watch, and waiting --------------------------------------------------------------

    async def _watch(self) -> None:
        try:
            await self._informer.run()
        except Exception:  # noqa: BLE001 - the watch is a hint: reads go on without it
            self._log.exception("watch of the lease failed")

    def _watched(self, change: Change) -> None:
        """Take in a Lease from the watch, unless a newer one is known; a deletion is read later."""
        if change.new is None:
            return
        version = version_of(change.new)
        known = self._known.version if self._known is not None else None
        if version is None or (known is not None and version <= known):
            return
        self._heard_at = self._clock()
        self._observe(change.new)

    def _notify(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _wait(self, until: float) -> None:
        """Wait for news, at most until a time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._news.wait()

    async def _pause(self, due: Callable[[], float]) -> None:
        """Wait until it is due, which news may change."""
        while self._clock() < due():
            await self._wait(due())

    def _tell(self, error: str) -> None:
        """Log an error once, however often it comes back."""
        if error != self.error:
            self._log.warning("lease not reached", error=error, leading=self.leading)
            self.error = error
