"""What the API server refused, and why.

Source: the Kubernetes API conventions ("Response Status Kind").
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson

TEXT_MAX = 4096  # characters of a message

_TEMPORARY = frozenset({408, 429, 500, 502, 503, 504})


class ApiError(Exception):
    """The API server refused a request, or did not answer it.

    Attributes:
        status: the HTTP status; 0 when there was no answer.
        reason: Kubernetes' reason (``NotFound``); without an answer ``Unreachable`` (nothing was
            sent), ``ConnectionLost``, ``Timeout``, ``TLS`` or ``TooLarge``.
        message: what is wrong, as the API server says it.
        causes: what is wrong field by field, ``<field>: <message>``.
        cause_reasons: Kubernetes' reasons of the causes, for example ``FieldValueInvalid``.
        retry_after: seconds that the API server asks to wait.
        verb: of Kubernetes, for example ``apply``.
        path: the request's URL path.
    """

    def __init__(
        self,
        *,
        status: int,
        reason: str,
        message: str,
        causes: tuple[str, ...] = (),
        cause_reasons: frozenset[str] = frozenset(),
        retry_after: float | None = None,
        verb: str = "",
        path: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = causes
        self.cause_reasons = cause_reasons
        self.retry_after = retry_after
        self.verb = verb
        self.path = path

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message

    @property
    def remedy(self) -> str:
        """What a person can do; empty when the message says it all."""
        if self.status == 0:
            return _REMEDIES.get(self.reason, "")
        if self.status == HTTPStatus.UNAUTHORIZED:
            return "log in again, or give other credentials"
        return ""

    @property
    def not_found(self) -> bool:
        """Whether the object, or the whole kind, does not exist."""
        return self.status == HTTPStatus.NOT_FOUND

    @property
    def conflict(self) -> bool:
        """Whether somebody else changed the object in the meantime."""
        return self.status == HTTPStatus.CONFLICT and self.reason == "Conflict"

    @property
    def already_exists(self) -> bool:
        """Whether an object of that name exists."""
        return self.status == HTTPStatus.CONFLICT and self.reason == "AlreadyExists"

    @property
    def expired(self) -> bool:
        """Whether the resource version or the continue token is too old."""
        return self.status == HTTPStatus.GONE

    @property
    def too_large_version(self) -> bool:
        """Whether the API server has not seen the resource version yet."""
        if "ResourceVersionTooLarge" in self.cause_reasons:
            return True
        return self.status == HTTPStatus.GATEWAY_TIMEOUT and (
            "Too large resource version" in self.message
            or any("Too large resource version" in cause for cause in self.causes)
        )

    @property
    def invalid(self) -> bool:
        """Whether the object itself is wrong, so that sending it again cannot help."""
        return self.status in {400, 422}

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later without anybody's doing."""
        if self.status == 0:
            return self.reason in {"Unreachable", "ConnectionLost", "Timeout"}
        return self.status in _TEMPORARY


_REMEDIES = {
    "Unreachable": "check that the cluster runs and that the kubeconfig names its address",
    "TLS": "check the certificate authority and the server's address in the kubeconfig",
}


def api_error(
    *, status: int, headers: Mapping[str, str], body: bytes, verb: str, path: str
) -> ApiError:
    """Read an answer of status 400 and above, a ``Status`` object or anything else."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    if isinstance(value, dict) and value.get("kind") == "Status":
        return status_error(value, status=status, headers=headers, verb=verb, path=path)
    text = body[:200].decode(errors="replace").strip().partition("\n")[0]
    shown = f": {text}" if text and not text.startswith("<") else ""
    return ApiError(
        status=status,
        reason="",
        message=f"the API server answered {verb} {path} with HTTP {status}{shown}",
        retry_after=_seconds(headers.get("Retry-After")),
        verb=verb,
        path=path,
    )


def status_error(
    value: Mapping[str, Any],
    *,
    status: int = 0,
    headers: Mapping[str, str] | None = None,
    verb: str,
    path: str,
) -> ApiError:
    """Return the error that a ``Status`` object describes, of an answer or from a watch."""
    found = value.get("details")
    details = found if isinstance(found, dict) else {}
    listed = details.get("causes")
    each = [c for c in listed if isinstance(c, dict)] if isinstance(listed, list) else []
    causes = tuple(
        ": ".join(str(c[name]) for name in ("field", "message") if c.get(name)) for c in each
    )
    reasons = frozenset(str(c.get("reason", "")) for c in each)
    after = _seconds((headers or {}).get("Retry-After"))
    told = value.get("code")
    code = status or (told if isinstance(told, int) and told else 500)
    message = str(value.get("message") or value.get("reason") or f"HTTP {code}")
    return ApiError(
        status=code,
        reason=str(value.get("reason") or ""),
        message=message if len(message) <= TEXT_MAX else message[:TEXT_MAX] + "…",
        causes=causes,
        cause_reasons=reasons,
        retry_after=after if after is not None else _seconds(details.get("retryAfterSeconds")),
        verb=verb,
        path=path,
    )


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < float("inf") else None
