"""Credentials for registries: from pull secrets and from the configuration of Docker and Podman.

A keychain answers, for one reference, which credentials to try and in which order. Which host may
see a credential is decided by the key it is stored under, never by what a registry says.

Source: Kubernetes' image pull secrets (types ``kubernetes.io/dockerconfigjson`` and
``kubernetes.io/dockercfg``) and their matching rules.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets as random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from controller.registry.failures import AuthError, printable
from controller.registry.reference import (
    DEFAULT_REGISTRY,
    HUB_NAMES,
    Reference,
    split_host_port,
)

TRIED_MAX = 5
SECRET_MAX = 1024 * 1024
SECRET_KEYS = {
    "kubernetes.io/dockerconfigjson": ".dockerconfigjson",
    "kubernetes.io/dockercfg": ".dockercfg",
}
_FINGERPRINT_KEY = random.token_bytes(32)


@dataclass(frozen=True, slots=True, repr=False)
class Credential:
    """What proves to a registry who asks. Its texts never show in ``repr``.

    Attributes:
        username: with ``password``; may be empty.
        password: secret.
        identity_token: secret; exchanged for tokens at the registry's token server.
        registry_token: secret; sent to the registry as it is.
        origin: where it comes from, for people.
        explicit: somebody named it for this use; a refusal is then final, and nothing is fetched
            anonymously in its place.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""
    origin: str = ""
    explicit: bool = True

    @property
    def empty(self) -> bool:
        """Tell whether it proves nothing."""
        return not (self.username or self.password or self.identity_token or self.registry_token)

    @property
    def fingerprint(self) -> str:
        """A text that is equal for equal secrets, within this process only."""
        parts = (self.username, self.password, self.identity_token, self.registry_token)
        content = b"\0".join(part.encode() for part in parts)
        return hmac.new(_FINGERPRINT_KEY, content, hashlib.sha256).hexdigest()[:32]

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header of the Basic scheme."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"

    def __repr__(self) -> str:
        return f"Credential({self.origin!r})"


class CredentialSource(Protocol):
    """One place that credentials come from."""

    async def credentials_for(self, reference: Reference) -> list[Credential]:
        """Return the credentials for a reference, best first; empty when there are none.

        Raises:
            AuthError: there is one that cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Keychain:
    """Credential sources in the order in which they are asked.

    Attributes:
        sources: asked in order; what they have is tried in order.
        notes: what was missing or unreadable, shown when access is refused.
    """

    sources: tuple[CredentialSource, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def anonymous(cls) -> Keychain:
        """Return the keychain without credentials."""
        return cls()

    @classmethod
    def from_pull_secrets(
        cls, secrets: Iterable[Mapping[str, Any]], *, missing: Iterable[str] = ()
    ) -> Keychain:
        """Return the credentials of pull secrets.

        Args:
            secrets: Secret objects as the API server sends them, in the order of preference.
            missing: ``namespace/name`` of secrets that were named and do not exist.

        Returns:
            A keychain that looks a reference up by the longest matching key. Helpers that a secret
            names are never run.
        """
        read = [_read_secret(secret) for secret in secrets]
        notes = [f"secret {name} does not exist" for name in missing]
        notes += [found for found in read if isinstance(found, str)]
        entries = [entry for found in read if not isinstance(found, str) for entry in found]
        entries.sort(key=lambda entry: entry.key.encode(), reverse=True)
        return cls((PullSecrets(tuple(entries)),), tuple(notes))

    @classmethod
    def combine(cls, *keychains: Keychain) -> Keychain:
        """Return one keychain that asks several in order."""
        sources = tuple(source for keychain in keychains for source in keychain.sources)
        return cls(sources, tuple(note for keychain in keychains for note in keychain.notes))

    async def credentials_for(self, reference: Reference) -> list[Credential]:
        """Return at most five different credentials for a reference, in the order to try them.

        Raises:
            AuthError: a matching entry cannot be read; the error names where it stands.
        """
        found: dict[str, Credential] = {}
        for source in self.sources:
            for credential in await source.credentials_for(reference):
                if not credential.empty:
                    found.setdefault(credential.fingerprint, credential)
        return list(found.values())[:TRIED_MAX]


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a pull secret, and what stands under it."""

    key: str
    values: Any = field(repr=False)
    origin: str


@dataclass(frozen=True, slots=True)
class PullSecrets:
    """Entries of pull secrets, longest keys first."""

    entries: tuple[Entry, ...]

    async def credentials_for(self, reference: Reference) -> list[Credential]:
        """Return what stands under the keys that match.

        Raises:
            AuthError: a matching entry cannot be read.
        """
        return [
            read_entry(entry.values, origin=entry.origin)
            for entry in self.entries
            if matches(entry.key, reference)
        ]


def normalise_key(key: str) -> str:
    """Return a key of ``auths`` as ``host[:port][/path]``.

    The scheme and a leading ``/v1`` or ``/v2`` path go; Docker Hub's names become one.

    Source: Kubernetes' credential provider; Docker's ``https://index.docker.io/v1/``.
    """
    text = key if key.startswith(("http://", "https://")) else f"https://{key}"
    try:
        parts = urlsplit(text)
    except ValueError:
        return key
    path = parts.path
    if path.startswith(("/v1/", "/v2/")):
        path = path[3:]
    host = DEFAULT_REGISTRY if parts.netloc.lower() in HUB_NAMES else parts.netloc.lower()
    return host if path in ("", "/") else f"{host}{path}"


