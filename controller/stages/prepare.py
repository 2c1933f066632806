"""The prepare stage: makes the Service and the TLS Secrets that a runtime needs before its objects.

Key: a revision. Owns ``RuntimePrepared``, ``status.tlsServerSecretName``,
``status.tlsClientSecretName`` and ``status.endpoint``. Webhooks of the package are reached through
this Service, so the establish stage needs the Secret's CA.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from controller.flow.worker import Again, Done, Outcome
from controller.kube.client import ApiError, KubeClient
from controller.model.certificates import Authority, CertificateError, Usage, renewal_reason
from controller.model.conditions import (
    DEPENDENCIES_READY,
    FALSE,
    RUNTIME_PREPARED,
    TRUE,
    Condition,
    Report,
    is_true,
)
from controller.model.objects import (
    KINDS_WITH_RUNTIME,
    ROOT_CA_SECRET,
    SECRET,
    SERVICE,
    Key,
    is_deleting,
    is_paused,
    name_of,
    package_kind,
)
from controller.model.revision import is_active
from controller.model.runtime import Runtime, RuntimeConfigError, service, tls_secret
from controller.stages.cluster import Cluster
from controller.stages.owned import OwnedObjects
from controller.stages.runtimes import RuntimeReader

AUTHORITY_AGE = 60.0  # seconds for which the root CA counts as read


class PrepareStage:
    """Prepares the runtime of one revision."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        client: KubeClient,
        runtimes: RuntimeReader,
        owned: OwnedObjects,
        namespace: str,
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._runtimes = runtimes
        self._owned = owned
        self._namespace = namespace
        self._authority: tuple[float, Authority] | None = None

    async def __call__(self, key: Key) -> Outcome:
        """Make the Service and TLS Secrets of an active revision right."""
        revision = self._cluster.get(key)
        if revision is None or is_deleting(revision) or is_paused(revision):
            return Done()
        establish = (("establish", key),)
        if package_kind(key.kind) not in KINDS_WITH_RUNTIME or not is_active(revision):
            return Done(next=establish)
        package = self._cluster.package_of(revision)
        if package is None or not self._cluster.is_claimant(revision):
            return Done()
        if not is_true(self._cluster.conditions(key), DEPENDENCIES_READY):
            return Done()
        try:
            runtime = await self._runtimes.read(revision, name_of(package))
            await self._owned.ensure(SERVICE, service(runtime))
            fields = await self._secrets(runtime)
        except (RuntimeConfigError, CertificateError, ApiError) as error:
            message = f"cannot prepare the package's runtime: {error}"
            failed = Condition(RUNTIME_PREPARED, FALSE, type(error).__name__, message)
            return Again(message, report=Report((failed,)))
        prepared = Condition(RUNTIME_PREPARED, TRUE, "Prepared")
        return Done(Report((prepared,), fields), next=establish)

    async def _secrets(self, runtime: Runtime) -> dict[str, Any]:
        """Make the TLS Secrets right; return the status fields that name them."""
        fields: dict[str, Any] = {}
        if runtime.tls_server_secret:
            names = runtime.server_dns_names
            await self._secret(runtime, runtime.tls_server_secret, Usage.SERVER, names)
            fields["tlsServerSecretName"] = runtime.tls_server_secret
        if runtime.tls_client_secret:
            names = (name_of(runtime.revision),)
            await self._secret(runtime, runtime.tls_client_secret, Usage.CLIENT, names)
            fields["tlsClientSecretName"] = runtime.tls_client_secret
        if runtime.package_kind == "Function":
            fields["endpoint"] = runtime.endpoint
        return fields

    async def _secret(
        self, runtime: Runtime, name: str, usage: Usage, dns_names: tuple[str, ...]
    ) -> None:
        authority = await self._root()
        now = datetime.now(UTC)
        live = self._owned.get(SECRET, name)
        if live is None:  # one that others made carries no label of ours, so the watch lacks it
            try:
                live = await self._client.get(SECRET, name, namespace=self._namespace)
            except ApiError as error:
                if not error.not_found:
                    raise
        data = (live or {}).get("data") or {}
        # A client's name changes with each revision and nobody checks it: no reason to renew.
        needed = dns_names if usage is Usage.SERVER else ()
        reason = renewal_reason(data, authority=authority, usage=usage, dns_names=needed, now=now)
        if reason:
            data = authority.issue(usage, dns_names, now)
        await self._owned.ensure(SECRET, tls_secret(runtime, name, data))

    async def _root(self) -> Authority:
        """Return the authority that signs the certificates of runtimes.

        Raises:
            CertificateError: there is none that can sign; the text says how to make one.
        """
        now = asyncio.get_running_loop().time()
        if self._authority is not None and now - self._authority[0] < AUTHORITY_AGE:
            return self._authority[1]
        remedy = "run `crossdock init` to make it"
        try:
            stored = await self._client.get(SECRET, ROOT_CA_SECRET, namespace=self._namespace)
        except ApiError as error:
            if not error.not_found:
                raise
            message = f"Secret {self._namespace}/{ROOT_CA_SECRET} does not exist: {remedy}"
            raise CertificateError(message) from error
        try:
            authority = await asyncio.to_thread(Authority.from_secret, stored.get("data") or {})
        except CertificateError as error:
            message = f"Secret {self._namespace}/{ROOT_CA_SECRET}: {error}: {remedy}"
            raise CertificateError(message) from error
        self._authority = (now, authority)
        return authority
