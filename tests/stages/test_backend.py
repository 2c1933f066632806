"""Where the image backend takes packages from, and with whose credentials."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any, cast

from controller.flow.commit import View
from controller.kube.client import ApiError, KubeClient
from controller.kube.informer import Store
from controller.model.objects import ANNOTATION_DIGEST, JsonObject, Resource
from controller.registry.cache import CacheKey, NoCache
from controller.registry.client import RegistryClient
from controller.registry.credentials import Credential, Keychain, read_entry
from controller.registry.reference import Reference
from controller.registry.staging import Staging
from controller.stages.backend import ImageBackend
from controller.stages.cluster import Cluster

IMAGE = "r.example.org/acme/nop:v1"


class Process:
    """The credentials of the process itself."""

    async def credentials_for(self, _: Reference) -> list[Credential]:
        values = {"username": "process", "password": "p"}
        return [read_entry(values, origin="the process", explicit=False)]


class Api:
    """Has the Secrets that it was given, and nothing else."""

    def __init__(self, **secrets: JsonObject) -> None:
        self._secrets = secrets

    async def get(self, _: Resource, name: str, *, namespace: str) -> JsonObject:
        if name in self._secrets:
            return self._secrets[name]
        raise ApiError(status=404, reason="NotFound", message=f"{namespace}/{name} not found")


class Registry:
    """Notes with which credentials it is asked."""

    def __init__(self) -> None:
        self.users: list[str] = []

    async def resolve(self, reference: Reference, keychain: Keychain) -> str:
        found = await keychain.look_up(reference)
        self.users = [each.username or "" for each in found.credentials]
        return "sha256:" + "0" * 64


def pull_secret(host: str, user: str) -> JsonObject:
    auth = base64.b64encode(f"{user}:p".encode()).decode()
    content = json.dumps({"auths": {host: {"auth": auth}}}).encode()
    return {
        "kind": "Secret",
        "metadata": {"name": "s", "namespace": "n"},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": base64.b64encode(content).decode()},
    }


async def asked(api: Api, spec: dict[str, Any]) -> list[str]:
    registry = Registry()
    cluster = Cluster(stores={"ImageConfig": Store()}, view=lambda _: View())
    backend = ImageBackend(
        cluster=cluster,
        client=cast("KubeClient", api),
        registry=cast("RegistryClient", registry),
        cache=NoCache(),
        namespace="n",
        service_account="crossplane",
        ambient=Keychain((Process(),)),
    )
    await backend.digest(backend.locate(IMAGE), spec)
    return registry.users


async def test_a_pull_secret_comes_before_the_credentials_of_the_process():
    api = Api(mine=pull_secret("r.example.org", "secret"))
    assert await asked(api, {"packagePullSecrets": [{"name": "mine"}]}) == ["secret"]


async def test_where_no_pull_secret_fits_the_process_is_asked():
    api = Api(other=pull_secret("elsewhere.example.org", "secret"))
    assert await asked(api, {"packagePullSecrets": [{"name": "other"}]}) == ["process"]
    assert await asked(Api(), {}) == ["process"]


class Seeded(NoCache):
    """A cache over a folder that somebody filled beforehand."""

    async def seed(self, key: CacheKey, staging: Staging, *, sources: Sequence[str] = ()) -> bool:
        assert (key.repository, list(sources)) == ("r.example.org/acme/nop", [key.repository])
        staging.stream.write_text(
            "apiVersion: meta.pkg.crossplane.io/v1\nkind: Provider\nmetadata: {name: nop}\n"
        )
        return True


async def test_a_package_that_somebody_put_into_the_folder_needs_no_registry():
    registry = Registry()
    cluster = Cluster(stores={"ImageConfig": Store()}, view=lambda _: View())
    backend = ImageBackend(
        cluster=cluster,
        client=cast("KubeClient", Api()),
        registry=cast("RegistryClient", registry),
        cache=Seeded(),
        namespace="n",
        service_account="crossplane",
        ambient=Keychain(),
    )
    digest = "sha256:" + "0" * 64
    revision = {
        "kind": "ProviderRevision",
        "metadata": {"uid": "u", "annotations": {ANNOTATION_DIGEST: digest}},
        "spec": {"image": IMAGE},
    }
    async with backend.open(revision) as content:
        assert content.meta["metadata"]["name"] == "nop"
    assert not registry.users
