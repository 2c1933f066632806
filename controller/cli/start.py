"""``start``: read the manager's settings and run it."""

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from cyclopts import Parameter

from controller import __version__
from controller.cli.flags import (
    DEFAULT_NAMESPACE,
    DEFAULT_SERVICE_ACCOUNT,
    CaBundle,
    Context,
    Given,
    InsecureRegistries,
    Kubeconfig,
    Namespace,
    ServiceAccount,
    Switch,
)
from controller.cli.names import address, duration, duration_text, read_failure, split_list
from controller.cli.session import PROGRAM, CommandError, UsageError

if TYPE_CHECKING:
    from controller.app import Election, Settings
    from controller.cli.session import Session

T = TypeVar("T")

DEFAULT_CACHE_DIR = "/cache/xpkg"
DEFAULT_ESTABLISHERS = 8
ESTABLISHERS_MAX = 64
HEALTH_PORT = 8081
METRICS_PORT = 8080
DEFAULT_WATCH_SILENCE = 180.0  # seconds
WATCH_SILENCE_MIN = 150.0  # seconds; a silent peer is given up after 130
DEFAULT_SYNC_INTERVAL = 3600.0  # seconds
SYNC_INTERVAL_MIN = 10.0
LEASE = "crossdock-leader-election"
_WORDS = {"true": True, "1": True, "false": False, "0": False}
LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
LOG_FORMATS: dict[str, LogFormat] = {"console": "console", "json": "json"}
LOG_LEVELS: dict[str, LogLevel] = {
    "debug": "debug",
    "info": "info",
    "warning": "warning",
    "error": "error",
}


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


async def start(*, flags: StartFlags = StartFlags(), session: Given) -> int:
    """Run the manager until SIGINT or SIGTERM.

    Args:
        flags: see ``StartFlags``.
        session: the world outside.

    Returns:
        The exit code.
    """
    from controller.app import run  # noqa: PLC0415 - the manager's imports take a second

    return await run(settings_of(flags, session=session))


def settings_of(flags: StartFlags, *, session: "Session") -> "Settings":
    """Return the manager's settings: flags, then variables, then defaults.

    Args:
        flags: what was typed.
        session: gives environment, folder and streams; an empty variable counts as unset.

    Raises:
        UsageError: a value that cannot be.
        CommandError: the cache folder or the certificates cannot be used.
    """
    from controller.app import Settings  # noqa: PLC0415 - as above

    env = session.environ
    terminal: LogFormat = "console" if session.stderr.isatty() else "json"
    account = flags.service_account or env.get("POD_SERVICE_ACCOUNT") or DEFAULT_SERVICE_ACCOUNT
    log_format = flags.log_format or env.get("LOG_FORMAT") or terminal
    log_level = "debug" if flags.debug else flags.log_level or env.get("LOG_LEVEL") or "info"
    health = listener(flags.health_address, env, "HEALTH_PROBE_PORT", HEALTH_PORT)
    metrics = listener(flags.metrics_address, env, "METRICS_PORT", METRICS_PORT)
    return Settings(
        namespace=flags.namespace or env.get("POD_NAMESPACE") or DEFAULT_NAMESPACE,
        service_account=account,
        kubeconfig=session.path(flags.kubeconfig) if flags.kubeconfig else None,
        context=flags.context,
        as_service_account=flags.as_service_account,
        cache_dir=cache_folder(flags, session=session) if flags.cache == "disk" else None,
        log_format=chosen(log_format, LOG_FORMATS, "--log-format"),
        log_level=chosen(log_level, LOG_LEVELS, "--log-level"),
        health_address=address(health, "--health-address"),
        metrics_address=address(metrics, "--metrics-address"),
        ca_bundle=ca_bundle(flags.ca_bundle_path, session=session),
        insecure_registries=split_list(flags.insecure_registry or []),
        crossplane_version=flags.crossplane_version or env.get("CROSSPLANE_VERSION") or None,
        package_establishers=establishers(flags.package_establishers),
        user_agent=flags.user_agent or env.get("USER_AGENT") or f"{PROGRAM}/{__version__}",
        election=election(flags, env),
        watch_silence=at_least(
            WATCH_SILENCE_MIN,
            seconds(flags.watch_silence, "--watch-silence", DEFAULT_WATCH_SILENCE),
            "--watch-silence",
        ),
        sync_interval=sync_interval(flags),
    )


