import pytest

from controller.kube.client import ApiError, KubeClient
from controller.kube.discovery import Discovery
from controller.model.objects import CRD, DEPLOYMENT, SECRET, JsonObject
from tests.fakes.apiserver import Reply, ScriptedServer


def entry(plural: str, kind: str | None, version: str, *, scope: str = "Cluster") -> JsonObject:
    found: JsonObject = {"resource": plural, "scope": scope, "verbs": ["get"]}
    if kind is not None:
        found["responseKind"] = {"group": "g", "version": version, "kind": kind}
    return found


def document(*groups: JsonObject) -> JsonObject:
    return {"kind": "APIGroupDiscoveryList", "items": list(groups)}


def group(name: str, **versions: list[JsonObject]) -> JsonObject:
    found = [{"version": version, "resources": entries} for version, entries in versions.items()]
    return {"metadata": {"name": name}, "versions": found}


EMPTY = Reply(body=document())


async def test_the_first_version_is_the_preferred_one(client: KubeClient, scripted: ScriptedServer):
    things = group(
        "g",
        v2=[entry("things", "Thing", "v2")],
        v1=[entry("things", "Thing", "v1"), entry("olds", "Old", "v1", scope="Namespaced")],
    )
    scripted.answer(EMPTY, Reply(body=document(things)))
    discovery = Discovery(client)
    assert await discovery.refresh()
    preferred = discovery.lookup("g", "Thing")
    exact = discovery.lookup("g", "Thing", "v1")
    old = discovery.lookup("g", "Old")
    assert preferred is not None
    assert exact is not None
    assert old is not None
    assert (preferred.version, exact.version, old.namespaced) == ("v2", "v1", True)
    assert discovery.served("g", "v2", "Thing")
    assert not discovery.served("g", "v2", "Old")
    assert discovery.lookup("other", "Thing") is None


async def test_what_has_not_changed_is_not_sent_again(client: KubeClient, scripted: ScriptedServer):
    first = Reply(body=document(group("g", v1=[entry("a", "A", "v1")])), headers={"ETag": '"1"'})
    unchanged = Reply(304, b"")
    scripted.answer(EMPTY, first, EMPTY, unchanged)
    discovery = Discovery(client)
    assert await discovery.refresh()
    assert not await discovery.refresh()
    assert discovery.served("g", "v1", "A")
    assert [each.headers.get("If-None-Match") for each in scripted.received] == [
        None,
        None,
        None,
        '"1"',
    ]


async def test_entries_without_a_kind_and_stale_groups_are_left_out(
    client: KubeClient, scripted: ScriptedServer
):
    stale = {"metadata": {"name": "s"}, "versions": [{"version": "v1", "freshness": "Stale"}]}
    bare = group("g", v1=[entry("x", None, "v1"), entry("a", "A", "v1"), entry("as", "A", "v1")])
    scripted.answer(EMPTY, Reply(body=document(stale, bare)))
    discovery = Discovery(client)
    await discovery.refresh()
    found = discovery.lookup("g", "A")
    assert found is not None
    assert found.plural == "a"


async def test_a_server_without_aggregated_discovery_is_told_and_the_known_stays(
    client: KubeClient, scripted: ScriptedServer
):
    known = Reply(body=document(group("g", v1=[entry("a", "A", "v1")])))
    scripted.answer(EMPTY, known, Reply(body={"kind": "APIVersions"}))
    discovery = Discovery(client)
    await discovery.refresh()
    with pytest.raises(ApiError, match=r"needs Kubernetes 1\.30"):
        await discovery.refresh()
    assert discovery.served("g", "v1", "A")


def definition(name: str) -> JsonObject:
    group = f"{name}.example.org"
    schema = {"openAPIV3Schema": {"type": "object"}}
    return {
        "apiVersion": CRD.api_version,
        "kind": CRD.kind,
        "metadata": {"name": f"things.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": "things", "singular": "thing", "kind": "Thing"},
            "versions": [
                {"name": "v1", "served": True, "storage": True, "schema": schema},
                {"name": "v1beta1", "served": True, "storage": False, "schema": schema},
            ],
        },
    }


@pytest.mark.lab
async def test_a_real_server_tells_its_kinds_as_they_come_and_go(
    cluster: KubeClient, unique_name: str
):
    discovery = Discovery(cluster)
    assert await discovery.refresh()
    assert discovery.lookup("apps", "Deployment") == DEPLOYMENT
    assert discovery.lookup("", "Secret") == SECRET
    assert discovery.lookup("apiextensions.k8s.io", "CustomResourceDefinition") == CRD
    body = definition(unique_name)
    name, group_name = body["metadata"]["name"], body["spec"]["group"]
    await cluster.create(CRD, body)
    await eventually_served(discovery, group_name)
    found = discovery.lookup(group_name, "Thing")
    assert found is not None
    assert (found.version, found.plural, found.namespaced) == ("v1", "things", True)
    assert discovery.served(group_name, "v1beta1", "Thing")
    assert not discovery.served(group_name, "v2", "Thing")
    await cluster.delete(CRD, name)
    while discovery.lookup(group_name, "Thing") is not None:
        await discovery.refresh()


async def eventually_served(discovery: Discovery, group_name: str) -> None:
    while discovery.lookup(group_name, "Thing") is None:
        await discovery.refresh()
