import asyncio
import base64
from pathlib import Path

import pytest

from controller.kube.client import PAGE_FULL, ApiError, ConfigError, KubeClient
from controller.model.objects import CRD, NAMESPACE, SECRET, SERVICE_ACCOUNT, JsonObject, Resource
from tests.kube import kubeconfig
from tests.lab import credentials
from tests.lab.lab import Lab

pytestmark = pytest.mark.lab

CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap", namespaced=True)
REVIEW = Resource("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview")


def config_map(name: str, data: dict[str, str] | None = None, **metadata: object) -> JsonObject:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, **metadata},
        "data": data or {},
    }


async def test_a_missing_kubeconfig_is_a_clear_line(tmp_path: Path):
    with pytest.raises(ConfigError, match="does not exist"):
        async with KubeClient.connect(kubeconfig=tmp_path / "none", user_agent="t"):
            pass


async def test_an_object_is_created_read_and_deleted(cluster: KubeClient, namespace: str):
    made = await cluster.create(CONFIG_MAP, config_map("a", {"x": "1"}), namespace=namespace)
    read = await cluster.get(CONFIG_MAP, "a", namespace=namespace)
    assert read["metadata"]["uid"] == made["metadata"]["uid"]
    assert read["data"] == {"x": "1"}
    with pytest.raises(ApiError) as caught:
        await cluster.create(CONFIG_MAP, config_map("a"), namespace=namespace)
    assert caught.value.already_exists
    await cluster.delete(CONFIG_MAP, "a", namespace=namespace)
    await cluster.delete(CONFIG_MAP, "a", namespace=namespace)
    with pytest.raises(ApiError, match='configmaps "a" not found') as caught:
        await cluster.get(CONFIG_MAP, "a", namespace=namespace)
    assert caught.value.not_found


async def test_a_dry_run_changes_nothing(cluster: KubeClient, namespace: str):
    await cluster.create(CONFIG_MAP, config_map("a"), namespace=namespace, dry_run=True)
    applied = await cluster.apply(
        CONFIG_MAP, "b", config_map("b"), namespace=namespace, field_manager="m", dry_run=True
    )
    assert applied["metadata"]["name"] == "b"
    for name in ("a", "b"):
        with pytest.raises(ApiError) as caught:
            await cluster.get(CONFIG_MAP, name, namespace=namespace)
        assert caught.value.not_found


async def test_server_side_apply_takes_away_what_is_no_longer_wanted(
    cluster: KubeClient, namespace: str
):
    async def apply(data: dict[str, str], manager: str, *, force: bool = True) -> JsonObject:
        return await cluster.apply(
            CONFIG_MAP,
            "a",
            config_map("a", data),
            namespace=namespace,
            field_manager=manager,
            force=force,
        )

    await apply({"x": "1", "y": "1"}, "one")
    assert (await apply({"x": "2"}, "one"))["data"] == {"x": "2"}
    with pytest.raises(ApiError) as caught:
        await apply({"x": "3"}, "two", force=False)
    assert caught.value.conflict
    assert caught.value.causes == ('.data.x: conflict with "one"',)
    assert (await apply({"x": "3"}, "two"))["data"] == {"x": "3"}


async def test_an_apply_of_an_old_state_is_a_conflict(cluster: KubeClient, namespace: str):
    old = await cluster.create(CONFIG_MAP, config_map("a"), namespace=namespace)
    await cluster.merge_patch(CONFIG_MAP, "a", {"data": {"x": "1"}}, namespace=namespace)
    version = old["metadata"]["resourceVersion"]
    with pytest.raises(ApiError) as caught:
        await cluster.apply(
            CONFIG_MAP,
            "a",
            config_map("a", resourceVersion=version),
            namespace=namespace,
            field_manager="m",
        )
    assert caught.value.conflict


async def test_patches(cluster: KubeClient, namespace: str):
    await cluster.create(CONFIG_MAP, config_map("a", {"x": "1", "y": "1"}), namespace=namespace)
    merged = await cluster.merge_patch(
        CONFIG_MAP, "a", {"data": {"x": None, "z": "2"}}, namespace=namespace
    )
    assert merged["data"] == {"y": "1", "z": "2"}
    operations = [
        {"op": "test", "path": "/data/y", "value": "1"},
        {"op": "remove", "path": "/data/y"},
    ]
    patched = await cluster.json_patch(CONFIG_MAP, "a", operations, namespace=namespace)
    assert patched["data"] == {"z": "2"}
    with pytest.raises(ApiError) as caught:
        await cluster.json_patch(CONFIG_MAP, "a", operations, namespace=namespace)
    assert caught.value.invalid


