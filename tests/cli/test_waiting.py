"""Waiting with a deadline, and what is told meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from controller.cli.view import Readiness
from controller.cli.waiting import poll, together
from controller.kube.client import ApiError


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


def looks(*texts):
    """A look that answers with one text after the other; an empty one means done."""
    left = list(texts)

    async def look() -> Readiness:
        text = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(text, Exception):
            raise text
        return Readiness(done=not text, text=text)

    return look


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def waiting(make_session, clock):
    def make(**more):
        return make_session(monotonic=clock, sleep=clock.sleep, **more)

    return make


async def test_each_change_is_told_once(waiting, clock):
    session = waiting()
    look = looks("no digest", "no digest", "fetching", "")
    last = await poll(look, "x", seconds=60, session=session)
    assert last.done
    assert clock.now == 3
    assert session.stderr.getvalue() == "waiting for x: no digest\nwaiting for x: fetching\n"


async def test_the_deadline_ends_it_with_what_was_seen_last(waiting, clock):
    session = waiting()
    last = await poll(looks("no digest"), "x", seconds=2.5, session=session)
    assert last == Readiness(done=False, text="no digest")
    assert clock.now == 2.5


async def test_a_terminal_shows_the_time_and_is_left_clean(waiting):
    session = waiting(terminal=True)
    await poll(looks("no digest", "no digest", ""), "x", seconds=60, session=session)
    text = session.stderr.getvalue()
    assert "\r\x1b[K0s of 1m" in text
    assert "\r\x1b[K1s of 1m" in text
    assert text.endswith("\r\x1b[K")


async def test_an_api_server_that_is_away_is_waited_for(waiting):
    away = ApiError(status=0, reason="Unreachable", message="cannot reach the API server")
    session = waiting()
    assert (await poll(looks(away, ""), "x", seconds=60, session=session)).done
    assert "cannot reach the API server" in session.stderr.getvalue()


async def test_a_refusal_is_not_waited_for(waiting):
    refused = ApiError(status=403, reason="Forbidden", message="no")
    with pytest.raises(ApiError):
        await poll(looks(refused), "x", seconds=60, session=waiting())


async def test_the_first_failure_ends_the_others_and_comes_alone():
    cancelled = []

    async def slow():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def failing():
        await asyncio.sleep(0)
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        await together([slow(), failing()])
    assert cancelled == [True]


async def test_results_come_in_order():
    async def give(value):
        await asyncio.sleep(0)
        return value

    assert await together(give(n) for n in range(3)) == [0, 1, 2]
