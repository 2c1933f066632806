"""Credentials for the registries of Azure (ACR), from the process's workload or managed identity.

Source: Microsoft's documentation of workload identity, of the instance metadata service, and of
the registries' ``/oauth2/exchange``.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from urllib.parse import quote, urlencode

from controller.registry.credentials import Credential, IdentityUnavailable
from controller.registry.identities import (
    IdentityClient,
    Issued,
    life_of,
    read_file,
    secret_in,
)
from controller.registry.reference import Reference

METADATA = "http://169.254.169.254"
AUTHORITY = "https://login.microsoftonline.com/"
USER = "00000000-0000-0000-0000-000000000000"
LIFE_SECONDS = 3600.0  # of a token that does not say how long it holds
_ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_HOST = re.compile(r"[a-z0-9][a-z0-9-]*(?:\.[a-z0-9-]+)?\.azurecr\.(?P<cloud>io|cn|us)", re.ASCII)
_AUDIENCES = {
    "io": "https://containerregistry.azure.net",
    "cn": "https://management.chinacloudapi.cn",
    "us": "https://management.usgovcloudapi.net",
}
_AUTHORITIES = {
    "io": AUTHORITY,
    "cn": "https://login.chinacloudapi.cn/",
    "us": "https://login.microsoftonline.us/",
}


def exchange_of(host: str) -> str:
    """Return where a registry trades an Azure token for its own."""
    return f"https://{host}/oauth2/exchange"


class AcrIssuer:
    """Asks Azure for a token, and the registry for its own in exchange.

    Args:
        client: asks the token services.
        environment: ``AZURE_CLIENT_ID``, ``AZURE_TENANT_ID``, ``AZURE_FEDERATED_TOKEN_FILE``,
            ``AZURE_AUTHORITY_HOST``; ``AZURE_POD_IDENTITY_AUTHORITY_HOST`` names the metadata
            server.
        exchange: gives a registry's address of exchange.
    """

    name = "Azure identity"

    def __init__(
        self,
        client: IdentityClient,
        environment: Mapping[str, str],
        *,
        exchange: Callable[[str], str] = exchange_of,
    ) -> None:
        self._client = client
        self._environment = environment
        self._exchange = exchange

    def scope_of(self, reference: Reference) -> str | None:
        """Return the registry's host when it is Azure's."""
        host = reference.host.removesuffix(":443")
        return host if _HOST.fullmatch(host) else None

    async def issue(self, scope: str) -> Issued:
        """Ask for the token of a registry.

        Raises:
            IdentityUnavailable: there is no identity, or it is refused.
        """
        cloud = scope.rpartition(".")[2]
        value = self._environment.get
        if value("AZURE_FEDERATED_TOKEN_FILE") and value("AZURE_CLIENT_ID"):
            token = await self._workload(cloud)
        else:
            token = await self._machine(cloud)
        form = {"grant_type": "access_token", "service": scope, "access_token": token}
        if value("AZURE_TENANT_ID"):
            form["tenant"] = value("AZURE_TENANT_ID", "")
        reply = await self._client.post(self._exchange(scope), form)
        traded = secret_in(reply.document(), "refresh_token", reply.host)
        credential = Credential(USER, identity_token=traded, origin=self.name, explicit=False)
        return Issued(credential, life_of_token(traded))

    async def _workload(self, cloud: str) -> str:
        value = self._environment.get
        tenant = value("AZURE_TENANT_ID")
        if not tenant:
            raise IdentityUnavailable("AZURE_TENANT_ID is not set")
        proof = await read_file(value("AZURE_FEDERATED_TOKEN_FILE", ""), "the federated token")
        authority = (value("AZURE_AUTHORITY_HOST") or _AUTHORITIES[cloud]).rstrip("/")
        form = {
            "grant_type": "client_credentials",
            "client_id": value("AZURE_CLIENT_ID", ""),
            "client_assertion_type": _ASSERTION,
            "client_assertion": proof,
            "scope": f"{_AUDIENCES[cloud]}/.default",
        }
        url = f"{authority}/{quote(tenant, safe='')}/oauth2/v2.0/token"
        reply = await self._client.post(url, form)
        return secret_in(reply.document(), "access_token", reply.host)

    async def _machine(self, cloud: str) -> str:
        value = self._environment.get
        base = (value("AZURE_POD_IDENTITY_AUTHORITY_HOST") or METADATA).rstrip("/")
        query = {"api-version": "2018-02-01", "resource": _AUDIENCES[cloud]}
        if value("AZURE_CLIENT_ID"):
            query["client_id"] = value("AZURE_CLIENT_ID", "")
        url = f"{base}/metadata/identity/oauth2/token?{urlencode(query)}"
        reply = await self._client.metadata(url, {"Metadata": "true"})
        return secret_in(reply.document(), "access_token", reply.host)


def life_of_token(token: str) -> float:
    """Return for how many seconds a JSON Web Token holds from when it was made.

    Nothing is believed because of it: the token comes from the registry that it is for.

    Source: RFC 7519 ("iat", "exp").
    """
    parts = token.split(".")
    try:
        padded = parts[1] + "=" * (-len(parts[1]) % 4)
        claims = json.loads(base64.urlsafe_b64decode(padded))
    except (ValueError, IndexError, RecursionError):
        return LIFE_SECONDS
    made, ends = (claims.get("iat"), claims.get("exp")) if isinstance(claims, dict) else (0, 0)
    if not (type(made) is int and type(ends) is int and 0 <= made < ends < 10**12):
        return LIFE_SECONDS
    return life_of({"expires_in": ends - made})
