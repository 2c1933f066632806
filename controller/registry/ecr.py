"""Credentials for the registries of AWS (ECR), from the process's AWS identity.

Requests are signed here: the signature is a page of code, and the libraries that also make it
bring their own HTTP client or block the event loop.

Source: the ECR API (``GetAuthorizationToken``); Kubernetes' ECR credential provider.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from controller.registry.aws import AwsKeys, sign, suffix_of
from controller.registry.credentials import IdentityUnavailable, read_entry
from controller.registry.failures import AuthError
from controller.registry.identities import IdentityClient, Issued, Reply
from controller.registry.reference import Reference

PUBLIC_HOST = "public.ecr.aws"
PUBLIC_REGION = "us-east-1"
SKEW_SECONDS = 240.0  # of the clock, from which on a refusal may be for the time of the request
_HOST = re.compile(
    r"[0-9]{12}\.dkr[.-]ecr(?P<fips>-fips)?\.(?P<region>[a-z0-9][a-z0-9-]{0,62})\."
    r"(?P<suffix>amazonaws\.com(?:\.cn)?|on\.aws|on\.amazonwebservices\.com\.cn)",
    re.ASCII,
)
_SKEWED = frozenset({400, 403})


@dataclass(frozen=True, slots=True)
class EcrService:
    """The service that gives passwords for a registry.

    Attributes:
        url: of its API.
        region: that it is in.
        name: by which requests to it are signed.
        target: the operation.
    """

    url: str
    region: str
    name: str = "ecr"
    target: str = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"


def service_of(host: str) -> EcrService | None:
    """Return the service that gives passwords for a host; None when the host is not AWS'."""
    if host == PUBLIC_HOST:
        url = f"https://api.ecr-public.{PUBLIC_REGION}.amazonaws.com/"
        target = "SpencerFrontendService.GetAuthorizationToken"
        return EcrService(url, PUBLIC_REGION, "ecr-public", target)
    match = _HOST.fullmatch(host)
    if match is None:
        return None
    region = match["region"]
    label = "ecr-fips" if match["fips"] else "api.ecr"
    return EcrService(f"https://{label}.{region}.{suffix_of(region)}/", region)


class EcrIssuer:
    """Asks ECR for the password of a registry.

    Args:
        client: asks the token services.
        environment: AWS' own variables.
        wall: seconds since the epoch.
    """

    name = "AWS identity"

    def __init__(
        self,
        client: IdentityClient,
        environment: Mapping[str, str],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._environment = environment
        self._keys = AwsKeys(client, environment)
        self._wall = wall

    def scope_of(self, reference: Reference) -> str | None:
        """Return the registry's host when it is AWS'."""
        host = reference.host.removesuffix(":443")
        return host if service_of(host) else None

    async def issue(self, scope: str) -> Issued:
        """Ask for the password of a registry.

        Raises:
            IdentityUnavailable: there is no access key, or the service refuses it.
        """
        service = service_of(scope)
        if service is None:
            raise AssertionError("the scope is a host of AWS")
        key = await self._keys.find(service.region)
        variable = f"AWS_ENDPOINT_URL_{service.name.upper().replace('-', '_')}"
        url = self._environment.get(variable) or service.url

        async def ask(at: float) -> Reply:
            headers = {
                "Content-Type": "application/x-amz-json-1.1",
                "X-Amz-Target": service.target,
            }
            signed = sign(
                url,
                headers,
                b"{}",
                key=key,
                region=service.region,
                service=service.name,
                at=datetime.fromtimestamp(at, UTC),
            )
            return await self._client.post(url, b"{}", signed)

        reply = await ask(self._wall())
        there = reply.date.timestamp() if reply.date is not None else self._wall()
        if reply.status in _SKEWED and abs(there - self._wall()) > SKEW_SECONDS:
            reply = await ask(there)
        now = reply.date.timestamp() if reply.date is not None else self._wall()
        return read_password(reply.document(), reply.host, now=now)


def read_password(document: Mapping[str, Any], host: str, *, now: float) -> Issued:
    """Return the password in an answer of ECR.

    Args:
        document: the answer; ``authorizationData`` is one entry or a list.
        host: that answered, for people.
        now: seconds since the epoch, by the clock of the service.

    Raises:
        IdentityUnavailable: there is none.
    """
    data = document.get("authorizationData")
    entry = data[0] if isinstance(data, list) and data else data
    token = entry.get("authorizationToken") if isinstance(entry, Mapping) else None
    if not isinstance(token, str) or not token:
        raise IdentityUnavailable(f"{host} gave no password")
    try:
        credential = read_entry({"auth": token}, origin=EcrIssuer.name, explicit=False)
    except AuthError:
        raise IdentityUnavailable(f"{host} gave no usable password") from None
    ends = entry.get("expiresAt") if isinstance(entry, Mapping) else None
    seconds = float(ends) - now if isinstance(ends, int | float) and ends < 1e12 else 0.0
    return Issued(credential, seconds)
