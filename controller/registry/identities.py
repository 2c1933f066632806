"""Identities that a cloud gives to the process: asked for when a registry of that cloud is used.

What a cloud's token service gives is kept in memory until four fifths of its life are over, and is
asked for once, however many wait for it. Where there is no identity, the registry is asked without
one, since public images on the same hosts are common; a later refusal then says what was missing.

Source: Kubernetes' credential providers of the clouds.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode, urlsplit

import httpx
import structlog

from controller.registry.credentials import Credential, IdentityUnavailable
from controller.registry.failures import TLSError, printable
from controller.registry.guard import is_loopback_host
from controller.registry.outcome import LOW_LEVEL
from controller.registry.proxies import DIRECT, Proxies
from controller.registry.reference import Reference
from controller.registry.trust import tls_context

log = structlog.get_logger(__name__)

METADATA_SECONDS = 2.0
EXCHANGE_SECONDS = 10.0
ANSWER_MAX = 128 * 1024
FILE_MAX = 64 * 1024
FAILURE_SECONDS = 60.0  # for which a failed exchange is not tried again
RENEWED_AT = 0.8  # of the life of what was given
LIFE_MIN, LIFE_MAX = 60.0, 86400.0  # seconds
SCOPES_MAX = 256
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_CODE = re.compile(r"[A-Za-z0-9_.:#-]{1,80}")
_SECRET = re.compile(r"[\x21-\x7e]{1,32768}")


@dataclass(frozen=True, slots=True)
class Reply:
    """What a token service answered.

    Attributes:
        host: that was asked, for people.
        status: HTTP status.
        body: at most ``ANSWER_MAX`` bytes.
        date: what time it is there, None when it does not say.
    """

    host: str
    status: int
    body: bytes = field(repr=False)
    date: datetime | None = None

    def document(self) -> Mapping[str, Any]:
        """Return the body as a JSON object.

        Raises:
            IdentityUnavailable: an error status, or no JSON object.
        """
        self.check()
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise IdentityUnavailable(f"{self.host} gave no JSON object")
        return found

    def check(self) -> None:
        """Refuse an error status.

        Raises:
            IdentityUnavailable: the status is no success; a short error code is in the text.
        """
        if not 200 <= self.status < 300:
            code = f" ({self.error_code})" if self.error_code else ""
            raise IdentityUnavailable(f"{self.host} answered HTTP {self.status}{code}")

    @property
    def error_code(self) -> str:
        """The service's code of an error, empty when there is none; never its other words."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return ""
        code = (found.get("error") or found.get("__type")) if isinstance(found, dict) else None
        return code if isinstance(code, str) and _CODE.fullmatch(code) else ""


