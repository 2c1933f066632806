"""Access to a registry: which credential answers its challenge, and the tokens it is traded for.

Tokens live in memory only, each for one registry, credential, token server and scope.

Source: the Docker registry v2 token authentication specification, OAuth 2.0 variant included.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import httpx
import structlog

from controller.registry.challenge import (
    Challenge,
    check_realm,
    choose,
    may_see_credentials,
    on_foreign_realm,
    widened,
)
from controller.registry.credentials import Credential, describe
from controller.registry.endpoint import Endpoint
from controller.registry.failures import AuthError, RegistryError
from controller.registry.grants import read_token, refresh_ask, token_ask
from controller.registry.outcome import PAUSES, error_of, now, parse_retry_after
from controller.registry.reference import split_host_port
from controller.registry.transport import Transport
from controller.registry.wire import Answer, Ask

log = structlog.get_logger(__name__)

T = TypeVar("T")

UNAUTHORIZED, FORBIDDEN = 401, 403
ADOPTIONS_MAX = 3
TOKENS_MAX = 1024
PINS_MAX = 1024
REFUSAL_SECONDS = 5.0  # for which a refusal is not asked for again
# Answers of token servers that know no POST; they are asked by GET instead.
_NO_POST = frozenset({301, 302, 303, 307, 308, 400, 401, 404, 405})


@dataclass(frozen=True, slots=True)
class Denied:
    """A registry's refusal that credentials may mend.

    Attributes:
        status: 401 or 403.
        challenges: how it may be mended.
        error: what to raise when nothing helps.
    """

    status: int
    challenges: Sequence[Challenge]
    error: RegistryError


@dataclass(slots=True)
class _Slot:
    """What is known for one key: a token, or why there is none."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    token: str = ""
    refusal: AuthError | None = None
    until: float = 0.0


