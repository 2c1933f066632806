"""Which kinds the API server serves, read in two requests for the whole server.

Guarantees:
    What has not changed is neither sent nor decoded again (ETag). ``lookup`` and ``served`` never
    wait; they answer as of the last ``refresh``.

Source: Kubernetes' aggregated discovery (``apidiscovery.k8s.io/v2``).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from http import HTTPStatus

import orjson

from controller.kube.apierror import ApiError
from controller.kube.client import KubeClient
from controller.model.objects import JsonObject, Resource

PATHS = ("/api", "/apis")

_KIND = "APIGroupDiscoveryList"
_ACCEPT = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


@dataclass(frozen=True, slots=True)
class _Document:
    """What one path answered: kinds by group and kind, each with its versions in their order."""

    etag: str = ""
    kinds: dict[tuple[str, str], dict[str, Resource]] = field(default_factory=dict)
    collections: frozenset[tuple[str, str]] = frozenset()  # group and plural


class Discovery:
    """The kinds that an API server serves.

    Args:
        client: the API server.
    """

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._documents = {path: _Document() for path in PATHS}
        self._lock = asyncio.Lock()

    async def refresh(self) -> bool:
        """Read what is served now.

        Returns:
            Whether anything differs from the last time.

        Raises:
            ApiError: the API server did not answer, or has no aggregated discovery; what was
                known stays.
        """
        async with self._lock:
            changed = [await self._read(path) for path in PATHS]
        return any(changed)

    def lookup(self, group: str, kind: str, version: str | None = None) -> Resource | None:
        """Return a served kind, None when it is not served.

        Args:
            group: API group; empty for the core group.
            kind: for example ``Deployment``.
            version: exactly this one; by default the one that the API server prefers.
        """
        for document in self._documents.values():
            versions = document.kinds.get((group, kind))
            if versions:
                return next(iter(versions.values())) if version is None else versions.get(version)
        return None

    def served(self, group: str, version: str, kind: str) -> bool:
        """Tell whether a kind is served in a version."""
        return self.lookup(group, kind, version) is not None

    def serves(self, group: str, plural: str) -> bool:
        """Tell whether a collection, as definitions name it, is served in any version."""
        return any((group, plural) in document.collections for document in self._documents.values())

    async def _read(self, path: str) -> bool:
        known = self._documents[path]
        headers = {"Accept": _ACCEPT}
        if known.etag:
            headers["If-None-Match"] = known.etag
        response = await self._client.request("GET", path, headers=headers)
        if response.status == HTTPStatus.NOT_MODIFIED:
            return False
        try:
            value = orjson.loads(response.body)
            kind = value["kind"]
            kinds = _kinds(value) if kind == _KIND else None
        except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
            kind, kinds = "malformed answer", None
        if kinds is None:
            raise ApiError(
                status=response.status,
                reason="",
                message=f"the API server answered {path} with a {kind}: aggregated "
                "discovery needs Kubernetes 1.30 or newer",
                verb="get",
                path=path,
            )
        collections = frozenset(
            (resource.group, resource.plural)
            for versions in kinds.values()
            for resource in versions.values()
        )
        document = _Document(response.headers.get("ETag", ""), kinds, collections)
        self._documents[path] = document
        return document.kinds != known.kinds


def _kinds(value: JsonObject) -> dict[tuple[str, str], dict[str, Resource]]:
    kinds: dict[tuple[str, str], dict[str, Resource]] = {}
    for group in value.get("items") or ():
        group_name = (group.get("metadata") or {}).get("name", "")
        for version in group.get("versions") or ():
            for entry in version.get("resources") or ():
                kind = (entry.get("responseKind") or {}).get("kind")
                if not kind:
                    continue
                resource = Resource(
                    group_name,
                    version["version"],
                    entry["resource"],
                    kind,
                    namespaced=entry.get("scope") == "Namespaced",
                )
                # The first resource of a kind is the kind's own; others only answer with it.
                kinds.setdefault((group_name, kind), {}).setdefault(version["version"], resource)
    return kinds
