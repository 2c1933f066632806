import itertools
from dataclasses import replace

import pytest

from controller.kube.apierror import ApiError, status_error
from controller.kube.watchstate import (
    BACKOFF_CAP,
    INTERNAL_ERRORS_MAX,
    RECONNECT_SECONDS,
    RETRY_AFTER_MAX,
    End,
    Outcome,
    Page,
    Phase,
    State,
    decide,
    end_of,
)

STREAM, PAGES, WATCH = Phase.STREAM, Phase.PAGES, Phase.WATCH
FIRST = State()
OLD = State(phase=Phase.STREAM, streaming=True)  # nothing listed yet
SERVER_WITHOUT_STREAMS = State(phase=Phase.PAGES, streaming=False)
WATCHING = State(phase=Phase.WATCH, version="10")


@pytest.mark.parametrize(
    ("state", "outcome", "phase", "version", "pause"),
    [
        # R5, R10: a list, then a watch from the list's own version.
        (FIRST, Outcome(End.CLOSED, "10", listed=True, events=3, seconds=9), WATCH, "10", 0),
        (SERVER_WITHOUT_STREAMS, Outcome(End.LISTED, "10", listed=True), WATCH, "10", 0),
        # R10: a streaming list that ended early is begun again; the second time in pages.
        (FIRST, Outcome(End.CLOSED, seconds=9), STREAM, "", 0.8),
        (replace(FIRST, failures=1), Outcome(End.CLOSED, seconds=9), PAGES, "", 1.6),
        (FIRST, Outcome(End.UNSUPPORTED), PAGES, "", 0),
        (FIRST, Outcome(End.FAILED), PAGES, "", 0.8),
        (FIRST, Outcome(End.UNAVAILABLE), STREAM, "", 0.8),
        (FIRST, Outcome(End.UNREACHABLE), STREAM, "", RECONNECT_SECONDS),
        # A list in pages that fails: a stream is tried again where the server has them.
        (replace(FIRST, phase=PAGES), Outcome(End.FAILED), STREAM, "", 0.8),
        (SERVER_WITHOUT_STREAMS, Outcome(End.FAILED), PAGES, "", 0.8),
        (SERVER_WITHOUT_STREAMS, Outcome(End.EXPIRED), PAGES, "", 0),
        # R8: what ends a watch and leads to no new list.
        (WATCHING, Outcome(End.CLOSED, "12", events=2, seconds=9), WATCH, "12", 0),
        (WATCHING, Outcome(End.CLOSED, seconds=9), WATCH, "10", 0),
        (WATCHING, Outcome(End.UNREACHABLE), WATCH, "10", RECONNECT_SECONDS),
        (WATCHING, Outcome(End.UNAVAILABLE), WATCH, "10", 0.8),
        (WATCHING, Outcome(End.INTERNAL, "11"), WATCH, "11", 0.8),
        # R8: what leads to one.
        (WATCHING, Outcome(End.FAILED), STREAM, "10", 0.8),
        (replace(WATCHING, streaming=False), Outcome(End.FAILED), PAGES, "10", 0.8),
        # R2: an expired watch keeps its version and is followed by a list at once.
        (WATCHING, Outcome(End.EXPIRED), STREAM, "10", 0),
        (replace(WATCHING, failures=2), Outcome(End.EXPIRED), STREAM, "10", 3.2),
        # R9: a watch that ends at once with nothing is not asked for again at once.
        (WATCHING, Outcome(End.CLOSED, seconds=0.2), WATCH, "10", 0.8),
        # One that ends soon but brings something, or was lost, waits as long each time.
        (replace(WATCHING, failures=3), Outcome(End.CLOSED, events=1), WATCH, "10", 0.8),
        (replace(WATCHING, failures=3), Outcome(End.CLOSED, error="lost"), WATCH, "10", 0.8),
        (replace(WATCHING, failures=3), Outcome(End.CLOSED, seconds=0.2), WATCH, "10", 6.4),
    ],
)
def test_what_follows_what(
    state: State, outcome: Outcome, phase: Phase, version: str, pause: float
):
    step = decide(state, outcome)
    assert (step.state.phase, step.state.version, step.pause) == (phase, version, pause)


def test_r1_a_list_never_goes_back_in_time_unless_its_version_is_lost():
    relisting = decide(WATCHING, Outcome(End.EXPIRED)).state
    assert relisting.list_version == "10"
    for end in (End.EXPIRED, End.AHEAD):
        lost = decide(relisting, Outcome(end)).state
        assert (lost.phase, lost.list_version) == (Phase.STREAM, "")
    found = decide(lost, Outcome(End.CLOSED, "20", listed=True, seconds=9)).state
    assert found.version == "20"
    assert decide(found, Outcome(End.EXPIRED)).state.list_version == "20"


def test_r2_a_list_that_expired_is_asked_for_again_at_once_and_then_slower():
    first = decide(FIRST, Outcome(End.EXPIRED))
    second = decide(first.state, Outcome(End.EXPIRED))
    assert first.pause == 0
    assert second.pause > 0


