"""Answers that say no, or never come to an end, in the place of the real API server's."""

import asyncio
from itertools import pairwise

import pytest

from controller.kube import reflector
from controller.kube.client import ApiError, KubeClient
from tests.kube.faults.conftest import Observe
from tests.kube.faults.front import Arrival, Front
from tests.kube.faults.observed import CONFIG_MAP, change, config_map, prepare
from tests.lab.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

RETRY_AFTER = 2  # seconds
REFUSED_SECONDS = 12.0
WATCH_SECONDS = 20  # that the watch asks for, in place of 300 to 600
NOTICE_SECONDS = 200.0  # after which the test gives up


@pytest.mark.parametrize("status", [429, 503])
async def test_nobody_asks_again_before_retry_after(
    lab: Lab, cluster: KubeClient, namespace: str, observe: Observe, status: int
):
    fault = f"{status} with Retry-After {RETRY_AFTER}"
    async with Front.of(lab) as front, observe(fault, lab, cluster, front.url) as seen:
        await prepare(cluster, namespace)
        await seen.watch(namespace=namespace)
        seen.begins()
        first = len(front.arrivals)
        front.refuse(status, retry_after=RETRY_AFTER)
        # A read of this client's meets the same refusals, and is answered after them.
        body = config_map("refused", "1")
        write = asyncio.ensure_future(
            seen.client.apply(
                CONFIG_MAP, "refused", body, field_manager="test", namespace=namespace
            )
        )
        await change(cluster, namespace)
        await asyncio.sleep(REFUSED_SECONDS / 2)
        front.mend()
        await write
        front.refuse(status, retry_after=RETRY_AFTER)
        await asyncio.sleep(REFUSED_SECONDS / 2)
        seen.back()
        front.mend()
        await seen.caught_up()
        refused = [each for each in front.arrivals[first:] if each.status == status]
        seen.what = f"2 times {REFUSED_SECONDS / 2:.0f} s, {len(refused)} requests refused"
    watched = [each for each in refused if each.watch]
    written = [each for each in refused if each.method == "PATCH"]
    assert watched
    assert written
    assert gap(watched) >= RETRY_AFTER
    assert gap(written) >= RETRY_AFTER


def gap(arrivals: list[Arrival]) -> float:
    """Return the shortest time between two requests."""
    times = [each.time for each in arrivals]
    return min((b - a for a, b in pairwise(times)), default=float("inf"))


async def test_a_read_whose_answer_never_ends_is_given_up_at_its_deadline(
    lab: Lab, cluster: KubeClient, namespace: str, observe: Observe
):
    fault = "a response that never ends (read)"
    async with Front.of(lab) as front, observe(fault, lab, cluster, front.url) as seen:
        await prepare(cluster, namespace)
        loop = asyncio.get_running_loop()
        front.trickle()
        seen.begins()
        with pytest.raises(ApiError) as caught:
            await seen.client.request(
                "GET", f"/api/v1/namespaces/{namespace}/configmaps", deadline=5
            )
        spent = loop.time() - seen.began
        assert caught.value.reason == "Timeout"
        front.mend()
        seen.back()
        await seen.watch(namespace=namespace)
        await seen.caught_up()
        seen.what = f"given up after {spent:.1f} s of a deadline of 5 s"


async def test_a_watch_whose_answer_never_ends_is_given_up_soon_after_its_time(
    lab: Lab,
    cluster: KubeClient,
    namespace: str,
    observe: Observe,
    monkeypatch: pytest.MonkeyPatch,
):
    """Something between here and the API server goes on where that one has ended the watch."""
    monkeypatch.setattr(reflector, "WATCH_SECONDS", (WATCH_SECONDS, WATCH_SECONDS))
    fault = "a response that never ends (watch)"
    async with Front.of(lab) as front, observe(fault, lab, cluster, front.url) as seen:
        await prepare(cluster, namespace)
        await seen.watch(namespace=namespace)
        seen.begins()
        front.trickle()
        await change(cluster, namespace)
        await seen.wait_noticed(NOTICE_SECONDS)
        seen.back()
        front.mend()
        await seen.caught_up()
        seen.what = f"a space each 0.5 s on a watch of {WATCH_SECONDS} s"
