"""The Deployment of a Provider or Function revision, from a DeploymentRuntimeConfig's template.

Server-side apply takes lists of env, ports, volumes and mounts in which each key stands once: a
template's entry with the key of one of ours gives way, as the last of two would win in a pod.

Source: Crossplane's merge rules for DeploymentRuntimeConfigs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from controller.model.objects import (
    DEPLOYMENT,
    LABEL_REVISION,
    PROVIDER,
    JsonObject,
    uid_of,
)
from controller.model.runtime import (
    RUNTIME_PORT,
    Runtime,
    object_metadata,
    secret_references,
    typed_object,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CONTAINER: Final = "package-runtime"
METRICS_PORT: Final = 8080
_USER: Final = 2000


def deployment(runtime: Runtime) -> JsonObject:
    """Return the Deployment of a revision.

    Source: Crossplane's merge rules for DeploymentRuntimeConfigs.
    """
    spec: JsonObject = runtime.template("deploymentTemplate").get("spec") or {}
    template: JsonObject = spec.get("template") or {}
    spec["template"] = template
    _shape_deployment(spec, template, runtime)
    pod: JsonObject = template.get("spec") or {}
    template["spec"] = pod
    container = _runtime_container(pod)
    _shape_pod(pod, runtime)
    _shape_container(container, runtime)
    _mount_certificates(pod, container, runtime)
    if runtime.package_kind == PROVIDER.kind:
        _shape_provider(template, container, runtime)
    else:
        _shape_function(container, runtime)
    metadata = object_metadata(runtime, "deploymentTemplate", runtime.deployment_name)
    return typed_object(DEPLOYMENT, metadata, spec=spec)


def uses_built_service_account(runtime: Runtime, built: JsonObject) -> bool:
    """Tell whether a built Deployment runs as the ServiceAccount that is built beside it.

    Where it does not, the user manages the account, and it is not to be written.
    """
    account = built["spec"]["template"]["spec"]["serviceAccountName"]
    return bool(account == runtime.service_account_name)


def _shape_deployment(spec: JsonObject, template: JsonObject, runtime: Runtime) -> None:
    if spec.get("replicas") is None:
        spec["replicas"] = 1
    if runtime.awaiting_activation:
        spec["replicas"] = 0
    spec["selector"] = (spec.get("selector") or {}) | {"matchLabels": runtime.selectors}
    metadata: JsonObject = template.get("metadata") or {}
    metadata["labels"] = (metadata.get("labels") or {}) | runtime.selectors
    template["metadata"] = metadata


def _shape_pod(pod: JsonObject, runtime: Runtime) -> None:
    if pod.get("securityContext") is None:
        pod["securityContext"] = {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
        }
    if not pod.get("serviceAccountName"):
        pod["serviceAccountName"] = runtime.service_account_name
    secrets = list(runtime.pull_secrets)
    if runtime.image_config_pull_secret:
        secrets.append(runtime.image_config_pull_secret)
    pod.pop("imagePullSecrets", None)
    if secrets:
        pod["imagePullSecrets"] = secret_references(secrets)


def _runtime_container(pod: JsonObject) -> JsonObject:
    """Return the container of the package, moved or inserted to the front of the pod's."""
    containers: list[JsonObject] = pod.get("containers") or []
    found = next((c for c in containers if c.get("name") == CONTAINER), {"name": CONTAINER})
    pod["containers"] = [found, *(c for c in containers if c is not found)]
    return found


def _shape_container(container: JsonObject, runtime: Runtime) -> None:
    policy = runtime.revision["spec"].get("packagePullPolicy")
    container["imagePullPolicy"] = policy or container.get("imagePullPolicy") or "IfNotPresent"
    if not container.get("image"):
        container["image"] = runtime.image
    if container.get("securityContext") is None:
        container["securityContext"] = {
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "runAsNonRoot": True,
        }
    _ensure_port(container, "metrics", METRICS_PORT)


def _mount_certificates(pod: JsonObject, container: JsonObject, runtime: Runtime) -> None:
    for role, secret in (
        ("client", runtime.tls_client_secret),
        ("server", runtime.tls_server_secret),
    ):
        if secret is None:
            continue
        name, path = f"tls-{role}-certs", f"/tls/{role}"
        items = [{"key": key, "path": key} for key in ("tls.crt", "tls.key", "ca.crt")]
        volume = {"name": name, "secret": {"secretName": secret, "items": items}}
        mount = {"name": name, "mountPath": path, "readOnly": True}
        _append(pod, "volumes", [volume], key="name")
        _append(container, "volumeMounts", [mount], key="mountPath")
        _append_env(container, {f"TLS_{role.upper()}_CERTS_DIR": path})


def _shape_provider(template: JsonObject, container: JsonObject, runtime: Runtime) -> None:
    namespace = {"name": "POD_NAMESPACE", "valueFrom": _field("metadata.namespace")}
    _append(container, "env", [namespace], key="name")
    _append(container, "env", _identity(runtime, "PROVIDER_NAME"), key="name")
    annotations: dict[str, str] = template["metadata"].get("annotations") or {}
    if "prometheus.io/scrape" not in annotations:
        ports = {port.get("name"): port.get("containerPort") for port in container["ports"]}
        annotations["prometheus.io/scrape"] = "true"
        annotations["prometheus.io/port"] = str(ports.get("metrics") or METRICS_PORT)
        annotations["prometheus.io/path"] = "/metrics"
        template["metadata"]["annotations"] = annotations
    if runtime.tls_server_secret is not None:
        _ensure_port(container, "webhook", RUNTIME_PORT, targeted=True)
        _append_env(container, {"WEBHOOK_TLS_CERT_DIR": "$(TLS_SERVER_CERTS_DIR)"})


def _shape_function(container: JsonObject, runtime: Runtime) -> None:
    _ensure_port(container, "grpc", RUNTIME_PORT, targeted=True)
    _append(container, "env", _identity(runtime, "FUNCTION_NAME"), key="name")


def _identity(runtime: Runtime, package_variable: str) -> list[JsonObject]:
    def label(variable: str, name: str) -> JsonObject:
        return {"name": variable, "valueFrom": _field(f"metadata.labels['{name}']")}

    return [
        label(package_variable, runtime.package_label),
        label("REVISION_NAME", LABEL_REVISION),
        {"name": "REVISION_UID", "value": uid_of(runtime.revision)},
    ]


def _field(path: str) -> JsonObject:
    return {"fieldRef": {"fieldPath": path}}


def _append_env(container: JsonObject, values: Mapping[str, str]) -> None:
    entries = [{"name": name, "value": value} for name, value in values.items()]
    _append(container, "env", entries, key="name")


def _append(parent: JsonObject, field: str, entries: Iterable[JsonObject], *, key: str) -> None:
    """Append entries to a list; present ones with the same key give way."""
    added = list(entries)
    taken = {entry[key] for entry in added}
    present = parent.get(field) or ()
    parent[field] = [*(entry for entry in present if entry.get(key) not in taken), *added]


def _ensure_port(container: JsonObject, name: str, number: int, *, targeted: bool = False) -> None:
    """Give a container a TCP port of a name, unless it has one.

    Where the number is taken under another name, a port that the Service targets is renamed, and
    any other left out: a port number may stand only once.
    """
    ports: list[JsonObject] = container.get("ports") or []
    container["ports"] = ports
    if any(port.get("name") == name for port in ports):
        return
    for port in ports:
        if port.get("containerPort") == number and port.get("protocol", "TCP") == "TCP":
            if targeted or not port.get("name"):
                port["name"] = name
            return
    ports.append({"name": name, "containerPort": number, "protocol": "TCP"})
