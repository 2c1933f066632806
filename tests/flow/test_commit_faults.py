"""The status committer when the API server lags, refuses, hangs or forgets, and at the stop."""

import asyncio
import itertools

import pytest

from controller.flow.commit import Gone
from controller.model.conditions import Condition
from controller.model.objects import JsonObject, Key
from tests.flow.bench import FALSE, KEY, OTHER, PARSED, TRUE, WINDOW, Unavailable, bench

# ---- what can go wrong ---------------------------------------------------------------------------


async def test_after_a_conflict_the_report_is_merged_into_the_newer_object():
    async with bench(owned_fields={"ProviderRevision": {"endpoint"}}) as b:
        b.server.lagging = True
        b.server.put(KEY, generation=2, endpoint="new")
        b.say(TRUE)
        await b.settle(0.2)
        assert len(b.server.bodies) == 1
        assert b.transitions == []
        b.server.lagging = False
        b.server.show()
        await b.settle(10)
        assert len(b.server.bodies) == 2
        assert b.server.objects[KEY]["status"]["endpoint"] == "new"
        assert b.server.condition()["status"] == "True"
        assert len(b.transitions) == 1


async def test_conflicts_back_off_and_are_no_failures(logs):
    async with bench() as b:
        b.server.lagging = True
        b.server.put(KEY)
        b.say(TRUE)
        await b.settle(30)
        gaps = [later - sooner for sooner, later in itertools.pairwise(b.server.times)]
        assert [round(gap) for gap in gaps[:4]] == [1, 2, 4, 8]
        assert not [line for line in logs if line["log_level"] == "warning"]
        b.server.lagging = False
        b.server.show()


async def test_a_failed_write_is_retried_with_backoff_and_logged(logs):
    async with bench() as b:
        b.server.failures = [Unavailable("down"), Unavailable("down")]
        b.say(TRUE)
        await b.settle(10)
        assert [round(t - b.server.times[0], 2) for t in b.server.times] == [0, 1, 3]
        assert b.server.condition()["status"] == "True"
        warnings = [line for line in logs if line["log_level"] == "warning"]
        assert [(line["error"], line["exc_info"]) for line in warnings] == [("down", None)] * 2
        assert len(b.transitions) == 1


async def test_reports_do_not_hasten_a_write_that_backs_off_and_go_along_with_it():
    async with bench() as b:
        b.server.failures = [Unavailable(), Unavailable(), Unavailable()]
        b.say(TRUE)
        for _ in range(60):
            await asyncio.sleep(0.1)
            b.say(PARSED)
        assert len(b.server.times) == 3
        await b.settle(10)
        assert b.server.condition("Parsed")["status"] == "True"
        assert len(b.server.times) == 4


async def test_a_write_that_hangs_is_given_up_and_tried_again():
    async with bench(write_deadline=5.0) as b:
        b.server.latency = 60
        b.say(TRUE)
        await b.settle(5.5)
        b.server.latency = 0
        await b.settle(5)
        assert b.server.condition()["status"] == "True"


async def test_w8_the_status_of_a_deleted_object_is_dropped():
    async with bench() as b:
        b.server.lagging = True
        b.server.delete(KEY)
        b.say(TRUE)
        await b.settle(100)
        assert len(b.server.bodies) == 1
        assert b.committer._entries == {}
        assert b.transitions == []


async def test_w8_nothing_is_written_for_an_object_that_the_store_lost():
    async with bench() as b:
        b.say(TRUE)
        b.server.delete(KEY)
        await b.settle(100)
        assert b.server.bodies == []
        assert b.committer._entries == {}


async def test_a_report_does_not_reach_another_object_of_the_same_name():
    async with bench() as b:
        b.say(FALSE)
        b.server.delete(KEY)
        b.server.put(KEY, uid="uid-9")
        assert b.committer.view(KEY).conditions == {}
        await b.settle()
        assert b.server.bodies == []
        b.say(PARSED)
        await b.settle()
        assert b.server.condition("Parsed")["status"] == "True"
        assert "Fetched" not in str(b.server.objects[KEY])


@pytest.mark.parametrize("answers", [[], [Gone()]], ids=["conflict", "gone"])
async def test_an_object_replaced_during_its_write_keeps_the_reports_about_the_new_one(answers):
    async with bench() as b:
        b.server.latency = 1
        b.server.failures = list(answers)
        b.say(FALSE)
        await b.settle(0.5)
        b.server.delete(KEY)
        b.server.put(KEY, uid="uid-9")
        b.say(PARSED)
        await b.settle(30)
        assert b.server.condition("Parsed")["status"] == "True"
        assert "Fetched" not in str(b.server.objects[KEY])


