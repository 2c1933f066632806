"""What can go wrong with a registry or the package cache: one family, each error one line of text.

Every text names the subject (the reference), the cause and, where there is one, the remedy. No
error carries a secret: URLs are cut to their host, foreign text is cleaned and bounded.

Source: the OCI distribution specification ("Error Codes").
"""

from __future__ import annotations

import re
from typing import ClassVar, Self

SHOWN_BYTES = 1024  # of foreign text in a message
_SECRETS = re.compile(r"(?i)((?:bearer|basic)\s+)[\w+/=._~-]{8,}")


def printable(text: str, *, limit: int = SHOWN_BYTES) -> str:
    """Return foreign text as one bounded line without control characters or tokens.

    Args:
        text: anything a peer sent or a person typed.
        limit: greatest length of the result, in characters.
    """
    shown = (character if character.isprintable() else " " for character in text[: 4 * limit])
    cleaned = " ".join("".join(shown).split())
    cleaned = _SECRETS.sub(r"\1***", cleaned)
    return cleaned if len(cleaned) <= limit else cleaned[: limit - 1] + "…"


class RegistryError(Exception):
    """Something about an image could not be done.

    Attributes:
        retryable: the same request may succeed later, with nothing changed in a spec.
        final: the opposite: only another spec, package or flag helps.
        subject: the reference that was worked on, or the text that stands for it.
        status: HTTP status, None when there was no answer.
        code: the registry's own error code, empty when it gave none.
        retry_after: seconds that the registry asked to wait, None when it did not.
        transient: worth another try at once, within the same operation.
        attempts: greatest number of tries of that kind of failure, None for the usual number.
    """

    retryable: ClassVar[bool] = True

    def __init__(
        self,
        cause: str,
        *,
        subject: object = None,
        remedy: str = "",
        status: int | None = None,
        code: str = "",
        retry_after: float | None = None,
        transient: bool = False,
        attempts: int | None = None,
    ) -> None:
        super().__init__(cause)
        self.cause = cause
        self.subject = subject
        self.remedy = remedy
        self.status = status
        self.code = code
        self.retry_after = retry_after
        self.transient = transient
        self.attempts = attempts

    @property
    def final(self) -> bool:
        """Tell whether waiting cannot help."""
        return not self.retryable

    def about(self, subject: object) -> Self:
        """Name what was worked on, unless the error already does; return the error."""
        if self.subject is None:
            self.subject = subject
        return self

    def __str__(self) -> str:
        start = f"{printable(str(self.subject), limit=400)}: " if self.subject is not None else ""
        end = f"; {self.remedy}" if self.remedy else ""
        return f"{start}{self.cause}{end}"


class InvalidReference(RegistryError, ValueError):  # noqa: N818 - named as people say it
    """A text that names no image."""

    retryable = False


class AuthError(RegistryError):
    """The registry or its token server refused; names which credentials were tried."""


class NotFound(RegistryError):  # noqa: N818 - as above
    """The registry has no such repository, tag, manifest or blob, or hides it."""


class RateLimited(RegistryError):  # noqa: N818 - as above
    """The registry asks for a pause, longer than a request can wait, or again and again."""


class RegistryUnavailable(RegistryError):  # noqa: N818 - as above
    """No usable answer: connection, timeout, server error, or a page that is no registry's."""


class TLSError(RegistryError):
    """The peer's certificate or TLS version is not acceptable."""


class IntegrityError(RegistryError):
    """Content that is not what its digest or size promises."""


class LimitExceeded(RegistryError):  # noqa: N818 - as above
    """More bytes, entries or levels than are read; names the limit."""

    retryable = False


class UnsupportedMedia(RegistryError):  # noqa: N818 - as above
    """A well-formed thing of a kind that is no package image."""

    retryable = False


class MalformedManifest(RegistryError):  # noqa: N818 - as above
    """A manifest or index that breaks its own format."""

    retryable = False


class PolicyViolation(RegistryError):  # noqa: N818 - as above
    """A host that must not be connected to, or must not see credentials."""

    retryable = False


class StorageError(RegistryError):
    """A local file could not be written or read while an image was fetched."""


class CacheUnavailable(RegistryError):  # noqa: N818 - as above
    """The package cache cannot keep or remove something; fetching goes on without it."""
