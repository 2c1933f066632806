"""A token that is rotated, and refused once it is old, while watches run."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controller.kube.client import KubeClient
from controller.model.objects import SECRET, SERVICE_ACCOUNT
from tests.fakes.wire import Wire
from tests.kube import kubeconfig
from tests.kube.faults.conftest import Observe
from tests.kube.faults.observed import change, prepare
from tests.lab.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

WATCHES = 20
ROTATION_SECONDS = 2.0
ROUNDS = 4
ROUND_SECONDS = 12.0  # the API server itself trusts a token for 10 s after it was good
RBAC = "/apis/rbac.authorization.k8s.io/v1/namespaces"


class Rotation:
    """Tokens of a ServiceAccount, each bound to a Secret of its own, in one file."""

    def __init__(self, near: KubeClient, namespace: str, file: Path) -> None:
        self._near = near
        self._namespace = namespace
        self._file = file
        self._bound: str | None = None
        self.count = 0

    async def rotate(self) -> None:
        """Write a new token, and make the one before invalid."""
        name = f"token-{self.count}"
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
        secret = await self._near.create(SECRET, body, namespace=self._namespace)
        reference = {"kind": "Secret", "apiVersion": "v1", "name": name}
        spec = {
            "expirationSeconds": 600,
            "boundObjectRef": {**reference, "uid": secret["metadata"]["uid"]},
        }
        path = SERVICE_ACCOUNT.path("watcher", namespace=self._namespace, subresource="token")
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = await self._near.request(
            "POST",
            path,
            headers={"Content-Type": "application/json"},
            body=json.dumps(request).encode(),
        )
        new = self._file.with_suffix(".new")
        new.write_text(json.loads(answer.body)["status"]["token"])
        new.replace(self._file)
        if self._bound is not None:
            await self._near.delete(SECRET, self._bound, namespace=self._namespace)
        self._bound = name
        self.count += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Rotate every few seconds for as long as the context lasts."""

        async def go_on() -> None:
            while True:
                await asyncio.sleep(ROTATION_SECONDS)
                await self.rotate()

        task = asyncio.ensure_future(go_on())
        try:
            yield
            assert not task.done(), "the rotation ended"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def account(near: KubeClient, namespace: str) -> None:
    """Make a ServiceAccount that may watch ConfigMaps."""
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "watcher"}}
    await near.create(SERVICE_ACCOUNT, body, namespace=namespace)
    group = "rbac.authorization.k8s.io"
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]}]
    metadata = {"name": "watcher"}
    role = {"kind": "Role", "apiVersion": f"{group}/v1", "metadata": metadata, "rules": rules}
    subjects = [{"kind": "ServiceAccount", "name": "watcher", "namespace": namespace}]
    reference = {"apiGroup": group, "kind": "Role", "name": "watcher"}
    binding = {
        "kind": "RoleBinding",
        "apiVersion": f"{group}/v1",
        "metadata": metadata,
        "subjects": subjects,
        "roleRef": reference,
    }
    for plural, value in (("roles", role), ("rolebindings", binding)):
        await near.request(
            "POST",
            f"{RBAC}/{namespace}/{plural}",
            headers={"Content-Type": "application/json"},
            body=json.dumps(value).encode(),
        )


async def test_a_token_rotated_every_2_seconds_ends_none_of_20_watches(
    lab: Lab, cluster: KubeClient, namespace: str, observe: Observe, tmp_path: Path
):
    await account(cluster, namespace)
    await prepare(cluster, namespace, "base")
    rotation = Rotation(cluster, namespace, tmp_path / "token")
    await rotation.rotate()
    async with Wire.to(lab.server) as wire:
        config = kubeconfig.moved(lab.kubeconfig, tmp_path / "config", wire.url)
        value = json.loads(config.read_text())
        for each in value["users"]:
            each["user"] = {"tokenFile": str(tmp_path / "token")}
        config.write_text(json.dumps(value))
        fault = f"token rotated every {ROTATION_SECONDS:.0f} s, {WATCHES} watches"
        async with observe(fault, lab, cluster, wire.url, config=config) as seen:
            for _ in range(WATCHES):
                await seen.watch(namespace=namespace)
            async with rotation.running():
                for number in range(ROUNDS):
                    await asyncio.sleep(ROUND_SECONDS)
                    await prepare(cluster, namespace, f"t{number}")
                    seen.begins()
                    wire.reset()  # an open watch is not asked for its token again
                    seen.back()
                    await change(cluster, namespace, f"t{number}")
                    await seen.caught_up()
            refused = sum(each.status == 401 for each in seen.sent)
            seen.what = f"{rotation.count} tokens, {refused} requests refused with 401"
    assert refused > 0
    assert refused <= ROUNDS * WATCHES  # one each, and none again with the same token