def election(flags: StartFlags, env: Mapping[str, str]) -> "Election | None":
    """Return how a leader is elected; None for no election.

    In a pod there may be another one, at least while a new version takes over; a manager that a
    person starts is alone as far as anybody knows.

    Raises:
        UsageError: times that do not fit together, or a variable that is neither true nor false.
    """
    from controller.app import Election  # noqa: PLC0415 - as above
    from controller.kube.lease import LeaseTiming  # noqa: PLC0415 - as above

    asked = flags.leader_election
    if asked is None and env.get("LEADER_ELECTION"):
        asked = chosen(env["LEADER_ELECTION"].lower(), _WORDS, "LEADER_ELECTION")
    if asked is None:
        asked = bool(env.get("KUBERNETES_SERVICE_HOST"))
    if not asked:
        return None
    usual = LeaseTiming()
    prefix = "--leader-election-"
    try:
        timing = LeaseTiming(
            seconds(
                flags.leader_election_lease_duration, f"{prefix}lease-duration", usual.duration
            ),
            seconds(
                flags.leader_election_renew_deadline,
                f"{prefix}renew-deadline",
                usual.renew_deadline,
            ),
            seconds(flags.leader_election_retry_period, f"{prefix}retry-period", usual.retry),
        )
    except ValueError as error:
        raise UsageError(f"leader election: {error}") from error
    # A pod's name is nobody else's: its container takes its own Lease up again after a crash.
    identity = env.get("POD_NAME") or f"{os.uname().nodename}_{uuid.uuid4()}"
    return Election(lease=LEASE, identity=identity, timing=timing)


def sync_interval(flags: StartFlags) -> float:
    """Return the seconds between two looks at everything, 0 for never.

    Raises:
        UsageError: it is no duration, or so short that nothing else would be done.
    """
    flag = "--sync-interval"
    found = seconds(flags.sync_interval, flag, DEFAULT_SYNC_INTERVAL)
    return at_least(SYNC_INTERVAL_MIN, found, flag) if found else 0.0


def at_least(least: float, found: float, flag: str) -> float:
    """Return seconds that are not too few.

    Raises:
        UsageError: they are.
    """
    if found < least:
        raise UsageError(
            f"{flag}: expected {duration_text(least)} or more but got {duration_text(found)}"
        )
    return found


def seconds(text: str | None, flag: str, default: float) -> float:
    """Return the seconds of a flag that takes a duration.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return default
    try:
        return duration(text)
    except UsageError as error:
        raise UsageError(f"{flag}: {error}") from error


def chosen(value: str, allowed: Mapping[str, T], flag: str) -> T:
    """Return what a word means.

    Raises:
        UsageError: it is none of the words that are allowed.
    """
    if value not in allowed:
        words = ", ".join(f'"{word}"' for word in allowed)
        raise UsageError(f'{flag}: expected one of {words} but got "{value}"')
    return allowed[value]


def listener(flag: str | None, env: Mapping[str, str], variable: str, port: int) -> str:
    """Return the address to listen on as text: the flag, else the host that fits the place.

    In a pod, probes and scrapers come from outside, so all interfaces are served; elsewhere only
    loopback.
    """
    if flag is not None:
        return flag
    host = "0.0.0.0" if env.get("KUBERNETES_SERVICE_HOST") else "127.0.0.1"  # noqa: S104 - in a pod
    return f"{host}:{env.get(variable) or port}"


def establishers(count: int | None) -> int:
    """Return how many writers there are.

    Raises:
        UsageError: none, or so many that they only slow the API server down.
    """
    if count is None:
        return DEFAULT_ESTABLISHERS
    if not 1 <= count <= ESTABLISHERS_MAX:
        raise UsageError(
            f"--package-establishers: expected 1 to {ESTABLISHERS_MAX} but got {count}"
        )
    return count


def cache_folder(flags: StartFlags, *, session: "Session") -> Path:
    """Return the cache folder; it exists.

    Whether it can be written is not asked here: packages install uncached while it cannot.

    Raises:
        CommandError: there is no such folder; the text says how to go on.
    """
    env = session.environ
    given = flags.cache_dir or env.get("XPKG_CACHE_DIR") or env.get("CACHE_DIR")
    path = session.path(given or DEFAULT_CACHE_DIR)
    remedy = "create it, name another with --cache-dir, or use --cache=none"
    try:
        is_folder = path.is_dir()
        exists = is_folder or path.exists()
    except OSError as error:
        raise read_failure(error, "cannot use the cache folder", path) from error
    if not exists:
        raise CommandError(f"cache folder {path} does not exist: {remedy}")
    if not is_folder:
        raise CommandError(f"cache folder {path} is a file: {remedy}")
    return path


def ca_bundle(flag: Path | None, *, session: "Session") -> Path | None:
    """Return the file of certificates, None when none is named; it can be read.

    Raises:
        CommandError: it cannot.
    """
    given = flag or session.environ.get("CA_BUNDLE_PATH")
    if not given:
        return None
    path = session.path(given)
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise read_failure(error, "cannot read the certificates in", path) from error
