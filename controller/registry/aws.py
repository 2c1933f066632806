"""The access key that AWS gives to the process, and the signature that it makes.

Source: AWS Signature Version 4; the order of places in which AWS' own tools look for a key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from controller.registry.credentials import IdentityUnavailable
from controller.registry.guard import is_loopback_host
from controller.registry.identities import IdentityClient, Reply, read_file, secret_in

METADATA = "http://169.254.169.254"
CONTAINER = "http://169.254.170.2"
CONTAINER_HOSTS = frozenset({"169.254.170.2", "169.254.170.23", "fd00:ec2::23"})
METADATA_LIFE = "300"  # seconds
_ALGORITHM = "AWS4-HMAC-SHA256"
_KEY_ID = re.compile(r"[A-Za-z0-9_/-]{1,128}")
_ROLE = re.compile(r"[A-Za-z0-9+=,.@_-]{1,128}")
_REGION = re.compile(r"[a-z0-9-]{1,64}")


@dataclass(frozen=True, slots=True)
class AccessKey:
    """An access key of AWS. Its texts never show in ``repr``.

    Attributes:
        key_id: public part.
        secret: secret.
        session: secret that belongs to a temporary key; empty for others.
    """

    key_id: str = field(repr=False)
    secret: str = field(repr=False)
    session: str = field(default="", repr=False)


def suffix_of(region: str) -> str:
    """Return the domain of AWS' services in a region."""
    return "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"


