"""Merging what stages state into a status, as values."""

from typing import Any

import pytest

from controller.flow.status import Merged, merge, status_body
from controller.model.conditions import Condition

THEN, NOW = "2026-01-01T00:00:00Z", "2026-01-01T00:05:00Z"


def entry(kind: str, status: str, **more: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "reason": "Reason",
        "lastTransitionTime": THEN,
        "observedGeneration": 3,
        **more,
    }


def revision(*conditions: dict[str, Any], **fields: Any) -> dict[str, Any]:
    status = {"conditions": list(conditions), **fields} if conditions or fields else None
    obj: dict[str, Any] = {
        "apiVersion": "pkg.crossplane.io/v1",
        "kind": "ProviderRevision",
        "metadata": {"name": "r", "uid": "u", "resourceVersion": "7", "generation": 3},
        "spec": {},
    }
    return obj if status is None else {**obj, "status": status}


def merged(obj: dict[str, Any], *conditions: Condition, **fields: Any) -> Merged:
    return merge(
        obj,
        conditions={condition.type: condition for condition in conditions},
        fields=fields,
        roll_up=lambda _obj, _conditions: (),
        now=NOW,
    )


def test_what_is_said_already_changes_nothing():
    obj = revision(entry("Fetched", "True", message="m"), resolvedImage="i", objectRefs=[])
    result = merged(obj, Condition("Fetched", "True", "Reason", "m"), resolvedImage="i")
    assert not result.changed
    assert result.transitions == ()
    assert result.conditions == {"Fetched": entry("Fetched", "True", message="m")}
    assert result.fields == {"resolvedImage": "i", "objectRefs": []}


def test_a_new_condition_is_stamped_with_time_and_generation():
    result = merged(revision(), Condition("Fetched", "True", "Reason"))
    assert result.changed
    assert result.conditions == {"Fetched": entry("Fetched", "True", lastTransitionTime=NOW)}
    assert result.transitions == ((None, Condition("Fetched", "True", "Reason", "", 3)),)


def test_last_transition_time_moves_with_the_status():
    result = merged(revision(entry("Fetched", "False")), Condition("Fetched", "True", "Reason"))
    assert result.conditions["Fetched"]["lastTransitionTime"] == NOW


@pytest.mark.parametrize(
    "condition",
    [
        Condition("Fetched", "True", "Other"),
        Condition("Fetched", "True", "Reason", "message"),
        Condition("Fetched", "True", "Reason", "", 2),
    ],
    ids=["reason", "message", "generation"],
)
def test_last_transition_time_stays_while_the_status_does(condition):
    result = merged(revision(entry("Fetched", "True")), condition)
    assert result.changed
    assert result.conditions["Fetched"]["lastTransitionTime"] == THEN


def test_a_newer_generation_alone_is_written_and_is_no_transition():
    obj = revision(entry("Fetched", "True", observedGeneration=2))
    result = merged(obj, Condition("Fetched", "True", "Reason"))
    assert result.changed
    assert result.conditions["Fetched"]["observedGeneration"] == 3
    assert result.transitions == ()


@pytest.mark.parametrize(
    "condition",
    [
        Condition("Fetched", "False", "Reason"),
        Condition("Fetched", "True", "Other"),
        Condition("Fetched", "True", "Reason", "message"),
    ],
    ids=["status", "reason", "message"],
)
def test_a_change_of_what_is_said_is_a_transition(condition):
    result = merged(revision(entry("Fetched", "True")), condition)
    ((old, new),) = result.transitions
    assert old == Condition("Fetched", "True", "Reason", "", 3)
    assert (new.status, new.reason, new.message) == (
        condition.status,
        condition.reason,
        condition.message,
    )


def test_an_empty_message_is_left_out():
    obj = revision(entry("Fetched", "False", message="was wrong"))
    result = merged(obj, Condition("Fetched", "True", "Reason"))
    assert "message" not in result.conditions["Fetched"]


def test_a_kind_without_generations_gets_none():
    obj = revision()
    del obj["metadata"]["generation"]
    result = merged(obj, Condition("Fetched", "True", "Reason"))
    assert "observedGeneration" not in result.conditions["Fetched"]


def test_fields_are_set_changed_and_removed():
    obj = revision(endpoint="old", resolvedImage="i", objectRefs=[1])
    result = merged(obj, endpoint="new", resolvedImage=None, capabilities=["x"])
    assert result.changed
    assert result.fields == {"endpoint": "new", "objectRefs": [1], "capabilities": ["x"]}


def test_removing_a_field_that_is_not_there_changes_nothing():
    assert not merged(revision(), endpoint=None).changed


def test_the_store_object_is_not_touched():
    obj = revision(entry("Fetched", "False"), endpoint="old")
    before = repr(obj)
    merged(obj, Condition("Fetched", "True", "Reason"), endpoint=None)
    assert repr(obj) == before


def test_roll_ups_follow_from_all_conditions_with_their_generations():
    seen: dict[str, Condition] = {}

    def roll_up(obj: Any, conditions: Any) -> list[Condition]:
        seen.update(conditions)
        oldest = min(condition.observed_generation for condition in conditions.values())
        return [Condition("RevisionHealthy", "True", "Healthy", observed_generation=oldest)]

    obj = revision(entry("Fetched", "True", observedGeneration=2), entry("Parsed", "False"))
    result = merge(
        obj,
        conditions={"Parsed": Condition("Parsed", "True", "Reason")},
        fields={},
        roll_up=roll_up,
        now=NOW,
    )
    assert seen["Fetched"].observed_generation == 2
    assert seen["Parsed"] == Condition("Parsed", "True", "Reason", "", 3)
    assert result.derived == {"RevisionHealthy"}
    assert result.conditions["RevisionHealthy"]["observedGeneration"] == 2
    assert [new.type for _, new in result.transitions] == ["Parsed", "RevisionHealthy"]


def test_the_body_names_everything_owned_and_nothing_else():
    obj = revision(entry("Fetched", "True"), entry("Foreign", "True"), endpoint="e", foreign=1)
    body = status_body(
        obj,
        merged(obj, Condition("Parsed", "True", "Reason"), resolvedImage="i"),
        owned_conditions={"Fetched", "Parsed", "Verified"},
        owned_fields={"endpoint", "resolvedImage", "objectRefs"},
    )
    assert body == {
        "apiVersion": "pkg.crossplane.io/v1",
        "kind": "ProviderRevision",
        "metadata": {"name": "r", "resourceVersion": "7"},
        "status": {
            "conditions": [
                entry("Fetched", "True"),
                entry("Parsed", "True", lastTransitionTime=NOW),
            ],
            "endpoint": "e",
            "resolvedImage": "i",
        },
    }


def test_a_body_without_conditions_leaves_the_list_out():
    obj = revision()
    body = status_body(
        obj, merged(obj, endpoint="e"), owned_conditions=(), owned_fields={"endpoint"}
    )
    assert body["status"] == {"endpoint": "e"}
