"""How a registry asks for credentials, and what its token server may be told. Pure.

Source: RFC 9110 section 11 (challenges); the Docker registry v2 token authentication
specification.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from controller.registry.failures import AuthError, PolicyViolation, printable
from controller.registry.guard import Policy, is_loopback_host

HEADER_MAX = 16 * 1024
CHALLENGES_MAX = 8
PARAMETER_MAX = 4096

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a grammar, no secret
_SCHEME = re.compile(rf"\s*({_TOKEN})(?:[ \t]+|(?=,)|\Z)")
_PARAMETER = re.compile(
    rf'[ \t]*({_TOKEN})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]*))[ \t]*(?:,[ \t]*|\Z)',
    re.DOTALL,
)
_SEPARATORS = re.compile(r"[ \t,]*")
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*[ \t]*(?:,|\Z)")

# Token servers of well-known registries that are neither above nor below the registry's own host.
KNOWN_REALMS = {
    "registry-1.docker.io": frozenset({"auth.docker.io"}),
    "nvcr.io": frozenset({"authn.nvidia.com"}),
}


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate that a registry offers.

    Attributes:
        scheme: in lower case, for example ``bearer``.
        realm: URL of the token server (Bearer) or a text for people (Basic).
        service: name of the registry at its token server.
        scope: what the request needed.
        error: why the token was not enough, for example ``insufficient_scope``.
    """

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""
    error: str = ""


def parse_challenges(headers: Sequence[str]) -> list[Challenge]:
    """Return the challenges of all ``WWW-Authenticate`` headers, in order.

    Args:
        headers: header values; one may hold several challenges.

    Returns:
        What could be read; text that follows no grammar is skipped.

    Raises:
        AuthError: more text or challenges than any registry sends.
    """
    if sum(len(header) for header in headers) > HEADER_MAX:
        raise AuthError(f"the registry's challenge is longer than {HEADER_MAX} bytes")
    found: list[Challenge] = []
    for header in headers:
        found += _parse(header)
        if len(found) > CHALLENGES_MAX:
            raise AuthError(f"the registry offers more than {CHALLENGES_MAX} challenges")
    return found


def _parse(header: str) -> list[Challenge]:
    found, at = [], 0
    while at < len(header):
        at = _end(_SEPARATORS.match(header, at), at)
        scheme = _SCHEME.match(header, at)
        if scheme is None:
            break
        at = scheme.end()
        parameters, at = _parameters(header, at)
        fields = {name: parameters.get(name, "") for name in ("realm", "service", "scope", "error")}
        found.append(Challenge(scheme[1].lower(), **fields))
    return found


def _parameters(header: str, at: int) -> tuple[dict[str, str], int]:
    parameters: dict[str, str] = {}
    while match := _PARAMETER.match(header, at):
        quoted, plain = match[2], match[3]
        value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
        if len(value) <= PARAMETER_MAX:
            parameters.setdefault(match[1].lower(), value)
        at = match.end()
    if not parameters:
        at = _end(_TOKEN68.match(header, at), at)
    return parameters, at


def _end(match: re.Match[str] | None, otherwise: int) -> int:
    return match.end() if match else otherwise


def choose(challenges: Iterable[Challenge]) -> Challenge:
    """Return the challenge to answer: Bearer where its realm is a URL, else Basic.

    Args:
        challenges: what the registry offers, over a connection that may carry passwords.

    Raises:
        AuthError: none can be answered; the error names what was offered.
    """
    offered = list(challenges)
    for challenge in offered:
        if challenge.scheme == "bearer" and "://" in challenge.realm:
            return challenge
    for challenge in offered:
        if challenge.scheme == "basic":
            return challenge
    if not offered:
        raise AuthError("the registry asks for credentials without saying which (HTTP 401)")
    schemes = printable(", ".join(sorted({c.scheme for c in offered})), limit=120)
    raise AuthError(f"the registry requires an unsupported authentication scheme: {schemes}")


def scopes_for(repository: str, *actions: str) -> tuple[str, ...]:
    """Return the token scope of actions on a repository (``pull``, ``push``)."""
    return (f"repository:{repository}:{','.join(actions)}",)


def widened(own: tuple[str, ...], challenged: str) -> tuple[str, ...]:
    """Return our scopes and those that a challenge asked for, ours first."""
    return own + tuple(scope for scope in challenged.split() if scope not in own)


def check_realm(realm: str, *, registry: str, registry_scheme: str) -> None:
    """Refuse token servers that no honest registry names.

    Args:
        realm: URL of the token server.
        registry: host and port of the registry.
        registry_scheme: how the registry itself is spoken to.

    Raises:
        PolicyViolation: not an absolute HTTPS URL (HTTP only where the registry is on allowed
            HTTP), or one with user name or fragment.
    """
    try:
        parts = urlsplit(realm)
        # What is a URL here has to be one for the network library too.
        host, _ = httpx.URL(realm).host, parts.port
    except (httpx.InvalidURL, ValueError):
        host, parts = "", urlsplit("")
    allowed = {"https"} | ({"http"} if registry_scheme == "http" else set())
    unsafe = parts.username is not None or parts.fragment or parts.scheme not in allowed
    if not host or unsafe:
        # Cut the query and everything before "@": either may hold secrets.
        shown = printable(f"{parts.scheme}://{host}" if host else "no URL", limit=200)
        raise PolicyViolation(
            f"registry {registry} names an unusable token server ({shown})",
            remedy="a token server is an https URL without user name",
        )


def may_see_credentials(realm_host: str, *, registry_host: str, trusted: Iterable[str]) -> bool:
    """Tell whether a token server belongs to its registry, so that it may see its credentials.

    Args:
        realm_host: host of the token server, without port.
        registry_host: host of the registry, without port.
        trusted: further hosts that a person named.

    Returns:
        True for the same host, a host below or above the registry's in DNS, a pair that is known,
        and trusted ones. Whoever runs a domain controls the names below it; siblings prove nothing.
    """
    realm, registry = realm_host.lower(), registry_host.lower()
    if realm == registry or realm in KNOWN_REALMS.get(registry, ()):
        return True
    if is_loopback_host(realm) and is_loopback_host(registry):
        return True
    if realm in {host.lower() for host in trusted}:
        return True
    related = realm.endswith(f".{registry}") or registry.endswith(f".{realm}")
    return related and "." in realm and "." in registry and not _is_address(realm, registry)


def _is_address(*hosts: str) -> bool:
    return any(host.replace(".", "").isdigit() or ":" in host for host in hosts)


def on_foreign_realm(realm_host: str, *, registry: str, policy: Policy) -> str:
    """Return the warning for credentials that go to a token server elsewhere.

    Raises:
        AuthError: the policy is ``strict``.
    """
    if policy == "strict":
        raise AuthError(
            f"refusing to send credentials for {registry} to token server {realm_host}",
            remedy=f"trust it with --trusted-token-realm={realm_host}",
        )
    return f"credentials for {registry} are sent to token server {realm_host}"
