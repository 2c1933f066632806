"""What a failure means: which error it is, and whether and when it is tried again. Pure.

Source: RFC 9110 (Retry-After); the OCI distribution specification ("Error Codes"); OpenSSL's
reasons for failed handshakes.
"""

from __future__ import annotations

import email.utils
import json
import re
import socket
import ssl
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import anyio
import httpcore

from controller.registry.failures import (
    AuthError,
    NotFound,
    RateLimited,
    RegistryError,
    RegistryUnavailable,
    TLSError,
    printable,
)
from controller.registry.guard import is_loopback_host
from controller.registry.reference import split_host_port
from controller.registry.wire import Limits

LOW_LEVEL = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.ProxyError,
    httpcore.UnsupportedProtocol,
    httpcore.ConnectionNotAvailable,
    OSError,
    UnicodeError,
)
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 499, 522})
_RETRIED_CODES = frozenset({"TOOMANYREQUESTS", "UNAVAILABLE"})
_NO_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"}
)
_TITLE = re.compile(rb"<title[^>]*>([^<]{1,200})</title>", re.IGNORECASE)
SERVER_ERROR = 500
MISSING = frozenset({404, 410})
PAUSES = frozenset({429, 503})  # whose Retry-After is obeyed by all


def parse_retry_after(text: str, *, now: float) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for.

    Args:
        text: seconds or an HTTP date; anything else is ignored.
        now: wall-clock time, in seconds since the epoch.

    Source: RFC 9110 section 10.2.3.
    """
    text = text.strip()
    if text.isascii() and text.isdecimal() and len(text) <= 9:
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, moment.timestamp() - now) if text[:1].isalpha() else None


def next_delay(error: RegistryError, attempt: int, limits: Limits, jitter: float) -> float | None:
    """Return the seconds until the next try, None when there is none.

    Args:
        error: of the try that failed.
        attempt: how many tries there were.
        limits: attempts, backoff, longest wait in place.
        jitter: between 0 and 1.
    """
    if not error.transient or attempt >= min(error.attempts or limits.attempts, limits.attempts):
        return None
    if error.retry_after is not None:
        return error.retry_after if error.retry_after <= limits.wait_seconds else None
    backoff = min(limits.backoff_seconds_max, limits.backoff_seconds * 3.0 ** (attempt - 1))
    return backoff * (0.5 + jitter / 2)


def error_of(
    status: int, *, host: str, body: bytes, content_type: str = "", retry_after: float | None = None
) -> RegistryError:
    """Return the error that an answer with a status of 300 or more means.

    Args:
        status: HTTP status.
        host: that answered.
        body: the first bytes of the answer.
        content_type: of the body.
        retry_after: seconds that the answer asked to wait.
    """
    code, message = read_error(body, content_type)
    said = f": {code}: {message}" if code else f": {message}" if message else ""
    cause = f"{host} answered HTTP {status}{said}"
    if status == 429 or code == "TOOMANYREQUESTS":
        return RateLimited(
            cause,
            status=status,
            code=code,
            retry_after=retry_after,
            transient=True,
            remedy="use credentials with a higher limit, or a mirror",
        )
    if status in {401, 403}:
        return AuthError(cause, status=status, code=code)
    if status in MISSING:
        remedy = "check the name, and that the credentials may read it"
        return NotFound(f"not found: {cause}", status=status, code=code, remedy=remedy)
    transient = status in RETRIED or code in _RETRIED_CODES
    if status >= SERVER_ERROR or transient:
        return RegistryUnavailable(
            cause, status=status, code=code, retry_after=retry_after, transient=transient
        )
    return RegistryError(cause, status=status, code=code)


def read_error(body: bytes, content_type: str = "") -> tuple[str, str]:
    """Return the code and the text of an error body: JSON, a web page's title, or plain text."""
    try:
        first = json.loads(body)["errors"][0]
        code, message = first.get("code") or "", first.get("message") or ""
        detail = first.get("detail") or ""
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        if "html" in content_type.lower() or body.lstrip()[:1] == b"<":
            title = _TITLE.search(body)
            return "", printable(title[1].decode("utf-8", "replace")) if title else "a web page"
        return "", printable(body.decode("utf-8", "replace"), limit=300)
    texts = [str(message)] + ([detail] if isinstance(detail, str) else [])
    return printable(str(code), limit=60), printable(": ".join(filter(None, texts)), limit=500)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Return an error and what caused it, outermost first; "wait for more" is no cause."""
    pending, seen = [error], set[int]()
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if not isinstance(current, ssl.SSLWantReadError | ssl.SSLWantWriteError):
            yield current
        pending += [current.__context__, current.__cause__]
        if isinstance(current, BaseExceptionGroup):
            pending += current.exceptions


def translate(error: Exception, *, host: str) -> RegistryError:
    """Return the error of this room for one of the network library.

    Args:
        error: what was raised while connecting, sending or reading.
        host: that was spoken to.
    """
    causes = list(chain(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = printable(cause.verify_message or str(cause), limit=300)
            return TLSError(
                f"the certificate of {host} is not trusted: {why}",
                remedy="add its authority with --ca-bundle-path",
            )
        if isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS:
            return TLSError(
                f"{host} does not speak TLS",
                remedy=f"plain HTTP is used for --insecure-registry={host} only",
            )
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError):
            why = printable(cause.reason or str(cause), limit=200)
            return TLSError(f"no TLS connection to {host}: {why}")
        if isinstance(cause, socket.gaierror):
            why = printable(cause.strerror or str(cause), limit=200)
            return RegistryUnavailable(
                f"the name {host} cannot be resolved: {why}", transient=True, attempts=2
            )
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return RegistryUnavailable(f"{host} refuses connections", transient=True)
    if isinstance(error, httpcore.TimeoutException):
        what = _TIMEOUTS.get(type(error), "did not go on in time")
        return RegistryUnavailable(f"{host} {what}", transient=True)
    if isinstance(error, UnicodeError | httpcore.UnsupportedProtocol):
        return RegistryUnavailable(f"{printable(host, limit=280)} is no usable host")
    why = printable(str(error), limit=200) or type(causes[-1]).__name__
    return RegistryUnavailable(f"the connection to {host} broke: {why}", transient=True)


_TIMEOUTS = {
    httpcore.ConnectTimeout: "does not accept connections in time",
    httpcore.ReadTimeout: "did not answer in time",
    httpcore.WriteTimeout: "did not take the request in time",
    httpcore.PoolTimeout: "is busy",
}


def shown_proxy(proxy: str) -> str:
    """Return the host and port of a proxy's URL, without its credentials."""
    return printable(urlsplit(proxy).netloc.rpartition("@")[2], limit=280)


