"""What a person can set when starting the manager, as values.

Where next: ``controller.app`` alone reads them; every other room is given plain values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from controller.kube.lease import LeaseTiming
from controller.registry.wire import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Election:
    """How one of several managers is chosen.

    Attributes:
        lease: name of the Lease.
        identity: this process among the candidates.
        timing: see ``LeaseTiming``.
    """

    lease: str
    identity: str
    timing: LeaseTiming = field(default_factory=LeaseTiming)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that a person can set when starting the manager."""

    namespace: str
    service_account: str
    kubeconfig: Path | None
    context: str | None
    as_service_account: bool
    cache_dir: Path | None
    cache_max_bytes: int | None
    cache_retention: float
    log_format: Literal["json", "console"]
    log_level: Literal["debug", "info", "warning", "error"]
    health_address: tuple[str, int] | None
    metrics_address: tuple[str, int] | None
    ca_bundle: Path | None
    insecure_registries: tuple[str, ...]
    registry_policy: Literal["warn", "strict"]
    registry_certificates: Path | None
    registry_limits: Limits
    trusted_token_realms: tuple[str, ...]
    private_redirects: tuple[str, ...]
    cloud_identities: tuple[str, ...]
    crossplane_version: str | None
    package_establishers: int
    user_agent: str
    election: Election | None
    watch_silence: float
    sync_interval: float
