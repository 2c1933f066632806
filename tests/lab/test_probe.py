"""Probes read whole answers and report everything else as unreachable."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.lab import probe


@contextlib.asynccontextmanager
async def serving(reply: bytes, *, hang: bool = False):
    ended = asyncio.Event()

    async def handle(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        if hang:
            await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
        await ended.wait()


async def test_a_request_reaches_the_server_and_its_answer_comes_back_whole():
    async def echo(request: web.Request) -> web.Response:
        body = await request.read()
        return web.Response(status=201, body=request.headers["Authorization"].encode() + body)

    application = web.Application()
    application.router.add_post("/x", echo)
    async with TestServer(application, host="127.0.0.1") as server:
        url = str(server.make_url("/x"))
        answer = await probe.request("POST", url, token="t", body=b"{}" * 10_000)
    assert answer == (201, b"Bearer t" + b"{}" * 10_000)


@pytest.mark.parametrize("reply", [b"", b"nonsense", b"HTTP/1.0 many"])
async def test_an_answer_that_is_no_http_is_unreachable(reply):
    async with serving(reply) as url:
        with pytest.raises(probe.UnreachableError):
            await probe.request("GET", url)


async def test_an_answer_that_does_not_end_is_unreachable():
    async with serving(b"HTTP/1.0 200 OK\r\n\r\n", hang=True) as url:
        with pytest.raises(probe.UnreachableError, match="no answer"):
            await probe.request("GET", url, seconds=0.1)


async def test_a_port_nobody_listens_on_is_unreachable(unused_tcp_port):
    with pytest.raises(probe.UnreachableError):
        await probe.request("GET", f"http://127.0.0.1:{unused_tcp_port}/")