async def test_forget_drops_what_is_pending():
    async with bench() as b:
        b.say(TRUE)
        b.committer.forget(KEY)
        await b.settle()
        assert b.server.bodies == []
        assert b.committer._entries == {}


async def test_forget_starts_the_backoff_anew():
    async with bench() as b:
        b.server.failures = [Unavailable() for _ in range(4)]
        b.say(FALSE)
        await b.settle(8)
        b.committer.forget(KEY)
        b.say(TRUE)
        await b.settle(2 * WINDOW)
        assert b.server.condition()["status"] == "True"


async def test_reports_during_a_write_are_written_after_it():
    async with bench() as b:
        b.server.latency = 1
        b.say(FALSE)
        await b.settle(0.5)
        b.say(TRUE)
        await b.settle(5)
        assert [body["status"]["conditions"][0]["status"] for body in b.server.bodies] == [
            "False",
            "True",
        ]
        assert [(new.status) for _, _, new in b.transitions] == ["False", "True"]


async def test_a_report_during_a_retried_write_is_not_left_behind():
    async with bench() as b:
        b.server.failures = [Unavailable()]
        b.say(FALSE)
        await b.settle(0.5)
        b.server.latency = 1
        await b.settle(1)  # the retry is on its way
        b.say(TRUE)
        await b.settle(10)
        assert b.server.condition()["status"] == "True"


async def test_one_object_is_never_written_twice_at_a_time_and_others_do_not_wait():
    active: list[Key] = []
    overlap: list[set[Key]] = []
    async with bench() as b:
        real = b.server.write

        async def write(key: Key, body: JsonObject) -> JsonObject:
            assert key not in active
            active.append(key)
            overlap.append(set(active))
            await asyncio.sleep(1)
            active.remove(key)
            return await real(key, body)

        b.committer._write = write
        for number in range(30):
            for key in (KEY, OTHER):
                b.say(Condition("Fetched", "False", "Waiting", str(number)), key=key)
            await asyncio.sleep(0.1)
        await b.settle(10)
        assert {KEY, OTHER} in overlap
        assert b.server.condition()["message"] == "29"


async def test_transitions_are_told_after_the_write_and_a_fault_there_undoes_nothing(logs):
    def refuse(obj: JsonObject, old: Condition | None, new: Condition) -> None:
        raise RuntimeError("no events today")

    async with bench() as b:
        b.committer._on_transition = refuse
        b.say(TRUE, PARSED)
        await b.settle(10)
        assert len(b.server.bodies) == 1
        assert [line["condition"] for line in logs if line["log_level"] == "error"] == [
            "Fetched",
            "Parsed",
        ]


async def test_transitions_carry_the_condition_before():
    async with bench() as b:
        b.say(FALSE)
        await b.settle()
        b.say(TRUE)
        await b.settle()
        (_, none, first), (kind, old, new) = b.transitions
        assert (none, kind) == (None, "ProviderRevision")
        assert (first.reason, old, new.status) == ("NotFound", first, "True")


# ---- the stop ------------------------------------------------------------------------------------


async def test_drain_writes_what_is_pending_without_waiting_for_the_window():
    async with bench(window=60.0) as b:
        b.say(TRUE)
        b.say(TRUE, key=OTHER)
        started = asyncio.get_running_loop().time()
        assert await b.committer.drain(5) == 0
        assert asyncio.get_running_loop().time() == started
        assert b.server.condition()["status"] == "True"
        assert b.server.condition(key=OTHER)["status"] == "True"


async def test_drain_does_not_wait_for_a_backoff_and_starts_it_anew():
    async with bench() as b:
        b.server.failures = [Unavailable() for _ in range(5)]
        b.say(TRUE)
        await b.settle(8)  # the next try would be 8 s after the fourth
        assert len(b.server.failures) == 1
        started = asyncio.get_running_loop().time()
        assert await b.committer.drain(5) == 0
        assert asyncio.get_running_loop().time() - started == pytest.approx(1)


async def test_drain_ends_at_its_deadline_and_tells_what_is_left(logs):
    async with bench() as b:
        b.server.failures = [Unavailable() for _ in range(100)]
        b.say(TRUE)
        started = asyncio.get_running_loop().time()
        assert await b.committer.drain(3) == 1
        assert asyncio.get_running_loop().time() - started == pytest.approx(3)
        assert logs[-1]["objects"] == 1
        b.committer.forget(KEY)


async def test_drain_with_nothing_pending_ends_at_once():
    async with bench() as b:
        assert await b.committer.drain(5) == 0
