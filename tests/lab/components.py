"""Components: the processes of a lab, their command lines and the answers that call them ready."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.credentials import Credentials, write_file, write_json

HERE = Path(__file__).parent
API_SERVER = "kube-apiserver"
# In the order of their start; each needs the ones before it.
NAMES = ("etcd", API_SERVER, "registry", "kube-controller-manager", "kube-scheduler", "kwok")
# Everything beyond deletion, Deployments, accounts and a node that is scheduled to stays off.
CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "deployment-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "namespace-controller",
    "node-lifecycle-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a lab keeps what: all paths lie in its folder."""

    folder: Path

    @property
    def state(self) -> Path:
        return self.folder / "lab.json"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def credentials(self) -> Path:
        return self.folder / "credentials"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.jsonl"

    @property
    def access_log(self) -> Path:
        return self.logs / "registry.access.log"

    @property
    def data(self) -> tuple[Path, ...]:
        """Folders that hold what etcd and the registry store."""
        return (self.folder / "etcd", self.folder / "registry")

    def log(self, component: str) -> Path:
        """Name the file with the messages of a component."""
        return self.logs / f"{component}.log"


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one lab, all on 127.0.0.1."""

    etcd: int
    etcd_peer: int
    api_server: int
    controller_manager: int
    scheduler: int
    kwok: int
    registry: int


@dataclass(frozen=True, slots=True)
class Options:
    """What the person who starts a lab may choose."""

    audit: bool = False
    api_server_arguments: tuple[str, ...] = ()
    stages: Path = HERE / "stages"


@dataclass(frozen=True, slots=True)
class Component:
    """One process of the lab.

    ``health`` is the URL that answers 200 when the component does its work.
    """

    name: str
    command: tuple[str, ...]
    health: str
    environment: Mapping[str, str]


def plan(
    *,
    binaries: Mapping[str, Path],
    layout: Layout,
    ports: Ports,
    credentials: Credentials,
    options: Options,
) -> dict[str, Component]:
    """Build the command lines of all components.

    Args:
        binaries: path of each name of NAMES.
        layout: the lab's folder.
        ports: reserved ports.
        credentials: the lab's certificates and tokens.
        options: what the caller chose.

    Returns:
        The components by name, in the order of NAMES.
    """
    commands = {
        "etcd": _etcd(layout, ports),
        API_SERVER: _api_server(
            layout=layout, ports=ports, credentials=credentials, options=options
        ),
        "registry": _registry(layout),
        "kube-controller-manager": _controller_manager(
            layout=layout, ports=ports, credentials=credentials
        ),
        "kube-scheduler": _scheduler(layout, ports),
        "kwok": _kwok(layout, ports),
    }
    health, environment = _health(ports), _environment()
    return {
        name: Component(name, (str(binaries[name]), *commands[name]), health[name], environment)
        for name in NAMES
    }


def write_files(
    *, layout: Layout, ports: Ports, credentials: Credentials, options: Options
) -> None:
    """Write the configuration files that the command lines name."""
    server = f"https://127.0.0.1:{ports.api_server}"
    write_json(layout.kubeconfig, credentials.kubeconfig("admin", server))
    for user in ("system:kube-controller-manager", "system:kube-scheduler", "kwok"):
        write_json(_kubeconfig(layout, user), credentials.kubeconfig(user, server))
    registry = {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {
            "delete": {"enabled": True},
            "filesystem": {"rootdirectory": str(layout.folder / "registry")},
            "maintenance": {"uploadpurging": {"enabled": False}},
        },
        # The secret signs uploads: kept, so that they go on after a restart of the registry.
        "http": {
            "addr": f"127.0.0.1:{ports.registry}",
            "secret": credentials.token("lab"),
        },
    }
    write_json(layout.credentials / "registry.yaml", registry)
    stages = sorted(options.stages.glob("*.yaml"))
    documents = b"\n---\n".join(path.read_bytes() for path in stages)
    write_file(layout.credentials / "stages.yaml", documents)


def node() -> bytes:
    """Build the one Node object of a lab, which KWOK brings to life."""
    room = {"cpu": "256", "memory": "1Ti", "pods": "10000"}
    value = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": "lab",
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {
                "type": "kwok",
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": "lab",
                "kubernetes.io/os": "linux",
            },
        },
        "status": {"allocatable": room, "capacity": room},
    }
    return json.dumps(value).encode()


def _health(ports: Ports) -> dict[str, str]:
    return {
        "etcd": f"http://127.0.0.1:{ports.etcd}/health",
        API_SERVER: f"https://127.0.0.1:{ports.api_server}/readyz",
        "registry": f"http://127.0.0.1:{ports.registry}/v2/",
        "kube-controller-manager": f"https://127.0.0.1:{ports.controller_manager}/healthz",
        "kube-scheduler": f"https://127.0.0.1:{ports.scheduler}/readyz",
        "kwok": f"http://127.0.0.1:{ports.kwok}/healthz",
    }


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "TMPDIR")}
    # The registry sends traces to a collector unless told not to; nothing here uses a proxy.
    return kept | {"OTEL_TRACES_EXPORTER": "none", "NO_PROXY": "*"}


def _kubeconfig(layout: Layout, user: str) -> Path:
    return layout.credentials / f"{user.replace(':', '-')}.kubeconfig"


def _etcd(layout: Layout, ports: Ports) -> tuple[str, ...]:
    client = f"http://127.0.0.1:{ports.etcd}"
    peer = f"http://127.0.0.1:{ports.etcd_peer}"
    return (
        "--name=lab",
        f"--data-dir={layout.folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=lab={peer}",
        "--unsafe-no-fsync",
        f"--quota-backend-bytes={8 << 30}",
        "--log-level=warn",
    )


def _api_server(
    *, layout: Layout, ports: Ports, credentials: Credentials, options: Options
) -> tuple[str, ...]:
    audit: Sequence[str] = ()
    if options.audit:
        audit = (
            f"--audit-log-path={layout.audit_log}",
            f"--audit-policy-file={HERE / 'audit-policy.yaml'}",
            "--audit-log-maxsize=0",
        )
    return (
        f"--etcd-servers=http://127.0.0.1:{ports.etcd}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={ports.api_server}",
        "--endpoint-reconciler-type=none",
        f"--cert-dir={layout.credentials}",
        f"--tls-cert-file={credentials.certificate}",
        f"--tls-private-key-file={credentials.key}",
        f"--client-ca-file={credentials.authority}",
        # Nobody holds such a certificate; without it the two components below log errors.
        f"--requestheader-client-ca-file={credentials.authority}",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--token-auth-file={credentials.tokens}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={credentials.account_public}",
        f"--service-account-signing-key-file={credentials.account_key}",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
        "--allow-privileged=true",
        "--profiling=false",
        *audit,
        *options.api_server_arguments,
    )


def _registry(layout: Layout) -> tuple[str, ...]:
    return ("serve", str(layout.credentials / "registry.yaml"))


def _controller_manager(
    *, layout: Layout, ports: Ports, credentials: Credentials
) -> tuple[str, ...]:
    kubeconfig = _kubeconfig(layout, "system:kube-controller-manager")
    return (
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--service-account-private-key-file={credentials.account_key}",
        f"--root-ca-file={credentials.authority}",
        "--use-service-account-credentials",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={ports.controller_manager}",
        f"--cert-dir={layout.credentials / 'controller-manager'}",
        f"--controllers={','.join(CONTROLLERS)}",
        "--profiling=false",
    )


def _scheduler(layout: Layout, ports: Ports) -> tuple[str, ...]:
    kubeconfig = _kubeconfig(layout, "system:kube-scheduler")
    return (
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={ports.scheduler}",
        f"--cert-dir={layout.credentials / 'scheduler'}",
        "--profiling=false",
    )


def _kwok(layout: Layout, ports: Ports) -> tuple[str, ...]:
    return (
        f"--kubeconfig={_kubeconfig(layout, 'kwok')}",
        "--manage-all-nodes",
        "--node-lease-duration-seconds=40",
        "--node-ip=127.0.0.1",
        f"--server-address=127.0.0.1:{ports.kwok}",
        f"--config={layout.credentials / 'stages.yaml'}",
    )
