"""Writes that need a right to be sent: it is asked for again as the body goes to the socket."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from controller.kube.client import ApiError, KubeClient
from controller.model.objects import SECRET
from tests.fakes.apiserver import Reply, ScriptedServer
from tests.kube import kubeconfig


class Right:
    """A right to write that ends after some questions."""

    def __init__(self, granted: int) -> None:
        self.granted = granted
        self.asked = 0

    def check(self) -> None:
        self.asked += 1
        if self.asked > self.granted:
            raise ApiError(status=0, reason="NotLeader", message="the lease is lost")


async def test_l6_a_write_without_the_right_is_not_sent(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(Reply(body={"kind": "Secret"}))
    guarded = client.guarded(Right(0).check)
    with pytest.raises(ApiError, match="the lease is lost"):
        await guarded.create(SECRET, {}, namespace="a")
    with pytest.raises(ApiError, match="the lease is lost"):
        await guarded.merge_patch(SECRET, "x", {}, namespace="a")
    with pytest.raises(ApiError, match="the lease is lost"):
        await guarded.delete(SECRET, "x", namespace="a")
    assert not scripted.received


async def test_l6_a_write_whose_right_ends_on_the_way_is_not_carried_out(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(Reply(body={"kind": "Secret"}))
    right = Right(1)
    with pytest.raises(ApiError, match="the lease is lost"):
        await client.guarded(right.check).create(SECRET, {}, namespace="a")
    assert right.asked == 3, "before it, with its body, and before it is sent again"
    assert not scripted.received


async def test_l6_reading_needs_no_right(client: KubeClient, scripted: ScriptedServer):
    scripted.answer(Reply(body={"kind": "Secret"}))
    right = Right(0)
    await client.guarded(right.check).get(SECRET, "x", namespace="a")
    assert right.asked == 0


async def test_l6_a_guard_over_one_client_leaves_the_other_alone(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(Reply(body={"kind": "Secret"}))
    client.guarded(Right(0).check)
    await client.create(SECRET, {}, namespace="a")
    assert len(scripted.received) == 1


async def test_l6_a_write_with_the_right_is_sent_whole(
    client: KubeClient, scripted: ScriptedServer
):
    scripted.answer(Reply(body={"kind": "Secret"}))
    guarded = client.guarded(Right(100).check)
    await guarded.create(SECRET, b'{"data":{}}', namespace="a")
    await guarded.delete(SECRET, "x", namespace="a")
    created, deleted = scripted.received
    assert (created.method, created.body) == ("POST", b'{"data":{}}')
    assert created.headers["Content-Type"] == "application/json"
    assert deleted.method == "DELETE"


@pytest.mark.parametrize("size", [1_000, 4_000_000])
async def test_l6_a_write_that_is_cancelled_on_its_way_does_not_arrive_whole(
    size: int, tmp_path: Path
):
    """The server reads nothing until the write was cancelled, as one that was stopped does."""
    received, reading, closed = bytearray(), asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reading.wait()
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                received.extend(chunk)
        writer.close()
        closed.set()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        path = kubeconfig.write(tmp_path / "c", f"http://127.0.0.1:{port}", user={"token": "s"})
        async with KubeClient.connect(kubeconfig=path, user_agent="t") as client:
            guarded = client.guarded(Right(100).check)
            write = asyncio.ensure_future(guarded.create(SECRET, b"x" * size, namespace="a"))
            await asyncio.sleep(0.2)
            write.cancel()
            await asyncio.gather(write, return_exceptions=True)
        reading.set()
        async with asyncio.timeout(10):
            await closed.wait()
    assert len(bytes(received).partition(b"\r\n\r\n")[2]) < size
