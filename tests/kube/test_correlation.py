"""Decisions about events, with the time given in."""

import itertools
from collections.abc import Hashable
from dataclasses import replace

import pytest

from controller.kube.correlation import (
    BURST,
    COMBINED,
    MESSAGE_MAX,
    REFILL_SECONDS,
    SIMILAR_MAX,
    SIMILAR_SECONDS,
    EventCorrelator,
    Happening,
    Observation,
    Recent,
    shortened,
)

FIRST = Happening("pkg.crossplane.io/v1", "Provider", "nop", "", "u-1", "Normal", "Installed", "m")


class Correlated:
    """A correlator, a clock for it, and names in their order."""

    def __init__(self, correlator: EventCorrelator | None = None) -> None:
        self.correlator = correlator or EventCorrelator()
        self.now = 50.0
        self._names = (f"n{number}" for number in itertools.count(1))

    def see(self, message: str = "m", *, on: str = "nop", **more: str) -> Observation | None:
        return self.correlator.correlate(
            replace(FIRST, message=message, name=on, **more),
            now=self.now,
            stamp=f"at {self.now:g}",
            fresh_name=next(self._names),
        )

    def seen(self, message: str = "m", *, on: str = "nop", **more: str) -> Observation:
        observation = self.see(message, on=on, **more)
        assert observation is not None
        return observation


def messages(observations: list[Observation]) -> list[str]:
    return [each.happening.message for each in observations]


def test_e1_the_same_event_has_one_name_its_first_time_and_a_count():
    correlated = Correlated()
    first = correlated.seen()
    correlated.now += 10
    second = correlated.seen()
    assert (first.name, first.count, first.first, first.last) == ("n1", 1, "at 50", "at 50")
    assert (second.name, second.count, second.first, second.last) == ("n1", 2, "at 50", "at 60")


@pytest.mark.parametrize(
    "field", ["api_version", "kind", "name", "namespace", "uid", "type", "reason", "message"]
)
def test_e1_an_event_that_differs_in_anything_is_another(field: str):
    correlated = Correlated()
    correlated.seen()
    other = correlated.correlator.correlate(
        replace(FIRST, **{field: "other"}), now=50, stamp="s", fresh_name="fresh"
    )
    assert other is not None
    assert (other.name, other.count) == ("fresh", 1)


def test_e1_the_least_recently_seen_event_is_forgotten_first():
    correlated = Correlated(EventCorrelator(remembered=2))
    correlated.seen("a", on="a")
    correlated.seen("b", on="b")
    correlated.seen("a", on="a")
    correlated.seen("c", on="c")
    assert correlated.seen("a", on="a").count == 3
    assert correlated.seen("b", on="b").count == 1


def test_e2_from_the_tenth_message_on_similar_events_are_one():
    correlated = Correlated()
    seen = [correlated.seen(f"m{number}") for number in range(SIMILAR_MAX + 5)]
    alone, combined = seen[: SIMILAR_MAX - 1], seen[SIMILAR_MAX - 1 :]
    assert messages(alone) == [f"m{number}" for number in range(9)]
    assert {each.count for each in alone} == {1}
    assert not any(each.combined for each in alone)
    assert {each.name for each in combined} == {"n10"}
    assert [each.count for each in combined] == [1, 2, 3, 4, 5, 6]
    assert messages(combined) == [f"{COMBINED}m{number}" for number in range(9, 15)]
    assert all(each.combined for each in combined)


def test_e2_a_message_that_had_an_event_of_its_own_keeps_it():
    correlated = Correlated()
    for number in range(SIMILAR_MAX + 2):
        correlated.seen(f"m{number}")
    known, new = correlated.seen("m0"), correlated.seen("m11")
    assert (known.happening.message, known.count) == ("m0", 2)
    assert (new.happening.message, new.count) == (f"{COMBINED}m11", 4)


def test_e2_the_same_message_is_never_combined():
    correlated = Correlated()
    for _ in range(BURST):
        assert correlated.seen().happening.message == "m"


@pytest.mark.parametrize(("pause", "combined"), [(SIMILAR_SECONDS, True), (601.0, False)])
def test_e2_messages_are_counted_anew_after_ten_minutes_of_silence(pause: float, combined: bool):
    correlated = Correlated()
    for number in range(SIMILAR_MAX):
        correlated.seen(f"m{number}")
    correlated.now += pause
    assert correlated.seen("another").combined is combined


def test_e2_similar_events_with_pauses_below_ten_minutes_stay_together():
    correlated = Correlated()
    for number in range(SIMILAR_MAX - 1):
        correlated.seen(f"m{number}")
        correlated.now += SIMILAR_SECONDS - 1
    assert correlated.seen("another").combined


