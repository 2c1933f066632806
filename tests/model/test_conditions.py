"""Roll-ups of conditions, and the events that transitions are worth."""

from typing import Any

import pytest

from controller.model.conditions import (
    DEPENDENCIES_READY,
    ESTABLISHED,
    FETCHED,
    HEALTHY,
    INSTALLED,
    PARSED,
    RESOLVED,
    REVISION_HEALTHY,
    RUNTIME_ACTIVE,
    RUNTIME_HEALTHY,
    RUNTIME_PREPARED,
    SYNCED,
    UPGRADEABLE,
    VERIFIED,
    Condition,
    EventText,
    event_for,
    package_conditions,
    revision_roll_up,
)

NEEDS = (FETCHED, VERIFIED, PARSED, DEPENDENCIES_READY, RUNTIME_PREPARED, ESTABLISHED)


def true(*types: str, generation: int | None = None) -> dict[str, Condition]:
    return {t: Condition(t, "True", "Ok", observed_generation=generation) for t in types}


def revision(kind: str = "Provider", state: str = "Active") -> dict[str, Any]:
    metadata = {"name": "prov-1", "generation": 1}
    return {"kind": f"{kind}Revision", "metadata": metadata, "spec": {"desiredState": state}}


def package(kind: str = "Provider") -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": "prov", "generation": 3}, "spec": {"package": "x"}}


@pytest.mark.parametrize("missing", NEEDS)
def test_a_revision_is_not_healthy_while_one_stage_has_not_spoken(missing):
    conditions = true(*(need for need in NEEDS if need != missing))
    assert revision_roll_up(revision(), conditions) == ()


@pytest.mark.parametrize("failed", NEEDS)
def test_a_revision_is_unhealthy_with_the_message_of_the_stage_that_failed(failed):
    conditions = true(*NEEDS) | {failed: Condition(failed, "False", "Broken", "the cause")}
    (rolled,) = revision_roll_up(revision(), conditions)
    assert (rolled.status, rolled.reason) == ("False", "UnhealthyPackageRevision")
    assert rolled.message == "the cause"


def test_of_several_failures_the_first_in_the_order_of_work_is_the_cause():
    conditions = true(*NEEDS)
    for need in (ESTABLISHED, PARSED):
        conditions[need] = Condition(need, "False", "Broken", need)
    (rolled,) = revision_roll_up(revision(), conditions)
    assert rolled.message == PARSED


def test_a_healthy_revision_speaks_of_the_oldest_generation_that_a_stage_saw():
    conditions = true(*NEEDS, generation=4) | true(ESTABLISHED, generation=3)
    (rolled,) = revision_roll_up(revision(), conditions)
    assert rolled == Condition(
        REVISION_HEALTHY, "True", "HealthyPackageRevision", observed_generation=3
    )


def test_a_configuration_needs_no_runtime():
    conditions = true(*(need for need in NEEDS if need != RUNTIME_PREPARED))
    assert revision_roll_up(revision("Configuration"), conditions)[0].status == "True"
    assert revision_roll_up(revision("Function"), conditions) == ()


def test_an_inactive_revision_needs_good_content_only():
    conditions = true(FETCHED, VERIFIED, PARSED)
    assert revision_roll_up(revision(state="Inactive"), conditions)[0].status == "True"


def roll_up(**changes: Any) -> dict[str, Condition]:
    arguments: dict[str, Any] = {
        "resolved": Condition(RESOLVED, "True", "Resolved"),
        "current": revision(),
        "current_conditions": true(REVISION_HEALTHY, RUNTIME_HEALTHY),
        "behind": False,
        "candidate": None,
        "candidate_conditions": {},
        "present": {},
    }
    subject = changes.pop("package", package())
    found = package_conditions(subject, **{**arguments, **changes})
    return {condition.type: condition for condition in found}


def test_a_package_with_a_healthy_revision_is_installed_healthy_and_current():
    found = roll_up()
    assert found[INSTALLED] == Condition(INSTALLED, "True", "ActivePackageRevision")
    assert found[HEALTHY] == Condition(HEALTHY, "True", "HealthyPackageRevision")
    assert found[UPGRADEABLE].status == "True"


def test_a_package_that_was_never_resolved_says_nothing():
    assert roll_up(current=None, resolved=None) == {}


def test_a_source_that_cannot_be_resolved_shows_as_unpacking():
    found = roll_up(current=None, resolved=Condition(RESOLVED, "False", "NotFound", "no such tag"))
    assert found[INSTALLED] == Condition(INSTALLED, "False", "UnpackingPackage", "no such tag")
    assert found[HEALTHY].reason == "UnhealthyPackageRevision"


