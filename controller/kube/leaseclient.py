"""Reading and writing one Lease.

Guarantees:
    Every request has a deadline and every failure is an ``ApiError``. A Lease that exists is only
    replaced at the resource version that the caller has seen.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson

from controller.kube.apierror import ApiError
from controller.kube.client import KubeClient
from controller.kube.leadership import LEASE
from controller.kube.requests import JSON, label, object_path
from controller.model.objects import JsonObject


class LeaseClient:
    """The requests for one Lease.

    Args:
        client: the API server.
        namespace: of the Lease.
        name: of the Lease.

    Raises:
        ApiError: the names are not fit for a URL path.
    """

    def __init__(self, client: KubeClient, *, namespace: str, name: str) -> None:
        self._client = client
        self._collection = object_path(LEASE, None, namespace)
        self._path = object_path(LEASE, name, namespace)

    async def read(self, *, deadline: float) -> JsonObject | None:
        """Return the newest state of the Lease, None when there is none.

        Args:
            deadline: seconds for all tries together.

        Raises:
            ApiError: no answer, or a refusal.
        """
        try:
            answer = await self._client.request(
                "GET", self._path, deadline=deadline, label=("get", label(LEASE))
            )
        except ApiError as error:
            if error.not_found:
                return None
            raise
        return _lease(answer.body, self._path)

    async def write(self, body: JsonObject, *, deadline: float) -> JsonObject:
        """Replace the Lease at the body's resource version; make it where the body has none.

        Args:
            body: the whole object.
            deadline: seconds for all tries together.

        Returns:
            The Lease as it is stored.

        Raises:
            ApiError: ``conflict`` or ``already_exists`` when another was faster, or a failure.
        """
        exists = "resourceVersion" in body["metadata"]
        method, path = ("PUT", self._path) if exists else ("POST", self._collection)
        verb = "update" if exists else "create"
        answer = await self._client.request(
            method,
            path,
            headers={"Content-Type": JSON},
            body=orjson.dumps(body),
            deadline=deadline,
            label=(verb, label(LEASE)),
        )
        return _lease(answer.body, path)


def _lease(body: bytes, path: str) -> JsonObject:
    """Decode an answer.

    Raises:
        ApiError: it is no object.
    """
    try:
        value: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        value = None
    if isinstance(value, dict) and isinstance(value.get("metadata"), dict):
        return value
    raise ApiError(
        status=HTTPStatus.BAD_GATEWAY,
        reason="",
        message=f"the answer to {path} is no Lease",
        path=path,
    )