def matches(key: str, reference: Reference) -> bool:
    """Tell whether a normalised key is for a reference.

    Equal ports (as text), as many host labels, each label matching its pattern (``*``, ``?``,
    ``[a-z]``, never across a dot), and a path that the repository's path starts with.

    Source: Kubernetes' credential provider.
    """
    host, slash, path = key.partition("/")
    wanted, wanted_port = split_host_port(host)
    actual, actual_port = split_host_port(reference.registry.lower())
    if wanted_port != actual_port or not f"/{reference.repository}".startswith(f"{slash}{path}"):
        return False
    patterns, labels = wanted.split("."), actual.split(".")
    return len(patterns) == len(labels) and all(
        _label_matches(pattern, label) for pattern, label in zip(patterns, labels, strict=True)
    )


def _label_matches(pattern: str, label: str) -> bool:
    if pattern == label:
        return True
    if not set("*?[\\") & set(pattern):
        return False
    regex = _glob(pattern)
    return regex is not None and regex.fullmatch(label) is not None


def _glob(pattern: str) -> re.Pattern[str] | None:
    """Return a pattern of Go's ``path/filepath`` as a regular expression; None when malformed."""
    parts, at = [], 0
    while at < len(pattern):
        character = pattern[at]
        if character == "[":
            end = pattern.find("]", at + 2)
            if end < 0:
                return None
            inner = pattern[at + 1 : end].replace("\\", "\\\\")
            parts.append(f"[{inner}]")
            at = end
        elif character == "\\":
            at += 1
            parts.append(re.escape(pattern[at : at + 1]))
        else:
            # Runs of "*" are one: repeated ones would only make matching slow.
            many = "" if parts and parts[-1] == ".*" else ".*"
            parts.append({"*": many, "?": "."}.get(character, re.escape(character)))
        at += 1
    try:
        return re.compile("".join(parts))
    except re.error:
        return None


def read_entry(values: Any, *, origin: str, explicit: bool = True) -> Credential:
    """Return the credential of one entry of ``auths``.

    Args:
        values: the entry; ``auth`` (base64 of ``user:password``) wins over the separate fields.
        origin: where it stands, for people.
        explicit: see ``Credential``.

    Raises:
        AuthError: it cannot be read; the error names the origin, never the content.
    """
    if not isinstance(values, Mapping):
        raise AuthError(f"{origin} is not an object", remedy="write the credentials anew")
    texts = {name: values.get(name) or "" for name in _FIELDS}
    if not all(isinstance(text, str) and _is_clean(text) for text in texts.values()):
        raise AuthError(f"{origin} holds something else than texts", remedy="write it anew")
    username, password = texts["username"], texts["password"]
    if texts["auth"]:
        username, password = _decode_auth(texts["auth"], origin)
    return Credential(
        username, password, texts["identitytoken"], texts["registrytoken"], origin, explicit
    )


_FIELDS = ("username", "password", "auth", "identitytoken", "registrytoken")


def _is_clean(text: str) -> bool:
    return "\r" not in text.strip() and "\0" not in text.rstrip("\0")


def _decode_auth(auth: str, origin: str) -> tuple[str, str]:
    compact = "".join(auth.split())
    try:
        padded = compact.rstrip("=") + "=" * (-len(compact.rstrip("=")) % 4)
        pair = base64.b64decode(padded, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        raise AuthError(f"{origin}: auth is no base64 text", remedy="write it anew") from None
    username, colon, password = pair.rstrip("\0").partition(":")
    if not colon:
        raise AuthError(f"{origin}: auth is not user:password", remedy="write it anew")
    return username, password


def _read_secret(secret: Mapping[str, Any]) -> list[Entry] | str:
    """Return the entries of a pull secret, or what is wrong with it."""
    metadata = secret.get("metadata") or {}
    origin = f"secret {metadata.get('namespace', '')}/{metadata.get('name', '')}"
    kind = secret.get("type") or ""
    key = SECRET_KEYS.get(kind)
    if key is None:
        return f"{origin} is of type {printable(str(kind), limit=80)}, not a pull secret"
    encoded = (secret.get("data") or {}).get(key)
    if encoded is None:
        return f"{origin} has no {key}"
    if len(encoded) > 2 * SECRET_MAX:
        return f"{origin} is larger than {SECRET_MAX} bytes"
    try:
        content = json.loads(base64.b64decode(encoded, validate=True).decode("utf-8"))
    except (ValueError, RecursionError):
        return f"{origin}: {key} is no valid JSON"
    auths = content.get("auths") if key == ".dockerconfigjson" and _is_map(content) else content
    if auths is None:
        return []
    if not _is_map(auths):
        return f"{origin}: {key} does not list registries"
    return _entries(auths, f"{origin}, key {key}")


def _entries(auths: Mapping[str, Any], origin: str) -> list[Entry]:
    return [
        Entry(normalise_key(host), values, f"{origin}, entry {printable(host, limit=120)}")
        for host, values in auths.items()
    ]


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


def describe(credentials: Sequence[Credential], notes: Sequence[str]) -> str:
    """Return, for people, which credentials were tried and what was missing."""
    tried = ", ".join(dict.fromkeys(credential.origin for credential in credentials))
    text = f"tried {tried}" if tried else "no credentials matched"
    return f"{text} ({'; '.join(notes)})" if notes else text
