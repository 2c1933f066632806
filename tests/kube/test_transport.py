import asyncio
import socket
from pathlib import Path

import pytest

from controller.kube import requests, transport
from controller.kube.apierror import ApiError
from controller.kube.client import KubeClient
from controller.kube.requests import Selection
from controller.kube.transport import TRIES_MAX, retry_delay
from controller.model.objects import NAMESPACE, SECRET, JsonObject
from tests.fakes.apiserver import Reply, ScriptedServer, refusal
from tests.kube import kubeconfig

WATCH = requests.watch(
    Selection(SECRET), resource_version="1", timeout_seconds=300, send_initial_events=False
)
OK = Reply(body={"kind": "Namespace"})
LOST = Reply(lost=True)
SLOW_DOWN = Reply(429, refusal(429, "TooManyRequests", "slow"), {"Retry-After": "0"})


def error(
    status: int, reason: str = "", after: float | None = None, message: str = "m"
) -> ApiError:
    return ApiError(status=status, reason=reason, message=message, retry_after=after)


@pytest.mark.parametrize(
    ("failed", "repeatable", "delay"),
    [
        (error(429), False, 0.1),
        (error(429, after=3), False, 3),
        (error(503), True, 0.1),
        (error(503), False, None),
        (error(503, after=2), True, 2),
        (error(500), True, None),
        (error(500, after=1), True, 1),
        (error(504, message="Too large resource version: 9", after=1), True, None),
        (error(0, "Unreachable"), False, 0.1),
        (error(0, "ConnectionLost"), True, 0.1),
        (error(0, "ConnectionLost"), False, None),
        (error(0, "Timeout"), False, None),
        (error(0, "TLS"), True, None),
        (error(404, "NotFound"), True, None),
        (error(409, "Conflict"), True, None),
        (error(422, "Invalid"), True, None),
    ],
)
def test_b10_what_is_sent_again(failed: ApiError, repeatable: bool, delay: float | None):
    assert retry_delay(failed, tries=1, tries_max=5, repeatable=repeatable) == delay


def test_b10_tries_are_bounded_and_pauses_grow():
    lost = error(0, "ConnectionLost")
    delays = [
        retry_delay(lost, tries=n, tries_max=TRIES_MAX, repeatable=True)
        for n in range(1, TRIES_MAX + 1)
    ]
    assert delays[-1] is None
    known = [delay for delay in delays if delay is not None]
    assert known == sorted(known)
    assert len(known) == TRIES_MAX - 1


async def test_b10_429_is_sent_again(client: KubeClient, scripted: ScriptedServer):
    scripted.answer(SLOW_DOWN, SLOW_DOWN, OK)
    assert await client.get(NAMESPACE, "a") == {"kind": "Namespace"}
    assert len(scripted.received) == 3


async def test_b10_a_lost_answer_is_asked_for_again_where_that_is_safe(
    client: KubeClient, scripted: ScriptedServer
):
    # The HTTP library itself repeats what is idempotent by its method once.
    scripted.answer(LOST, LOST, LOST, OK)
    await client.get(NAMESPACE, "a")
    scripted.answer(LOST, OK)
    await client.apply(NAMESPACE, "a", {"spec": {}}, field_manager="m")
    scripted.answer(LOST, OK)
    test: list[JsonObject] = [
        {"op": "test", "path": "/a", "value": 1},
        {"op": "remove", "path": "/a"},
    ]
    await client.json_patch(NAMESPACE, "a", test)
    scripted.answer(LOST, LOST, OK)
    await client.delete(NAMESPACE, "a")


