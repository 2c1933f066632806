"""The status committer: one write per object and window, whole, and visible at once."""

import asyncio
from collections.abc import Mapping

import pytest

from controller.flow.commit import TwoSources
from controller.model.conditions import Condition, Report
from controller.model.objects import JsonObject, Key
from tests.flow.bench import FALSE, KEY, OTHER, PARSED, TRUE, WINDOW, Server, bench

# ---- one write -----------------------------------------------------------------------------------


async def test_reports_within_the_window_end_in_one_write():
    async with bench() as b:
        started = asyncio.get_running_loop().time()
        b.say(TRUE)
        await asyncio.sleep(WINDOW / 2)
        b.say(PARSED, stage="parse", resolvedImage="i")
        await b.settle()
        assert len(b.server.bodies) == 1
        assert b.server.times[0] - started == pytest.approx(WINDOW)
        status = b.server.objects[KEY]["status"]
        assert [entry["type"] for entry in status["conditions"]] == ["Fetched", "Parsed"]
        assert status["resolvedImage"] == "i"


async def test_a_stream_of_reports_does_not_put_the_write_off():
    async with bench() as b:
        started = asyncio.get_running_loop().time()
        for number in range(20):
            b.say(Condition("Fetched", "False", "Waiting", str(number)))
            await asyncio.sleep(WINDOW / 4)
        assert b.server.times[0] - started == pytest.approx(WINDOW)
        assert len(b.server.bodies) <= 6


async def test_of_two_reports_about_one_condition_the_later_counts():
    async with bench() as b:
        b.say(FALSE)
        b.say(TRUE)
        await b.settle()
        assert len(b.server.bodies) == 1
        assert b.server.condition()["status"] == "True"


async def test_a_condition_is_written_as_kubernetes_has_it():
    async with bench() as b:
        b.say(FALSE)
        await b.settle()
        assert b.server.condition() == {
            "type": "Fetched",
            "status": "False",
            "reason": "NotFound",
            "message": "no such image",
            "lastTransitionTime": "2026-01-02T03:04:05Z",
            "observedGeneration": 1,
        }
        body = b.server.bodies[0]
        assert (body["apiVersion"], body["kind"]) == ("pkg.crossplane.io/v1", "ProviderRevision")
        assert body["metadata"] == {"name": "r", "resourceVersion": "9"}


async def test_a_report_that_changes_nothing_writes_nothing():
    async with bench() as b:
        b.say(TRUE, objectRefs=[{"kind": "CRD"}])
        await b.settle()
        b.say(TRUE, objectRefs=({"kind": "CRD"},))
        b.committer.report(KEY, "image", Report())
        await b.settle(10)
        assert len(b.server.bodies) == 1
        assert b.committer._entries == {}


async def test_a_new_generation_alone_is_written_without_a_transition():
    async with bench() as b:
        b.say(TRUE)
        await b.settle()
        b.server.put(KEY, generation=2, **b.server.objects[KEY]["status"])
        b.say(TRUE)
        await b.settle()
        assert b.server.condition()["observedGeneration"] == 2
        assert len(b.transitions) == 1


async def test_a_report_speaks_of_the_generation_that_was_there_when_it_was_made():
    async with bench() as b:
        b.say(TRUE)
        b.server.put(KEY, generation=2)
        b.say(Condition("Parsed", "True", "Parsed", observed_generation=7))
        await b.settle()
        assert b.server.condition()["observedGeneration"] == 1
        assert b.server.condition("Parsed")["observedGeneration"] == 7


async def test_values_are_taken_as_they_are_when_reported():
    async with bench() as b:
        refs = [1]
        b.say(objectRefs=refs)
        refs.append(2)
        await b.settle()
        assert b.server.objects[KEY]["status"]["objectRefs"] == [1]
        with pytest.raises(TypeError):
            b.say(objectRefs=[object()])


# ---- ownership -----------------------------------------------------------------------------------


async def test_a_write_names_everything_owned_since_apply_removes_what_is_left_out():
    server = Server()
    old = {"type": "Established", "status": "True", "reason": "Done", "lastTransitionTime": "t"}
    foreign = {**old, "type": "Foreign"}
    server.put(KEY, conditions=[old, foreign], endpoint="e", theirs=1)
    owned = {"ProviderRevision": {"Established", "Fetched"}}
    async with bench(
        server, owned_conditions=owned, owned_fields={"ProviderRevision": {"endpoint"}}
    ) as b:
        b.say(TRUE)
        await b.settle()
        status = server.bodies[0]["status"]
        assert [entry["type"] for entry in status["conditions"]] == ["Established", "Fetched"]
        assert status["conditions"][0] == old
        assert status["endpoint"] == "e"
        assert "theirs" not in status