@pytest.mark.parametrize("field", ["kind", "name", "namespace", "uid", "type", "reason"])
def test_e2_events_that_differ_in_more_than_the_message_are_not_combined(field: str):
    correlated = Correlated()
    for number in range(SIMILAR_MAX):
        correlated.seen(f"m{number}")
    other = replace(FIRST, message="new", **{field: "other"})
    observation = correlated.correlator.correlate(other, now=50, stamp="s", fresh_name="f")
    assert observation is not None
    assert not observation.combined


def test_e2_a_combined_message_keeps_to_the_servers_limit():
    correlated = Correlated()
    for number in range(SIMILAR_MAX - 1):
        correlated.seen(f"m{number}")
    message = correlated.seen("ü" * (MESSAGE_MAX // 2)).happening.message
    assert message.startswith(COMBINED)
    assert len(message.encode()) <= MESSAGE_MAX


def test_e2_what_is_similar_and_what_is_told_of_it_can_be_chosen():
    def by_object(happening: Happening) -> Hashable:
        return happening.name

    correlated = Correlated(
        EventCorrelator(similar_key=by_object, similar_message=lambda event: event.reason)
    )
    for number in range(SIMILAR_MAX - 1):
        correlated.seen(f"m{number}", reason=f"R{number}")
    combined = correlated.seen("new", reason="Last")
    assert (combined.combined, combined.happening.message) == (True, "Last")


def test_e2_the_groups_that_are_remembered_are_bounded():
    correlated = Correlated(EventCorrelator(remembered=2))
    for number in range(SIMILAR_MAX):
        correlated.seen(f"m{number}")
    for other in ("a", "b"):
        correlated.seen(on=other)
    assert not correlated.seen("new").combined


def test_e3_an_object_may_cause_a_burst_and_then_one_event_each_five_minutes():
    correlated = Correlated()
    passed = [correlated.see() is not None for _ in range(BURST + 3)]
    assert passed == [True] * BURST + [False] * 3
    correlated.now += REFILL_SECONDS - 1
    assert correlated.see() is None
    correlated.now += 1
    assert correlated.see() is not None
    assert correlated.see() is None
    correlated.now += 1_000_000
    assert [correlated.see() is not None for _ in range(BURST + 1)] == [True] * BURST + [False]


def test_e3_an_event_that_is_held_back_is_counted():
    correlated = Correlated()
    for _ in range(BURST + 4):
        correlated.see()
    correlated.now += REFILL_SECONDS
    assert correlated.seen().count == BURST + 5


def test_e3_all_events_of_an_object_draw_from_one_bucket():
    correlated = Correlated()
    for number in range(BURST):
        correlated.seen("m", reason=f"R{number}", type=("Normal", "Warning")[number % 2])
    assert correlated.see("m", reason="Another") is None


@pytest.mark.parametrize("field", ["api_version", "kind", "name", "namespace", "uid"])
def test_e3_each_object_has_its_own_bucket(field: str):
    correlated = Correlated()
    for _ in range(BURST + 1):
        correlated.see()
    other = replace(FIRST, **{field: "other"})
    assert correlated.correlator.correlate(other, now=50, stamp="s", fresh_name="f") is not None


def test_e3_the_buckets_that_are_remembered_are_bounded():
    correlated = Correlated(EventCorrelator(remembered=2))
    for _ in range(BURST + 1):
        correlated.see()
    for other in ("a", "b"):
        correlated.seen(on=other)
    assert correlated.see() is not None


def test_e3_combining_comes_before_counting_and_that_before_the_filter():
    """Forty messages about one object: nine events, a combined one, and none beyond the burst."""
    correlated = Correlated()
    seen = [each for number in range(40) if (each := correlated.see(f"m{number}"))]
    assert len(seen) == BURST
    assert len({each.name for each in seen}) == SIMILAR_MAX
    assert seen[-1].count == BURST - SIMILAR_MAX + 1
    correlated.now += REFILL_SECONDS
    last = correlated.seen("m40")
    assert (last.happening.message, last.count) == (f"{COMBINED}m40", 32)


def test_e1_two_correlators_share_nothing():
    first, second = Correlated(), Correlated()
    for _ in range(BURST + 1):
        first.see()
    assert second.seen().count == 1


def test_a_memory_never_holds_more_than_its_size():
    memory: Recent[int, int] = Recent(3)
    for number in range(10):
        memory.put(number, number)
        memory.put(0, 0)
    assert len(memory) == 3
    assert [memory.get(number) for number in (0, 7, 8, 9)] == [0, None, 8, 9]


def test_a_message_is_cut_at_the_servers_limit_and_never_in_a_character():
    assert shortened("m") == "m"
    cut = shortened("ü" * MESSAGE_MAX)
    assert len(cut.encode()) <= MESSAGE_MAX
    assert cut.endswith("ü…")


def test_a_message_that_is_no_text_for_the_wire_is_made_one():
    assert shortened("a\ud800b") == "a?b"
