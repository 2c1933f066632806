"""A plain client of the lab's API server: what the tests ask is what the server says."""

from __future__ import annotations

import ssl
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

Object = dict[str, Any]

CLUSTER_SCOPED = frozenset(
    {
        "ClusterRole",
        "ClusterRoleBinding",
        "Composition",
        "CompositeResourceDefinition",
        "Configuration",
        "ConfigurationRevision",
        "CustomResourceDefinition",
        "DeploymentRuntimeConfig",
        "Function",
        "FunctionRevision",
        "ImageConfig",
        "Lock",
        "Namespace",
        "Provider",
        "ProviderRevision",
        "SelfSubjectAccessReview",
    }
)
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


@dataclass(frozen=True)
class Answer:
    """What the API server answered."""

    code: int
    body: Object

    @property
    def message(self) -> str:
        """The reason of a refusal."""
        return str(self.body.get("message", ""))

    def accepted(self) -> Object:
        """Return the object; a refusal fails the test with the server's words."""
        assert self.code in {200, 201}, f"{self.code}: {self.message}"
        return self.body


class Api:
    """One user's view of the API server."""

    def __init__(self, server: str, token: str, authority: Path) -> None:
        self.server, self.token, self.authority = server, token, authority
        self.http = httpx.Client(
            base_url=server,
            headers={"Authorization": f"Bearer {token}"},
            verify=ssl.create_default_context(cafile=str(authority)),
            timeout=30,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def as_token(self, token: str) -> Api:
        """Return the view of another user."""
        return Api(self.server, token, self.authority)

    def request(self, method: str, path: str, *, body: Any = None, **options: Any) -> Answer:
        """Send one request with a JSON body."""
        response = self.http.request(method, path, json=body, **options)
        return Answer(response.status_code, response.json())

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path, **options)

    def create(
        self, obj: Object, *, namespace: str = "", keep: bool = False, accept: str = ""
    ) -> Answer:
        """Create an object as `kubectl create` does: unknown fields are refused.

        Args:
            obj: the object.
            namespace: for kinds that have one, where the object names none.
            keep: really; else the server says what it would store, defaults and all.
            accept: the media type of the answer.
        """
        query = {"fieldValidation": "Strict"} | ({} if keep else {"dryRun": "All"})
        headers = {"Accept": accept} if accept else {}
        path = collection(obj, namespace)
        return self.request("POST", path, body=obj, params=query, headers=headers)

    def apply(self, obj: Object, *, namespace: str = "", subresource: str = "") -> Answer:
        """Apply an object on the server's side."""
        path = f"{collection(obj, namespace)}/{obj['metadata']['name']}{subresource}"
        return self.request(
            "PATCH",
            path,
            body=obj,
            params={"fieldManager": "crossdock-tests", "force": "true"},
            headers={"Content-Type": "application/apply-patch+yaml"},
        )

    def delete(self, obj: Object, *, namespace: str = "") -> Answer:
        return self.request("DELETE", f"{collection(obj, namespace)}/{obj['metadata']['name']}")


def collection(obj: Object, namespace: str = "") -> str:
    """Return the URL path of an object's collection."""
    api_version, kind = obj["apiVersion"], obj["kind"]
    root = f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
    plural = kind.lower() + "s"
    if kind in CLUSTER_SCOPED:
        return f"{root}/{plural}"
    return f"{root}/namespaces/{obj['metadata'].get('namespace', namespace)}/{plural}"


def kubernetes_object(api_version: str, kind: str, **fields: Any) -> dict[str, Any]:
    """Return an object with a name of its own."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, **fields}