def test_r8_internal_errors_lead_to_a_list_after_some_in_a_row():
    state = WATCHING
    for _ in range(INTERNAL_ERRORS_MAX):
        state = decide(state, Outcome(End.INTERNAL)).state
        assert state.phase is Phase.WATCH
    assert decide(state, Outcome(End.INTERNAL)).state.phase is Phase.STREAM
    calm = decide(state, Outcome(End.CLOSED, events=1, seconds=9)).state
    assert decide(calm, Outcome(End.INTERNAL)).state.phase is Phase.WATCH


def test_the_pause_grows_to_its_cap_and_starts_anew_after_a_healthy_time():
    state, pauses = WATCHING, []
    for _ in range(40):
        step = decide(state, Outcome(End.UNAVAILABLE))
        state = step.state
        pauses.append(step.pause)
    assert pauses == sorted(pauses)
    assert pauses[-1] == BACKOFF_CAP
    healthy = decide(state, Outcome(End.CLOSED, events=1, seconds=500)).state
    assert decide(healthy, Outcome(End.UNAVAILABLE)).pause == 0.8


def test_the_server_may_ask_for_a_longer_pause_within_reason():
    assert decide(WATCHING, Outcome(End.UNAVAILABLE, retry_after=20)).pause == 20
    assert decide(WATCHING, Outcome(End.UNAVAILABLE, retry_after=1e9)).pause == RETRY_AFTER_MAX


def test_no_way_leads_round_in_a_circle_without_a_pause():
    """Whatever goes wrong at once, four acts in a row never come without any pause."""
    ends = [Outcome(end) for end in End if end is not End.LISTED]
    for start in (FIRST, SERVER_WITHOUT_STREAMS, WATCHING):
        for outcomes in itertools.product(ends, repeat=4):
            state, pauses = start, 0.0
            for outcome in outcomes:
                step = decide(state, outcome)
                state = step.state
                pauses += step.pause
            assert pauses > 0, (start, outcomes)


@pytest.mark.parametrize(
    ("status", "reason", "listing", "in_stream", "end"),
    [
        (410, "Expired", False, False, End.EXPIRED),
        (410, "Gone", True, True, End.EXPIRED),
        (0, "Unreachable", False, False, End.UNREACHABLE),
        (0, "Timeout", False, False, End.CLOSED),
        (0, "TLS", False, False, End.FAILED),
        (0, "ConnectionLost", False, True, End.CLOSED),
        (0, "Timeout", True, True, End.CLOSED),
        (0, "TooLarge", False, True, End.FAILED),
        (429, "TooManyRequests", True, False, End.UNAVAILABLE),
        (429, "TooManyRequests", False, True, End.UNAVAILABLE),
        (503, "ServiceUnavailable", False, False, End.UNAVAILABLE),
        (503, "ServiceUnavailable", True, False, End.FAILED),
        (503, "ServiceUnavailable", False, True, End.FAILED),
        (422, "Invalid", True, False, End.UNSUPPORTED),
        (400, "BadRequest", True, False, End.UNSUPPORTED),
        (400, "BadRequest", False, False, End.FAILED),
        (403, "Forbidden", True, False, End.FAILED),
        (404, "NotFound", False, False, End.FAILED),
        (500, "InternalError", False, True, End.INTERNAL),
        (500, "InternalError", False, False, End.FAILED),
        (500, "StorageReadError", False, True, End.FAILED),
    ],
)
def test_what_an_error_means(status: int, reason: str, listing: bool, in_stream: bool, end: End):
    error = ApiError(status=status, reason=reason, message="m")
    assert end_of(error, streaming_list=listing, in_stream=in_stream) is end


def test_r3_a_version_of_the_future_is_told_from_other_timeouts():
    cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
    value = {"code": 504, "message": "no", "details": {"causes": [cause]}}
    by_cause = status_error(value, verb="list", path="/x")
    assert end_of(by_cause, streaming_list=False, in_stream=False) is End.AHEAD
    message = "Too large resource version: 9, current: 8"
    by_message = ApiError(status=504, reason="Timeout", message=message)
    assert end_of(by_message, streaming_list=True, in_stream=False) is End.AHEAD
    other = ApiError(status=504, reason="Timeout", message="the request timed out")
    assert end_of(other, streaming_list=False, in_stream=False) is End.UNAVAILABLE


@pytest.mark.parametrize(
    ("state", "version", "paged"),
    [
        (SERVER_WITHOUT_STREAMS, "0", True),
        (replace(SERVER_WITHOUT_STREAMS, version="10"), "10", False),
        (replace(SERVER_WITHOUT_STREAMS, version="10", paged=True), "10", True),
        (replace(SERVER_WITHOUT_STREAMS, version="10", version_lost=True), "", True),
    ],
)
def test_r1_r4_how_a_list_begins(state: State, version: str, paged: bool):
    assert state.first_page() == Page(version, paged)
    assert state.first_page().after("token").whole() == Page(version, paged=False)


def test_r4_only_the_first_list_tells_whether_there_is_a_cache():
    paged = Outcome(End.LISTED, "10", listed=True, paged=True)
    assert decide(SERVER_WITHOUT_STREAMS, paged).state.paged
    newest = replace(SERVER_WITHOUT_STREAMS, version="5", version_lost=True)
    assert not decide(newest, paged).state.paged


def test_a_long_list_that_fails_is_no_healthy_time():
    state = replace(FIRST, failures=4)
    assert decide(state, Outcome(End.CLOSED, seconds=500)).state.failures == 5
