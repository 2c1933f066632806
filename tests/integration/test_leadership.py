"""Two managers: one works, the other stands by; nobody writes beside the one that leads."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from controller.model.objects import CRD
from tests.integration.harness import NAMESPACE, Manager, Platform, crd, eventually, meta, never
from tests.lab.core import apply as apply_core_kinds
from tests.lab.lab import Lab
from tests.lab.logs import AuditEvent, Mark

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]

LEASE = 6.0  # seconds
RENEW_DEADLINE = 4.0
ARRIVAL = 0.25  # seconds that a request may take from the manager to the API server's log
TIMES = (
    *("--leader-election", "--leader-election-lease-duration=6s"),
    *("--leader-election-renew-deadline=4s", "--leader-election-retry-period=500ms"),
)
KINDS = [f"kind{number}s" for number in range(100)]


@pytest.fixture
def pair(own_lab: Lab, tmp_path: Path) -> Iterator[Platform]:
    """A cluster of the test's own, ready for managers."""
    (tmp_path / "home").mkdir()
    platform = Platform(own_lab, tmp_path / "home")
    platform.command("init")
    apply_core_kinds(own_lab.api)
    try:
        yield platform
    finally:
        for manager in platform.managers:
            manager.stop(signal.SIGKILL)


def candidate(platform: Platform, name: str) -> Manager:
    """Start a manager that takes part in the election under a name of its own."""
    (cache := platform.folder / f"cache-{name}").mkdir()
    manager = Manager(platform.lab, platform.folder, cache, *TIMES, f"--user-agent=manager-{name}")
    platform.managers.append(manager)
    return manager


def leader_and_standby(platform: Platform) -> tuple[Manager, Manager]:
    """Start two managers; the first one leads, the second one stands by."""
    first = candidate(platform, "a")
    first.wait_started()
    second = candidate(platform, "b")
    eventually(lambda: second.said("standing by"), f"the second stands by\n{second.tail()}")
    return first, second


def requests(platform: Platform, name: str, since: Mark | None = None) -> list[AuditEvent]:
    """Return what a manager asked the API server for, but for its token."""
    return [
        event
        for event in platform.lab.audit_events(since)
        if event.agent == f"manager-{name}" and event.subresource != "token"
    ]


def received(event: AuditEvent) -> float:
    """Return when the API server had read a request, in seconds."""
    return datetime.fromisoformat(event.raw["requestReceivedTimestamp"]).timestamp()


def is_renewal(event: AuditEvent) -> bool:
    """Tell whether a request took or kept the Lease."""
    return event.writes and event.resource.endswith("/leases")


def guarded(events: list[AuditEvent]) -> list[AuditEvent]:
    """Return the writes that only a leader may send."""
    return [event for event in events if event.writes and not event.resource.endswith("/leases")]


def check_no_write_without_the_lease(platform: Platform) -> None:
    """Every write follows a renewal by less than the renew deadline; no two managers mix."""
    for name in ("a", "b"):
        events = requests(platform, name)
        renewals = [received(e) for e in events if is_renewal(e) and e.code in {200, 201}]
        for event in guarded(events):
            before = [time_ for time_ in renewals if time_ <= received(event)]
            assert before, f"{name} wrote {event.uri} without ever holding the lease"
            assert received(event) - max(before) < RENEW_DEADLINE + ARRIVAL, event.uri
    terms: list[str] = []
    writes = [(received(e), name) for name in ("a", "b") for e in guarded(requests(platform, name))]
    for _, name in sorted(writes):
        if not terms or terms[-1] != name:
            terms.append(name)
    assert len(terms) <= 2, f"writes of the two managers alternate: {terms}"


def push_provider(platform: Platform, group: str) -> str:
    image = platform.image("acme/many")
    platform.push(image, [meta("Provider", "many"), *(crd(group, kind) for kind in KINDS)])
    return image


def definitions(platform: Platform, group: str) -> int:
    return sum(c["spec"]["group"] == group for c in platform.list(CRD))


def begin_install(platform: Platform, group: str) -> None:
    """Install a package and come back in the middle of it."""
    platform.install("Provider", "many", push_provider(platform, group))
    eventually(lambda: definitions(platform, group) >= 10, "10 definitions")