class IdentityClient:
    """Asks token services, each at an address that the process's own settings name.

    Args:
        user_agent: how requests name their sender.
        ca_bundle: certificates that are trusted beside the system's.
        proxies: for the services outside; metadata servers are asked directly.
        metadata_seconds: for a whole answer of a metadata server.
        exchange_seconds: for a whole answer of another service.
    """

    def __init__(
        self,
        *,
        user_agent: str = "crossdock",
        ca_bundle: Path | None = None,
        proxies: Proxies = DIRECT,
        metadata_seconds: float = METADATA_SECONDS,
        exchange_seconds: float = EXCHANGE_SECONDS,
    ) -> None:
        self._headers = {"User-Agent": user_agent, "Accept-Encoding": "identity"}
        self._ca_bundle = ca_bundle
        self._proxies = proxies
        self._metadata_seconds = metadata_seconds
        self._exchange_seconds = exchange_seconds

    async def metadata(self, url: str, headers: Mapping[str, str], *, method: str = "GET") -> Reply:
        """Ask the metadata server of the machine: directly, within two seconds, no redirects.

        Raises:
            IdentityUnavailable: there is no answer.
        """
        return await self._send(
            method, url, headers, None, seconds=self._metadata_seconds, proxies=DIRECT
        )

    async def post(
        self, url: str, body: bytes | Mapping[str, str], headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send a body, or a form, to a token service; redirects are not followed.

        Raises:
            IdentityUnavailable: there is no answer, or the URL is neither HTTPS nor on loopback.
        """
        parts = urlsplit(url)
        is_safe = parts.scheme == "https" or is_loopback_host(parts.hostname or "")
        if not is_safe or not parts.hostname:
            shown = printable(parts.hostname or "an empty host", limit=120)
            raise IdentityUnavailable(f"the token service at {shown} is not asked without TLS")
        if isinstance(body, Mapping):
            headers, body = {**FORM, **(headers or {})}, urlencode(body).encode()
        return await self._send(
            "POST", url, headers or {}, body, seconds=self._exchange_seconds, proxies=self._proxies
        )

    async def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        seconds: float,
        proxies: Proxies,
    ) -> Reply:
        parts = urlsplit(url)
        host = printable(parts.hostname or "", limit=120)
        try:
            proxy = proxies.select(parts.scheme, parts.hostname or "", parts.port)
            tls = await self._tls() if parts.scheme == "https" else False
            async with (
                asyncio.timeout(seconds),
                httpx.AsyncClient(
                    verify=tls,
                    proxy=proxy,
                    trust_env=False,
                    follow_redirects=False,
                    timeout=2 * seconds,  # never reached: the whole has a deadline
                    headers=self._headers,
                ) as client,
                client.stream(method, url, headers=dict(headers), content=body) as answer,
            ):
                return Reply(host, answer.status_code, await _body(answer, host), _date(answer))
        except TimeoutError:
            raise IdentityUnavailable(f"{host} gave no answer in {seconds:g} s") from None
        except (*LOW_LEVEL, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise IdentityUnavailable(f"cannot ask {host}: {type(error).__name__}") from None

    async def _tls(self) -> Any:
        try:
            return await asyncio.to_thread(tls_context, self._ca_bundle)
        except TLSError as error:
            raise IdentityUnavailable(error.cause) from None


async def _body(answer: httpx.Response, host: str) -> bytes:
    body = bytearray()
    async for chunk in answer.aiter_raw():
        body += chunk
        if len(body) > ANSWER_MAX:
            raise IdentityUnavailable(f"{host} answered more than {ANSWER_MAX} bytes")
    return bytes(body)


def _date(answer: httpx.Response) -> datetime | None:
    try:
        found = parsedate_to_datetime(answer.headers.get("Date", ""))
    except (ValueError, TypeError, OverflowError):
        return None
    return found if found.tzinfo is not None else None


async def read_file(path: str, what: str) -> str:
    """Return the text of a small file, for example a mounted token, without surrounding space.

    Raises:
        IdentityUnavailable: it cannot be read; the text names the file, never what it holds.
    """

    def read() -> bytes:
        with Path(path).open("rb") as file:
            return file.read(FILE_MAX + 1)

    shown = printable(path, limit=200)
    try:
        content = await asyncio.to_thread(read)
        text = content.decode("utf-8").strip()
    except OSError as error:
        raise IdentityUnavailable(f"cannot read {what} {shown}: {error.strerror}") from None
    except ValueError:
        raise IdentityUnavailable(f"{what} {shown} is no text") from None
    if not text or len(content) > FILE_MAX:
        size = "empty" if not text else f"larger than {FILE_MAX} bytes"
        raise IdentityUnavailable(f"{what} {shown} is {size}")
    return text


def secret_in(document: Mapping[str, Any], name: str, host: str) -> str:
    """Return a token of an answer.

    Raises:
        IdentityUnavailable: there is none that can stand in a header.
    """
    found = document.get(name)
    if not isinstance(found, str) or not _SECRET.fullmatch(found):
        raise IdentityUnavailable(f"{host} gave no usable {name}")
    return found


def life_of(document: Mapping[str, Any], name: str = "expires_in") -> float:
    """Return for how many seconds an answer holds; some services write the number as a text."""
    found = document.get(name)
    if isinstance(found, str) and re.fullmatch(r"[0-9]{1,9}", found, re.ASCII):
        found = int(found)
    return float(min(max(found, 0), 10**9)) if type(found) is int else LIFE_MIN


@dataclass(frozen=True, slots=True)
class Issued:
    """What a cloud gave.

    Attributes:
        credential: for its registries.
        seconds: for which it holds from now on.
    """

    credential: Credential
    seconds: float


class Issuer(Protocol):
    """How one cloud gives credentials for its registries."""

    name: str

    def scope_of(self, reference: Reference) -> str | None:
        """Return what a credential for a reference is shared by; None for other clouds' hosts."""

    async def issue(self, scope: str) -> Issued:
        """Ask the cloud for a credential.

        Raises:
            IdentityUnavailable: it gives none.
        """


@dataclass(slots=True)
class _Slot:
    """What is known for one scope; times are of the clock."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    credential: Credential | None = None
    renew_at: float = 0.0
    ends_at: float = 0.0
    failure: str = ""
    retry_at: float = 0.0


class CloudIdentity:
    """The identity that one cloud gives to the process, as a source of credentials.

    Args:
        issuer: of the cloud.
        clock: monotonic seconds.
    """

    def __init__(self, issuer: Issuer, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._issuer = issuer
        self._clock = clock
        self._slots: OrderedDict[str, _Slot] = OrderedDict()

    async def credentials_for(self, reference: Reference) -> list[Credential]:
        """Return the credential for a registry of this cloud; empty for all other hosts.

        Raises:
            IdentityUnavailable: the cloud gives none; the next minute repeats the answer.
        """
        scope = self._issuer.scope_of(reference)
        if scope is None:
            return []
        slot = self._slots.setdefault(scope, _Slot())
        self._slots.move_to_end(scope)
        while len(self._slots) > SCOPES_MAX:
            self._slots.popitem(last=False)
        if slot.credential is not None and slot.lock.locked() and self._clock() < slot.ends_at:
            return [slot.credential]  # it is being renewed, and still holds
        async with slot.lock:
            if self._clock() >= max(slot.renew_at, slot.retry_at):
                await self._renew(slot, scope)
            if slot.credential is None or self._clock() >= slot.ends_at:
                slot.credential = None
                raise IdentityUnavailable(slot.failure)
            return [slot.credential]

    async def _renew(self, slot: _Slot, scope: str) -> None:
        try:
            issued = await self._issuer.issue(scope)
        except IdentityUnavailable as error:
            slot.failure = f"{self._issuer.name}: {error.cause}"
            slot.retry_at = self._clock() + FAILURE_SECONDS
            log.warning("the cloud gave no identity", cause=slot.failure)
            return
        life = min(max(issued.seconds, LIFE_MIN), LIFE_MAX)
        slot.credential, slot.retry_at = issued.credential, 0.0
        slot.renew_at = self._clock() + RENEWED_AT * life
        slot.ends_at = self._clock() + life
