"""Requests for tokens, and what token servers answer. Pure.

Source: the Docker registry v2 token authentication specification, OAuth 2.0 variant included.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from controller.registry.challenge import Challenge
from controller.registry.credentials import Credential
from controller.registry.failures import AuthError, MalformedManifest, printable
from controller.registry.media import load_json
from controller.registry.wire import Ask

LIFE_MIN, LIFE_MAX, LIFE_MARGIN = 60.0, 86400.0, 10.0  # seconds
SKEW_MAX = 300.0  # seconds by which clocks may differ
_TOKEN = re.compile(r"[\x21-\x7e]{1,32768}")


def token_ask(challenge: Challenge, scopes: tuple[str, ...], authorization: str | None) -> Ask:
    """Return the request for a token by GET; what the realm's query has already is kept."""
    parts = urlsplit(challenge.realm)
    query = parse_qsl(parts.query, keep_blank_values=True)
    if challenge.service:
        query.append(("service", challenge.service))
    query += [("scope", scope) for scope in scopes]
    url = parts._replace(query=urlencode(query)).geturl()
    return Ask("token", "GET", url, secret=authorization)


def refresh_ask(challenge: Challenge, credential: Credential, scopes: tuple[str, ...]) -> Ask:
    """Return the request that trades an identity token for an access token."""
    form = {
        "grant_type": "refresh_token",
        "refresh_token": credential.identity_token,
        "service": challenge.service,
        "client_id": "crossdock",
        "scope": " ".join(scopes),
    }
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    body = urlencode(form).encode()
    return Ask("token", "POST", challenge.realm, headers, body, follow=False)


def read_token(body: bytes, *, host: str, now: float = 0.0) -> tuple[str, float]:
    """Return the token of a token server's answer, and for how many seconds it is used.

    Args:
        body: JSON.
        host: of the token server.
        now: wall-clock time in seconds since the epoch; a token issued some time before lives
            the shorter, unless the two clocks differ by more than they may.

    Raises:
        AuthError: there is none that can stand in a header.
    """
    try:
        answer: Any = load_json(body, "answer")
    except MalformedManifest:
        answer = None
    token = (answer.get("access_token") or answer.get("token")) if isinstance(answer, dict) else ""
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise AuthError(f"token server {printable(host, limit=280)} gave no usable token")
    declared = answer.get("expires_in")
    seconds = float(min(declared, 10**9)) if type(declared) is int else LIFE_MIN
    life = min(max(seconds, LIFE_MIN), LIFE_MAX) - LIFE_MARGIN
    age = _age(answer.get("issued_at"), now)
    return token, max(1.0, life - age)


def _age(issued: object, now: float) -> float:
    """Return for how many seconds a token has been alive; 0 when that cannot be true."""
    if not isinstance(issued, str) or len(issued) > 64:
        return 0.0
    try:
        age = now - dt.datetime.fromisoformat(issued).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    return age if 0 < age <= SKEW_MAX else 0.0
