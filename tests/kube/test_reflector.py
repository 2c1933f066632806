"""The reflector against a peer that misbehaves on demand; ``test_informer`` uses a real one."""

import asyncio
import socket
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
import structlog

from controller.kube import requests
from controller.kube.client import KubeClient
from controller.kube.informer import Informer
from controller.kube.requests import Selection
from controller.kube.watchstate import Phase, State
from controller.model.objects import CRD, SECRET, JsonObject, Resource
from tests.fakes.apiserver import Reply, ScriptedServer, refusal
from tests.kube.conftest import eventually, running

CLUSTER_ROLE = Resource("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole")
SILENCE = Reply(chunks=(), then="silence")


def secret(name: str, version: int, **more: Any) -> JsonObject:
    return {"metadata": {"name": name, "uid": name, "resourceVersion": str(version)}, **more}


def line(kind: str, obj: JsonObject) -> bytes:
    return orjson.dumps({"type": kind, "object": obj}) + b"\n"


def bookmark(version: int, *, end: bool = False) -> bytes:
    annotations = {"k8s.io/initial-events-end": "true"} if end else {}
    metadata = {"resourceVersion": str(version), "annotations": annotations}
    return line("BOOKMARK", {"kind": "Secret", "metadata": metadata})


def page(items: Iterable[JsonObject], version: int, token: str = "") -> Reply:
    metadata = {"resourceVersion": str(version), "continue": token}
    return Reply(body={"kind": "SecretList", "metadata": metadata, "items": list(items)})


def stream(*lines: bytes, then: str = "end", status: int = 200) -> Reply:
    return Reply(status, chunks=lines, then=then)


class Watched:
    """An informer with its changes and its pauses, none of which is waited for."""

    def __init__(self, client: KubeClient) -> None:
        self.informer = Informer(client, SECRET)
        self.pauses: list[float] = []
        self.changes: list[tuple[str, str]] = []
        self.informer._reflector._sleep = self._sleep
        self.informer.add_handler(self._note)

    @property
    def names(self) -> list[str]:
        return sorted(obj["metadata"]["name"] for obj in self.informer.store.list())

    @property
    def version(self) -> str:
        return self.informer._reflector.state.version

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    def _note(self, change: Any) -> None:
        kind = "delete" if change.new is None else "add" if change.old is None else "update"
        self.changes.append((kind, (change.new or change.old)["metadata"]["name"]))


async def finished(scripted: ScriptedServer, requests: int) -> None:
    """Wait until the peer has been asked so often; its last answer is a silent stream."""
    await eventually(lambda: len(scripted.received) >= requests)
    await asyncio.sleep(0.05)
    assert len(scripted.received) == requests


async def test_r10_a_streaming_list_goes_on_as_a_watch(
    client: KubeClient, scripted: ScriptedServer
):
    first = stream(
        line("ADDED", secret("a", 3)),
        line("ADDED", secret("gone", 4)),
        line("DELETED", secret("gone", 5)),
        bookmark(7, end=True),
        line("ADDED", secret("b", 8)),
        line("DELETED", secret("a", 9)),
        bookmark(12),
    )
    scripted.answer(first, SILENCE)
    watched = Watched(client)
    async with running(watched.informer.run()):
        await watched.informer.wait_synced()
        await finished(scripted, 2)
    assert watched.changes == [("add", "a"), ("add", "b"), ("delete", "a")]
    assert watched.informer.store.resource_version == "12"
    listing, watching = (each.query for each in scripted.received)
    assert listing["sendInitialEvents"] == "true"
    assert "sendInitialEvents" not in watching
    assert watching["resourceVersion"] == "12"
    assert 300 <= int(watching["timeoutSeconds"]) <= 600


async def test_r10_a_streaming_list_that_ends_early_is_thrown_away(
    client: KubeClient, scripted: ScriptedServer
):
    torn = stream(line("ADDED", secret("ghost", 3)), then="tear")
    whole = stream(line("ADDED", secret("a", 3)), bookmark(4, end=True), then="silence")
    scripted.answer(torn, whole)
    watched = Watched(client)
    async with running(watched.informer.run()):
        await watched.informer.wait_synced()
    assert watched.names == ["a"]
    assert ("add", "ghost") not in watched.changes


async def test_a_server_without_streaming_lists_is_listed_in_pages(
    client: KubeClient, scripted: ScriptedServer
):
    forbidden = Reply(422, refusal(422, "Invalid", "sendInitialEvents is forbidden"))
    scripted.answer(forbidden, page([secret("a", 1)], 5, "t"), page([secret("b", 2)], 5), SILENCE)
    watched = Watched(client)
    async with running(watched.informer.run()):
        await watched.informer.wait_synced()
        await finished(scripted, 4)
    assert watched.names == ["a", "b"]
    assert [each.query.get("continue") for each in scripted.received] == [None, None, "t", None]
    assert scripted.received[1].query["resourceVersion"] == "0"
    assert scripted.received[3].query["resourceVersion"] == "5"
    assert watched.pauses == []