def proxy_refusal(host: str, proxy: str, why: str) -> RegistryUnavailable:
    """Return the error of a proxy that does not let a request pass.

    Args:
        host: that was to be reached.
        proxy: URL of the proxy.
        why: in the proxy's words.
    """
    return RegistryUnavailable(
        f"the proxy {shown_proxy(proxy)} refused the connection to {host}: "
        f"{printable(why, limit=200)}",
        remedy="check HTTPS_PROXY, HTTP_PROXY and NO_PROXY, and the credentials in them",
    )


def says_no_tls(error: RegistryError, *, host: str) -> bool:
    """Tell whether a failed HTTPS request means that a host speaks plain HTTP.

    Nothing listens, or what answers is not TLS. A certificate that is not trusted never means it.

    Args:
        error: of the HTTPS request.
        host: host and port that were asked. A handshake that just breaks off counts on loopback
            only: elsewhere somebody on the way may have broken it.
    """
    causes = list(chain(error))
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return False
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return True
    if any(isinstance(cause, ssl.SSLError) and cause.reason in _NO_TLS for cause in causes):
        return True
    broke_off = any(isinstance(cause, httpcore.ConnectError) for cause in causes) and any(
        isinstance(cause, anyio.EndOfStream | anyio.BrokenResourceError | ConnectionError)
        for cause in causes
    )
    return broke_off and is_loopback_host(split_host_port(host)[0])


def broke_protocol(error: RegistryError) -> bool:
    """Tell whether a failure was an answer that is no HTTP."""
    return any(isinstance(cause, httpcore.ProtocolError) for cause in chain(error))


def worth_a_get(error: RegistryError) -> bool:
    """Tell whether a GET may succeed or say more where a HEAD failed."""
    if error.status is None:
        return broke_protocol(error)
    return not (isinstance(error, AuthError) and error.status == 401)


def now() -> float:
    """Return the wall-clock time in seconds since the epoch, for HTTP dates alone."""
    return time.time()