class AwsKeys:
    """Finds the process's access key: the first place that is set up is the one.

    The places are the environment, a web identity (IRSA), the container's agent (EKS Pod Identity,
    ECS), and the machine's metadata server.

    Args:
        client: asks the token services.
        environment: AWS' own variables.
    """

    def __init__(self, client: IdentityClient, environment: Mapping[str, str]) -> None:
        self._client = client
        self._environment = environment

    async def find(self, region: str) -> AccessKey:
        """Return the access key.

        Args:
            region: in which to ask for it, where the environment names none.

        Raises:
            IdentityUnavailable: there is none.
        """
        value = self._environment.get
        if value("AWS_ACCESS_KEY_ID") and value("AWS_SECRET_ACCESS_KEY"):
            return AccessKey(
                value("AWS_ACCESS_KEY_ID", ""),
                value("AWS_SECRET_ACCESS_KEY", ""),
                value("AWS_SESSION_TOKEN", ""),
            )
        if value("AWS_ROLE_ARN") and value("AWS_WEB_IDENTITY_TOKEN_FILE"):
            return await self._web_identity(region)
        relative = value("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        full = f"{CONTAINER}{relative}" if relative else value("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        if full:
            return await self._container(full)
        if value("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
            raise IdentityUnavailable("no access key is set up")
        return await self._machine()

    async def _web_identity(self, region: str) -> AccessKey:
        value = self._environment.get
        chosen = value("AWS_REGION") or value("AWS_DEFAULT_REGION") or region
        if not _REGION.fullmatch(chosen):
            raise IdentityUnavailable("AWS_REGION is no region")
        standard = f"https://sts.{chosen}.{suffix_of(chosen)}/"
        token = await read_file(value("AWS_WEB_IDENTITY_TOKEN_FILE", ""), "the web identity token")
        form = {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "RoleArn": value("AWS_ROLE_ARN", ""),
            "RoleSessionName": value("AWS_ROLE_SESSION_NAME") or "crossdock",
            "WebIdentityToken": token,
        }
        reply = await self._client.post(value("AWS_ENDPOINT_URL_STS") or standard, form)
        return read_assumed_role(reply)

    async def _container(self, url: str) -> AccessKey:
        parts = urlsplit(url)
        host = parts.hostname or ""
        known = host in CONTAINER_HOSTS or is_loopback_host(host)
        if parts.scheme != "https" and not (parts.scheme == "http" and known):
            raise IdentityUnavailable("AWS_CONTAINER_CREDENTIALS_FULL_URI is no agent's address")
        token = self._environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "")
        file = self._environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
        if file:
            token = await read_file(file, "the container's token")
        headers = {"Authorization": token} if token else {}
        reply = await self._client.metadata(url, headers)
        return _key_of(reply.document(), reply.host)

    async def _machine(self) -> AccessKey:
        base = self._environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or METADATA
        base = base.rstrip("/")
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": METADATA_LIFE}
        opened = await self._client.metadata(f"{base}/latest/api/token", lifetime, method="PUT")
        token = {"X-aws-ec2-metadata-token": _one_line(opened, re.compile(r"[\x21-\x7e]{1,4096}"))}
        folder = f"{base}/latest/meta-data/iam/security-credentials/"
        role = _one_line(await self._client.metadata(folder, token), _ROLE)
        reply = await self._client.metadata(f"{folder}{role}", token)
        return _key_of(reply.document(), reply.host)


def _one_line(reply: Reply, shape: re.Pattern[str]) -> str:
    reply.check()
    lines = reply.body.decode("ascii", "replace").split()
    if not lines or not shape.fullmatch(lines[0]):
        raise IdentityUnavailable(f"{reply.host} names no role")
    return lines[0]


def _key_of(document: Mapping[str, Any], host: str) -> AccessKey:
    session = secret_in(document, "Token", host) if document.get("Token") else ""
    return AccessKey(
        secret_in(document, "AccessKeyId", host),
        secret_in(document, "SecretAccessKey", host),
        session,
    )


def read_assumed_role(reply: Reply) -> AccessKey:
    """Return the temporary key of an answer of the token service, which is XML.

    Raises:
        IdentityUnavailable: an error, or there is none in it.
    """
    text = reply.body.decode("utf-8", "replace")
    if reply.status >= 300:
        code = _element(text, "Code")
        shown = f" ({code})" if _ROLE.fullmatch(code) else ""
        raise IdentityUnavailable(f"{reply.host} answered HTTP {reply.status}{shown}")
    names = ("AccessKeyId", "SecretAccessKey", "SessionToken")
    found = {name: _element(text, name) for name in names}
    return AccessKey(*(secret_in(found, name, reply.host) for name in names))


def _element(text: str, name: str) -> str:
    # Keys, tokens and codes hold no character that XML would write in another way.
    found = re.search(rf"<{name}>\s*([^<>&\s]{{1,16384}})\s*</{name}>", text)
    return found[1] if found else ""


def sign(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    key: AccessKey,
    region: str,
    service: str,
    at: datetime,
    method: str = "POST",
) -> dict[str, str]:
    """Return the headers of a request with those that prove who sends it.

    Args:
        url: without a query.
        headers: all of them are signed.
        body: bytes that are sent.
        key: signs.
        region: of the service.
        service: that is asked, by AWS' name.
        at: the time, UTC; the service accepts a few minutes of difference.
        method: HTTP method.

    Raises:
        IdentityUnavailable: the key cannot be one.

    Source: AWS Signature Version 4.
    """
    texts = (key.secret, key.session)
    if not (_KEY_ID.fullmatch(key.key_id) and all(t.isascii() and t.isprintable() for t in texts)):
        raise IdentityUnavailable("the access key holds characters that no access key has")
    parts = urlsplit(url)
    stamp = at.strftime("%Y%m%dT%H%M%SZ")
    signed = {**headers, "Host": parts.netloc, "X-Amz-Date": stamp}
    if key.session:
        signed["X-Amz-Security-Token"] = key.session
    canonical = sorted((name.lower(), value.strip()) for name, value in signed.items())
    names = ";".join(name for name, _ in canonical)
    lines = "".join(f"{name}:{value}\n" for name, value in canonical)
    digest = hashlib.sha256(body).hexdigest()
    request = "\n".join((method, parts.path or "/", "", lines, names, digest))
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    hashed = hashlib.sha256(request.encode()).hexdigest()
    text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{hashed}"
    derived = f"AWS4{key.secret}".encode()
    for step in (stamp[:8], region, service, "aws4_request"):
        derived = hmac.digest(derived, step.encode(), "sha256")
    signature = hmac.digest(derived, text.encode(), "sha256").hex()
    proof = f"Credential={key.key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**signed, "Authorization": f"{_ALGORITHM} {proof}"}