async def test_a_list_whose_pages_expire_is_begun_anew(
    client: KubeClient, scripted: ScriptedServer
):
    forbidden = Reply(422, refusal(422, "Invalid", "sendInitialEvents is forbidden"))
    expired = Reply(410, refusal(410, "Expired", "continue token too old"))
    whole = page([secret("b", 6)], 9)
    scripted.answer(forbidden, page([secret("a", 1)], 5, "t"), expired, whole, SILENCE)
    watched = Watched(client)
    async with running(watched.informer.run()):
        await watched.informer.wait_synced()
    assert watched.names == ["b"]


async def test_r8_an_ended_or_torn_watch_goes_on_where_it_was(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(
        stream(bookmark(5, end=True)),
        stream(line("ADDED", secret("a", 6)), b'{"type":"ADDED","obj', then="tear"),
        stream(line("MODIFIED", secret("a", 8))),
        SILENCE,
    )
    watched = Watched(client)
    async with running(watched.informer.run()):
        await finished(scripted, 4)
    versions = [each.query.get("resourceVersion") for each in scripted.received]
    assert versions == [None, "5", "6", "8"]
    assert watched.changes == [("add", "a"), ("update", "a")]
    assert max(watched.pauses) <= 1.6  # each lasted less than a second


async def test_410_as_a_status_leads_to_a_list_that_finds_what_vanished(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(
        stream(line("ADDED", secret("a", 1)), line("ADDED", secret("b", 2)), bookmark(5, end=True)),
        Reply(410, refusal(410, "Expired", "too old resource version")),
        stream(line("ADDED", secret("b", 7)), bookmark(9, end=True), then="silence"),
    )
    watched = Watched(client)
    async with running(watched.informer.run()):
        await eventually(lambda: watched.version == "5" and watched.names == ["b"])
    assert watched.changes == [("add", "a"), ("add", "b"), ("delete", "a"), ("update", "b")]
    assert scripted.received[2].query["resourceVersion"] == "5"
    assert scripted.received[2].query["sendInitialEvents"] == "true"


async def test_410_in_the_stream_leads_to_a_list(client: KubeClient, scripted: ScriptedServer):
    scripted.answer(
        stream(bookmark(5, end=True), line("ERROR", refusal(410, "Expired", "too old"))),
        stream(line("ADDED", secret("a", 8)), bookmark(9, end=True), then="silence"),
    )
    watched = Watched(client)
    async with running(watched.informer.run()):
        await eventually(lambda: watched.names == ["a"])
    assert scripted.received[1].query["resourceVersion"] == "5"


async def test_r8_another_error_in_the_stream_leads_to_a_list_after_a_pause(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(
        stream(bookmark(5, end=True), line("ERROR", refusal(500, "StorageReadError", "corrupt"))),
        stream(bookmark(9, end=True), then="silence"),
    )
    watched = Watched(client)
    async with running(watched.informer.run()):
        await finished(scripted, 2)
    assert len(watched.pauses) == 1
    assert scripted.received[1].query["sendInitialEvents"] == "true"


async def test_r8_too_many_requests_lead_to_no_list(client: KubeClient, scripted: ScriptedServer):
    slow = Reply(429, refusal(429, "TooManyRequests", "slow"), {"Retry-After": "17"})
    scripted.answer(stream(bookmark(5, end=True)), slow, slow, SILENCE)
    watched = Watched(client)
    async with running(watched.informer.run()):
        await finished(scripted, 4)
    assert [each.query.get("resourceVersion") for each in scripted.received[1:]] == ["5"] * 3
    assert len(watched.pauses) == 3
    assert all(17 <= pause <= 34 for pause in watched.pauses[1:])


async def test_r9_watches_that_end_at_once_are_asked_for_ever_more_slowly(
    client: KubeClient, scripted: ScriptedServer
):
    empty = stream()
    scripted.answer(stream(bookmark(5, end=True)), *[empty] * 6, SILENCE)
    watched = Watched(client)
    async with running(watched.informer.run()):
        await finished(scripted, 8)
    assert len(watched.pauses) == 7
    assert all(0.8 * 2**n <= pause <= 1.6 * 2**n for n, pause in enumerate(watched.pauses[1:]))


async def test_r12_what_is_no_object_is_skipped_and_no_event_is_fatal(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(
        stream(
            bookmark(5, end=True),
            line("ADDED", {"kind": "Odd"}),
            line("ADDED", {"metadata": {"uid": "x"}}),
            line("ADDED", secret("a", 6)),
            b"<html>\n",
        ),
        stream(line("ADDED", secret("a", 6)), bookmark(7, end=True), then="silence"),
    )
    watched = Watched(client)
    async with running(watched.informer.run()):
        await eventually(lambda: len(scripted.received) == 2 and watched.names == ["a"])
    assert watched.changes == [("add", "a")]


async def test_a_list_that_is_none_is_refused(client: KubeClient, scripted: ScriptedServer):
    table = Reply(body={"kind": "Table", "metadata": {"resourceVersion": "3"}, "rows": []})
    forbidden = Reply(422, refusal(422, "Invalid", "sendInitialEvents is forbidden"))
    scripted.answer(forbidden, table, page([secret("a", 1)], 5), SILENCE)
    watched = Watched(client)
    async with running(watched.informer.run()):
        await watched.informer.wait_synced()
    assert watched.names == ["a"]
    assert len(watched.pauses) == 1


async def test_an_unexpected_failure_does_not_end_the_watch(
    client: KubeClient, scripted: ScriptedServer
):
    broken = line("ERROR", {"code": "five hundred"})
    forbidden = Reply(403, refusal(403, "Forbidden", "no"))
    whole = stream(line("ADDED", secret("a", 1)), bookmark(5, end=True), then="silence")
    scripted.answer(stream(broken), forbidden, whole)
    watched = Watched(client)
    async with running(watched.informer.run()):
        await watched.informer.wait_synced()
    assert watched.names == ["a"]
    assert len(watched.pauses) == 2


async def test_a_refused_kind_is_asked_for_again_and_never_in_a_hurry(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(Reply(403, refusal(403, "Forbidden", "secrets is forbidden")))
    watched = Watched(client)
    async with running(watched.informer.run()):
        await eventually(lambda: len(watched.pauses) >= 8)
    assert not watched.informer.synced
    assert all(second >= 0.8 for second in watched.pauses)
    assert max(watched.pauses) > 10
    assert watched.informer._reflector.state.phase is not Phase.WATCH


async def test_an_error_is_told_once_and_so_is_its_end(
    client: KubeClient, scripted: ScriptedServer
):
    slow = Reply(429, refusal(429, "TooManyRequests", "slow"))
    scripted.answer(*[slow] * 5, stream(bookmark(5, end=True), then="silence"))
    with structlog.testing.capture_logs() as logs:
        watched = Watched(client)
        async with running(watched.informer.run()):
            await watched.informer.wait_synced()
    assert [entry["event"] for entry in logs] == ["watch interrupted", "watch works again"]
    assert (logs[0]["kind"], logs[0]["error"]) == ("Secret", "slow")


async def test_r11_stopping_ends_the_request(client: KubeClient, scripted: ScriptedServer):
    scripted.answer(stream(bookmark(5, end=True), then="silence"))
    watched = Watched(client)
    async with running(watched.informer.run()):
        await watched.informer.wait_synced()
    connector = client._transport._session.http.connector
    assert connector is not None
    assert len(connector._acquired) == 0


# ---- a real API server ---------------------------------------------------------------------------


@pytest.mark.parametrize("metadata_only", [False, True])
@pytest.mark.parametrize(
    "resource", [CLUSTER_ROLE, Resource("", "v1", "configmaps", "ConfigMap")], ids=lambda r: r.kind
)
async def test_r4_a_plain_list_brings_what_a_streaming_list_brings(
    cluster: KubeClient, resource: Resource, metadata_only: bool
):
    streamed = Informer(cluster, resource, metadata_only=metadata_only)
    listed = Informer(cluster, resource, metadata_only=metadata_only)
    listed._reflector.state = State(phase=Phase.PAGES, streaming=False)
    async with running(streamed.run(), listed.run()):
        await streamed.wait_synced()
        await listed.wait_synced()
        await eventually(lambda: streamed.store.keys() == listed.store.keys())
    assert len(listed.store) > 0
    assert listed._reflector.state.phase is Phase.WATCH


async def test_the_system_asks_a_silent_api_server_for_a_sign_of_life_through_tls(
    cluster: KubeClient,
):
    request = requests.watch(
        Selection(CRD), resource_version="", timeout_seconds=60, send_initial_events=False
    )
    async with cluster.stream(request) as lines:
        connection = lines._response.connection
        assert connection is not None
        assert connection.transport is not None
        assert connection.transport.get_extra_info("cipher")
        found = connection.transport.get_extra_info("socket")
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        seconds = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
        seconds += found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) * found.getsockopt(
            socket.IPPROTO_TCP, socket.TCP_KEEPCNT
        )
        assert seconds <= 60
