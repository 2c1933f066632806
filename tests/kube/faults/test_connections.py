"""Connections that break, are torn or go slow between a watch and the real API server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from controller.kube.client import KubeClient
from tests.fakes.wire import Wire
from tests.kube.faults.conftest import Observe
from tests.kube.faults.observed import (
    CONFIG_MAP,
    Observed,
    change,
    config_map,
    counted_lists,
    prepare,
)
from tests.lab.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

BIG = 300_000  # bytes of an object's data: its line is longer than what is passed on
NOTICE_SECONDS = 240.0  # after which a test gives up; the targets are printed, not asserted


@contextlib.asynccontextmanager
async def wired(
    fault: str, lab: Lab, near: KubeClient, observe: Observe
) -> AsyncIterator[tuple[Wire, Observed]]:
    """A wire to the lab, and an observed client at its other end."""
    async with Wire.to(lab.server) as wire, observe(fault, lab, near, wire.url) as seen:
        yield wire, seen


async def test_every_connection_reset_is_followed_by_new_ones_without_a_list(
    lab: Lab, cluster: KubeClient, namespace: str, observe: Observe
):
    async with wired("every connection reset, 20 times", lab, cluster, observe) as (wire, seen):
        await prepare(cluster, namespace)
        for _ in range(5):
            await seen.watch(namespace=namespace)
        mark = lab.mark()
        for number in range(20):
            seen.begins()
            wire.reset()
            seen.back()
            body = config_map(f"r{number}", "1")
            await cluster.create(CONFIG_MAP, body, namespace=namespace)
            await asyncio.sleep(0.2)
        await change(cluster, namespace)
        await seen.caught_up()
        seen.what = f"5 watches, {wire.connections} connections, {counted_lists(lab, mark)} lists"
    assert counted_lists(lab, mark) == 0


async def test_a_connection_torn_in_the_middle_of_a_line_goes_on_before_that_line(
    lab: Lab, cluster: KubeClient, namespace: str, observe: Observe
):
    async with wired("torn in the middle of a line", lab, cluster, observe) as (wire, seen):
        await prepare(cluster, namespace)
        watch = await seen.watch(namespace=namespace)
        mark = lab.mark()
        for number in range(5):
            seen.begins()
            wire.tear(BIG // 2)
            connections = wire.connections
            seen.back()
            body = config_map(f"big{number}", "x" * BIG)
            await cluster.create(CONFIG_MAP, body, namespace=namespace)
            await seen.caught_up()
            assert wire.connections > connections
        await change(cluster, namespace)
        await seen.caught_up()
        seen.what = f"5 tears, {wire.connections} connections, {counted_lists(lab, mark)} lists"
    assert counted_lists(lab, mark) == 0
    assert watch.ledger.problems == []


async def test_objects_deleted_and_made_again_while_disconnected_are_told_as_both(
    lab: Lab, cluster: KubeClient, namespace: str, observe: Observe
):
    async with wired("deleted and made again meanwhile", lab, cluster, observe) as (wire, seen):
        await prepare(cluster, namespace)
        whole = await seen.watch(namespace=namespace)
        metadata = await seen.watch(namespace=namespace, metadata_only=True)
        told = {id(each): each.ledger.alive[namespace, "c-again"] for each in seen.watches}
        seen.begins()
        wire.cut()
        await change(cluster, namespace)
        await asyncio.sleep(3)
        seen.back()
        wire.mend()
        await seen.caught_up()
        seen.what = "refused for 3 s; full and metadata only"
    for watch in (whole, metadata):
        assert (namespace, "c-goes") not in watch.ledger.alive
        assert watch.ledger.alive[namespace, "c-again"][0] != told[id(watch)][0]


async def test_quiet_peers_are_noticed_and_slow_ones_are_not_given_up(
    lab: Lab, cluster: KubeClient, namespace: str, observe: Observe
):
    """The long waits run at the same time, each behind a wire or a server of its own."""
    await prepare(cluster, namespace)
    broken = asyncio.Barrier(5)  # four peers and the one who makes changes

    async def silent(fault: str, method: str) -> None:
        async with wired(fault, lab, cluster, observe) as (wire, seen):
            await seen.watch(namespace=namespace)
            await broken.wait()
            seen.begins()
            if method == "drop":
                await wire.drop()
            else:
                getattr(wire, method)()
            await broken.wait()
            await seen.wait_noticed(NOTICE_SECONDS)
            seen.back()
            wire.mend()
            await seen.caught_up()
            seen.what = f"noticed, {wire.connections} connections"

    async def slow() -> None:
        async with wired("2 KB a second", lab, cluster, observe) as (wire, seen):
            await seen.watch(namespace=namespace)
            await broken.wait()
            seen.begins()
            wire.slow(2000)
            await broken.wait()
            seen.back()
            await seen.caught_up()
            seen.what = f"waited for, {wire.connections} connection(s)"
            assert seen.requests == 0

    async def changes() -> None:
        await broken.wait()
        await broken.wait()
        await change(cluster, namespace)
        body = config_map("slow", "x" * 20_000)
        await cluster.create(CONFIG_MAP, body, namespace=namespace)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(silent("packets dropped, no ACK", "drop"))
        tasks.create_task(silent("acknowledged and not read", "silence"))
        tasks.create_task(silent("acknowledged, read, passed nowhere", "swallow"))
        tasks.create_task(slow())
        tasks.create_task(changes())
