"""Leader election: the rules, as tables."""

import math
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from controller.kube.apierror import ApiError
from controller.kube.leadership import (
    EARLY_PAUSE,
    LeaseTiming,
    NotLeader,
    Observation,
    claim,
    may_take,
    micro_time,
    next_try,
    observe,
    released,
)

TIMING = LeaseTiming()
NOW = "2026-01-02T03:04:05.000006Z"
THEN = "2020-01-01T00:00:00.000000Z"
NEVER = -math.inf


def lease(version: str = "7", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "core", "resourceVersion": version}, "spec": spec}


def held(holder: str, *, changed_at: float = 100.0, **spec: Any) -> Observation:
    record = {"holderIdentity": holder, "leaseDurationSeconds": 15, **spec}
    return Observation(record, changed_at, lease(**record))


def write(known: Observation | None, identity: str = "me") -> dict[str, Any]:
    return claim(known, namespace="ns", name="core", identity=identity, timing=TIMING, now=NOW)


@pytest.mark.parametrize(
    ("duration", "renew_deadline", "retry"),
    [(15, 10, 2), (15, 14.9, 12.4), (0.5, 0.4, 0.2), (60, 40, 8)],
)
def test_l1_timings_that_leave_room_are_accepted(duration, renew_deadline, retry):
    LeaseTiming(duration, renew_deadline, retry)


@pytest.mark.parametrize(
    ("duration", "renew_deadline", "retry", "wrong"),
    [
        (10, 10, 2, "lease duration"),
        (9, 10, 2, "lease duration"),
        (math.inf, 10, 2, "lease duration"),
        (math.nan, 10, 2, "lease duration"),
        (15, math.nan, 2, "lease duration"),
        (15, 10, 10, "1.2 times"),
        (15, 12, 10, "1.2 times"),
        (15, 10, 9, "1.2 times"),
        (15, 10, 0, "a write"),
        (15, 10, -1, "a write"),
        (15, 10, math.nan, "1.2 times"),
        (0, -1, -2, "a write"),
    ],
)
def test_l1_timings_without_room_are_refused(duration, renew_deadline, retry, wrong):
    with pytest.raises(ValueError, match=wrong):
        LeaseTiming(duration, renew_deadline, retry)


def test_l2_only_a_change_of_the_record_counts_as_one():
    first = observe(None, lease("1", holderIdentity="a", renewTime=THEN), 10)
    assert first is not None
    again = observe(first, lease("1", holderIdentity="a", renewTime=THEN), 20)
    labelled = observe(again, lease("2", holderIdentity="a", renewTime=THEN), 30)
    assert labelled is not None
    assert (labelled.changed_at, labelled.version) == (10, 2)
    assert observe(labelled, None, 35) == Observation(labelled.spec, 35, None)
    assert observe(observe(labelled, None, 35), None, 36) == Observation(labelled.spec, 35, None)
    renewed = observe(labelled, lease("3", holderIdentity="a", renewTime=NOW), 40)
    assert renewed is not None
    assert renewed.changed_at == 40


@pytest.mark.parametrize("renew_time", ["1970-01-01T00:00:00.000000Z", "2999-01-01T00:00:00Z", "x"])
def test_l2_the_records_times_are_compared_with_no_clock(renew_time):
    known = observe(None, lease(holderIdentity="a", renewTime=renew_time), 100)
    assert not may_take(known, "me", TIMING, 114.999)
    assert may_take(known, "me", TIMING, 115)


@pytest.mark.parametrize("duration", [1, 5, 60])
def test_l2_the_duration_in_the_record_counts_not_the_candidates(duration):
    known = held("a", leaseDurationSeconds=duration)
    assert not may_take(known, "me", TIMING, 100 + duration - 0.001)
    assert may_take(known, "me", TIMING, 100 + duration)


@pytest.mark.parametrize("duration", [None, "15", 0, -3, 2.5, True, [], {}])
def test_l2_a_malformed_duration_is_taken_as_the_candidates_own(duration):
    known = held("a", leaseDurationSeconds=duration)
    assert not may_take(known, "me", TIMING, 114.9)
    assert may_take(known, "me", TIMING, 115)


@pytest.mark.parametrize(
    ("known", "now", "free"),
    [
        pytest.param(None, 0, True, id="never seen"),
        pytest.param(held(""), 100, True, id="released"),
        pytest.param(held("me"), 100, True, id="mine"),
        pytest.param(held("a"), 100, False, id="another's, just seen"),
        pytest.param(held("a"), 114.9, False, id="another's, unchanged for nearly its duration"),
        pytest.param(held("a"), 115, True, id="another's, unchanged for its duration"),
        pytest.param(Observation({}, 100, lease()), 100, True, id="no record"),
        pytest.param(held(None), 100, True, id="no holder"),  # type: ignore[arg-type]  # malformed
        pytest.param(held(5), 100, True, id="a holder that is a number"),  # type: ignore[arg-type]  # malformed
        pytest.param(observe(held("a"), None, 101), 102, False, id="another's, deleted"),
        pytest.param(observe(held("a"), None, 101), 115.9, False, id="another's, deleted lately"),
        pytest.param(observe(held("a"), None, 101), 116, True, id="another's, deleted long ago"),
        pytest.param(observe(None, None, 101), 101, True, id="does not exist"),
    ],
)
def test_l3_a_lease_is_taken_when_released_or_mine_or_unchanged_for_its_duration(known, now, free):
    assert may_take(known, "me", TIMING, now) is free