async def test_a_status_is_written_by_its_own_subresource(
    cluster: KubeClient, unique_name: str, lab: Lab
):
    await cluster.create(NAMESPACE, {"metadata": {"name": unique_name}})
    body: JsonObject = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": unique_name}}
    condition = {
        "type": "example.org/Tried",
        "status": "True",
        "reason": "Tried",
        "message": "m",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    body["status"] = {"conditions": [condition]}
    written = await cluster.apply(
        NAMESPACE, unique_name, body, field_manager="m", subresource="status"
    )
    assert written["status"]["conditions"] == [condition]
    await cluster.delete(NAMESPACE, unique_name)


async def test_what_is_invalid_is_told_field_by_field(cluster: KubeClient, namespace: str):
    body = {"metadata": {"name": "No Name", "labels": {"a": "b c"}}}
    with pytest.raises(ApiError) as caught:
        await cluster.create(CONFIG_MAP, body, namespace=namespace)
    error = caught.value
    assert (error.status, error.reason, error.invalid) == (422, "Invalid", True)
    assert {cause.partition(":")[0] for cause in error.causes} == {
        "metadata.name",
        "metadata.labels",
    }


async def test_only_the_very_object_is_deleted(cluster: KubeClient, namespace: str):
    made = await cluster.create(CONFIG_MAP, config_map("a"), namespace=namespace)
    with pytest.raises(ApiError) as caught:
        await cluster.delete(CONFIG_MAP, "a", namespace=namespace, uid="another")
    assert caught.value.conflict
    await cluster.delete(CONFIG_MAP, "a", namespace=namespace, uid=made["metadata"]["uid"])


async def test_a_long_list_comes_in_pages(cluster: KubeClient, namespace: str):
    count = 2 * PAGE_FULL + 1
    names = iter([f"c{number:04}" for number in range(count)])

    async def create() -> None:
        for name in names:
            body = config_map(name, labels={"paged": "yes"})
            await cluster.create(CONFIG_MAP, body, namespace=namespace)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(8):
            tasks.create_task(create())
    found = await cluster.list(CONFIG_MAP, namespace=namespace, label_selector="paged=yes")
    assert len(found["items"]) == count
    assert found["metadata"]["resourceVersion"]
    page = await cluster.list_page(CONFIG_MAP, namespace=namespace, limit=10)
    assert len(page["items"]) == 10
    assert page["metadata"]["continue"]


async def test_metadata_alone_is_read(cluster: KubeClient, namespace: str):
    await cluster.create(
        CONFIG_MAP, config_map("a", {"x": "1"}, labels={"l": "1"}), namespace=namespace
    )
    one = await cluster.get(CONFIG_MAP, "a", namespace=namespace, metadata_only=True)
    assert one["kind"] == "PartialObjectMetadata"
    assert "data" not in one
    many = await cluster.list(
        CONFIG_MAP, namespace=namespace, label_selector="l=1", metadata_only=True
    )
    assert [each["metadata"]["name"] for each in many["items"]] == ["a"]


async def test_fields_select(cluster: KubeClient, namespace: str):
    for name in ("a", "b"):
        await cluster.create(CONFIG_MAP, config_map(name), namespace=namespace)
    found = await cluster.list(CONFIG_MAP, namespace=namespace, field_selector="metadata.name=b")
    assert [each["metadata"]["name"] for each in found["items"]] == ["b"]


async def test_a_kind_that_is_not_served_is_not_found(cluster: KubeClient):
    with pytest.raises(ApiError, match=r"page not found|could not find") as caught:
        await cluster.list(Resource("nowhere.example.org", "v1", "things", "Thing"))
    assert caught.value.not_found


async def test_an_object_of_a_megabyte_goes_both_ways(cluster: KubeClient, namespace: str):
    data = {"x": "y" * 1_000_000}
    await cluster.apply(
        CONFIG_MAP, "big", config_map("big", data), namespace=namespace, field_manager="m"
    )
    assert (await cluster.get(CONFIG_MAP, "big", namespace=namespace))["data"] == data


async def test_a_service_account_is_the_only_one_who_talks(
    lab: Lab, cluster: KubeClient, namespace: str
):
    await cluster.apply(
        SERVICE_ACCOUNT,
        "robot",
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}},
        namespace=namespace,
        field_manager="m",
    )
    async with KubeClient.connect(
        kubeconfig=lab.kubeconfig, as_service_account=(namespace, "robot"), user_agent="robot/1"
    ) as robot:
        body = {"apiVersion": REVIEW.api_version, "kind": REVIEW.kind}
        review = await robot.create(REVIEW, body)
        account = f"system:serviceaccount:{namespace}:robot"
        assert review["status"]["userInfo"]["username"] == account
        with pytest.raises(ApiError) as caught:
            await robot.list(SECRET, namespace=namespace)
        with pytest.raises(ApiError):
            await robot.delete(CRD, "x.example.org")
    error = caught.value
    assert (error.status, error.reason) == (403, "Forbidden")
    assert f'User "{account}" cannot list resource "secrets"' in str(error)


async def test_a_service_account_that_does_not_exist_is_told(lab: Lab, namespace: str):
    with pytest.raises(ApiError, match='serviceaccounts "nobody" not found'):
        async with KubeClient.connect(
            kubeconfig=lab.kubeconfig, as_service_account=(namespace, "nobody"), user_agent="t"
        ):
            pass


async def test_a_server_with_another_certificate_authority_is_refused(lab: Lab, tmp_path: Path):
    folder = tmp_path / "other"
    folder.mkdir()
    unrelated = credentials.provide(folder).authority.read_bytes()
    cluster = {"certificate-authority-data": base64.b64encode(unrelated).decode()}
    path = kubeconfig.write(tmp_path / "c", lab.server, cluster=cluster)
    async with KubeClient.connect(kubeconfig=path, user_agent="t") as client:
        with pytest.raises(ApiError) as caught:
            await client.get(NAMESPACE, "default")
    assert caught.value.reason == "TLS"
    assert "certificate" in str(caught.value)


async def test_wrong_credentials_are_told_with_the_remedy(lab: Lab, tmp_path: Path):
    ca = base64.b64encode(lab.authority.read_bytes()).decode()
    path = kubeconfig.write(
        tmp_path / "c",
        lab.server,
        user={"token": "wrong"},
        cluster={"certificate-authority-data": ca},
    )
    async with KubeClient.connect(kubeconfig=path, user_agent="t") as client:
        with pytest.raises(ApiError, match="log in again") as caught:
            await client.get(NAMESPACE, "default")
    assert caught.value.status == 401
