"""The way to an API server: kubeconfig or a pod's files, TLS, the session and the credentials.

Guarantees:
    The only module that touches kubernetes_asyncio; no global configuration is changed, and no
    file is written. Tokens, certificates and authorities may change while a session is open. The
    server stays the one that was found first. A proxy of the environment is never used for a
    server on loopback.

Source: the Kubernetes rules for kubeconfig files, in-cluster configuration and client-go
credential plugins.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kubernetes_asyncio.client import Configuration
from kubernetes_asyncio.config import ConfigException, load_incluster_config
from kubernetes_asyncio.config.kube_config import KubeConfigLoader, KubeConfigMerger

from controller.kube.credentials import (
    ConfigError,
    Credentials,
    Login,
    RereadCredentials,
    stamps_of,
)
from controller.kube.execplugin import PluginCommand, PluginError, plugin_command, run_plugin
from controller.kube.kubeconfig import (
    cluster_information,
    kubeconfig_files,
    refuse_unsupported,
    take_cluster_tls,
    take_user_tls,
)
from controller.kube.session import Endpoint, Session, open_session
from controller.kube.tls import TlsSettings

__all__ = ["ConfigError", "Connection", "Credentials", "Session", "find_connection", "open_session"]

POD_FILES = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PLUGIN_DEADLINE = 60.0  # seconds for one run of a credential plugin
LOAD_DEADLINE = 60.0  # seconds for an identity provider that a kubeconfig names


@dataclass(frozen=True, slots=True)
class Connection:
    """A server that can be spoken to, and as whom."""

    server: str
    namespace: str
    origin: str  # where it was read from, for messages
    configuration: Endpoint
    credentials: Credentials

    def anonymous(self) -> Endpoint:
        """Return the same server and trust without anybody's identity."""
        mine = self.configuration
        return Endpoint(
            mine.server,
            mine.server_name,
            mine.proxy,
            lambda: mine.tls().anonymous(),
            mine.look_again,
        )


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
    found = kubeconfig_files(kubeconfig, context=context, pod_files=pod_files)
    if not found:
        return await _connection(lambda _: _load_pod(pod_files), origin="the pod's service account")
    origin = "kubeconfig " + os.pathsep.join(map(str, found))
    return await _connection(
        lambda name: _load_kubeconfig(found, name, origin), context=context, origin=origin
    )


async def _connection(
    load: Callable[[str | None], Awaitable[Login]], *, context: str | None = None, origin: str
) -> Connection:
    login = await load(context)
    server = login.server
    if not _is_server(server):
        raise ConfigError(
            f"{origin}: the cluster's server is no http or https URL without a user: correct it"
        )

    async def reload() -> Login:
        # Of the same context, whatever the file's current one is now, and of the same server:
        # another cluster must not get these requests, nor this one the other's credentials.
        again = await load(login.context)
        if again.server != server:
            raise ConfigError(f"{origin}: it names another server than {server} now; start again")
        return again

    credentials = RereadCredentials(login, reload)
    endpoint = Endpoint(
        server, login.server_name, login.proxy, lambda: credentials.tls, credentials.look_again
    )
    return Connection(server, login.namespace, origin, endpoint, credentials)


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for what is no number
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc


async def _load_pod(files: Path) -> Login:
    configuration = Configuration()
    try:
        await asyncio.to_thread(
            load_incluster_config,
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
    return Login(
        server=str(configuration.host).rstrip("/"),
        namespace=namespace or "default",
        authorization=_authorization(configuration),
        tls=TlsSettings(authority_file=files / "ca.crt"),
        reread=True,
    )


def _authorization(configuration: Configuration) -> str | None:
    """Return the Authorization header's value; a line's end in it would be refused."""
    value = configuration.api_key.get("BearerToken")
    return None if value is None else " ".join(str(value).split())


@dataclass(frozen=True, slots=True)
class _Kubeconfig:
    """A kubeconfig in parts: what kubernetes_asyncio reads, and what is ours to do."""

    loader: Any
    context: str
    namespace: str
    tls: TlsSettings
    plugin: PluginCommand | None
    reread: bool


async def _load_kubeconfig(paths: Sequence[Path], context: str | None, origin: str) -> Login:
    files = tuple(paths)
    stamps = stamps_of(files)
    configuration = Configuration()
    configuration.host = ""
    try:
        parts = await asyncio.to_thread(_parse, files, context)
        async with asyncio.timeout(LOAD_DEADLINE):
            await parts.loader.load_and_set(configuration)
        given = (
            None
            if parts.plugin is None
            else await run_plugin(parts.plugin, deadline=PLUGIN_DEADLINE)
        )
    except TimeoutError:
        text = f"{origin}: its identity provider did not answer within {LOAD_DEADLINE:.0f} s"
        raise ConfigError(text) from None
    except Exception as error:  # noqa: BLE001 - the loader raises whatever a malformed file leads to
        raise ConfigError(f"{origin}: {_why(error, context)}") from None
    authorization, tls, expires = _authorization(configuration), parts.tls, None
    if given is not None:
        expires = given.expires
        if given.token is not None:
            authorization = "Bearer " + given.token.strip()
        if given.certificate is not None:
            tls = replace(tls, certificate=given.certificate, key=given.key)
    return Login(
        server=str(configuration.host).rstrip("/"),
        namespace=parts.namespace,
        authorization=authorization,
        tls=tls,
        server_name=configuration.tls_server_name,
        proxy=configuration.proxy,
        context=parts.context,
        reread=parts.reread,
        plugin=parts.plugin is not None,
        lifetime=None if expires is None else (expires - datetime.now(UTC)).total_seconds(),
        files=files,
        stamps=stamps,
    )


def _parse(paths: Sequence[Path], context: str | None) -> _Kubeconfig:
    """Read kubeconfig files; waits for the disk.

    Certificates and plugins are taken out before kubernetes_asyncio sees them: it would write
    the first to temporary files, and leave the second running.
    """
    # An empty file adds nothing; the merger would stumble over it.
    used = [path for path in paths if path.stat().st_size] or paths
    merger = KubeConfigMerger(os.pathsep.join(map(str, used)))
    merged = merger.config
    # The first file that names a current context decides; the merger takes the last one's.
    named = (config.get("current-context") for config in merger.config_files.values())
    current = next(filter(None, named), None)
    if merged is not None and current is not None:
        merged.value["current-context"] = current
    loader: Any = KubeConfigLoader(
        config_dict=merged, active_context=context, config_base_path=None
    )
    chosen = (loader.current_context or {})["context"]
    cluster, user = loader._cluster, loader._user  # noqa: SLF001 - it has no accessors
    tls, plugin, reread = take_cluster_tls(cluster.value, _folder(cluster)), None, False
    if user is not None:
        section, folder = user.value, _folder(user)
        refuse_unsupported(section)
        reread = bool({"auth-provider", "tokenFile"} & set(section))
        token_file = section.pop("tokenFile", None)
        if token_file:  # here, in a thread: kubernetes_asyncio reads it in the event loop
            section["token"] = (folder / str(token_file)).read_text()
        tls = take_user_tls(section, folder, tls)
        told = section.pop("exec", None)
        if told is not None:
            about = cluster_information(cluster.value, tls)
            plugin = plugin_command(told, folder=folder, cluster=about)
    loader.cert_file = loader.key_file = None  # looked for by it otherwise, in a user's section
    return _Kubeconfig(
        loader=loader,
        context=str((loader.current_context or {})["name"]),
        namespace=chosen.get("namespace") or "default",
        tls=tls,
        plugin=plugin,
        reread=reread,
    )


def _folder(section: Any) -> Path:
    """Return the folder of the file that a section was read from."""
    return Path(section.path).absolute().parent


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
    if isinstance(error, PluginError):
        return f"{error}; correct the plugin or choose another user"
    if isinstance(error, ConfigError):
        return f"{error}; correct the file or choose another with --kubeconfig"
    if isinstance(error, ConfigException | OSError):
        return f"{text}; correct the file or choose another with --kubeconfig"
    return f"it is no valid kubeconfig ({type(error).__name__}); choose another with --kubeconfig"
