"""What a kubeconfig says, section by section, and where kubeconfigs lie.

Guarantees:
    Relative paths are those of the file that a section was read from. An error holds no value of
    a section.

Source: the Kubernetes rules for kubeconfig files: ``-data`` fields win over files.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from controller.kube.credentials import ConfigError
from controller.kube.tls import TlsSettings

_IMPERSONATION = ("as", "as-uid", "as-groups", "as-user-extra")
_PROVIDERS = frozenset({"gcp", "oidc"})  # that kubernetes_asyncio knows
EXEC_EXTENSION = "client.authentication.k8s.io/exec"


def kubeconfig_files(
    kubeconfig: Path | None, *, context: str | None, pod_files: Path
) -> list[Path]:
    """Return the kubeconfig files to read, none where the pod's files are to be used.

    Raises:
        ConfigError: there are neither.
    """
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
    try:
        found = [path for path in paths if path.is_file()]
    except OSError as error:  # without the name: it may be a kubeconfig's content, by mistake
        raise ConfigError(f"a kubeconfig cannot be looked for: {error.strerror}") from None
    if found:
        return found
    listed = os.pathsep.join(map(str, paths))
    if kubeconfig is not None or variable:
        raise ConfigError(f"kubeconfig {listed} does not exist: give another with --kubeconfig")
    raise ConfigError(
        f"no cluster to talk to: there is no {listed}, KUBECONFIG is not set and this is no pod; "
        "give a kubeconfig with --kubeconfig"
    )


def take_cluster_tls(cluster: dict[str, Any], folder: Path) -> TlsSettings:
    """Take the authority out of a cluster's section.

    Args:
        cluster: the section; loses the fields that were read.
        folder: of the kubeconfig.

    Raises:
        ConfigError: it is not base64.
    """
    authority, authority_file = _take(cluster, "certificate-authority", folder)
    return TlsSettings(
        authority=authority,
        authority_file=authority_file,
        verify=not cluster.get("insecure-skip-tls-verify"),
    )


def refuse_unsupported(user: Mapping[str, Any]) -> None:
    """Refuse a user whose requests would otherwise be sent as somebody else.

    Raises:
        ConfigError: it impersonates another, or names an unknown identity provider.
    """
    if any(user.get(name) for name in _IMPERSONATION):
        raise ConfigError("its user impersonates another (as), which is not supported")
    provider = user.get("auth-provider")
    if provider is not None and provider.get("name") not in _PROVIDERS:
        raise ConfigError("its user's auth-provider is not supported")


def take_user_tls(user: dict[str, Any], folder: Path, tls: TlsSettings) -> TlsSettings:
    """Take the client certificate out of a user's section and add it to the settings.

    Raises:
        ConfigError: it is not base64.
    """
    certificate, certificate_file = _take(user, "client-certificate", folder)
    key, key_file = _take(user, "client-key", folder)
    return replace(
        tls,
        certificate=certificate,
        certificate_file=certificate_file,
        key=key,
        key_file=key_file,
    )


def _take(section: dict[str, Any], name: str, folder: Path) -> tuple[bytes | None, Path | None]:
    path, data = section.pop(name, None), section.pop(f"{name}-data", None)
    if data:
        try:
            return base64.b64decode(data, validate=False), None
        except (binascii.Error, TypeError, ValueError):
            raise ConfigError(f"its {name}-data is not base64") from None
    return None, folder / str(path) if path else None


def cluster_information(cluster: Mapping[str, Any], tls: TlsSettings) -> dict[str, Any]:
    """Return what an exec plugin may ask to know: the ``cluster`` of an ExecCredential.

    Args:
        cluster: the cluster's section of the kubeconfig.
        tls: whom the cluster's server is trusted by; its file is read.
    """
    told = {
        name: cluster[name]
        for name in ("server", "tls-server-name", "insecure-skip-tls-verify", "proxy-url")
        if cluster.get(name)
    }
    authority = tls.authority
    if authority is None and tls.authority_file is not None:
        authority = tls.authority_file.read_bytes()
    if authority:
        told["certificate-authority-data"] = base64.b64encode(authority).decode()
    for each in cluster.get("extensions") or ():
        if each.get("name") == EXEC_EXTENSION:
            told["config"] = each.get("extension")
    return told
