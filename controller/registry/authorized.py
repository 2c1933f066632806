"""Requests with credentials: asks, proves who asks when told to, tries again, names what failed.

Source: the OCI distribution specification ("Error Codes"); RFC 9110 (401, 403, 429, 503).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

from controller.registry.challenge import parse_challenges, scopes_for
from controller.registry.credentials import Keychain
from controller.registry.endpoint import Endpoint
from controller.registry.failures import RegistryError
from controller.registry.outcome import PAUSES, error_of, now, parse_retry_after
from controller.registry.reference import Reference
from controller.registry.tokens import (
    FORBIDDEN,
    UNAUTHORIZED,
    Access,
    Denied,
    TokenBook,
    perform,
)
from controller.registry.transport import Transport
from controller.registry.wire import Answer, Ask

T = TypeVar("T")

OK = frozenset({200})
PULL = ("pull",)
PUSH = ("pull", "push")


class Authorized:
    """Sends the requests of a client.

    Args:
        transport: connections and limits.
        tokens: of all registries.
    """

    def __init__(self, transport: Transport, tokens: TokenBook) -> None:
        self._transport = transport
        self._tokens = tokens

    async def call(
        self,
        reference: Reference,
        ask: Ask,
        keychain: Keychain,
        consume: Callable[[Answer], Awaitable[T]],
        *,
        actions: tuple[str, ...] = PULL,
        accept: Collection[int] = OK,
        seconds: float | None = None,
        again: bool = True,
    ) -> T:
        """Send a request and hand over the answer when its status is the expected one.

        Args:
            reference: names the registry and repository.
            ask: the request.
            keychain: credentials to try when the registry asks for some.
            consume: reads the answer.
            actions: what a token must allow.
            accept: statuses that are handed over; all others are errors.
            seconds: deadline of one try; None for the usual one.
            again: try again after transient failures.

        Raises:
            RegistryError: it failed; the error names the reference.
        """
        endpoint = await self._transport.endpoint(reference.host)

        async def handle(answer: Answer) -> T | Denied:
            if answer.status in accept:
                return await consume(answer)
            return await self._denied(endpoint, answer)

        async def send(authorization: str | None) -> T | Denied:
            return await self._transport.exchange(
                endpoint, ask, handle, authorization=authorization, seconds=seconds
            )

        async def once() -> T:
            scopes = scopes_for(reference.repository, *actions) + ask.scopes
            access = Access(self._tokens, endpoint, scopes, found.credentials, found.notes)
            return await perform(access, send)

        try:
            found = await keychain.look_up(reference)
            return await (self._transport.retrying(once) if again else once())
        except RegistryError as error:
            error.about(reference)
            raise

    async def _denied(self, endpoint: Endpoint, answer: Answer) -> Denied:
        """Return a refusal that credentials may mend.

        Raises:
            RegistryError: for every other answer; one of another host than the registry's too,
                which must not see credentials.
        """
        retry_after = parse_retry_after(answer.header("Retry-After"), now=now())
        error = error_of(
            answer.status,
            host=answer.url.host if answer.foreign else endpoint.host,
            body=await answer.error_body(self._transport.limits.error_bytes),
            content_type=answer.header("Content-Type"),
            retry_after=retry_after,
        )
        if retry_after is not None and answer.status in PAUSES:
            self._transport.block(endpoint, answer.url, retry_after)
        if answer.foreign:
            raise error
        if answer.status not in {UNAUTHORIZED, FORBIDDEN}:
            raise error
        headers = answer.response.headers.get_list("WWW-Authenticate")
        return Denied(answer.status, parse_challenges(headers), error)
