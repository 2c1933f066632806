"""What shapes the runtime of a revision, read from where it stands in the cluster."""

from __future__ import annotations

import asyncio

from controller.kube.client import ApiError, KubeClient
from controller.model.imageconfig import runtime_config
from controller.model.objects import (
    RUNTIME_CONFIG,
    SERVICE_ACCOUNT,
    JsonObject,
    Key,
    key_of,
    package_kind,
)
from controller.model.revision import runtime_config_of
from controller.model.runtime import Runtime, RuntimeConfigError, runtime_config_name
from controller.stages.cluster import Cluster

ACCOUNT_AGE = 60.0  # seconds for which the manager's ServiceAccount counts as read


class RuntimeReader:
    """Collects what the runtime objects of a revision are made from.

    Args:
        cluster: stores.
        client: the API server, for the manager's own ServiceAccount.
        namespace: where runtime objects live.
        service_account: whose pull secrets runtimes use too.
    """

    def __init__(
        self, *, cluster: Cluster, client: KubeClient, namespace: str, service_account: str
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._namespace = namespace
        self._service_account = service_account
        self._secrets: tuple[float, tuple[str, ...]] | None = None

    async def read(self, revision: JsonObject, package: str) -> Runtime:
        """Return what the runtime of a revision is made from.

        Raises:
            RuntimeConfigError: a reference to a runtime configuration cannot be followed.
            ApiError: the manager's ServiceAccount cannot be read.
        """
        key = key_of(revision)
        fields = self._cluster.status_fields(key)
        image = fields.get("resolvedImage") or revision["spec"]["image"]
        configs = self._cluster.image_configs()
        located = [
            entry["name"]
            for entry in fields.get("appliedImageConfigRefs") or ()
            if entry["reason"] == "SetImagePullSecret"
        ]
        spec = revision["spec"]
        return Runtime(
            package_kind=package_kind(revision["kind"]),
            package=package,
            revision=revision,
            namespace=self._namespace,
            config=self._config(revision, configs, image),
            image=image,
            crossplane_pull_secrets=await self._pull_secrets(),
            image_config_pull_secret=_pull_secret(configs, located),
            tls_server_secret=spec.get("tlsServerSecretName"),
            tls_client_secret=spec.get("tlsClientSecretName"),
        )

    def _config(
        self, revision: JsonObject, configs: list[JsonObject], image: str
    ) -> JsonObject | None:
        prescribed = runtime_config(configs, image)
        reference = revision["spec"].get("runtimeConfigRef")
        if prescribed is not None:
            reference = prescribed[0]
        name = runtime_config_name(reference or {"name": "default"})
        found = self._cluster.get(Key(RUNTIME_CONFIG.kind, name))
        if found is not None:
            spec: JsonObject = found.get("spec") or {}
            return spec
        if not runtime_config_of({"runtimeConfigRef": reference or {}}):
            return None  # the default one changes nothing
        raise RuntimeConfigError(
            f'cannot get referenced deployment runtime config: DeploymentRuntimeConfig "{name}" '
            "does not exist: create it, or name another in spec.runtimeConfigRef"
        )

    async def _pull_secrets(self) -> tuple[str, ...]:
        now = asyncio.get_running_loop().time()
        if self._secrets is not None and now - self._secrets[0] < ACCOUNT_AGE:
            return self._secrets[1]
        try:
            account = await self._client.get(
                SERVICE_ACCOUNT, self._service_account, namespace=self._namespace
            )
        except ApiError as error:
            if not error.not_found:
                raise
            account = {}
        names = tuple(entry["name"] for entry in account.get("imagePullSecrets") or ())
        self._secrets = (now, names)
        return names


def _pull_secret(configs: list[JsonObject], names: list[str]) -> str | None:
    for config in configs:
        if config["metadata"]["name"] in names:
            authentication = (config["spec"].get("registry") or {}).get("authentication") or {}
            name: str | None = (authentication.get("pullSecretRef") or {}).get("name")
            return name
    return None
