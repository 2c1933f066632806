import asyncio
from typing import Any

import orjson
import pytest
import structlog

from controller.kube import events
from controller.kube.client import KubeClient
from controller.kube.events import MESSAGE_MAX, WAITING_MAX, EventRecorder, shortened
from controller.model.objects import EVENT, NAMESPACE, SERVICE_ACCOUNT, JsonObject
from tests.fakes.apiserver import Reply, ScriptedServer, refusal
from tests.kube.conftest import running

PROVIDER: JsonObject = {
    "apiVersion": "pkg.crossplane.io/v1",
    "kind": "Provider",
    "metadata": {"name": "nop", "uid": "u-1"},
}
MADE = Reply(201, {"kind": "Event"})


class Recorded:
    """A recorder whose pauses take no time, and what reached the peer."""

    def __init__(self, client: KubeClient, scripted: ScriptedServer) -> None:
        self.pauses: list[float] = []
        self.recorder = EventRecorder(client, component="crossdock", sleep=self._sleep)
        self._scripted = scripted

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def record(self, message: str = "m", **more: Any) -> None:
        told: dict[str, Any] = {"type": "Normal", "reason": "Installed", "message": message}
        self.recorder.record(PROVIDER, **{**told, **more})

    async def written(self) -> list[tuple[str, JsonObject]]:
        async with running(self.recorder.run()):
            assert await self.recorder.drain(10)
        return [(each.method, orjson.loads(each.body)) for each in self._scripted.received]


