"""The API server's verbs on raw objects: read, list, watch, write.

Guarantees:
    Objects go in and come out as the API server's JSON. Every request has a deadline; failures are
    ``ApiError``. A name that would change a request's path is refused before it is sent.
Assumptions:
    One client per process and identity; it is used in the event loop that opened it.

Source: the Kubernetes API concepts (server-side apply, patch types, lists in chunks, metadata-only
reads, dry run).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Self

import orjson

from controller.kube import requests
from controller.kube.apierror import ApiError
from controller.kube.connection import ConfigError, find_connection, open_session
from controller.kube.contact import Contact
from controller.kube.requests import Selection, object_path
from controller.kube.serviceaccount import ServiceAccountCredentials
from controller.kube.stream import Splitter
from controller.kube.transport import Guard, Lines, Observe, Query, Request, Response, Transport
from controller.model.objects import JsonObject, Resource

__all__ = ["ApiError", "ConfigError", "KubeClient", "Response"]

PAGE_FULL = 100  # objects a page, so that decoding one does not hold up the event loop
PAGE_METADATA = 500


class KubeClient:
    """Requests to one API server as one identity.

    Args:
        transport: the exchanges.
        server: URL of the API server.
        namespace: of the kubeconfig's context or of the pod.

    Attributes:
        server: URL of the API server.
        namespace: of the kubeconfig's context or of the pod.
    """

    def __init__(self, transport: Transport, *, server: str, namespace: str) -> None:
        self._transport = transport
        self.server = server
        self.namespace = namespace

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls,
        *,
        kubeconfig: Path | None = None,
        context: str | None = None,
        as_service_account: tuple[str, str] | None = None,
        user_agent: str,
        observe: Observe | None = None,
        contact: Contact | None = None,
    ) -> AsyncIterator[Self]:
        """Open a client; no request is sent but for a ServiceAccount's token.

        The API server is that of ``kubeconfig``, else of $KUBECONFIG, else the pod's own, else of
        ~/.kube/config.

        Args:
            kubeconfig: a file that must be used.
            context: a context of the kubeconfig; the current one by default.
            as_service_account: (namespace, name) to work as: the user's credentials ask for its
                token and are used for nothing else.
            user_agent: how requests name their sender.
            observe: called after each try with verb, resource, HTTP status (0: none), seconds.
            contact: says when the API server cannot be reached, and when it can again.

        Raises:
            ConfigError: there is no usable way to an API server.
            ApiError: the API server gives no token for the ServiceAccount.
        """
        found = await find_connection(kubeconfig=kubeconfig, context=context)
        async with contextlib.AsyncExitStack() as stack:
            session = await stack.enter_async_context(
                open_session(found.configuration, origin=found.origin, user_agent=user_agent)
            )
            own = contact if as_service_account is None else None
            transport = Transport(session, found.credentials, observe=observe, contact=own)
            if as_service_account is not None:
                # A session of its own: a client certificate of the user would identify the
                # user, whatever token is sent beside it.
                other = await stack.enter_async_context(
                    open_session(found.anonymous(), origin=found.origin, user_agent=user_agent)
                )
                namespace, name = as_service_account
                credentials = ServiceAccountCredentials(transport, namespace=namespace, name=name)
                await stack.enter_async_context(credentials.kept())
                transport = Transport(other, credentials, observe=observe, contact=contact)
            yield cls(transport, server=found.server, namespace=found.namespace)

    def guarded(self, guard: Guard) -> Self:
        """Return a client of the same server and identity whose writes ask a guard first.

        Args:
            guard: called right before each request that changes something, dry runs included;
                raises ``ApiError`` where it may not be sent any more.
        """
        transport = self._transport.guarded(guard)
        return type(self)(transport, server=self.server, namespace=self.namespace)

    async def get(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        metadata_only: bool = False,
    ) -> JsonObject:
        """Read an object.

        Raises:
            ApiError: it does not exist (``not_found``), or another refusal.
        """
        request = requests.read(resource, name, namespace=namespace, metadata_only=metadata_only)
        return await self._json(request)

    async def list(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        metadata_only: bool = False,
    ) -> JsonObject:
        """Read all objects of a kind, page by page, as one list.

        Returns:
            The list object: ``items`` and the ``metadata`` of the last page.

        Raises:
            ApiError: a page was refused.
        """
        items: list[JsonObject] = []
        token: str | None = None
        while True:
            page = await self.list_page(
                resource,
                namespace=namespace,
                label_selector=label_selector,
                field_selector=field_selector,
                metadata_only=metadata_only,
                limit=PAGE_METADATA if metadata_only else PAGE_FULL,
                continue_token=token,
            )
            items += page.get("items") or []
            token = page["metadata"].get("continue")
            if not token:
                return {**page, "items": items}
            await asyncio.sleep(0)

    async def list_page(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        metadata_only: bool = False,
        resource_version: str | None = None,
        limit: int | None = None,
        continue_token: str | None = None,
    ) -> JsonObject:
        """Read one page of a list.

        Args:
            resource: the kind.
            namespace: None for all.
            label_selector: Kubernetes' label selector.
            field_selector: Kubernetes' field selector.
            metadata_only: items hold nothing but their metadata.
            resource_version: None for the newest state; only without a continue token.
            limit: most items of the page; None for all.
            continue_token: of the page before.

        Raises:
            ApiError: ``expired`` when the continue token is too old, or another refusal.
        """
        selection = Selection(resource, namespace, label_selector, field_selector, metadata_only)
        request = requests.list_page(
            selection,
            resource_version=resource_version,
            limit=limit,
            continue_token=continue_token,
        )
        return await self._json(request)

    def stream(
        self, request: Request, splitter: Splitter | None = None
    ) -> AbstractAsyncContextManager[Lines]:
        """Open an answer that is cut into pieces as it arrives; the context ends the connection.

        Args:
            request: of a watch, or of a list.
            splitter: cuts the answer; into lines by default.

        Raises:
            ApiError: from the context's start for a status, from the iterator for lost
                connections and 130 s without a byte.
        """
        return self._transport.stream(request, splitter)

    async def create(
        self,
        resource: Resource,
        body: JsonObject | bytes,
        *,
        namespace: str | None = None,
        dry_run: bool = False,
    ) -> JsonObject:
        """Create an object.

        It is sent again when the connection was lost, so an object that this very call made may
        be answered with ``already_exists``.

        Raises:
            ApiError: ``already_exists``, or another refusal.
        """
        request = requests.create(resource, body, namespace=namespace, dry_run=dry_run)
        return await self._json(request)

    async def apply(
        self,
        resource: Resource,
        name: str,
        body: JsonObject | bytes,
        *,
        field_manager: str,
        force: bool = True,
        namespace: str | None = None,
        subresource: str | None = None,
        dry_run: bool = False,
    ) -> JsonObject:
        """Create or change an object by server-side apply.

        Args:
            resource: the kind.
            name: the object's name.
            body: all fields that the manager wants; as bytes, JSON.
            field_manager: who owns the fields.
            force: take fields from other managers.
            namespace: of a namespaced kind.
            subresource: for example ``status``.
            dry_run: answer as if it were done.

        Raises:
            ApiError: ``conflict`` (another owner without ``force``, or the body's resource
                version is not the newest), ``invalid``, or another refusal.
        """
        request = requests.apply(
            object_path(resource, name, namespace, subresource),
            resource,
            body,
            field_manager=field_manager,
            force=force,
            dry_run=dry_run,
        )
        return await self._json(request)

    async def merge_patch(
        self,
        resource: Resource,
        name: str,
        patch: JsonObject,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> JsonObject:
        """Change an object by a JSON merge patch (RFC 7386).

        Raises:
            ApiError: a refusal; not sent again when its effect is unknown.
        """
        path = object_path(resource, name, namespace, subresource)
        return await self._json(requests.merge_patch(path, resource, patch))

    async def json_patch(
        self,
        resource: Resource,
        name: str,
        operations: Sequence[JsonObject],
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> JsonObject:
        """Change an object by a JSON patch (RFC 6902).

        Raises:
            ApiError: ``invalid`` when a ``test`` failed, or another refusal. A patch with a
                ``test`` is sent again when the connection was lost.
        """
        path = object_path(resource, name, namespace, subresource)
        return await self._json(requests.json_patch(path, resource, operations))

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str | None = None,
        propagation: str = "Background",
    ) -> None:
        """Delete an object; one that does not exist is deleted.

        Args:
            resource: the kind.
            name: the object's name.
            namespace: of a namespaced kind.
            uid: delete only this very object.
            propagation: ``Background``, ``Foreground`` or ``Orphan``.

        Raises:
            ApiError: ``conflict`` when an object of another uid has the name, or a refusal.
        """
        path = object_path(resource, name, namespace)
        request = requests.delete(path, resource, uid=uid, propagation=propagation)
        try:
            await self._transport.request(request)
        except ApiError as error:
            if not error.not_found:
                raise

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        deadline: float = 30,
        label: tuple[str, str] | None = None,
    ) -> Response:
        """Send any request.

        Args:
            method: HTTP method; all but POST and PATCH are sent again after a lost connection.
            path: URL path.
            query: pairs of the query.
            headers: besides those of the client.
            body: sent as it is.
            deadline: seconds for all tries.
            label: verb and resource in the metrics; by default method and first part of the path.

        Raises:
            ApiError: an answer of status 400 and above, or none.
        """
        request = requests.raw(method, path, query=query, headers=headers, body=body, label=label)
        return await self._transport.request(request, deadline=deadline)

    async def _json(self, request: Request) -> JsonObject:
        response = await self._transport.request(request)
        try:
            value: JsonObject = orjson.loads(response.body)
            return value
        except orjson.JSONDecodeError:
            raise ApiError(
                status=response.status,
                reason="",
                message=f"the answer to {request.label[0]} {request.path} is no JSON: something "
                "between here and the API server answers in its place",
                verb=request.label[0],
                path=request.path,
            ) from None