async def test_what_this_process_reported_once_is_in_every_later_write():
    async with bench() as b:
        b.say(TRUE, endpoint="e")
        await b.settle(10)
        b.say(PARSED)
        await b.settle()
        status = b.server.bodies[1]["status"]
        assert {entry["type"] for entry in status["conditions"]} == {"Fetched", "Parsed"}
        assert status["endpoint"] == "e"


async def test_a_field_whose_value_is_none_is_removed():
    async with bench() as b:
        b.say(TRUE, endpoint="e")
        await b.settle()
        b.say(endpoint=None)
        assert "endpoint" not in b.committer.view(KEY).fields
        await b.settle()
        assert "endpoint" not in b.server.objects[KEY]["status"]


async def test_a_condition_or_field_of_a_kind_has_one_source():
    async with bench() as b:
        b.say(TRUE, endpoint="e")
        with pytest.raises(TwoSources, match=r"Fetched of ProviderRevision.*image.*runtime"):
            b.say(TRUE, stage="runtime")
        with pytest.raises(TwoSources, match="endpoint"):
            b.say(stage="runtime", endpoint="e")
        other_kind = Key("Provider", "p")
        b.committer.report(other_kind, "package", Report((TRUE,)))


# ---- roll-ups ------------------------------------------------------------------------------------


def healthy(obj: JsonObject, conditions: Mapping[str, Condition]) -> list[Condition]:
    fetched = conditions.get("Fetched")
    return [] if fetched is None else [Condition("RevisionHealthy", fetched.status, "RolledUp")]


async def test_roll_ups_are_written_with_the_conditions_they_follow_from():
    async with bench(roll_up=healthy) as b:
        b.say(TRUE)
        assert b.committer.view(KEY).conditions["RevisionHealthy"].status == "True"
        await b.settle()
        assert len(b.server.bodies) == 1
        assert b.server.condition("RevisionHealthy")["status"] == "True"
        assert [new.type for _, _, new in b.transitions] == ["Fetched", "RevisionHealthy"]
        b.say(PARSED)
        await b.settle()
        assert "RevisionHealthy" in str(b.server.bodies[1])


async def test_a_stage_may_not_state_what_is_rolled_up():
    async with bench(roll_up=healthy) as b:
        b.say(TRUE)
        await b.settle()
        with pytest.raises(TwoSources, match="RevisionHealthy"):
            b.say(Condition("RevisionHealthy", "True", "Mine"))


# ---- what stages see -----------------------------------------------------------------------------


async def test_a_view_shows_reports_before_they_are_written():
    async with bench() as b:
        b.say(TRUE, endpoint="e")
        view = b.committer.view(KEY)
        assert view.conditions["Fetched"] == Condition("Fetched", "True", "Fetched", "", 1)
        assert view.fields == {"endpoint": "e"}
        assert b.committer.view(OTHER).conditions == {}


async def test_a_view_shows_written_reports_until_the_store_does():
    async with bench() as b:
        b.server.lagging = True
        b.say(TRUE)
        await b.settle(60)
        assert b.server.shown[KEY]["status"] == {}
        assert b.committer.view(KEY).conditions["Fetched"].status == "True"
        assert b.committer._entries


async def test_what_the_store_shows_is_kept_no_longer_beside_it():
    async with bench() as b:
        b.server.lagging = True
        b.say(TRUE)
        await b.settle()
        b.server.lagging = False
        b.server.show()
        await b.settle(10)
        assert b.committer._entries == {}
        b.server.put(KEY, endpoint="someone else wrote")
        assert b.committer.view(KEY).conditions == {}
        assert b.committer.view(KEY).fields == {"endpoint": "someone else wrote"}


async def test_a_newer_object_in_the_store_replaces_the_answer_to_a_write_at_once():
    async with bench() as b:
        b.server.lagging = True
        b.say(TRUE)
        await b.settle()
        b.server.lagging = False
        b.server.put(KEY)
        assert b.committer.view(KEY).conditions == {}


async def test_a_view_of_an_object_that_does_not_exist_is_empty():
    async with bench() as b:
        view = b.committer.view(Key("Provider", "nobody"))
        assert (view.conditions, view.fields) == ({}, {})


async def test_a_second_write_builds_on_the_first_while_the_store_lags():
    async with bench() as b:
        b.server.lagging = True
        b.say(TRUE)
        await b.settle()
        b.say(PARSED)
        await b.settle()
        assert len(b.server.bodies) == 2
        assert b.server.condition("Fetched")["status"] == "True"
        assert b.server.condition("Parsed")["status"] == "True"