def test_an_inactive_revision_shows_the_package_as_inactive():
    found = roll_up(current=revision(state="Inactive"))
    assert found[INSTALLED] == Condition(
        INSTALLED, "False", "InactivePackageRevision", "Package is inactive"
    )


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({}, 'Package revision health is "Unknown"'),
        (
            {REVISION_HEALTHY: Condition(REVISION_HEALTHY, "False", "U", "why")},
            'Package revision health is "False" with message: why',
        ),
        (true(REVISION_HEALTHY), 'Package runtime health is "Unknown"'),
        (
            true(REVISION_HEALTHY)
            | {RUNTIME_HEALTHY: Condition(RUNTIME_HEALTHY, "False", "U", "no pod")},
            'Package runtime health is "False" with message: no pod',
        ),
    ],
)
def test_the_cause_of_an_unhealthy_package_is_named_as_crossplane_names_it(conditions, message):
    assert roll_up(current_conditions=conditions)[HEALTHY].message == message


def test_a_runtime_that_awaits_activation_is_healthy_with_that_reason():
    conditions = true(REVISION_HEALTHY, RUNTIME_HEALTHY)
    conditions[RUNTIME_ACTIVE] = Condition(RUNTIME_ACTIVE, "False", "AwaitingActivation", "scaled")
    healthy = roll_up(current_conditions=conditions)[HEALTHY]
    assert (healthy.status, healthy.reason, healthy.message) == (
        "True",
        "AwaitingActivation",
        "scaled",
    )


def test_a_version_that_cannot_be_installed_leaves_the_running_one_healthy():
    present = {HEALTHY: Condition(HEALTHY, "True", "HealthyPackageRevision", "", 2)}
    broken = {PARSED: Condition(PARSED, "False", "ManifestError", "bad document")}
    found = roll_up(behind=True, candidate=revision(), candidate_conditions=broken, present=present)
    assert (found[HEALTHY].status, found[HEALTHY].observed_generation) == ("True", 2)
    assert found[UPGRADEABLE].status == "False"
    assert "bad document" in found[UPGRADEABLE].message


def test_health_speaks_of_the_old_spec_while_the_new_version_is_looked_up():
    present = {HEALTHY: Condition(HEALTHY, "True", "HealthyPackageRevision", "", 2)}
    found = roll_up(behind=True, present=present)
    assert (found[HEALTHY].status, found[HEALTHY].observed_generation) == ("True", 2)
    assert found[UPGRADEABLE].status == "Unknown"


def test_a_registry_that_is_down_during_an_upgrade_leaves_the_running_one_healthy():
    found = roll_up(resolved=Condition(RESOLVED, "False", "RegistryUnavailable", "down"))
    assert found[HEALTHY].status == "True"
    assert (found[UPGRADEABLE].status, found[UPGRADEABLE].message) == ("False", "down")


BAD = Condition(ESTABLISHED, "False", "CannotApply", "rejected")
GOOD = Condition(ESTABLISHED, "True", "Established")


@pytest.mark.parametrize(
    ("kind", "old", "new", "event"),
    [
        ("ProviderRevision", None, BAD, EventText("Warning", "SyncPackage", "rejected")),
        ("ProviderRevision", GOOD, BAD, EventText("Warning", "SyncPackage", "rejected")),
        ("ProviderRevision", BAD, BAD, None),
        ("ProviderRevision", BAD, GOOD, None),
        (
            "ProviderRevision",
            None,
            Condition(REVISION_HEALTHY, "True", "HealthyPackageRevision"),
            EventText("Normal", "SyncPackage", "Successfully reconciled package revision"),
        ),
        (
            "Provider",
            Condition(HEALTHY, "False", "UnhealthyPackageRevision", "x"),
            Condition(HEALTHY, "True", "HealthyPackageRevision"),
            EventText(
                "Normal", "InstallPackageRevision", "Successfully installed package revision"
            ),
        ),
        (
            "Provider",
            Condition(HEALTHY, "True", "HealthyPackageRevision"),
            Condition(HEALTHY, "True", "AwaitingActivation"),
            None,
        ),
        (
            "Provider",
            None,
            Condition(RESOLVED, "False", "NotFound", "no tag"),
            EventText("Warning", "UnpackPackage", "no tag"),
        ),
        (
            "Provider",
            None,
            Condition(SYNCED, "False", "ReconcilePaused", "paused"),
            EventText("Normal", "ReconciliationPaused", "paused"),
        ),
        ("Lock", None, Condition("Resolved", "True", "Fine"), None),
    ],
)
def test_events_speak_of_transitions_only(kind, old, new, event):
    assert event_for(kind, old, new) == event


def test_a_failure_that_is_no_longer_stated_becomes_unknown():
    before = {REVISION_HEALTHY: Condition(REVISION_HEALTHY, "False", "U", "the old cause")}
    waiting = Condition(ESTABLISHED, "Unknown", "WaitingForKinds", "waiting for things")
    conditions = true(*NEEDS) | before | {ESTABLISHED: waiting}
    (rolled,) = revision_roll_up(revision(), conditions)
    assert (rolled.status, rolled.message) == ("Unknown", "waiting for things")
