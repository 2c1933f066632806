"""The runtime of a Provider or Function: what it is made from, its objects and its readiness.

A DeploymentRuntimeConfig supplies templates; what is forced wins over them, the rest of them stays.
All objects are complete bodies for a server-side apply, with the label that our watches select.
The Deployment is built in ``controller.model.deployment``.

Source: Crossplane's package runtime "Deployment" and its DeploymentRuntimeConfig v1beta1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from controller.model.conditions import (
    FALSE,
    REASON_AWAITING_ACTIVATION,
    REASON_HEALTHY,
    REASON_UNHEALTHY,
    RUNTIME_ACTIVE,
    RUNTIME_HEALTHY,
    TRUE,
    Condition,
)
from controller.model.objects import (
    DEPLOYMENT,
    LABEL_FUNCTION,
    LABEL_MANAGED_BY,
    LABEL_PROVIDER,
    LABEL_REVISION,
    MANAGED_BY,
    PROVIDER,
    REVISIONS,
    RUNTIME_CONFIG,
    SECRET,
    SERVICE,
    SERVICE_ACCOUNT,
    JsonObject,
    Resource,
    controller_of,
    name_of,
    owner_reference,
    uid_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

RUNTIME_PORT: Final = 9443
SAFE_START: Final = "safe-start"
ACTIVE_RUNTIME: Final = "ActiveRuntime"
AWAITING_MESSAGE: Final = (
    "Package runtime is scaled to zero; awaiting the first ManagedResourceDefinition to be "
    "activated"
)


class RuntimeConfigError(ValueError):
    """A revision's reference to a runtime configuration cannot be followed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What the runtime objects of one revision are made from.

    Args:
        package_kind: ``Provider`` or ``Function``.
        package: the package object's name.
        revision: the stored revision; owner of all objects and source of pull policy and secrets.
        namespace: where the objects live.
        config: ``spec`` of the DeploymentRuntimeConfig, None without one.
        image: the package's image as it is fetched, with its registry.
        crossplane_pull_secrets: names that Crossplane's own ServiceAccount pulls with.
        image_config_pull_secret: name that an ImageConfig sets for the image.
        tls_server_secret: name of the Secret of the server certificate.
        tls_client_secret: name of the Secret of the client certificate.
        awaiting_activation: whether the Deployment is kept at zero replicas.
    """

    package_kind: str
    package: str
    revision: JsonObject
    namespace: str
    config: JsonObject | None = None
    image: str = ""
    crossplane_pull_secrets: Sequence[str] = ()
    image_config_pull_secret: str | None = None
    tls_server_secret: str | None = None
    tls_client_secret: str | None = None
    awaiting_activation: bool = False

    @property
    def selectors(self) -> dict[str, str]:
        """The labels that select the revision's pods."""
        return {LABEL_REVISION: name_of(self.revision), self.package_label: self.package}

    @property
    def package_label(self) -> str:
        """The pod label that holds the package's name."""
        return LABEL_PROVIDER if self.package_kind == PROVIDER.kind else LABEL_FUNCTION

    @property
    def service_name(self) -> str:
        """The Service's name: the template's, else the package's."""
        return self._template_name("serviceTemplate") or self.package

    @property
    def service_account_name(self) -> str:
        """The name of the ServiceAccount that is built: the template's, else the revision's."""
        return self._template_name("serviceAccountTemplate") or name_of(self.revision)

    @property
    def deployment_name(self) -> str:
        """The Deployment's name: the template's, else the revision's."""
        return self._template_name("deploymentTemplate") or name_of(self.revision)

    @property
    def endpoint(self) -> str:
        """The gRPC target of a Function, for ``status.endpoint``."""
        return f"dns:///{self.service_name}.{self.namespace}:{RUNTIME_PORT}"

    @property
    def server_dns_names(self) -> tuple[str, ...]:
        """The names that the server certificate is valid for."""
        service, namespace = self.service_name, self.namespace
        return service, f"{service}.{namespace}", f"{service}.{namespace}.svc"

    @property
    def pull_secrets(self) -> list[str]:
        """Names of the revision's own pull secrets."""
        secrets = self.revision["spec"].get("packagePullSecrets") or ()
        return [secret["name"] for secret in secrets if secret.get("name")]

    def template(self, name: str) -> JsonObject:
        """Return a copy of one template of the configuration, empty where it has none."""
        found: JsonObject = copy.deepcopy((self.config or {}).get(name) or {})
        return found

    def _template_name(self, template: str) -> str:
        metadata = ((self.config or {}).get(template) or {}).get("metadata") or {}
        name: str = metadata.get("name") or ""
        return name


def service(runtime: Runtime) -> JsonObject:
    """Return the Service of a package: a Provider's webhooks, or a Function's gRPC (headless)."""
    is_provider = runtime.package_kind == PROVIDER.kind
    port: JsonObject = {"name": "webhook", "port": RUNTIME_PORT, "protocol": "TCP"}
    spec: JsonObject = {"selector": runtime.selectors, "ports": [port]}
    if not is_provider:
        port |= {"name": "grpc", "appProtocol": "tls"}
        spec["clusterIP"] = "None"
    port["targetPort"] = port["name"]
    metadata = object_metadata(runtime, "serviceTemplate", runtime.service_name)
    return typed_object(SERVICE, metadata, spec=spec)


def service_account(runtime: Runtime, *, live: JsonObject | None = None) -> JsonObject:
    """Return the ServiceAccount of a revision's pods.

    Args:
        runtime: the revision and its configuration.
        live: the ServiceAccount as it is; its pull secrets are kept.
    """
    present = [entry["name"] for entry in (live or {}).get("imagePullSecrets") or ()]
    secrets = [*present, *runtime.pull_secrets, *runtime.crossplane_pull_secrets]
    metadata = object_metadata(runtime, "serviceAccountTemplate", runtime.service_account_name)
    references = secret_references(secrets)
    content = {"imagePullSecrets": references} if references else {}
    return typed_object(SERVICE_ACCOUNT, metadata, **content)


