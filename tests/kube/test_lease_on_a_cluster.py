"""Leader election on the real API server: hand-overs, faults, and the shipped permissions."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from controller.kube.client import KubeClient
from controller.kube.leadership import LEASE
from controller.kube.lease import LeaderElection, LeaseTiming
from tests.kube.conftest import eventually, running
from tests.lab.lab import Lab

pytestmark = pytest.mark.lab

SHORT = LeaseTiming(3.0, 2.0, 0.4)
ROLE = Path(__file__).parents[2] / "manifests" / "rbac" / "05-role.yaml"


class Candidate:
    """An election that can be ended as a kill does, or in order."""

    def __init__(self, client: KubeClient, namespace: str, identity: str, timing: LeaseTiming):
        self.election = LeaderElection(
            client, namespace=namespace, name="core", identity=identity, timing=timing
        )
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.ensure_future(self.election.run())

    async def kill(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None


@contextlib.asynccontextmanager
async def candidates(
    lab: Lab, namespace: str, names: str, timing: LeaseTiming
) -> AsyncIterator[list[Candidate]]:
    """Run candidates, each with connections of its own."""
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for name in names:
            client = await stack.enter_async_context(
                KubeClient.connect(kubeconfig=lab.kubeconfig, user_agent=f"test/{name}")
            )
            one = Candidate(client, namespace, name, timing)
            one.start()
            stack.push_async_callback(one.kill)
            found.append(one)
        yield found


class Referee:
    """Looks all the time how many lead."""

    def __init__(self, some: list[Candidate]) -> None:
        self._some = some
        self.most = 0
        self.looks = 0

    async def run(self) -> None:
        while True:
            self.most = max(self.most, sum(each.election.leading for each in self._some))
            self.looks += 1
            await asyncio.sleep(0.002)


async def leader(some: list[Candidate], *, seconds: float = 30.0) -> Candidate:
    """Wait until one of some leads."""
    await eventually(lambda: any(each.election.leading for each in some), seconds=seconds)
    return next(each for each in some if each.election.leading)


async def knows(one: Candidate, holder: Candidate) -> None:
    """Wait until a candidate has seen who leads."""
    await eventually(lambda: one.election.holder == holder.election.identity)


async def lease_of(cluster: KubeClient, namespace: str) -> dict[str, Any]:
    return await cluster.get(LEASE, "core", namespace=namespace)


async def test_never_two_lead_over_forced_hand_overs(
    cluster: KubeClient, lab: Lab, namespace: str, capsys: pytest.CaptureFixture[str]
):
    took: dict[str, list[float]] = {"released": [], "killed": [], "taken away": []}
    clock = asyncio.get_running_loop().time
    async with candidates(lab, namespace, "ab", SHORT) as both:
        referee = Referee(both)
        async with running(referee.run()):
            for how in itertools.islice(itertools.cycle(took), 9):
                first = await leader(both)
                second = next(each for each in both if each is not first)
                await knows(second, first)
                began = clock()
                if how == "taken away":
                    spec = {"holderIdentity": "", "leaseDurationSeconds": 1}
                    await cluster.merge_patch(LEASE, "core", {"spec": spec}, namespace=namespace)
                    async with asyncio.timeout(5):
                        await first.election.wait_lost()
                    await leader(both)
                else:
                    await first.kill()
                    if how == "released":
                        await first.election.release()
                    await leader([second])
                    first.start()
                took[how].append(clock() - began)
        assert referee.most == 1
        assert referee.looks > 100
    spec = (await lease_of(cluster, namespace))["spec"]
    assert spec["leaseTransitions"] >= 6
    with capsys.disabled():
        for how, times in took.items():
            shown = ", ".join(f"{each:.3f}" for each in times)
            print(f"\nhand-over, {how}: {shown} s", end="")  # noqa: T201 - the measured times


async def test_l7_a_standby_takes_a_lease_given_back_within_two_seconds(
    lab: Lab, namespace: str, capsys: pytest.CaptureFixture[str]
):
    clock = asyncio.get_running_loop().time
    async with candidates(lab, namespace, "ab", LeaseTiming()) as both:
        first = await leader(both)
        second = next(each for each in both if each is not first)
        await knows(second, first)
        await first.kill()
        began = clock()
        await first.election.release()
        async with asyncio.timeout(10):
            await second.election.wait_acquired()
        took = clock() - began
    with capsys.disabled():
        print(f"\nreleased, default timing: {took:.3f} s", end="")  # noqa: T201 - the measured time


async def test_l6_leadership_ends_while_the_api_server_is_silent_and_comes_back(
    own_lab: Lab, capsys: pytest.CaptureFixture[str]
):
    clock = asyncio.get_running_loop().time
    async with candidates(own_lab, "default", "ab", SHORT) as both:
        first = await leader(both)
        referee = Referee(both)
        async with running(referee.run()):
            began = clock()
            await asyncio.to_thread(own_lab.pause, "kube-apiserver")
            try:
                async with asyncio.timeout(10):
                    await first.election.wait_lost()
                ended = clock() - began
                assert not first.election.leading
                await asyncio.sleep(4)
                assert not any(each.election.leading for each in both)
            finally:
                await asyncio.to_thread(own_lab.resume, "kube-apiserver")
            began = clock()
            await leader(both)
            back = clock() - began
            await asyncio.sleep(4)
        assert referee.most == 1
        assert sum(each.election.leading for each in both) == 1
    with capsys.disabled():
        text = f"API server frozen: lost after {ended:.3f} s, back after {back:.3f} s"
        print(f"\n{text}", end="")  # noqa: T201 - the measured times


async def test_a_lease_that_others_made_is_used_as_it_is(
    cluster: KubeClient, lab: Lab, namespace: str
):
    body = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "core", "labels": {"x": "y"}, "annotations": {"n": "m"}},
    }
    await cluster.create(LEASE, body, namespace=namespace)
    async with candidates(lab, namespace, "a", SHORT) as (one,):
        await leader([one])
        await asyncio.sleep(1)
        found = await lease_of(cluster, namespace)
        assert found["metadata"]["labels"] == {"x": "y"}
        assert found["metadata"]["annotations"] == {"n": "m"}
        assert found["spec"]["holderIdentity"] == "a"
        assert found["spec"]["leaseDurationSeconds"] == 3
        assert len(found["spec"]["renewTime"]) == len("2026-01-02T03:04:05.000006Z")
        await one.kill()
        await one.election.release()
        found = await lease_of(cluster, namespace)
        assert not found["spec"].get("holderIdentity")
        assert found["spec"]["leaseDurationSeconds"] == 1


async def test_l5_a_lease_deleted_under_its_holder_is_made_again(
    cluster: KubeClient, lab: Lab, namespace: str
):
    async with candidates(lab, namespace, "ab", SHORT) as both:
        first = await leader(both)
        referee = Referee(both)
        async with running(referee.run()):
            before = await lease_of(cluster, namespace)
            await cluster.delete(LEASE, "core", namespace=namespace)
            await asyncio.sleep(1.5)
            after = await lease_of(cluster, namespace)
        assert first.election.leading
        assert referee.most == 1
        assert after["metadata"]["uid"] != before["metadata"]["uid"]
        assert after["spec"]["acquireTime"] == before["spec"]["acquireTime"]


async def test_the_shipped_role_allows_all_that_an_election_sends(
    cluster: KubeClient, lab: Lab, namespace: str
):
    role = yaml.safe_load(ROLE.read_text())
    rules = [each for each in role["rules"] if each["resources"] == ["leases"]]
    base = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    subject = {"kind": "ServiceAccount", "name": "elector", "namespace": namespace}
    made: list[tuple[str, dict[str, Any]]] = [
        (f"/api/v1/namespaces/{namespace}/serviceaccounts", {}),
        (f"{base}/roles", {"rules": rules}),
        (
            f"{base}/rolebindings",
            {
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "Role",
                    "name": "elector",
                },
                "subjects": [subject],
            },
        ),
    ]
    headers = {"Content-Type": "application/json"}
    for path, body in made:
        named = orjson.dumps({"metadata": {"name": "elector"}, **body})
        await cluster.request("POST", path, headers=headers, body=named)
    refused: list[tuple[str, str]] = []

    def observe(verb: str, resource: str, status: int, _: float) -> None:
        if status in {401, 403}:
            refused.append((verb, resource))

    async with KubeClient.connect(
        kubeconfig=lab.kubeconfig,
        as_service_account=(namespace, "elector"),
        user_agent="test/1",
        observe=observe,
    ) as client:
        one = Candidate(client, namespace, "a", SHORT)
        one.start()
        await leader([one])
        await eventually(lambda: one.election._informer.synced)
        await asyncio.sleep(1)
        await one.kill()
        await one.election.release()
    assert not (await lease_of(cluster, namespace))["spec"].get("holderIdentity")
    assert refused == []
