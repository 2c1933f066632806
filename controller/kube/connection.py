"""The way to an API server: kubeconfig or a pod's files, TLS, the session and the credentials.

Guarantees:
    The only module that touches kubernetes_asyncio; no global configuration is changed. Tokens
    that can change are read again at most a minute later, and at once after a 401. A proxy of the
    environment is never used for a server on loopback.
Assumptions:
    The certificate authority and client certificates stay the same while a session is open.

Source: the Kubernetes rules for kubeconfig files, in-cluster configuration and client-go
credential plugins.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import os
import re
import ssl
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

import aiohttp
from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.config import ConfigException, load_incluster_config, load_kube_config

POD_FILES = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_LIFETIME = 60.0  # seconds until a token that can change is read again
EXPIRY_MARGIN = timedelta(seconds=60)
PLUGIN_DEADLINE = 60.0  # seconds for loading a kubeconfig, its credential plugin included
CONNECTIONS_MAX = 512  # one per watch and one per request under way
READ_BUFFER = 256 * 1024  # bytes; the watch's reader is paused beyond twice of it


class ConfigError(Exception):
    """There is no usable way to an API server; the text is one line and names the remedy."""


class Credentials(Protocol):
    """Who the requests come from."""

    async def authorization(self) -> str | None:
        """Return the value of the Authorization header; None when TLS or nobody identifies."""

    async def renew(self, refused: str | None) -> bool:
        """Read the credentials again after the API server refused a header value.

        Returns:
            Whether they differ from the refused value now.

        Raises:
            ConfigError: they cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Login:
    """What one reading of a kubeconfig or of a pod's files gave."""

    configuration: Configuration
    namespace: str
    changes: bool  # whether the token can change while the process runs
    expires: datetime | None = None  # of a credential plugin's token

    @property
    def authorization(self) -> str | None:
        """The Authorization header's value."""
        value = self.configuration.api_key.get("BearerToken")
        return None if value is None else " ".join(str(value).split())


class RereadCredentials:
    """Credentials that come from files or a plugin, read again when they may have changed.

    Args:
        login: the first reading.
        load: reads again.
    """

    def __init__(self, login: Login, load: Callable[[], Awaitable[Login]]) -> None:
        self._login = login
        self._load = load
        self._read_at = asyncio.get_running_loop().time()
        self._lock = asyncio.Lock()

    async def authorization(self) -> str | None:
        """Return the header's value; see ``Credentials``."""
        if self._is_old():
            async with self._lock:
                if self._is_old():
                    # A failed reading keeps the old token: the API server decides about it.
                    with contextlib.suppress(ConfigError):
                        await self._read()
        return self._login.authorization

    async def renew(self, refused: str | None) -> bool:
        """Read again after a refusal; concurrent callers share one reading."""
        async with self._lock:
            if self._login.authorization == refused:
                await self._read()
        return self._login.authorization != refused

    async def _read(self) -> None:
        self._read_at = asyncio.get_running_loop().time()
        self._login = await self._load()

    def _is_old(self) -> bool:
        age = asyncio.get_running_loop().time() - self._read_at
        if not self._login.changes or age < TOKEN_LIFETIME:
            return False
        expires = self._login.expires
        return expires is None or expires - EXPIRY_MARGIN <= datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Connection:
    """A server that can be spoken to, and as whom."""

    server: str
    namespace: str
    origin: str  # where it was read from, for messages
    configuration: Configuration
    credentials: Credentials

    def anonymous(self) -> Configuration:
        """Return the same server and trust without anybody's identity."""
        mine, other = self.configuration, Configuration()
        other.host, other.ssl_ca_cert = mine.host, mine.ssl_ca_cert
        other.verify_ssl, other.tls_server_name = mine.verify_ssl, mine.tls_server_name
        other.proxy = mine.proxy
        return other


@dataclass(frozen=True, slots=True)
class Session:
    """An HTTP session and what each of its requests is sent with."""

    http: aiohttp.ClientSession
    options: dict[str, Any]
    server: str


async def find_connection(
    *, kubeconfig: Path | None = None, context: str | None = None, pod_files: Path = POD_FILES
) -> Connection:
    """Find the API server: a given kubeconfig, $KUBECONFIG, the pod's files, ~/.kube/config.

    Args:
        kubeconfig: a file that must be used.
        context: a context of the kubeconfig; with it a pod's files are not looked at.
        pod_files: folder of the token, ``ca.crt`` and ``namespace`` of a pod.

    Raises:
        ConfigError: none of them can be used.
    """
    found = _kubeconfigs(kubeconfig, context, pod_files)
    if not found:
        return await _connection(lambda: _load_pod(pod_files), origin="the pod's service account")
    origin = "kubeconfig " + os.pathsep.join(map(str, found))
    return await _connection(lambda: _load_kubeconfig(found, context, origin), origin=origin)


def _kubeconfigs(kubeconfig: Path | None, context: str | None, pod_files: Path) -> list[Path]:
    """Return the kubeconfig files to read, none where the pod's files are to be used."""
    variable = os.environ.get("KUBECONFIG", "")
    if kubeconfig is not None:
        paths = [kubeconfig]
    elif variable:
        paths = [Path(part) for part in variable.split(os.pathsep) if part]
    elif context is None and os.environ.get("KUBERNETES_SERVICE_HOST") and pod_files.is_dir():
        return []
    else:
        paths = [Path.home() / ".kube" / "config"]
    paths = [path.expanduser() for path in paths]
    found = [path for path in paths if path.is_file()]
    if found:
        return found
    listed = os.pathsep.join(map(str, paths))
    if kubeconfig is not None or variable:
        raise ConfigError(f"kubeconfig {listed} does not exist: give another with --kubeconfig")
    raise ConfigError(
        f"no cluster to talk to: there is no {listed}, KUBECONFIG is not set and this is no pod; "
        "give a kubeconfig with --kubeconfig"
    )