class TokenBook:
    """Tokens of all registries; each is asked for once, however many wait for it.

    Args:
        transport: carries the requests to token servers.
        trusted_realms: token servers that may see any registry's credentials.
    """

    def __init__(self, transport: Transport, *, trusted_realms: Sequence[str] = ()) -> None:
        self._transport = transport
        self._trusted = tuple(trusted_realms)
        self._slots: OrderedDict[tuple[str, ...], _Slot] = OrderedDict()

    async def token(
        self,
        endpoint: Endpoint,
        challenge: Challenge,
        credential: Credential | None,
        scopes: tuple[str, ...],
        *,
        instead_of: str = "",
    ) -> str:
        """Return a token for some scopes.

        Args:
            endpoint: the registry that asks for it.
            challenge: names the token server.
            credential: what to show there; None for an anonymous token.
            scopes: what the token is to allow.
            instead_of: a token that the registry just refused.

        Raises:
            AuthError: the token server refuses, or must not see the credential.
            RegistryError: it gives no usable answer.
        """
        if credential is not None and credential.registry_token:
            return credential.registry_token
        who = credential.fingerprint if credential is not None else ""
        key = (endpoint.host, who, challenge.realm, challenge.service, *sorted(scopes))
        slot = self._slots.setdefault(key, _Slot())
        self._slots.move_to_end(key)
        while len(self._slots) > TOKENS_MAX:
            self._slots.popitem(last=False)
        async with slot.lock:
            now = self._transport.clock()
            if slot.until > now and slot.refusal is not None:
                raise AuthError(slot.refusal.cause, remedy=slot.refusal.remedy)
            if slot.until > now and slot.token and slot.token != instead_of:
                return slot.token
            try:
                slot.token, life = await self._ask(endpoint, challenge, credential, scopes)
            except AuthError as refusal:
                slot.refusal, slot.until = refusal, self._transport.clock() + REFUSAL_SECONDS
                raise
            slot.refusal, slot.until = None, self._transport.clock() + life
            return slot.token

    async def _ask(
        self,
        endpoint: Endpoint,
        challenge: Challenge,
        credential: Credential | None,
        scopes: tuple[str, ...],
    ) -> tuple[str, float]:
        registry = split_host_port(endpoint.host)[0]
        check_realm(
            challenge.realm, registry=endpoint.host, registry_scheme=endpoint.scheme or "https"
        )
        url = httpx.URL(challenge.realm)
        if not endpoint.is_own(url):
            own = httpx.URL(f"{endpoint.scheme}://{endpoint.host}/")
            endpoint.peer.check_target(url, came_from=own)
        if credential is not None and not may_see_credentials(
            url.host, registry_host=registry, trusted=self._trusted
        ):
            policy = self._transport.policy
            warning = on_foreign_realm(url.host, registry=endpoint.host, policy=policy)
            log.warning(warning, registry=endpoint.host, credential=credential.origin)
        if credential is not None and credential.identity_token:
            try:
                return await self._send(endpoint, refresh_ask(challenge, credential, scopes))
            except RegistryError as error:
                if error.status not in _NO_POST:
                    raise
        authorization = credential.basic if credential is not None else None
        if credential is not None and credential.identity_token:
            authorization = Credential("<token>", credential.identity_token).basic
        return await self._send(endpoint, token_ask(challenge, scopes, authorization))

    async def _send(self, endpoint: Endpoint, ask: Ask) -> tuple[str, float]:
        """Ask a token server."""
        ask = replace(ask, redirects=self._transport.limits.token_redirects)

        async def read(answer: Answer) -> tuple[str, float]:
            return await self._read(endpoint, answer)

        return await self._transport.retrying(lambda: self._transport.exchange(endpoint, ask, read))

    async def _read(self, endpoint: Endpoint, answer: Answer) -> tuple[str, float]:
        limits = self._transport.limits
        if answer.status >= 300:
            retry_after = parse_retry_after(answer.header("Retry-After"), now=now())
            if retry_after is not None and answer.status in PAUSES:
                self._transport.block(endpoint, answer.url, retry_after)
            raise error_of(
                answer.status,
                host=f"token server {answer.url.host}",
                body=await answer.error_body(limits.error_bytes),
                content_type=answer.header("Content-Type"),
                retry_after=retry_after,
            )
        body = await answer.content(
            limits.token_bytes, "answer of the token server", name="token_bytes"
        )
        return read_token(body, host=answer.url.host, now=now())


