"""``start``: read the manager's settings and run it."""

import ipaddress
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from controller import __version__
from controller.cli.flags import DEFAULT_NAMESPACE, DEFAULT_SERVICE_ACCOUNT, Given
from controller.cli.names import (
    address,
    duration,
    duration_text,
    quantity,
    read_failure,
    split_list,
)
from controller.cli.session import PROGRAM, CommandError, UsageError
from controller.cli.startflags import StartFlags

if TYPE_CHECKING:
    from controller.app import Election, Settings
    from controller.cli.session import Session
    from controller.registry.wire import Limits

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
CLOUDS = {cloud: cloud for cloud in ("google", "aws", "azure")}
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


async def start(
    *,
    flags: StartFlags = StartFlags(),  # noqa: B008 - a frozen value
    session: Given,
) -> int:
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
        cache_max_bytes=cache_budget(flags.cache_max_bytes),
        cache_retention=seconds(flags.cache_retention, "--cache-retention", 0.0),
        log_format=chosen(log_format, LOG_FORMATS, "--log-format"),
        log_level=chosen(log_level, LOG_LEVELS, "--log-level"),
        health_address=address(health, "--health-address"),
        metrics_address=address(metrics, "--metrics-address"),
        ca_bundle=ca_bundle(flags.ca_bundle_path, session=session),
        insecure_registries=split_list(flags.insecure_registry or []),
        registry_policy=flags.registry_policy,
        registry_certificates=certificates(flags, session=session),
        registry_limits=registry_limits(flags.registry_limit or []),
        trusted_token_realms=split_list(flags.trusted_token_realm or []),
        cloud_identities=clouds(flags.cloud_identities),
        private_redirects=address_ranges(flags.allow_private_redirects or []),
        crossplane_version=flags.crossplane_version or env.get("CROSSPLANE_VERSION") or None,
        package_establishers=establishers(flags.package_establishers),
        user_agent=flags.user_agent or env.get("USER_AGENT") or f"{PROGRAM}/{__version__}",
        election=election(flags, env),
        watch_silence=watch_silence(flags),
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


def cache_budget(text: str | None) -> int | None:
    """Return the bytes that the cache may hold, None for what the disk allows.

    Raises:
        UsageError: it is no size.
    """
    return None if text is None else quantity(text, "--cache-max-bytes")


def clouds(text: str) -> tuple[str, ...]:
    """Return the clouds of a comma list.

    Raises:
        UsageError: one is none that is known.
    """
    if text in {"", "none"}:
        return ()
    return tuple(chosen(word, CLOUDS, "--cloud-identities") for word in split_list([text]))


def registry_limits(entries: Sequence[str]) -> "Limits":
    """Return the limits of registries, changed as asked.

    Raises:
        UsageError: there is no such limit, or it is no number.
    """
    from controller.registry.wire import Limits  # noqa: PLC0415 - as above

    try:
        return Limits.of(entries)
    except ValueError as error:
        raise UsageError(f"--registry-limit: {error}") from error


def address_ranges(texts: list[str]) -> tuple[str, ...]:
    """Return ranges of addresses as they were given.

    Raises:
        UsageError: one is none.
    """
    found = split_list(texts)
    for text in found:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise UsageError(f"--allow-private-redirects: {error}") from error
    return found


def certificates(flags: StartFlags, *, session: "Session") -> Path | None:
    """Return the folder of registries' certificates, None when none is named.

    Raises:
        CommandError: there is no such folder.
    """
    if flags.registry_certificates is None:
        return None
    path = session.path(flags.registry_certificates)
    if not path.is_dir():
        raise CommandError(f"--registry-certificates: {path} is no folder")
    return path


def watch_silence(flags: StartFlags) -> float:
    """Return the seconds that a watch may be silent.

    Raises:
        UsageError: it is no duration, or shorter than a quiet watch is silent.
    """
    flag = "--watch-silence"
    return at_least(
        WATCH_SILENCE_MIN, seconds(flags.watch_silence, flag, DEFAULT_WATCH_SILENCE), flag
    )


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