async def _connection(load: Callable[[], Awaitable[Login]], *, origin: str) -> Connection:
    login = await load()
    configuration = login.configuration
    server = str(configuration.host).rstrip("/")
    if urlsplit(server).scheme not in {"http", "https"} or not urlsplit(server).hostname:
        raise ConfigError(f"{origin}: the cluster's server {server!r} is no http or https URL")
    credentials = RereadCredentials(login, load)
    return Connection(server, login.namespace, origin, configuration, credentials)


async def _load_pod(files: Path) -> Login:
    configuration = Configuration()
    try:
        load_incluster_config(  # type: ignore[no-untyped-call]  # typed in parts
            client_configuration=configuration,
            try_refresh_token=False,
            token_filename=str(files / "token"),
            cert_filename=str(files / "ca.crt"),
        )
    except (ConfigException, OSError, ValueError) as error:
        raise ConfigError(f"the pod's service account in {files} cannot be used: {error}") from None
    namespace = ""
    with contextlib.suppress(OSError, ValueError):
        namespace = (files / "namespace").read_text().strip()
    return Login(configuration, namespace or "default", changes=True)


async def _load_kubeconfig(paths: Sequence[Path], context: str | None, origin: str) -> Login:
    configuration = Configuration()
    configuration.host = ""
    try:
        async with asyncio.timeout(PLUGIN_DEADLINE):
            loader = await load_kube_config(
                config_file=os.pathsep.join(map(str, paths)),
                context=context,
                client_configuration=configuration,
                persist_config=False,
            )
        chosen = (loader.current_context or {})["context"]
        user = getattr(loader, "_user", None)  # it has no accessor; None where nobody is named
        sources = set(user.value) if user is not None else set()
    except TimeoutError:
        raise ConfigError(
            f"{origin}: its credential plugin did not answer within {PLUGIN_DEADLINE:.0f} s"
        ) from None
    except Exception as error:  # noqa: BLE001 - the loader raises whatever a malformed file leads to
        raise ConfigError(f"{origin}: {_why(error, context)}") from None
    expires = getattr(loader, "exec_plugin_expiry", None)
    # A plugin's token without an expiry is good until it is refused.
    changes = expires is not None or bool({"auth-provider", "tokenFile"} & sources)
    return Login(configuration, chosen.get("namespace") or "default", changes, expires)


def _why(error: Exception, context: str | None) -> str:
    """Say what is wrong with a kubeconfig, without any of its values."""
    text = re.sub(r"[{\[].*[}\]]", "…", " ".join(str(error).split()))
    missing = re.search(
        r"Expected object with name (\S+) in \S*?(context|cluster|user)s list", text
    )
    if missing:
        return f"there is no {missing[2]} named {missing[1]}; choose another with --context"
    if "key current-context" in text or (context is None and "name None" in text):
        return "no current context is set: choose one with --context"
    if isinstance(error, ConfigException | OSError):
        return f"{text}; correct the file or choose another with --kubeconfig"
    return f"it is no valid kubeconfig ({type(error).__name__}); choose another with --kubeconfig"


@contextlib.asynccontextmanager
async def open_session(
    configuration: Configuration, *, origin: str, user_agent: str
) -> AsyncIterator[Session]:
    """Open the HTTP session of a configuration, with its TLS settings.

    Raises:
        ConfigError: certificates or proxy cannot be used.
    """
    configuration.connection_pool_maxsize = CONNECTIONS_MAX
    server = str(configuration.host).rstrip("/")
    options = _proxy(configuration.proxy, server, origin)
    if configuration.tls_server_name:
        options["server_hostname"] = configuration.tls_server_name
    try:
        api = ApiClient(configuration)
    except (OSError, ValueError) as error:
        kind = "TLS" if isinstance(error, ssl.SSLError) else "file"
        raise ConfigError(f"{origin}: its certificates cannot be used ({kind}: {error})") from None
    # A session of our own around their connector: theirs reads proxies and netrc from the
    # environment at each request, in threads, and uses a proxy for loopback too.
    http = aiohttp.ClientSession(
        connector=api.rest_client.pool_manager.connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={
            "User-Agent": user_agent,
            "Accept-Encoding": "identity" if _is_loopback(server) else "gzip",
        },
        read_bufsize=READ_BUFFER,
    )
    try:
        yield Session(http, options, server)
    finally:
        await http.close()
        await api.close()


def _is_loopback(server: str) -> bool:
    host = urlsplit(server).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _proxy(configured: str | None, server: str, origin: str) -> dict[str, Any]:
    """Return the request options of the proxy to use: the kubeconfig's, else the environment's."""
    proxy, source = configured, origin
    parts = urlsplit(server)
    if not proxy and not _is_loopback(server) and not urllib.request.proxy_bypass(parts.netloc):
        proxy = urllib.request.getproxies().get(parts.scheme)
        source = f"the environment ({parts.scheme.upper()}_PROXY)"
    if not proxy:
        return {}
    address = urlsplit(proxy)
    if address.scheme not in {"http", "https"}:
        raise ConfigError(
            f"the proxy of {source} is no http or https URL; unset it, or list "
            f"{parts.hostname} in NO_PROXY"
        )
    location = address.netloc.rpartition("@")[2]
    options: dict[str, Any] = {"proxy": urlunsplit((address.scheme, location, "", "", ""))}
    if address.username:
        pair = f"{unquote(address.username)}:{unquote(address.password or '')}"
        value = "Basic " + base64.b64encode(pair.encode()).decode()
        options["proxy_headers"] = {"Proxy-Authorization": value}
    return options
