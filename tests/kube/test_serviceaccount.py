import asyncio
from pathlib import Path

import orjson
import pytest

from controller.kube import serviceaccount
from controller.kube.client import ApiError, KubeClient
from controller.model.objects import NAMESPACE
from tests.fakes.apiserver import Reply, ScriptedServer, refusal
from tests.kube import kubeconfig
from tests.kube.conftest import eventually

OK = Reply(body={"kind": "Namespace"})
REFUSED = Reply(401, refusal(401, "Unauthorized", "Unauthorized"))


def token(value: str, *, seconds: float = 3600) -> Reply:
    return Reply(201, {"spec": {"expirationSeconds": seconds}, "status": {"token": value}})


@pytest.fixture
def config(scripted: ScriptedServer, tmp_path: Path) -> Path:
    return kubeconfig.write(tmp_path / "c", scripted.url, user={"token": "mine"})


def connect(config: Path):
    return KubeClient.connect(kubeconfig=config, as_service_account=("ns", "robot"), user_agent="t")


def sent(scripted: ScriptedServer) -> list[tuple[str, str]]:
    return [
        (each.path.rpartition("/")[2], each.headers["Authorization"]) for each in scripted.received
    ]


async def test_the_users_credentials_ask_for_the_token_and_for_nothing_else(
    scripted: ScriptedServer, config: Path
):
    scripted.answer(token("t1"), OK)
    async with connect(config) as client:
        await client.get(NAMESPACE, "a")
    assert sent(scripted) == [("token", "Bearer mine"), ("a", "Bearer t1")]
    assert scripted.received[0].path == "/api/v1/namespaces/ns/serviceaccounts/robot/token"
    body = orjson.loads(scripted.received[0].body)
    assert body["spec"] == {"expirationSeconds": serviceaccount.LIFETIME}


async def test_the_token_is_renewed_before_it_expires(scripted: ScriptedServer, config: Path):
    scripted.answer(token("t1", seconds=0.1), token("t2"), OK)
    async with connect(config) as client:
        await eventually(lambda: len(scripted.received) == 2)
        await asyncio.sleep(0.05)
        await client.get(NAMESPACE, "a")
    assert sent(scripted)[-1] == ("a", "Bearer t2")


async def test_a_failed_renewal_is_tried_again(
    scripted: ScriptedServer, config: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(serviceaccount, "RETRY_AFTER", 0.01)
    forbidden = Reply(403, refusal(403, "Forbidden", "no"))
    scripted.answer(token("t1", seconds=0.1), forbidden, Reply(body={}), token("t2"))
    async with connect(config):
        await eventually(lambda: len(scripted.received) == 4)


async def test_a_refused_token_is_asked_for_again_once(scripted: ScriptedServer, config: Path):
    scripted.answer(token("t1"), REFUSED, token("t2"), OK)
    async with connect(config) as client:
        await client.get(NAMESPACE, "a")
        assert sent(scripted)[-1] == ("a", "Bearer t2")
        scripted.answer(REFUSED, token("t3"), REFUSED)
        with pytest.raises(ApiError, match="log in again"):
            await client.get(NAMESPACE, "a")


async def test_an_error_leaves_the_context_as_it_is(scripted: ScriptedServer, config: Path):
    scripted.answer(token("t1"), Reply(404, refusal(404, "NotFound", "no such thing")))
    before = asyncio.all_tasks()
    with pytest.raises(ApiError, match="no such thing"):
        async with connect(config) as client:
            await client.get(NAMESPACE, "a")
    assert not [t for t in asyncio.all_tasks() - before if t.get_name().startswith("token")]


async def test_cancelling_ends_the_renewal_too(scripted: ScriptedServer, config: Path):
    scripted.answer(token("t1"))
    entered = asyncio.Event()

    async def work() -> None:
        async with connect(config):
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [t for t in asyncio.all_tasks() if t.get_name().startswith("token")]
