"""Credentials for registries: from pull secrets and from the configuration of Docker and Podman.

A keychain answers, for one reference, which credentials to try and in which order. Which host may
see a credential is decided by the key it is stored under, never by what a registry says.

Source: Kubernetes' image pull secrets (types ``kubernetes.io/dockerconfigjson`` and
``kubernetes.io/dockercfg``) and their matching rules.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets as random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from controller.registry.failures import AuthError, printable
from controller.registry.matching import matches, normalise_key, shown_key
from controller.registry.reference import Reference

TRIED_MAX = 5
SECRET_MAX = 1024 * 1024
DESCRIBED_MAX = 800  # characters about what was tried, in an error
ENTRIES_MAX = 2000  # registries that one secret names
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


class IdentityUnavailable(AuthError):  # noqa: N818 - named as people say it
    """An identity that the process has by itself gave nothing; what is asked for may be public."""


class CredentialSource(Protocol):
    """One place that credentials come from."""

    async def credentials_for(self, reference: Reference) -> list[Credential]:
        """Return the credentials for a reference, best first; empty when there are none.

        Raises:
            IdentityUnavailable: there may be one, and going on without it is right.
            AuthError: there is one that cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Found:
    """What a keychain has for one reference.

    Attributes:
        credentials: in the order to try them; all from one source.
        notes: what was missing or unreadable, shown when access is refused.
    """

    credentials: tuple[Credential, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Keychain:
    """Credential sources in the order in which they are asked.

    Attributes:
        sources: asked in order, until one has something.
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
        entries.sort(key=lambda entry: entry.key.encode("utf-8", "surrogatepass"), reverse=True)
        return cls((PullSecrets(tuple(entries)),), tuple(notes))

    @classmethod
    def combine(cls, *keychains: Keychain) -> Keychain:
        """Return one keychain that asks several in order."""
        sources = tuple(source for keychain in keychains for source in keychain.sources)
        return cls(sources, tuple(note for keychain in keychains for note in keychain.notes))

    async def look_up(self, reference: Reference) -> Found:
        """Return the credentials for a reference from the first source that has any.

        Returns:
            At most five different ones, and what to tell when all of them are refused. A source
            that is unavailable is passed over, with a note.

        Raises:
            AuthError: a matching entry cannot be read; the error names where it stands.

        Source: Kubernetes' keychains: the first that has something for a registry is used.
        """
        notes = list(self.notes)
        for source in self.sources:
            try:
                found = await source.credentials_for(reference)
            except IdentityUnavailable as error:
                notes.append(error.cause)
                continue
            usable: dict[str, Credential] = {}
            for each in found:
                if not each.empty:
                    usable.setdefault(each.fingerprint, each)
            if usable:
                return Found(tuple(usable.values())[:TRIED_MAX], tuple(notes))
        return Found((), tuple(notes))

    async def credentials_for(self, reference: Reference) -> list[Credential]:
        """Return what ``look_up`` returns, without the notes.

        Raises:
            AuthError: a matching entry cannot be read; the error names where it stands.
        """
        return list((await self.look_up(reference)).credentials)


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
    if not _HEADER_TEXT.fullmatch(texts["registrytoken"]):
        raise AuthError(f"{origin}: registrytoken is no token", remedy="write it anew")
    username, password = texts["username"], texts["password"]
    if texts["auth"]:
        username, password = _decode_auth(texts["auth"], origin)
    return Credential(
        username, password, texts["identitytoken"], texts["registrytoken"], origin, explicit
    )


_HEADER_TEXT = re.compile(r"[\x21-\x7e]{0,32768}")
_FIELDS = ("username", "password", "auth", "identitytoken", "registrytoken")


def _is_clean(text: str) -> bool:
    is_unicode = not any("\ud800" <= character <= "\udfff" for character in text)
    return is_unicode and "\r" not in text.strip() and "\0" not in text.rstrip("\0")


def _decode_auth(auth: str, origin: str) -> tuple[str, str]:
    compact = "".join(auth.split())
    try:
        padded = compact.rstrip("=") + "=" * (-len(compact.rstrip("=")) % 4)
        pair = base64.b64decode(padded, validate=True).decode("utf-8")
    except ValueError:
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
    if not isinstance(encoded, str):
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
    if len(auths) > ENTRIES_MAX:
        return f"{origin}: {key} lists more than {ENTRIES_MAX} registries"
    return _entries(auths, f"{origin}, key {key}")


def _entries(auths: Mapping[str, Any], origin: str) -> list[Entry]:
    return [
        Entry(normalise_key(host), values, f"{origin}, entry {shown_key(host)}")
        for host, values in auths.items()
    ]


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


def describe(credentials: Sequence[Credential], notes: Sequence[str]) -> str:
    """Return, for people, which credentials were tried and what was missing."""
    tried = ", ".join(dict.fromkeys(credential.origin for credential in credentials))
    text = f"tried {tried}" if tried else "no credentials matched"
    return printable(f"{text} ({'; '.join(notes)})" if notes else text, limit=DESCRIBED_MAX)