def tls_secret(runtime: Runtime, name: str, data: Mapping[str, str]) -> JsonObject:
    """Return a Secret with a certificate of a package.

    Args:
        runtime: the revision.
        name: the Secret's name.
        data: ``tls.crt``, ``tls.key`` and ``ca.crt``, base64.
    """
    return typed_object(SECRET, object_metadata(runtime, None, name), data=dict(data))


def typed_object(resource: Resource, metadata: JsonObject, **content: Any) -> JsonObject:
    """Return an object of a kind with its metadata and other top-level fields."""
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": metadata,
        **content,
    }


def object_metadata(runtime: Runtime, template: str | None, name: str) -> JsonObject:
    """Return the metadata of a runtime object: the template's labels and annotations, and ours."""
    given = (runtime.template(template).get("metadata") or {}) if template is not None else {}
    resource = REVISIONS[runtime.package_kind + "Revision"]
    metadata: JsonObject = {
        "name": name,
        "namespace": runtime.namespace,
        "labels": (given.get("labels") or {}) | {LABEL_MANAGED_BY: MANAGED_BY},
        "ownerReferences": [owner_reference(runtime.revision, resource, controller=True)],
    }
    if given.get("annotations"):
        metadata["annotations"] = given["annotations"]
    return metadata


def secret_references(names: Iterable[str]) -> list[JsonObject]:
    """Return references to Secrets, each once, in order."""
    return [{"name": name} for name in dict.fromkeys(names)]


def runtime_conditions(
    package_kind: str, live: JsonObject | None, *, awaiting_activation: bool = False
) -> tuple[Condition, ...]:
    """Return ``RuntimeHealthy`` and, when it is True, ``RuntimeActive`` of a revision.

    Args:
        package_kind: ``Provider`` or ``Function``.
        live: the Deployment as it is, None while it does not exist.
        awaiting_activation: whether it is kept at zero replicas.
    """
    available = None
    for entry in ((live or {}).get("status") or {}).get("conditions") or ():
        if entry.get("type") == "Available":
            available = entry
    subject = f"{package_kind.lower()} package deployment"
    if available is None:
        text = f'{subject} has no condition of type "Available" yet'
    elif available.get("status") != TRUE:
        text = f"{subject} is unavailable with message: {available.get('message', '')}"
    else:
        healthy = Condition(RUNTIME_HEALTHY, TRUE, REASON_HEALTHY)
        if awaiting_activation:
            reason = REASON_AWAITING_ACTIVATION
            return healthy, Condition(RUNTIME_ACTIVE, FALSE, reason, AWAITING_MESSAGE)
        return healthy, Condition(RUNTIME_ACTIVE, TRUE, ACTIVE_RUNTIME)
    message = f"post establish runtime hook failed for package: {text}"
    return (Condition(RUNTIME_HEALTHY, FALSE, REASON_UNHEALTHY, message),)


def is_awaiting_activation(
    capabilities: Iterable[str], active: Condition | None, states: Sequence[str]
) -> bool:
    """Tell whether a runtime is kept at zero replicas.

    Args:
        capabilities: of the revision; compared by letters and digits in lower case.
        active: the revision's ``RuntimeActive`` as it is; once active, a runtime stays so.
        states: ``spec.state`` of the ManagedResourceDefinitions that the revision controls.

    Source: Crossplane's safe-start.
    """
    if not any(_fuzzy(capability) == _fuzzy(SAFE_START) for capability in capabilities):
        return False
    if active is not None and active.reason == ACTIVE_RUNTIME:
        return False
    return bool(states) and "Active" not in states


def _fuzzy(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


def to_delete(
    revision: JsonObject, *, deployment: JsonObject | None, service: JsonObject | None = None
) -> tuple[tuple[Resource, JsonObject], ...]:
    """Return what goes when a revision becomes inactive; delete with the UID as precondition.

    Args:
        revision: the inactive revision.
        deployment: the Deployment of its name as it is.
        service: the Service of the revision's name as it is, for a Provider: an older release made
            one per revision.

    Returns:
        Only objects that this revision controls; another revision may have taken them over.
    """
    candidates = ((DEPLOYMENT, deployment), (SERVICE, service))
    return tuple(
        (resource, live)
        for resource, live in candidates
        if live is not None and (controller_of(live) or {}).get("uid") == uid_of(revision)
    )


def runtime_config_name(reference: JsonObject | None) -> str:
    """Return the name of the DeploymentRuntimeConfig that a reference names.

    Args:
        reference: ``spec.runtimeConfigRef`` of a revision, or ``configRef`` of an ImageConfig.

    Raises:
        RuntimeConfigError: there is no reference, or it names another kind.
    """
    if not reference or not reference.get("name"):
        raise RuntimeConfigError(
            "cannot prepare runtime manifest builder options: no deployment runtime config set"
        )
    kind = reference.get("kind") or RUNTIME_CONFIG.kind
    api_version = reference.get("apiVersion") or RUNTIME_CONFIG.api_version
    if (kind, api_version) != (RUNTIME_CONFIG.kind, RUNTIME_CONFIG.api_version):
        raise RuntimeConfigError(
            "cannot prepare runtime manifest builder options: runtime config is set but is an "
            f"unknown apiVersion and kind: {api_version}, {kind}; expected "
            f"{RUNTIME_CONFIG.api_version}, {RUNTIME_CONFIG.kind}"
        )
    name: str = reference["name"]
    return name
