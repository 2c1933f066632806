"""The flags of ``start``, with their help texts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from controller.cli.flags import (
    CaBundle,
    Context,
    InsecureRegistries,
    Kubeconfig,
    Namespace,
    ServiceAccount,
    Switch,
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StartFlags:
    """The flags of ``start`` as they were typed; None where one was not."""

    cache_dir: Annotated[
        str | None, Parameter(name=["--cache-dir", "--xpkg-cache-dir", "-c"], metavar="FOLDER")
    ] = None
    """the folder that keeps package contents; it must exist
    [XPKG_CACHE_DIR, CACHE_DIR; /cache/xpkg]"""

    cache: Annotated[Literal["disk", "none"], Parameter(metavar="disk|none")] = "disk"
    """"none" keeps nothing and fetches at each use"""

    cache_max_bytes: Annotated[str | None, Parameter(metavar="SIZE")] = None
    """how much the cache may hold, for example 800Mi; the limit of a volume in memory or of an
    emptyDir cannot be seen from inside"""

    cache_retention: Annotated[str | None, Parameter(metavar="TIME")] = None
    """how long the content of deleted packages is kept [0s]"""

    namespace: Namespace = None
    service_account: ServiceAccount = None
    kubeconfig: Kubeconfig = None
    context: Context = None

    as_service_account: Switch = False
    """work with the rights of the manager's service account, by a token that the API server is
    asked for; for runs outside a pod"""

    log_format: Annotated[str | None, Parameter(metavar="FORMAT")] = None
    """"console" or "json" [LOG_FORMAT; console on a terminal, json elsewhere]"""

    log_level: Annotated[str | None, Parameter(metavar="LEVEL")] = None
    """"debug", "info", "warning" or "error" [LOG_LEVEL; info]"""

    debug: Annotated[Switch, Parameter(alias="-d")] = False
    """the same as --log-level=debug"""

    health_address: Annotated[str | None, Parameter(metavar="HOST:PORT")] = None
    """where /healthz and /readyz are served, or "none" [HEALTH_PROBE_PORT for the port;
    127.0.0.1:8081, in a pod 0.0.0.0:8081]"""

    metrics_address: Annotated[str | None, Parameter(metavar="HOST:PORT")] = None
    """where /metrics is served, or "none" [METRICS_PORT for the port; 127.0.0.1:8080, in a pod
    0.0.0.0:8080]"""

    ca_bundle_path: CaBundle = None
    insecure_registry: InsecureRegistries = None

    registry_policy: Annotated[Literal["warn", "strict"], Parameter(metavar="warn|strict")] = "warn"
    """what to do about private addresses that a registry leads to, token servers elsewhere and
    contradicting digests: warn, or refuse"""

    registry_certificates: Annotated[Path | None, Parameter(metavar="FOLDER")] = None
    """a folder with a folder of certificates for each registry that needs its own, named HOST or
    HOST:PORT, as containerd and Docker have it"""

    trusted_token_realm: Annotated[list[str] | None, Parameter(metavar="HOST", negative=())] = None
    """a token server that may see the credentials of any registry; repeatable"""

    allow_private_redirects: Annotated[list[str] | None, Parameter(metavar="CIDR", negative=())] = (
        None
    )
    """a range of private addresses that registries may lead to; repeatable"""

    cloud_identities: Annotated[str, Parameter(metavar="CLOUD,…")] = "google,aws,azure"
    """clouds whose identity of this process is used for their own registries, or "none"; asked only
    where no pull secret has credentials"""

    registry_limit: Annotated[list[str] | None, Parameter(metavar="NAME=N", negative=())] = None
    """another limit of sizes, times or counts, as errors name it; repeatable"""

    crossplane_version: Annotated[str | None, Parameter(metavar="VERSION")] = None
    """the Crossplane version that packages' constraints are checked against [CROSSPLANE_VERSION;
    the version of the Crossplane in the cluster]"""

    package_establishers: Annotated[
        int | None,
        Parameter(
            name=["--package-establishers", "--max-concurrent-package-establishers"], metavar="N"
        ),
    ] = None
    """how many objects of packages are written at once, 1 to 64 [8]"""

    user_agent: Annotated[str | None, Parameter(metavar="TEXT")] = None
    """how requests name their sender [USER_AGENT; crossdock/<version>]"""

    leader_election: Annotated[bool | None, Parameter(alias="-l")] = None
    """work only while holding a Lease, so that one of several managers works and the others stand
    by [LEADER_ELECTION; on in a pod, off elsewhere]"""

    leader_election_lease_duration: Annotated[str | None, Parameter(metavar="TIME")] = None
    """how long a manager that is not heard of keeps the Lease [15s]"""

    leader_election_renew_deadline: Annotated[str | None, Parameter(metavar="TIME")] = None
    """how long the leading manager works on without having renewed it [10s]"""

    leader_election_retry_period: Annotated[str | None, Parameter(metavar="TIME")] = None
    """how often the Lease is renewed, or tried for [2s]"""

    watch_silence: Annotated[str | None, Parameter(metavar="TIME")] = None
    """how long a watch may be silent until /readyz fails, at least 2m30s; signs of life come each
    minute or two [3m]"""

    sync_interval: Annotated[
        str | None, Parameter(name=["--sync-interval", "--sync", "-s"], metavar="TIME")
    ] = None
    """how often every object is looked at again though nothing was heard of it, at least 10s; 0
    for never [1h]"""
