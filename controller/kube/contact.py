"""When there is no answer: the network's errors as ``ApiError``, and one line in the log."""

from __future__ import annotations

import contextlib
import errno
import os
import ssl
from collections.abc import Iterator

import aiohttp
import structlog

from controller.kube.apierror import ApiError

_log = structlog.get_logger("controller.kube")


class Contact:
    """Says once that the API server cannot be reached, and once that it answers again."""

    def __init__(self) -> None:
        self._lost = False

    def answered(self) -> None:
        """Note an answer, whatever it says."""
        if self._lost:
            self._lost = False
            _log.info("the API server answers again")

    def failed(self, error: ApiError) -> None:
        """Note that a request had no answer."""
        if error.reason == "Unreachable" and not self._lost:
            self._lost = True
            _log.warning("the API server cannot be reached", error=str(error))


@contextlib.contextmanager
def translated(verb: str, path: str) -> Iterator[None]:
    """Turn the HTTP library's errors into ``ApiError``.

    Args:
        verb: of Kubernetes, for the message.
        path: of the request, for the message.
    """
    server = "the API server"
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
        why = getattr(error, "certificate_error", error)
        raise failure(
            verb, path, "TLS", f"{server}'s certificate is not accepted: {why}"
        ) from error
    except (ssl.SSLError, aiohttp.ServerFingerprintMismatch) as error:
        raise failure(verb, path, "TLS", f"no TLS connection to {server}: {error}") from error
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise failure(verb, path, "Unreachable", _unreachable(error)) from error
    except aiohttp.ClientHttpProxyError as error:
        text = f"the proxy refused the way to {server}: HTTP {error.status}"
        raise failure(verb, path, "Unreachable", text) from error
    except TimeoutError as error:
        text = f"{server} did not answer {verb} {path} in time"
        raise failure(verb, path, "Timeout", text) from error
    except (aiohttp.ClientError, OSError) as error:
        detail = str(error) or type(error).__name__
        text = f"the connection to {server} was lost during {verb}: {detail}"
        raise failure(verb, path, "ConnectionLost", text) from error


def _unreachable(error: aiohttp.ClientError) -> str:
    """Say where nobody answers, and why, in a few words."""
    if not isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot reach the API server: {error}"
    cause = error.os_error
    why = cause.strerror or str(cause)
    if cause.errno is not None and cause.errno in errno.errorcode:
        why = os.strerror(cause.errno).lower()
    return f"cannot reach the API server at {error.host}:{error.port}: {why}"


def failure(verb: str, path: str, reason: str, message: str) -> ApiError:
    """Return the error of a request that has no answer; see ``ApiError`` for the reasons."""
    return ApiError(status=0, reason=reason, message=message, verb=verb, path=path)