class Access:
    """The way into a registry for one request: tries credentials until one is accepted.

    Args:
        book: tokens.
        endpoint: the registry.
        scopes: what the request needs.
        credentials: in the order to try them.
        notes: what else to say when all fail.
    """

    def __init__(
        self,
        book: TokenBook,
        endpoint: Endpoint,
        scopes: tuple[str, ...],
        credentials: Sequence[Credential],
        notes: Sequence[str] = (),
    ) -> None:
        self._book = book
        self._endpoint = endpoint
        self._scopes = scopes
        self._credentials = credentials
        self._notes = notes
        # Who named credentials for this registry does not want it asked anonymously instead.
        ambient = any(not credential.explicit for credential in credentials)
        anonymous: list[Credential | None] = [None] if ambient or not credentials else []
        self._candidates: list[Credential | None] = [*credentials, *anonymous]
        self._pin = "|".join((*scopes, *(c.fingerprint if c else "" for c in self._candidates)))
        self._at = endpoint.pins.get(self._pin, 0)
        self._tried: set[int] = set()
        self._sent: str | None = None
        self._last_token = ""
        self._adoptions = 0
        self._refreshed = self._widened = False

    async def authorization(self) -> str | None:
        """Return the header to send now; None for none.

        Raises:
            AuthError: no credential is accepted by the token server.
            RegistryError: the token server gives no usable answer.
        """
        self._sent = None
        while (challenge := self._endpoint.challenge) is not None:
            candidate = self._candidates[self._at]
            if challenge.scheme == "basic":
                self._sent = candidate.basic if candidate is not None else None
                break
            try:
                token = await self._bearer(challenge, candidate)
            except AuthError as error:
                self._endpoint.challenge = None if self._is_last else challenge
                self._next(error)
                continue
            self._sent = f"Bearer {token}"
            break
        return self._sent

    async def _bearer(self, challenge: Challenge, candidate: Credential | None) -> str:
        refused = self._last_token if self._refreshed else ""
        token = await self._book.token(
            self._endpoint, challenge, candidate, self._scopes, instead_of=refused
        )
        self._last_token = token
        return token

    async def advance(self, denied: Denied) -> None:
        """Prepare the next try after a refusal.

        Raises:
            AuthError: there is none; the error says what was tried.
        """
        candidate = self._candidates[self._at]
        if self._adopt(denied, candidate):
            return
        fixed = candidate is not None and bool(candidate.registry_token)
        if self._sent is not None and self._sent.startswith("Bearer ") and not fixed:
            scope = next((c.scope for c in denied.challenges if c.scheme == "bearer"), "")
            wider = widened(self._scopes, scope)
            if wider != self._scopes and not self._widened:
                self._scopes, self._widened = wider, True
                return
            if denied.status == UNAUTHORIZED and not self._refreshed:
                self._refreshed = True
                return
        self._next(denied.error)

    def _adopt(self, denied: Denied, candidate: Credential | None) -> bool:
        """Note a challenge that was not known; tell whether it is worth answering."""
        known = self._endpoint.challenge
        if denied.challenges:
            try:
                challenge = choose(denied.challenges)
            except AuthError as error:
                raise self._refusal(error) from None
        elif self._sent is None and denied.status == FORBIDDEN and candidate is not None:
            # Some registries hide what needs credentials instead of asking for them.
            challenge = Challenge("basic")
        else:
            return False
        same = known is not None and _server(known) == _server(challenge)
        if (same and self._sent is not None) or self._adoptions >= ADOPTIONS_MAX:
            return False
        self._adoptions += 1
        self._endpoint.challenge = challenge
        return challenge.scheme == "bearer" or candidate is not None

    @property
    def _is_last(self) -> bool:
        return len(self._tried | {self._at}) >= len(self._candidates)

    def _next(self, error: RegistryError) -> None:
        """Go on to a credential that was not tried yet."""
        self._tried.add(self._at)
        left = [at for at in range(len(self._candidates)) if at not in self._tried]
        if not left:
            raise self._refusal(error) from error
        self._at, self._refreshed, self._widened = left[0], False, False
        if self._candidates[self._at] is None:
            log.warning(
                "stored credentials were refused, going on without", registry=self._endpoint.host
            )

    def _refusal(self, error: RegistryError) -> AuthError:
        tried = describe(self._credentials, self._notes)
        return AuthError(
            f"access denied: {error.cause}; {tried}",
            status=error.status,
            code=error.code,
            remedy=error.remedy or "give credentials that may, for example a pull secret",
        )

    def accepted(self) -> None:
        """Note which credential worked, so that it is tried first next time."""
        pins = self._endpoint.pins
        if self._at:
            pins[self._pin] = self._at
            while len(pins) > PINS_MAX:
                pins.popitem(last=False)


def _server(challenge: Challenge) -> tuple[str, str, str]:
    return challenge.scheme, challenge.realm, challenge.service


async def perform(access: Access, send: Callable[[str | None], Awaitable[T | Denied]]) -> T:
    """Send a request with one credential after the other until it is not refused.

    Args:
        access: gives the credentials.
        send: sends the request with an authorization; returns what it got or the refusal.

    Raises:
        AuthError: all were refused.
        RegistryError: what ``send`` raised.
    """
    while True:
        result = await send(await access.authorization())
        if not isinstance(result, Denied):
            access.accepted()
            return result
        await access.advance(result)
