"""Credentials for the registries of Google Cloud, from the process's application default identity.

Source: Google's Application Default Credentials; the registries' user name ``_token``.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from controller.registry.credentials import Credential, IdentityUnavailable
from controller.registry.failures import printable
from controller.registry.identities import (
    IdentityClient,
    Issued,
    life_of,
    read_file,
    secret_in,
)
from controller.registry.reference import Reference

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
TOKEN_URL = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address, no secret
METADATA_HOST = "metadata.google.internal"
METADATA_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"
ASSERTION_SECONDS = 600
ANSWER_SECONDS = 300.0  # that a token of an impersonated account is used, whose end is a date
_HOSTS = ("gcr.io", "pkg.dev", "google.com")
_JWT_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_EXCHANGE_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name, no secret


def is_google_host(host: str) -> bool:
    """Tell whether a host is a registry of Google Cloud."""
    return host == "gcr.io" or host.endswith(tuple(f".{name}" for name in _HOSTS))


class GoogleIssuer:
    """Asks Google Cloud for an access token.

    Args:
        client: asks the token services.
        environment: ``GOOGLE_APPLICATION_CREDENTIALS`` names a file; ``GCE_METADATA_HOST`` the
            metadata server.
        home: whose ``.config/gcloud`` holds the file that is used when none is named.
        wall: seconds since the epoch.
    """

    name = "Google identity"

    def __init__(
        self,
        client: IdentityClient,
        environment: Mapping[str, str],
        home: Path,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._environment = environment
        self._home = home
        self._wall = wall

    def scope_of(self, reference: Reference) -> str | None:
        """Return the same for all registries of Google Cloud: one token is for all of them."""
        return "google" if is_google_host(reference.host.removesuffix(":443")) else None

    async def issue(self, scope: str) -> Issued:
        """Ask for an access token.

        Raises:
            IdentityUnavailable: there is no identity, or it is refused.
        """
        del scope
        file = await self._file()
        if file is None:
            return await self._machine()
        text = await read_file(file, "the file")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise IdentityUnavailable(f"{printable(file, limit=200)} is no JSON object")
        kind = found.get("type")
        if kind == "service_account":
            return await self._service_account(found)
        if kind == "authorized_user":
            return await self._person(found)
        if kind == "external_account":
            return await self._federated(found)
        shown = printable(str(kind), limit=60)
        raise IdentityUnavailable(f"{printable(file, limit=200)} is of the unknown type {shown}")

    async def _file(self) -> str | None:
        named = self._environment.get("GOOGLE_APPLICATION_CREDENTIALS")
        if named:
            return named
        usual = self._home / ".config" / "gcloud" / "application_default_credentials.json"
        return str(usual) if await asyncio.to_thread(usual.is_file) else None

    async def _machine(self) -> Issued:
        host = self._environment.get("GCE_METADATA_HOST") or METADATA_HOST
        url = f"http://{host}{METADATA_PATH}"
        reply = await self._client.metadata(url, {"Metadata-Flavor": "Google"})
        return _issued(reply.document(), reply.host)

    async def _service_account(self, content: Mapping[str, Any]) -> Issued:
        url = _text(content, "token_uri", TOKEN_URL)
        claims = {"iss": _text(content, "client_email"), "scope": SCOPE, "aud": url}
        key_id, key = _text(content, "private_key_id", ""), _text(content, "private_key")
        signed = await asyncio.to_thread(signed_claims, claims, key_id, key, int(self._wall()))
        return await self._ask(url, {"grant_type": _JWT_GRANT, "assertion": signed})

    async def _person(self, content: Mapping[str, Any]) -> Issued:
        form = {name: _text(content, name) for name in _PERSON}
        url = _text(content, "token_uri", TOKEN_URL)
        return await self._ask(url, {"grant_type": "refresh_token", **form})

    async def _ask(self, url: str, form: Mapping[str, str]) -> Issued:
        reply = await self._client.post(url, form)
        return _issued(reply.document(), reply.host)

    async def _federated(self, content: Mapping[str, Any]) -> Issued:
        """Trade the token of another identity provider, and act as a service account if asked."""
        source = content.get("credential_source")
        if not isinstance(source, Mapping) or not isinstance(source.get("file"), str):
            raise IdentityUnavailable("only a token in a file can be traded for an identity")
        subject = _subject(await read_file(source["file"], "the token"), source.get("format"))
        form = {
            "grant_type": _EXCHANGE_GRANT,
            "audience": _text(content, "audience"),
            "scope": SCOPE,
            "requested_token_type": _ACCESS_TOKEN,
            "subject_token": subject,
            "subject_token_type": _text(content, "subject_token_type"),
        }
        url = _text(content, "token_url")
        issued = await self._ask(url, form)
        acting = _text(content, "service_account_impersonation_url", "")
        if not acting:
            return issued
        headers = {
            "Authorization": f"Bearer {issued.credential.password}",
            "Content-Type": "application/json",
        }
        reply = await self._client.post(acting, json.dumps({"scope": [SCOPE]}).encode(), headers)
        token = secret_in(reply.document(), "accessToken", reply.host)
        return Issued(_login(token), ANSWER_SECONDS)


_PERSON = ("client_id", "client_secret", "refresh_token")


def signed_claims(claims: Mapping[str, Any], key_id: str, key: str, now: int) -> str:
    """Return claims that a service account's key signed, as a JSON Web Token.

    Args:
        claims: of the token; when it was made and ends are added.
        key_id: names the key.
        key: PEM.
        now: seconds since the epoch.

    Raises:
        IdentityUnavailable: the key cannot be used.

    Source: RFC 7519; RFC 7518 (RS256).
    """
    try:
        private = serialization.load_pem_private_key(key.encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityUnavailable("the service account's private_key is none") from None
    if not isinstance(private, rsa.RSAPrivateKey):
        raise IdentityUnavailable("the service account's private_key is no RSA key")
    header = {"alg": "RS256", "typ": "JWT", "kid": key_id}
    content = {**claims, "iat": now, "exp": now + ASSERTION_SECONDS}
    text = f"{_encoded(json.dumps(header).encode())}.{_encoded(json.dumps(content).encode())}"
    signature = private.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{text}.{_encoded(signature)}"


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def _subject(text: str, form: Any) -> str:
    """Return the token in a file: the whole text, or a field of JSON."""
    if not isinstance(form, Mapping) or form.get("type") != "json":
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    name = form.get("subject_token_field_name")
    if not isinstance(found, dict) or not isinstance(name, str):
        raise IdentityUnavailable("the token's file is not of the form that is named")
    return secret_in(found, name, "the token's file")


def _text(content: Mapping[str, Any], name: str, default: str | None = None) -> str:
    found = content.get(name) or default
    if not isinstance(found, str):
        raise IdentityUnavailable(f"the identity's file has no {name}")
    return found


def _issued(document: Mapping[str, Any], host: str) -> Issued:
    token = secret_in(document, "access_token", host)
    return Issued(_login(token), life_of(document))


def _login(token: str) -> Credential:
    return Credential("_token", token, origin=GoogleIssuer.name, explicit=False)