async def test_b10_a_patch_whose_effect_is_unknown_is_not_sent_again(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(LOST, OK)
    with pytest.raises(ApiError) as caught:
        await client.merge_patch(NAMESPACE, "a", {"x": 1})
    assert caught.value.reason == "ConnectionLost"
    assert caught.value.retryable
    assert len(scripted.received) == 1


async def test_b10_a_creation_whose_answer_was_lost_is_sent_again(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(LOST, Reply(409, refusal(409, "AlreadyExists", "exists")))
    with pytest.raises(ApiError) as caught:
        await client.create(NAMESPACE, {"metadata": {"name": "a"}})
    assert caught.value.already_exists
    first, second = (each.body for each in scripted.received)
    assert first == second


async def test_b10_the_total_deadline_bounds_all_tries(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(Reply(429, refusal(429, "", "slow"), {"Retry-After": "3600"}))
    with pytest.raises(ApiError, match="slow"):
        await client.request("GET", "/x", deadline=5)
    assert len(scripted.received) == 1


async def test_b10_an_answer_that_does_not_come_is_given_up(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(Reply(chunks=(b"{",), then="silence"))
    with pytest.raises(ApiError) as caught:
        await client.request("GET", "/x", deadline=0.3)
    assert caught.value.reason == "Timeout"


async def test_b10_an_answer_beyond_the_limit_is_refused(
    client: KubeClient, scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transport, "BODY_MAX", 1000)
    scripted.answer(Reply(body=b"x" * 1001))
    with pytest.raises(ApiError, match="larger than"):
        await client.get(NAMESPACE, "a")


async def test_an_answer_that_is_no_json_is_told(client: KubeClient, scripted: ScriptedServer):
    scripted.answer(Reply(body=b"<html>sign in</html>"))
    with pytest.raises(ApiError, match="is no JSON"):
        await client.get(NAMESPACE, "a")


async def test_redirects_are_not_followed(client: KubeClient, scripted: ScriptedServer):
    scripted.answer(Reply(302, b"", {"Location": "/other"}))
    response = await client.request("GET", "/x")
    assert response.status == 302
    assert len(scripted.received) == 1


async def test_b10_a_refused_token_is_read_again_once(scripted: ScriptedServer, tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("old")
    path = kubeconfig.write(tmp_path / "c", scripted.url, user={"tokenFile": str(token)})
    refused = Reply(401, refusal(401, "Unauthorized", "Unauthorized"))
    async with KubeClient.connect(kubeconfig=path, user_agent="t") as client:
        token.write_text("new")
        scripted.answer(refused, OK)
        await client.get(NAMESPACE, "a")
        sent = [each.headers["Authorization"] for each in scripted.received]
        assert sent == ["Bearer old", "Bearer new"]
        scripted.received.clear()
        token.write_text("newer")
        scripted.answer(refused, refused, OK)
        with pytest.raises(ApiError, match="log in again"):
            await client.get(NAMESPACE, "a")
        assert len(scripted.received) == 2
        scripted.received.clear()
        token.write_text("newest")
        scripted.answer(refused, Reply(chunks=(b"{}\n",)))
        async with client.stream(WATCH) as lines:
            assert [line async for line in lines] == [b"{}"]


async def test_nobody_listening_is_told_with_the_remedy(tmp_path: Path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    path = kubeconfig.write(tmp_path / "c", f"http://127.0.0.1:{port}", user={"token": "hunter2"})
    async with KubeClient.connect(kubeconfig=path, user_agent="t") as client:
        with pytest.raises(ApiError) as caught:
            await client.request("GET", "/x", deadline=0.1)
    assert caught.value.reason == "Unreachable"
    assert "check that the cluster runs" in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_each_try_is_observed(scripted: ScriptedServer, tmp_path: Path):
    seen = []
    path = kubeconfig.write(tmp_path / "c", scripted.url)
    async with KubeClient.connect(
        kubeconfig=path, user_agent="t", observe=lambda *try_: seen.append(try_[:3])
    ) as client:
        scripted.answer(SLOW_DOWN, LOST, OK)
        await client.apply(SECRET, "a", {}, namespace="n", field_manager="m")
    assert seen == [("apply", "secrets", 429), ("apply", "secrets", 0), ("apply", "secrets", 200)]


async def test_what_every_request_carries(client: KubeClient, scripted: ScriptedServer):
    scripted.answer(OK)
    await client.request("POST", "/apis/x", query=[("a", "b c")], body=b"{}")
    (sent,) = scripted.received
    assert (sent.path, sent.query, sent.body) == ("/apis/x", {"a": "b c"}, b"{}")
    assert sent.headers["Authorization"] == "Bearer secret-token"
    assert sent.headers["User-Agent"] == "test/1"
    assert sent.headers["Accept"] == "application/json"


async def test_a_stream_gives_whole_lines_and_drops_a_torn_one(
    client: KubeClient, scripted: ScriptedServer
):
    big = b'{"x":"' + b"y" * 5_000_000 + b'"}'
    scripted.answer(Reply(chunks=(b'{"a":', b"1}\n" + big[:100], big[100:] + b"\n", b'{"to')))
    async with client.stream(WATCH) as lines:
        assert [line async for line in lines] == [b'{"a":1}', big]


async def test_a_torn_stream_is_an_error(client: KubeClient, scripted: ScriptedServer):
    scripted.answer(Reply(chunks=(b"{}\n", b"{"), then="tear"))
    async with client.stream(WATCH) as lines:
        with pytest.raises(ApiError) as caught:
            _ = [line async for line in lines]
    assert caught.value.reason == "ConnectionLost"


async def test_a_silent_stream_is_given_up(
    client: KubeClient, scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(transport, "IDLE_DEADLINE", 0.2)
    scripted.answer(Reply(chunks=(b"{}\n",), then="silence"))
    async with client.stream(WATCH) as lines:
        assert await anext(lines) == b"{}"
        with pytest.raises(ApiError) as caught:
            await anext(lines)
    assert caught.value.reason == "Timeout"


async def test_a_refused_stream_is_an_error_with_its_status(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(Reply(410, refusal(410, "Expired", "too old")))
    with pytest.raises(ApiError) as caught:
        async with client.stream(WATCH):
            pass
    assert caught.value.expired
    assert len(scripted.received) == 1


async def test_leaving_a_stream_ends_its_connection(client: KubeClient, scripted: ScriptedServer):
    scripted.answer(Reply(chunks=(b"{}\n",), then="silence"))
    for _ in range(600):  # more than the connections that the client may hold
        async with client.stream(WATCH) as lines:
            assert await anext(lines) == b"{}"


async def test_the_system_asks_a_silent_peer_for_a_sign_of_life(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(Reply(chunks=(b"{}\n",), then="silence"))
    async with client.stream(WATCH) as lines:
        inner = lines._response.connection
        assert inner is not None
        assert inner.transport is not None
        found = inner.transport.get_extra_info("socket")
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_connecting_again_and_again_leaves_nothing_open(
    scripted: ScriptedServer, tmp_path: Path
):
    path = kubeconfig.write(tmp_path / "c", scripted.url)
    scripted.answer(OK)
    counts = []
    for _ in range(5):
        async with KubeClient.connect(kubeconfig=path, user_agent="t") as client:
            await client.get(NAMESPACE, "a")
        await asyncio.sleep(0.05)
        counts.append(open_files())
    assert counts[-1] <= counts[0]


async def test_b10_credentials_that_do_not_come_count_for_the_deadline(
    client: KubeClient, scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
):
    async def never() -> str | None:
        await asyncio.Event().wait()
        return None

    monkeypatch.setattr(client._transport._credentials, "authorization", never)
    with pytest.raises(ApiError) as caught:
        await client.request("GET", "/x", deadline=0.1)
    assert caught.value.reason == "Timeout"
    assert not scripted.received
