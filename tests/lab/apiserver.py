"""API server: plain requests of an administrator, for setting a lab up and for looking at it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.lab.errors import LabError

SECONDS = 30.0
JSON = "application/json"
APPLY = "application/apply-patch+yaml"


class ApiServer:
    """The API server of a kubeconfig whose user has a bearer token; it blocks while it waits."""

    def __init__(self, kubeconfig: Path) -> None:
        try:
            config = yaml.safe_load(kubeconfig.read_text())
            context = _named(config["contexts"], config["current-context"])["context"]
            cluster = _named(config["clusters"], context["cluster"])["cluster"]
            user = _named(config["users"], context["user"])["user"]
            self._token: str = user["token"]
            authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
            server = urlsplit(cluster["server"])
        except (OSError, yaml.YAMLError, KeyError, TypeError, StopIteration) as error:
            raise LabError(
                f"{kubeconfig} cannot be used ({type(error).__name__}: {error}): it needs "
                "a current context with a server, certificate-authority-data and a token"
            ) from error
        self._address = (str(server.hostname), server.port or 443)
        self._tls = ssl.create_default_context(cadata=authority)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        *,
        content_type: str = JSON,
        as_user: str | None = None,
    ) -> tuple[int, Any]:
        """Send one request.

        Args:
            method: HTTP method.
            path: path and query.
            body: bytes, or an object that is sent as JSON.
            content_type: of the body.
            as_user: user to act as, with that one's rights.

        Returns:
            The status and the answer: the JSON value, or text where it is none.

        Raises:
            LabError: the server does not answer.
        """
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content_type}
        if as_user is not None:
            headers["Impersonate-User"] = as_user
        try:
            status, answer = self._send(method, path, content, headers)
        except (OSError, http.client.HTTPException) as error:
            raise LabError(f"{method} {path}: the API server does not answer: {error}") from error
        try:
            return status, json.loads(answer)
        except ValueError:
            return status, answer.decode(errors="replace")

    def expect(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        *,
        content_type: str = JSON,
    ) -> Any:
        """Send one request that must succeed.

        Returns:
            The answer.

        Raises:
            LabError: the server refuses it or does not answer.
        """
        status, answer = self.request(method, path, body, content_type=content_type)
        if status >= 400:
            reason = answer.get("message", answer) if isinstance(answer, dict) else answer
            raise LabError(f"{method} {path}: {status}: {reason}")
        return answer

    def _send(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        host, port = self._address
        connection = http.client.HTTPSConnection(host, port, timeout=SECONDS, context=self._tls)
        with contextlib.closing(connection):
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)
