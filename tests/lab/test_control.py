"""Control: only who knows the token acts, and a refusal comes back as an error."""

from __future__ import annotations

import asyncio

import pytest

from tests.lab import control
from tests.lab.errors import LabError


async def act(action: str, component: str) -> dict[str, int]:
    if action == "start":
        raise LabError("it does not start")
    return {component: 7}


async def ask(token: str, action: str) -> dict[str, int]:
    async with control.serve(token="right", act=act) as port:
        return await asyncio.to_thread(
            control.ask, (port, token), action=action, component="etcd", seconds=5
        )


async def test_the_answer_holds_the_pids():
    assert await ask("right", "kill") == {"etcd": 7}


@pytest.mark.parametrize(
    ("token", "action", "message"),
    [
        ("wrong", "kill", "kill etcd: wrong token"),
        ("right", "start", "start etcd: it does not start"),
    ],
)
async def test_a_refusal_is_an_error(token, action, message):
    with pytest.raises(LabError, match=message):
        await ask(token, action)


async def test_nonsense_is_not_answered_and_harms_nobody():
    async with control.serve(token="right", act=act) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"nonsense\n")
        assert await reader.read() == b""
        writer.close()
        asked = asyncio.to_thread(
            control.ask, (port, "right"), action="kill", component="etcd", seconds=5
        )
        assert await asked == {"etcd": 7}


def test_a_lab_that_is_gone_is_an_error(unused_tcp_port):
    with pytest.raises(LabError, match="does not answer"):
        control.ask((unused_tcp_port, "t"), action="kill", component="etcd", seconds=5)