def test_l4_a_lease_that_exists_is_written_at_the_version_that_was_seen():
    assert write(held("a"))["metadata"]["resourceVersion"] == "7"
    assert "resourceVersion" not in write(None)["metadata"]
    assert "resourceVersion" not in write(observe(held("a"), None, 101))["metadata"]
    assert released(lease("9"), NOW)["metadata"]["resourceVersion"] == "9"


@pytest.mark.parametrize(
    ("known", "acquired", "transitions"),
    [
        pytest.param(None, NOW, 0, id="new"),
        pytest.param(held("a", leaseTransitions=3, acquireTime=THEN), NOW, 4, id="from another"),
        pytest.param(held("", leaseTransitions=3, acquireTime=THEN), NOW, 4, id="released"),
        pytest.param(held("me", leaseTransitions=3, acquireTime=THEN), THEN, 3, id="renewal"),
        pytest.param(held("me"), NOW, 0, id="renewal of a record without times"),
        pytest.param(held("me", leaseTransitions="x", acquireTime=4), NOW, 0, id="malformed"),
        pytest.param(held("a", leaseTransitions=-4), NOW, 1, id="negative transitions"),
        pytest.param(
            observe(held("me", leaseTransitions=3, acquireTime=THEN), None, 1),
            THEN,
            3,
            id="deleted",
        ),
        pytest.param(Observation({}, 1, {"metadata": {}}), NOW, 1, id="no record"),
    ],
)
def test_l5_transitions_count_holders_and_the_time_of_acquisition_is_kept(
    known, acquired, transitions
):
    assert write(known)["spec"] == {
        "holderIdentity": "me",
        "leaseDurationSeconds": 15,
        "acquireTime": acquired,
        "renewTime": NOW,
        "leaseTransitions": transitions,
    }


def test_l5_a_duration_is_written_in_whole_seconds_rounded_up():
    timing = LeaseTiming(1.2, 1.0, 0.2)
    body = claim(None, namespace="ns", name="core", identity="me", timing=timing, now=NOW)
    assert body["spec"]["leaseDurationSeconds"] == 2
    assert body["metadata"] == {"name": "core", "namespace": "ns"}
    assert (body["apiVersion"], body["kind"]) == ("coordination.k8s.io/v1", "Lease")


def test_unknown_fields_of_a_lease_are_kept_and_the_known_one_is_not_changed():
    stored = lease(holderIdentity="a", strategy="OldestEmulationVersion", preferredHolder="b")
    stored["metadata"] |= {"labels": {"x": "y"}, "annotations": {"n": "m"}}
    known = observe(None, stored, 1)
    assert known is not None
    for body in (write(known), released(stored, NOW)):
        assert body["metadata"] == stored["metadata"]
        assert body["spec"]["strategy"] == "OldestEmulationVersion"
        assert body["spec"]["preferredHolder"] == "b"
    assert stored["spec"]["holderIdentity"] == "a"


def test_l7_a_lease_is_given_back_with_no_holder_and_a_second_to_run():
    given = lease(holderIdentity="me", leaseDurationSeconds=15, leaseTransitions=4, renewTime=THEN)
    assert released(given, NOW)["spec"] == {
        "holderIdentity": "",
        "leaseDurationSeconds": 1,
        "leaseTransitions": 4,
        "renewTime": NOW,
    }
    assert released({"metadata": {}, "spec": None}, NOW)["spec"]["holderIdentity"] == ""


@pytest.mark.parametrize(
    ("known", "tried_at", "heard_at", "due"),
    [
        pytest.param(None, NEVER, NEVER, NEVER, id="at once at the start"),
        pytest.param(None, 100, NEVER, 102.2, id="a pause after a try"),
        pytest.param(held("a"), 100, 101, 103.2, id="a pause after the watch spoke"),
        pytest.param(held("a", changed_at=90), 104, NEVER, 105, id="as soon as it expires"),
        pytest.param(held("a", changed_at=80), 104, NEVER, 106.2, id="expired at the last try"),
        pytest.param(held("", changed_at=105), 104, 105, 105, id="released since"),
        pytest.param(held("", changed_at=104.01), 104, 104.01, 104.2, id="released right after"),
        pytest.param(held("", changed_at=103), 104, 103, 106.2, id="released before"),
    ],
)
def test_the_next_try_comes_after_a_pause_or_when_the_lease_becomes_free(
    known, tried_at, heard_at, due
):
    found = next_try(known, "me", TIMING, tried_at=tried_at, heard_at=heard_at, pause=2.2)
    assert found == pytest.approx(due)


def test_no_change_of_the_lease_makes_tries_denser_than_the_early_pause():
    for changed_at in (100.0, 100.1, 100.2, 101.0):
        known = held("", changed_at=changed_at)
        found = next_try(known, "me", TIMING, tried_at=100, heard_at=changed_at, pause=2)
        assert found >= 100 + EARLY_PAUSE


@pytest.mark.parametrize(
    ("moment", "text"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "2026-01-02T03:04:05.000000Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 60, tzinfo=UTC), "2026-01-02T03:04:05.000060Z"),
        (
            datetime(2026, 1, 2, 3, 4, 5, 999999, tzinfo=timezone(timedelta(hours=2))),
            "2026-01-02T01:04:05.999999Z",
        ),
    ],
)
def test_micro_times_are_utc_with_six_digits(moment, text):
    assert micro_time(moment) == text
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)


def test_a_refusal_for_lack_of_the_lease_names_it_and_is_not_sent_again():
    error = NotLeader("core")
    assert isinstance(error, ApiError)
    assert (error.status, error.reason, error.retryable) == (0, "NotLeader", False)
    assert "'core'" in str(error)
