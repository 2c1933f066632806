"""Tokens of a ServiceAccount, asked from the API server and renewed before they expire.

Guarantees:
    Only the token requests carry the caller's own credentials.

Source: the Kubernetes TokenRequest API (``authentication.k8s.io/v1``).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import orjson
import structlog

from controller.kube.apierror import ApiError
from controller.kube.transport import Request, Transport
from controller.model.objects import SERVICE_ACCOUNT

LIFETIME = 3600  # seconds that are asked for; the API server may give another time
RENEW_AT = 0.8  # part of the lifetime after which a new token is asked for
RETRY_AFTER = 10.0  # seconds after a failed renewal

_log = structlog.get_logger("controller.kube")


class ServiceAccountCredentials:
    """Who requests come from: a ServiceAccount, by a token that the API server gave.

    Args:
        transport: requests as the caller, who may create ``serviceaccounts/token``.
        namespace: of the ServiceAccount.
        name: of the ServiceAccount.
    """

    def __init__(self, transport: Transport, *, namespace: str, name: str) -> None:
        self._transport = transport
        self._path = SERVICE_ACCOUNT.path(name, namespace=namespace, subresource="token")
        self._header: str | None = None
        self._lifetime = 0.0
        self._lock = asyncio.Lock()

    async def authorization(self) -> str | None:
        """Return the Authorization header's value; None before the context of ``kept``."""
        return self._header

    async def renew(self, refused: str | None) -> bool:
        """Ask for a new token after a refusal; concurrent callers share one request.

        Raises:
            ApiError: the API server gives none.
        """
        async with self._lock:
            if self._header == refused:
                await self._ask()
        return self._header != refused

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Hold a token that is renewed before it expires for as long as the context lasts.

        Raises:
            ApiError: the API server gives none: no such account, or not permitted.
        """
        await self._ask()
        failed: BaseException | None = None
        async with asyncio.TaskGroup() as tasks:
            keeper = tasks.create_task(self._keep(), name=f"token {self._path}")
            try:
                yield
            except BaseException as error:  # noqa: BLE001 - raised again outside of the group,
                failed = error  # which would wrap it
            finally:
                keeper.cancel()
        if failed is not None:
            raise failed

    async def _ask(self) -> None:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": LIFETIME},
        }
        request = Request(
            method="POST",
            path=self._path,
            label=("create", "serviceaccounts"),
            headers={"Content-Type": "application/json"},
            body=orjson.dumps(body),
        )
        answer = orjson.loads((await self._transport.request(request)).body)
        self._header = "Bearer " + answer["status"]["token"]
        # Counted from now on our own clock, which may differ from the server's.
        self._lifetime = float(answer["spec"].get("expirationSeconds") or LIFETIME)

    async def _keep(self) -> None:
        wait = self._lifetime * RENEW_AT
        while True:
            await asyncio.sleep(wait)
            try:
                async with self._lock:
                    await self._ask()
                wait = self._lifetime * RENEW_AT
            except (ApiError, KeyError, TypeError, ValueError) as error:
                _log.warning("service account token not renewed", error=str(error))
                wait = RETRY_AFTER
