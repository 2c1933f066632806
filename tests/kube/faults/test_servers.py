"""The real API server is killed, stopped or forgets; and etcd with it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.kube import requests
from controller.kube.client import ApiError, KubeClient
from controller.kube.requests import Selection
from tests.fakes.wire import Wire
from tests.kube.faults.conftest import Observe
from tests.kube.faults.etcd import Etcd
from tests.kube.faults.front import Front
from tests.kube.faults.observed import (
    CONFIG_MAP,
    change,
    config_map,
    counted_lists,
    prepare,
    ready,
)
from tests.lab.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

NAMESPACE = "default"
RESTARTS = 10
RESTART_SECONDS = 6.0  # from one kill to the next
STOPPED_SECONDS = 120.0


@pytest.fixture
def uncached_lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab whose API server asks etcd for each list, so that pages are true ones."""
    arguments = ("--watch-cache=false",)
    with Lab.launch(tmp_path / "lab", audit=True, api_server_arguments=arguments) as found:
        yield found


async def test_a_server_killed_10_times_in_60_seconds_is_followed(
    own_lab: Lab, near_own: KubeClient, observe: Observe
):
    loop = asyncio.get_running_loop()
    fault = "API server killed and restarted, 10 times"
    async with observe(fault, own_lab, near_own, own_lab.server) as seen:
        watches = [await seen.watch(namespace=NAMESPACE) for _ in range(3)]
        watches.append(await seen.watch(namespace=NAMESPACE, metadata_only=True))
        for number in range(RESTARTS):
            began = loop.time()
            await prepare(near_own, NAMESPACE, f"k{number}")
            # Some of the changes come just before the end, unseen by the watches or not.
            seen.begins()
            kill = asyncio.to_thread(own_lab.kill, "kube-apiserver")
            await asyncio.gather(burst(near_own, number), kill)
            start = asyncio.ensure_future(asyncio.to_thread(own_lab.start, "kube-apiserver"))
            try:
                await ready(own_lab)
                seen.back()
                await change(near_own, NAMESPACE, f"k{number}")
                await seen.caught_up()
            finally:
                await start
            await asyncio.sleep(max(0.0, began + RESTART_SECONDS - loop.time()))
        mean = sum(seen.recoveries) / len(seen.recoveries)
        seen.what = f"4 watches; recovered in {mean:.2f} s on average"
    assert all(watch.ledger.changes > RESTARTS for watch in watches)


async def burst(near: KubeClient, number: int) -> None:
    """Write until the API server is gone."""
    for step in range(100):
        try:
            await near.apply(
                CONFIG_MAP,
                f"k{number}-burst",
                config_map(f"k{number}-burst", str(step)),
                field_manager="test",
                namespace=NAMESPACE,
            )
        except ApiError:
            return


async def test_a_server_stopped_for_2_minutes_is_followed_by_old_and_new_watches(
    own_lab: Lab, near_own: KubeClient, observe: Observe
):
    """Its system acknowledges all the time: what was connected before may just go on."""
    async with observe("API server stopped for 2 min", own_lab, near_own, own_lab.server) as seen:
        await prepare(near_own, NAMESPACE)
        await seen.watch(namespace=NAMESPACE)
        await seen.watch(namespace=NAMESPACE, metadata_only=True)
        seen.begins()
        await asyncio.to_thread(own_lab.pause, "kube-apiserver")
        try:
            late = await seen.watch(namespace=NAMESPACE, wait=False)
            with pytest.raises(ApiError) as caught:
                await near_own.get(CONFIG_MAP, "c-stays", namespace=NAMESPACE)
            assert caught.value.reason in {"Timeout", "Unreachable"}
            assert not late.informer.synced
            began = asyncio.get_running_loop().time()
            waited = began - seen.began
            await asyncio.sleep(max(0.0, STOPPED_SECONDS - waited))
        finally:
            await asyncio.to_thread(own_lab.resume, "kube-apiserver")
        await ready(own_lab)
        seen.back()
        await change(near_own, NAMESPACE)
        await seen.caught_up()
        seen.what = f"2 old watches and a new one; a read gave up after {waited:.0f} s"
    assert late.informer.synced


async def test_versions_that_etcd_compacted_while_the_watch_was_down_lead_to_a_list(
    own_lab: Lab, near_own: KubeClient, observe: Observe
):
    async with (
        Wire.to(own_lab.server) as wire,
        observe("etcd compacted while down (410)", own_lab, near_own, wire.url) as seen,
    ):
        await prepare(near_own, NAMESPACE)
        whole = await seen.watch(namespace=NAMESPACE)
        metadata = await seen.watch(namespace=NAMESPACE, metadata_only=True)
        old = whole.informer.store.resource_version
        again = whole.ledger.alive[NAMESPACE, "c-again"]
        seen.begins()
        wire.cut()
        await change(near_own, NAMESPACE)
        await asyncio.to_thread(own_lab.kill, "kube-apiserver")
        await asyncio.to_thread(Etcd(own_lab).compact)
        await asyncio.to_thread(own_lab.start, "kube-apiserver")
        await expired(near_own, old)
        mark = own_lab.mark()
        seen.back()
        wire.mend()
        await seen.caught_up()
        count = counted_lists(own_lab, mark)
        seen.what = f"a real 410 for each of 2 watches; {count} lists"
    assert count == 2
    for watch in (whole, metadata):
        assert watch.ledger.alive[NAMESPACE, "c-again"][0] != again[0]
        assert (NAMESPACE, "c-goes") not in watch.ledger.alive


async def expired(near: KubeClient, version: str) -> None:
    """Check that the API server has truly forgotten a version."""
    request = requests.watch(
        Selection(CONFIG_MAP, NAMESPACE),
        resource_version=version,
        timeout_seconds=5,
        send_initial_events=False,
    )
    try:
        async with near.stream(request) as lines:
            async for line in lines:
                assert b'"code":410' in line
                return
    except ApiError as error:
        assert error.expired  # noqa: PT017 - the refusal may come as a status or as a line
        return
    raise AssertionError(f"version {version} is still known")


async def test_a_list_in_pages_whose_versions_are_compacted_is_begun_anew(
    uncached_lab: Lab, observe: Observe
):
    """An API server that lists from etcd alone and, for all a client can tell, not by streams."""
    lab, label, count = uncached_lab, "paged", 1500
    etcd = Etcd(lab)
    await asyncio.to_thread(etcd.put_config_maps, NAMESPACE, count, label=label, size=100)
    fault = "etcd compacted between two pages (410)"
    async with (
        KubeClient.connect(kubeconfig=lab.kubeconfig, user_agent="near/1") as near,
        Front.of(lab) as front,
        observe(fault, lab, near, front.url) as seen,
    ):
        front.no_streaming_lists = True
        front.pages_before.clear()
        watch = await seen.watch(namespace=NAMESPACE, label_selector=label, wait=False)
        async with asyncio.timeout(30):
            await front.page_asked.wait()
        seen.begins()
        await near.delete(CONFIG_MAP, "o00000", namespace=NAMESPACE)
        patch = {"data": {"x": "2"}}
        await near.merge_patch(CONFIG_MAP, f"o{count - 1:05}", patch, namespace=NAMESPACE)
        await asyncio.to_thread(etcd.compact)
        seen.back()
        front.pages_before.set()
        await seen.caught_up()
        codes = [each.status for each in seen.sent]
        seen.what = f"{count} objects, {codes.count(410)} page refused"
    assert 410 in codes
    assert len(watch.ledger.alive) == count - 1
