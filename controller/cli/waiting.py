"""Waiting for the cluster, with a deadline, telling what is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from controller.cli.names import duration_text, full_name
from controller.cli.session import CommandError, NotReadyError
from controller.cli.view import Readiness, readiness

if TYPE_CHECKING:
    from controller.cli.session import Session
    from controller.kube.client import KubeClient
    from controller.model.objects import Resource

T = TypeVar("T")

POLL_SECONDS = 1.0


async def wait_for_package(
    client: KubeClient,
    resource: Resource,
    name: str,
    *,
    seconds: float,
    manual: bool,
    session: Session,
) -> None:
    """Wait until a package is installed and healthy.

    Each change of what it waits for is one line on stderr; on a terminal the time runs beside it.

    Args:
        client: the cluster.
        resource: the package's kind.
        name: the package's name.
        seconds: how long at most.
        manual: being ready for activation is enough.
        session: streams and clocks.

    Raises:
        NotReadyError: the time is over; the text is the last condition that said why.
        CommandError: the package was deleted meanwhile.
    """
    from controller.kube.client import ApiError  # noqa: PLC0415 - loaded with the client

    target = full_name(resource, name)

    async def look() -> Readiness:
        try:
            return readiness(await client.get(resource, name), manual=manual)
        except ApiError as error:
            if error.not_found:
                raise CommandError(f"{target} was deleted while waiting for it") from error
            raise

    started = session.monotonic()
    last = await poll(look, target, seconds=seconds, session=session)
    if not last.done:
        raise NotReadyError(
            f"{target} did not become healthy within {duration_text(seconds)}: {last.text}"
        )
    took = duration_text(session.monotonic() - started)
    state = "ready to be activated" if manual else "installed and healthy"
    session.say(f"{target} {state} after {took}")


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await several things at once and return their results in order.

    The first failure ends the others and is raised as it is, not as a group.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def poll(
    look: Callable[[], Awaitable[Readiness]], target: str, *, seconds: float, session: Session
) -> Readiness:
    """Look again and again until done or out of time, and tell each change.

    An API server that does not answer for a while is waited for like anything else.

    Args:
        look: one look; its text says what is still missing.
        target: what is waited for, as the lines name it.
        seconds: how long at most.
        session: streams and clocks.

    Returns:
        What was seen last.
    """
    from controller.kube.client import ApiError  # noqa: PLC0415 - loaded with the client

    end = session.monotonic() + seconds
    told = ""
    last = Readiness(done=False, text="no answer from the API server")
    with session.progress() as line:
        while True:
            remaining = end - session.monotonic()
            try:
                async with asyncio.timeout(max(remaining, POLL_SECONDS)):
                    last = await look()
            except TimeoutError:
                return last
            except ApiError as error:
                if not error.retryable:
                    raise
                last = Readiness(done=False, text=str(error))
            if last.done:
                return last
            if last.text != told:
                told = last.text
                line.clear()
                session.note(f"waiting for {target}: {last.text}")
            remaining = end - session.monotonic()
            if remaining <= 0:
                return last
            line.show(f"{duration_text(int(seconds - remaining))} of {duration_text(seconds)}")
            await session.sleep(min(POLL_SECONDS, remaining))
