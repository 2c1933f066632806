"""Control: how a client asks the supervisor of a lab to do something to a component."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

from tests.lab.errors import LabError

LIMIT = 65_536
HELLO_SECONDS = 5.0
LAST_SECONDS = 1.0
Act = Callable[[str, str], Awaitable[dict[str, int]]]


@contextlib.asynccontextmanager
async def serve(*, token: str, act: Act) -> AsyncIterator[int]:
    """Serve requests of clients on loopback: one JSON line in, one out, per connection.

    Args:
        token: what a client must show.
        act: does the action to the component and returns the pids after it.

    Yields:
        The port.
    """

    handlers: set[asyncio.Future[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            handlers.add(task)
            task.add_done_callback(handlers.discard)
        # Who sends nonsense, or nothing in time, gets no answer.
        with contextlib.suppress(OSError, ValueError, TimeoutError, LookupError, TypeError):
            line = await asyncio.wait_for(reader.readline(), HELLO_SECONDS)
            writer.write(json.dumps(await _answer(line, token=token, act=act)).encode() + b"\n")
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, limit=LIMIT)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        if handlers:  # who asked gets the answer before the service is gone
            await asyncio.wait(tuple(handlers), timeout=LAST_SECONDS)


async def _answer(line: bytes, *, token: str, act: Act) -> dict[str, object]:
    wish = json.loads(line)
    if not hmac.compare_digest(str(wish["token"]), token):
        return {"error": "wrong token"}
    try:
        return {"pids": await act(wish["action"], wish["component"])}
    except LabError as error:
        return {"error": str(error)}


def ask(address: tuple[int, str], *, action: str, component: str, seconds: float) -> dict[str, int]:
    """Ask the supervisor to do one thing and wait until it is done.

    Args:
        address: port and token of the supervisor.
        action: kill, start, restart, pause or resume.
        component: name of the component.
        seconds: deadline.

    Returns:
        The pids by component after it.

    Raises:
        LabError: the supervisor refused, failed, is gone or did not answer in time.
    """
    port, token = address
    wish = {"token": token, "action": action, "component": component}
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
            connection.sendall(json.dumps(wish).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline(LIMIT)
        answer = json.loads(line)
    except (OSError, ValueError) as error:
        raise LabError(f"{action} {component}: the lab does not answer ({error})") from error
    if "error" in answer:
        raise LabError(f"{action} {component}: {answer['error']}")
    pids: dict[str, int] = answer["pids"]
    return pids
