import asyncio
from typing import Any

import orjson
import pytest
import structlog

from controller.kube import events
from controller.kube.client import KubeClient
from controller.kube.correlation import BURST, COMBINED, MESSAGE_MAX
from controller.kube.events import WAITING_MAX, EventRecorder
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

    def record(self, message: str = "m", *, on: JsonObject = PROVIDER) -> None:
        self.recorder.record(on, type="Normal", reason="Installed", message=message)

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


async def test_e1_an_event_that_the_server_has_forgotten_is_made_anew_with_its_count(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(MADE, Reply(404, refusal(404, "NotFound", "gone")), MADE)
    recorded = Recorded(client, scripted)
    for _ in range(3):
        recorded.record()
    written = await recorded.written()
    assert [method for method, _ in written] == ["POST", "PATCH", "POST", "PATCH"]
    first, again = written[0][1], written[2][1]
    assert again == {**first, "count": 2, "lastTimestamp": again["lastTimestamp"]}
    assert written[3][1]["count"] == 3


async def test_e1_two_recorders_count_for_themselves(client: KubeClient, scripted: ScriptedServer):
    scripted.answer(MADE)
    for component in ("one", "two"):
        recorder = EventRecorder(client, component=component)
        recorder.record(PROVIDER, type="Normal", reason="R", message="m")
        async with running(recorder.run()):
            assert await recorder.drain(10)
    bodies = [orjson.loads(each.body) for each in scripted.received]
    assert [(body["reportingComponent"], body["count"]) for body in bodies] == [
        ("one", 1),
        ("two", 1),
    ]
    assert bodies[0]["metadata"]["name"] != bodies[1]["metadata"]["name"]


async def test_e2_many_messages_become_one_event_that_tells_the_latest(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(MADE)
    recorded = Recorded(client, scripted)
    for number in range(12):
        recorded.record(f"m{number}")
    written = await recorded.written()
    assert [method for method, _ in written] == ["POST"] * 10 + ["PATCH"] * 2
    assert written[9][1]["message"] == f"{COMBINED}m9"
    last = written[-1][1]
    assert (last["message"], last["count"]) == (f"{COMBINED}m11", 3)


async def test_e3_what_an_object_causes_beyond_its_share_is_counted_not_sent(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(MADE)
    recorded = Recorded(client, scripted)
    for _ in range(BURST + 7):
        recorded.record()
    assert len(await recorded.written()) == BURST
    assert (recorded.recorder.filtered, recorded.recorder.dropped) == (7, 0)


async def test_e4_recording_never_blocks_and_drops_what_is_too_much(
    client: KubeClient, scripted: ScriptedServer
):
    recorded = Recorded(client, scripted)
    with structlog.testing.capture_logs() as logs:
        for number in range(WAITING_MAX + 5):
            recorded.record(on=numbered(number))
    assert (recorded.recorder.dropped, recorded.recorder.filtered) == (5, 0)
    assert len(logs) == 1
    assert scripted.received == []


async def test_e4_a_thousand_events_are_written_in_their_order(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(MADE)
    recorded = Recorded(client, scripted)
    for number in range(WAITING_MAX):
        recorded.record(on=numbered(number))
    written = await recorded.written()
    assert [body["involvedObject"]["name"] for _, body in written] == [
        f"p{number}" for number in range(WAITING_MAX)
    ]
    assert recorded.recorder.dropped == 0


async def test_e4_one_object_cannot_take_the_room_of_others(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(MADE)
    recorded = Recorded(client, scripted)
    for number in range(5 * WAITING_MAX):
        recorded.record(f"m{number}")
    recorded.record(on=numbered(1))
    written = await recorded.written()
    assert written[-1][1]["involvedObject"]["name"] == "p1"
    assert recorded.recorder.dropped == 0


def numbered(number: int) -> JsonObject:
    return {**PROVIDER, "metadata": {"name": f"p{number}", "uid": str(number)}}


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


async def test_e4_cancelling_ends_a_pause_at_once(client: KubeClient, scripted: ScriptedServer):
    paused = asyncio.Event()

    async def pause(_: float) -> None:
        paused.set()
        await asyncio.Event().wait()

    scripted.answer(Reply(503, refusal(503, "ServiceUnavailable", "m")))
    client._transport.request = failing(client._transport.request)  # type: ignore[method-assign]  # one try
    recorder = EventRecorder(client, component="c", sleep=pause)
    recorder.record(PROVIDER, type="Normal", reason="R", message="m")
    async with running(recorder.run()):
        await paused.wait()
    assert len(scripted.received) == 1
    assert await recorder.drain(1)


async def test_e5_what_is_recorded_before_the_drain_is_written(
    client: KubeClient, scripted: ScriptedServer
):
    """What is recorded while others stop is flushed; what comes after that is only queued."""
    scripted.answer(MADE)
    recorder = EventRecorder(client, component="c")

    async def stop_late(number: int) -> None:
        for _ in range(number):
            await asyncio.sleep(0)
        recorder.record(numbered(number), type="Normal", reason="Stopped", message="m")

    async with running(recorder.run()):
        async with asyncio.TaskGroup() as others:
            for number in range(20):
                others.create_task(stop_late(number))
        assert await recorder.drain(10)
    recorder.record(PROVIDER, type="Normal", reason="Late", message="m")
    assert len(scripted.received) == 20


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


@pytest.mark.lab
async def test_e1_e2_e3_a_real_server_holds_few_events_of_many(cluster: KubeClient, namespace: str):
    one, other = [
        await cluster.create(
            SERVICE_ACCOUNT,
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}},
            namespace=namespace,
        )
        for name in ("one", "other")
    ]
    recorder = EventRecorder(cluster, component="crossdock")
    for _ in range(30):
        recorder.record(one, type="Normal", reason="Same", message="m")
    for number in range(40):
        recorder.record(other, type="Normal", reason="Different", message=f"m{number}")
    async with running(recorder.run()):
        assert await recorder.drain(60)
    events = (await cluster.list(EVENT, namespace=namespace))["items"]
    same = [event for event in events if event["reason"] == "Same"]
    assert [event["count"] for event in same] == [BURST]
    different = [event for event in events if event["reason"] == "Different"]
    combined = [event for event in different if event["message"].startswith(COMBINED)]
    assert len(different) == 10
    assert [(event["message"], event["count"]) for event in combined] == [(f"{COMBINED}m24", 16)]
    assert recorder.filtered == (30 - BURST) + (40 - BURST)


async def test_stopping_leaves_no_task(client: KubeClient, scripted: ScriptedServer):
    recorder = EventRecorder(client, component="c")
    before = asyncio.all_tasks()
    async with running(recorder.run()):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