def check_whole(platform: Platform, group: str) -> None:
    platform.wait_healthy("Provider", "many")
    assert definitions(platform, group) == len(KINDS)
    assert len(platform.revisions("Provider", "many")) == 1


def test_one_of_two_managers_works_and_the_other_stands_by(pair: Platform, group: str):
    leader_and_standby(pair)
    begin_install(pair, group)
    check_whole(pair, group)
    assert guarded(requests(pair, "a"))
    assert not guarded(requests(pair, "b"))


def test_b7_the_stores_are_filled_before_the_first_write_and_the_lease_is_released_after_the_last(
    pair: Platform, group: str
):
    only = candidate(pair, "a")
    only.wait_started()
    begin_install(pair, group)
    assert only.stop(signal.SIGTERM) == 0
    events = requests(pair, "a")
    lists = [
        received(e)
        for e in events
        if e.verb in {"list", "watch"} and e.resource.startswith("pkg.crossplane.io/")
    ]
    writes = [received(e) for e in guarded(events)]
    renewals = [received(e) for e in events if is_renewal(e)]
    assert max(lists) < renewals[0] < min(writes)
    assert max(writes) < renewals[-1]
    lease = pair.lab.api.expect(
        "GET",
        f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/crossdock-leader-election",
    )
    assert not lease["spec"].get("holderIdentity")


def test_l7_a_leader_that_is_asked_to_stop_hands_over_and_the_other_is_warm(
    pair: Platform, group: str
):
    first, second = leader_and_standby(pair)
    begin_install(pair, group)
    mark, asked = pair.lab.mark(), time.monotonic()
    first.process.send_signal(signal.SIGTERM)
    eventually(lambda: second.said("started"), f"the second works\n{second.tail()}")
    waited = time.monotonic() - asked
    print(f"hand-over after SIGTERM in mid-install: {waited:.2f} s")  # noqa: T201 - a figure for the reader
    assert first.process.wait(10) == 0
    check_whole(pair, group)
    check_no_write_without_the_lease(pair)
    again = [
        e
        for e in requests(pair, "b", mark)
        if e.verb in {"list", "watch"} and e.resource.startswith("pkg.crossplane.io/")
    ]
    assert not again, "the informers of a standby are warm"


def test_l3_a_leader_that_was_killed_is_replaced_when_its_lease_has_run_out(
    pair: Platform, group: str
):
    first, second = leader_and_standby(pair)
    begin_install(pair, group)
    killed = time.monotonic()
    first.stop(signal.SIGKILL)
    eventually(lambda: second.said("started"), f"the second works\n{second.tail()}")
    waited = time.monotonic() - killed
    print(f"hand-over after SIGKILL, lease of {LEASE:.0f} s: {waited:.2f} s")  # noqa: T201 - as above
    check_whole(pair, group)
    check_no_write_without_the_lease(pair)


def test_l6_a_leader_that_was_stopped_and_continued_writes_nothing_any_more(
    pair: Platform, group: str
):
    first, second = leader_and_standby(pair)
    begin_install(pair, group)
    first.process.send_signal(signal.SIGSTOP)
    try:
        eventually(lambda: second.said("started"), f"the second works\n{second.tail()}")
    finally:
        first.process.send_signal(signal.SIGCONT)
    eventually(
        lambda: first.said("the lease is lost: all work stops, and this manager stands by"),
        f"the first stands by\n{first.tail()}",
    )
    check_whole(pair, group)
    never(lambda: first.process.poll() is not None, "the first one ends", 1)
    check_no_write_without_the_lease(pair)
    second.stop(signal.SIGTERM)
    eventually(
        lambda: sum(line.get("event") == "leading" for line in first.lines()) == 2,
        f"the first leads again\n{first.tail()}",
    )


def test_l6_a_leader_without_an_api_server_stands_by_and_comes_back(pair: Platform, group: str):
    first = candidate(pair, "a")
    first.wait_started()
    begin_install(pair, group)
    pair.lab.pause("kube-apiserver")
    try:
        eventually(
            lambda: first.said("the lease is lost: all work stops, and this manager stands by"),
            f"the lease is lost\n{first.tail()}",
        )
    finally:
        pair.lab.resume("kube-apiserver")
    check_whole(pair, group)
    assert first.process.poll() is None
    check_no_write_without_the_lease(pair)