async def test_an_event_names_object_reason_and_reporter(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(MADE)
    recorded = Recorded(client, scripted)
    recorded.record("hello")
    ((method, body),) = await recorded.written()
    assert method == "POST"
    assert scripted.received[0].path == "/api/v1/namespaces/default/events"
    assert body["involvedObject"] == {
        "apiVersion": "pkg.crossplane.io/v1",
        "kind": "Provider",
        "name": "nop",
        "uid": "u-1",
    }
    assert body["metadata"]["name"].startswith("nop.")
    assert (body["type"], body["reason"], body["message"]) == ("Normal", "Installed", "hello")
    assert body["count"] == 1
    assert body["firstTimestamp"] == body["lastTimestamp"]
    assert body["source"]["component"] == body["reportingComponent"] == "crossdock"


async def test_e1_a_repeated_event_raises_the_count_of_the_first(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(MADE)
    recorded = Recorded(client, scripted)
    for message in ("a", "a", "b", "a"):
        recorded.record(message)
    written = await recorded.written()
    assert [method for method, _ in written] == ["POST", "PATCH", "POST", "PATCH"]
    assert [body["count"] for _, body in written] == [1, 2, 1, 3]
    name = written[0][1]["metadata"]["name"]
    assert scripted.received[1].path == f"/api/v1/namespaces/default/events/{name}"


async def test_e1_an_event_that_the_server_has_forgotten_is_made_anew(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(MADE, Reply(404, refusal(404, "NotFound", "gone")), MADE)
    recorded = Recorded(client, scripted)
    recorded.record()
    recorded.record()
    written = await recorded.written()
    assert [method for method, _ in written] == ["POST", "PATCH", "POST"]
    assert written[-1][1]["count"] == 1


async def test_only_so_many_events_are_remembered(
    client: KubeClient, scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(events, "REMEMBERED_MAX", 2)
    scripted.answer(MADE)
    recorded = Recorded(client, scripted)
    for message in ("a", "b", "c", "a"):
        recorded.record(message)
    assert [method for method, _ in await recorded.written()] == ["POST"] * 4


async def test_e4_recording_never_blocks_and_drops_what_is_too_much(
    client: KubeClient, scripted: ScriptedServer
):
    recorded = Recorded(client, scripted)
    with structlog.testing.capture_logs() as logs:
        for number in range(WAITING_MAX + 5):
            recorded.record(str(number))
    assert recorded.recorder.dropped == 5
    assert len(logs) == 1


async def test_e4_an_unavailable_server_is_asked_again_so_often_and_no_more(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(Reply(503, refusal(503, "ServiceUnavailable", "m")))
    recorded = Recorded(client, scripted)
    client._transport.request = failing(client._transport.request)  # type: ignore[method-assign]  # one try
    recorded.record()
    with structlog.testing.capture_logs() as logs:
        written = await recorded.written()
    assert len(written) == events.TRIES_MAX
    assert len(recorded.pauses) == events.TRIES_MAX - 1
    assert recorded.pauses[0] <= events.RETRY_SECONDS
    assert set(recorded.pauses[1:]) == {events.RETRY_SECONDS}
    assert [entry["event"] for entry in logs] == ["event not written"]


def failing(request: Any) -> Any:
    """Let the client itself send nothing again."""

    async def once(what: Any, **options: Any) -> Any:
        return await request(type(what)(**{**fields(what), "tries": 1}), **options)

    return once


def fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


async def test_e4_a_rejected_event_is_not_sent_again(client: KubeClient, scripted: ScriptedServer):
    scripted.answer(Reply(403, refusal(403, "Forbidden", "no")), MADE)
    recorded = Recorded(client, scripted)
    recorded.record("a")
    recorded.record("b")
    with structlog.testing.capture_logs() as logs:
        written = await recorded.written()
    assert [body["message"] for _, body in written] == ["a", "b"]
    assert recorded.pauses == []
    assert logs[0]["object"] == "Provider/nop"


async def test_an_event_whose_answer_was_lost_is_written_once(
    client: KubeClient, scripted: ScriptedServer
):
    exists = Reply(409, refusal(409, "AlreadyExists", "exists"))
    scripted.answer(Reply(lost=True), exists, Reply(200, {"kind": "Event"}))
    recorded = Recorded(client, scripted)
    recorded.record()
    recorded.record()
    written = await recorded.written()
    assert [method for method, _ in written] == ["POST", "POST", "PATCH"]
    assert written[0][1]["metadata"]["name"] == written[1][1]["metadata"]["name"]


async def test_draining_has_a_deadline(client: KubeClient, scripted: ScriptedServer):
    recorder = EventRecorder(client, component="c")
    recorder.record(PROVIDER, type="Normal", reason="R", message="m")
    with structlog.testing.capture_logs() as logs:
        assert not await recorder.drain(0.01)
    assert logs[0]["left"] == 1


def test_a_message_is_cut_at_the_servers_limit_and_never_in_a_character():
    assert shortened("m") == "m"
    cut = shortened("ü" * MESSAGE_MAX)
    assert len(cut.encode()) <= MESSAGE_MAX
    assert cut.endswith("ü…")


@pytest.mark.lab
async def test_a_real_server_takes_events_about_all_kinds_of_objects(
    cluster: KubeClient, namespace: str
):
    recorder = EventRecorder(cluster, component="crossdock")
    cluster_scoped = await cluster.get(NAMESPACE, namespace)
    namespaced = await cluster.create(
        SERVICE_ACCOUNT,
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}},
        namespace=namespace,
    )
    async with running(recorder.run()):
        for regarding in (cluster_scoped, namespaced, namespaced):
            recorder.record(
                regarding, type="Warning", reason="Tried", message="long " * MESSAGE_MAX
            )
        assert await recorder.drain(30)
    selector = f"involvedObject.name={namespace}"
    about = (await cluster.list(EVENT, namespace="default", field_selector=selector))["items"]
    assert [(event["reason"], event["count"]) for event in about] == [("Tried", 1)]
    inside = (await cluster.list(EVENT, namespace=namespace))["items"]
    assert [(event["involvedObject"]["name"], event["count"]) for event in inside] == [("robot", 2)]


async def test_stopping_leaves_no_task(client: KubeClient, scripted: ScriptedServer):
    recorder = EventRecorder(client, component="c")
    before = asyncio.all_tasks()
    async with running(recorder.run()):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
