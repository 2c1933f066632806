"""Who may hold a Lease, and what is written into it: rules on values.

Guarantees:
    Nothing here waits, sends, or reads a clock. A Lease with missing or odd fields is read as far
    as it goes. Fields that have no meaning here are kept.
Assumptions:
    ``now`` of an observation is of one clock that never goes back; it is compared with nothing
    that another process wrote.

Source: the ``coordination.k8s.io/v1`` Lease; Kubernetes' rules for electing a leader with it: the
clocks of two processes are never compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from controller.kube.apierror import ApiError
from controller.model.objects import JsonObject, Resource

LEASE = Resource("coordination.k8s.io", "v1", "leases", "Lease", namespaced=True)
JITTER_MAX = 1.2  # a candidate waits up to so many times its retry period
EARLY_PAUSE = 0.2  # seconds at least between two tries, whatever is seen in between
RELEASED_SECONDS = 1  # duration of a released Lease; it may not be 0


class NotLeader(ApiError):  # noqa: N818 - a refusal, named as Kubernetes names reasons
    """A write was not sent, because this process does not hold the Lease."""

    def __init__(self, name: str) -> None:
        super().__init__(
            status=0,
            reason="NotLeader",
            message=f"not sent: this process does not hold the lease {name!r}, or no longer",
        )


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """How long a Lease holds, and how often it is renewed, in seconds.

    Attributes:
        duration: others may take the Lease when it has not changed for so long.
        renew_deadline: the holder stops leading so long after the start of its last renewal.
        retry: between two renewals, and between two tries to acquire the Lease.

    Raises:
        ValueError: duration > renew_deadline > 1.2 * retry does not hold, or retry < 0.2 s.
    """

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 2.0

    def __post_init__(self) -> None:
        if not math.inf > self.duration > self.renew_deadline:
            raise ValueError(
                f"the lease duration ({self.duration:g} s) must be longer than the renew deadline "
                f"({self.renew_deadline:g} s)"
            )
        if not self.renew_deadline > JITTER_MAX * self.retry:
            raise ValueError(
                f"the renew deadline ({self.renew_deadline:g} s) must be longer than {JITTER_MAX:g}"
                f" times the retry period ({self.retry:g} s)"
            )
        if self.retry < EARLY_PAUSE:
            raise ValueError(
                f"the retry period ({self.retry:g} s) must be {EARLY_PAUSE:g} s or more: each one"
                " is a write"
            )


@dataclass(frozen=True, slots=True)
class Observation:
    """The Lease as last seen, and when its record last changed.

    Attributes:
        spec: the record; of a Lease that was deleted the last one.
        changed_at: when this process first saw the record so, seconds of its own clock.
        lease: the whole object; None where there is none.
    """

    spec: JsonObject
    changed_at: float
    lease: JsonObject | None

    @property
    def holder(self) -> str:
        """Identity of the holder; empty when the Lease was released or never held."""
        value = self.spec.get("holderIdentity")
        return value if isinstance(value, str) else ""

    @property
    def version(self) -> int | None:
        """The object's resource version; None without an object or a number."""
        return version_of(self.lease) if self.lease is not None else None

    def free_at(self, identity: str, timing: LeaseTiming) -> float:
        """Return from when on, by this process's clock, ``identity`` may take the Lease.

        A released Lease and one's own are free from the moment they were seen; another's when its
        record has not changed for the duration that stands in it. A deleted Lease is free no
        sooner: its holder may still lead.
        """
        if self.holder in {"", identity}:
            return self.changed_at
        seconds = _count(self.spec.get("leaseDurationSeconds"))
        return self.changed_at + (seconds or timing.duration)


def version_of(lease: JsonObject) -> int | None:
    """Return an object's resource version as a number, None where it is none."""
    metadata = lease.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    return int(version) if isinstance(version, str) and version.isdecimal() else None


def observe(known: Observation | None, lease: JsonObject | None, now: float) -> Observation | None:
    """Take in a Lease that was read or written; a deletion counts as a change of its record.

    A change of anything beside the record counts as none.

    Args:
        known: what was known before.
        lease: the object as the API server sent it; None when there is none.
        now: seconds of this process's clock.
    """
    if lease is None:
        if known is None or known.lease is None:
            return known
        return Observation(known.spec, now, None)
    value = lease.get("spec")
    spec = value if isinstance(value, dict) else {}
    if known is not None and known.spec == spec:
        return replace(known, lease=lease)
    return Observation(spec, now, lease)


def may_take(known: Observation | None, identity: str, timing: LeaseTiming, now: float) -> bool:
    """Decide whether a candidate may write itself into the Lease."""
    return known is None or now >= known.free_at(identity, timing)


def next_try(
    known: Observation | None,
    identity: str,
    timing: LeaseTiming,
    *,
    tried_at: float,
    heard_at: float,
    pause: float,
) -> float:
    """Return when a candidate tries next.

    That is a pause after it last tried or heard of the Lease, but as soon as the Lease becomes
    free. A Lease that was free at the last try already is no reason to hurry.

    Args:
        known: the Lease as last seen.
        identity: of the candidate.
        timing: of the candidate.
        tried_at: start of the last try; minus infinity before the first.
        heard_at: when the watch last delivered the Lease.
        pause: seconds, jitter included.
    """
    due = max(tried_at, heard_at) + pause
    if known is not None:
        free_at = known.free_at(identity, timing)
        if free_at > tried_at:
            due = min(due, free_at)
    return max(due, tried_at + EARLY_PAUSE)


def micro_time(moment: datetime) -> str:
    """Return a time as Kubernetes' MicroTime: RFC 3339 in UTC with six digits of a second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def claim(
    known: Observation | None,
    *,
    namespace: str,
    name: str,
    identity: str,
    timing: LeaseTiming,
    now: str,
) -> JsonObject:
    """Return the Lease as ``identity`` writes it to acquire or to renew it.

    Args:
        known: the Lease as last seen; with an object the answer carries its resource version.
        namespace: of a Lease that is made.
        name: of a Lease that is made.
        identity: the holder to be.
        timing: of the holder to be.
        now: a MicroTime.
    """
    spec: JsonObject = {
        "holderIdentity": identity,
        "leaseDurationSeconds": math.ceil(timing.duration),
        "acquireTime": now,
        "renewTime": now,
        "leaseTransitions": 0,
    }
    if known is not None:
        transitions = _count(known.spec.get("leaseTransitions"))
        kept = known.holder == identity
        spec["leaseTransitions"] = transitions if kept else transitions + 1
        if kept and isinstance(known.spec.get("acquireTime"), str):
            spec["acquireTime"] = known.spec["acquireTime"]
        if known.lease is not None:
            return {**known.lease, "spec": {**known.spec, **spec}}
    return {
        "apiVersion": LEASE.api_version,
        "kind": LEASE.kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def released(lease: JsonObject, now: str) -> JsonObject:
    """Return a Lease as its holder gives it back: anybody may take it at once."""
    value = lease.get("spec")
    spec = {
        **(value if isinstance(value, dict) else {}),
        "holderIdentity": "",
        "leaseDurationSeconds": RELEASED_SECONDS,
        "renewTime": now,
    }
    return {**lease, "spec": spec}


def _count(value: Any) -> int:
    """Return a whole number from 0 on; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
