"""Which revision is wanted, runs, is switched on or off, or is collected."""

from typing import Any

import pytest

from controller.model.conditions import DEPENDENCIES_READY, FETCHED, PARSED, VERIFIED, Condition
from controller.model.objects import FINALIZER_REVISION
from controller.model.revision import (
    ACTIVE,
    INACTIVE,
    claimant,
    differs,
    next_number,
    plan,
    revision_object,
    runtime_config_of,
    tls_secret_names,
    wanted_revision,
)

SOURCE = "xpkg.example.org/acme/provider"
PASSED = {t: Condition(t, "True", "Ok") for t in (FETCHED, VERIFIED, PARSED, DEPENDENCIES_READY)}


def make_package(tag: str = "v1", **spec: Any) -> dict[str, Any]:
    return {
        "kind": "Provider",
        "metadata": {"name": "prov", "uid": "p-1", "generation": 1},
        "spec": {"package": f"{SOURCE}:{tag}", **spec},
    }


def make_revision(number: int, tag: str, state: str = INACTIVE, **spec: Any) -> dict[str, Any]:
    return {
        "kind": "ProviderRevision",
        "metadata": {"name": f"prov-{number}", "uid": f"r-{number}"},
        "spec": {
            "image": f"{SOURCE}:{tag}",
            "revision": number,
            "desiredState": state,
            **spec,
        },
    }


def test_the_wanted_revision_has_the_image_and_runtime_configuration_of_the_spec():
    v1, v2 = make_revision(1, "v1"), make_revision(2, "v2")
    assert wanted_revision(make_package("v1"), [v1, v2]) is v1
    other = make_package("v1", runtimeConfigRef={"name": "big"})
    assert wanted_revision(other, [v1, v2]) is None


def test_of_two_revisions_of_a_moved_tag_the_newer_one_is_wanted():
    old, new = make_revision(1, "v1"), make_revision(2, "v1")
    assert wanted_revision(make_package("v1"), [new, old]) is new


def test_a_revision_that_is_being_deleted_is_not_wanted():
    gone = make_revision(1, "v1")
    gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert wanted_revision(make_package("v1"), [gone]) is None


def test_the_first_revision_is_activated_at_once_under_automatic():
    decision = plan(
        make_package(), [make_revision(1, "v1")], current_name=None, wanted_conditions={}
    )
    assert decision.activate


def test_nothing_is_activated_under_manual():
    package = make_package(revisionActivationPolicy="Manual")
    decision = plan(package, [make_revision(1, "v1")], current_name=None, wanted_conditions=PASSED)
    assert not decision.activate
    assert decision.current is not None


def test_a_candidate_waits_until_its_content_passed_the_checks():
    revisions = [make_revision(1, "v1", ACTIVE), make_revision(2, "v2")]
    unchecked = plan(
        make_package("v2"),
        revisions,
        current_name="prov-1",
        wanted_conditions={FETCHED: PASSED[FETCHED]},
    )
    assert not unchecked.activate
    assert unchecked.deactivate == ()
    assert unchecked.current is revisions[0]
    checked = plan(make_package("v2"), revisions, current_name="prov-1", wanted_conditions=PASSED)
    assert checked.activate
    assert checked.deactivate == ()


def test_the_old_revision_is_switched_off_only_when_the_new_one_is_active():
    revisions = [make_revision(1, "v1", ACTIVE), make_revision(2, "v2", ACTIVE)]
    decision = plan(make_package("v2"), revisions, current_name="prov-1", wanted_conditions=PASSED)
    assert decision.current is revisions[1]
    assert decision.deactivate == (revisions[0],)


def test_under_manual_the_revision_that_a_person_just_activated_takes_over():
    package = make_package("v2", revisionActivationPolicy="Manual")
    revisions = [make_revision(1, "v1", ACTIVE), make_revision(2, "v2", ACTIVE)]
    back = plan(package, revisions, current_name="prov-2", wanted_conditions=PASSED)
    assert back.current is revisions[0]
    assert back.deactivate == (revisions[1],)


def test_going_back_to_an_older_revision_raises_its_number():
    revisions = [make_revision(1, "v1"), make_revision(2, "v2", ACTIVE)]
    decision = plan(make_package("v1"), revisions, current_name="prov-2", wanted_conditions=PASSED)
    assert decision.wanted is revisions[0]
    assert decision.number == 3


@pytest.mark.parametrize(
    ("limit", "deleted"),
    [(1, ["prov-1", "prov-2"]), (2, ["prov-1"]), (3, []), (0, []), (None, [])],
)
def test_history_beyond_the_limit_is_collected_oldest_first(limit, deleted):
    package = make_package("v4", revisionHistoryLimit=limit)
    revisions = [make_revision(n, f"v{n}") for n in (1, 2, 3)] + [make_revision(4, "v4", ACTIVE)]
    decision = plan(package, revisions, current_name="prov-4", wanted_conditions=PASSED)
    assert [r["metadata"]["name"] for r in decision.delete] == deleted


def test_history_never_collects_the_current_or_an_active_revision():
    package = make_package("v3", revisionHistoryLimit=1)
    revisions = [make_revision(1, "v1", ACTIVE), make_revision(2, "v2"), make_revision(3, "v3")]
    decision = plan(package, revisions, current_name="prov-1", wanted_conditions={})
    assert [r["metadata"]["name"] for r in decision.delete] == ["prov-2"]


def test_claimant_is_none_when_no_revision_is_active():
    assert claimant(make_package(), [make_revision(1, "v1")], None) is None


def test_next_number_starts_at_one():
    assert next_number([]) == 1
    assert next_number([make_revision(7, "v1")]) == 8


def test_the_default_runtime_configuration_has_no_name_of_its_own():
    assert runtime_config_of({}) == ""
    assert runtime_config_of({"runtimeConfigRef": {"name": "default"}}) == ""
    assert runtime_config_of({"runtimeConfigRef": {"name": "x"}}) == "DeploymentRuntimeConfig/x"


def test_tls_secret_names_fit_into_an_object_name():
    names = tls_secret_names("Provider", "p" * 253)
    assert {len(name) for name in names.values()} == {253}
    assert names["tlsServerSecretName"].endswith("-tls-server")
    assert "tlsClientSecretName" not in tls_secret_names("Function", "f")
    assert tls_secret_names("Configuration", "c") == {}


def stored(body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "metadata": {**body["metadata"], "uid": "r"}, "spec": dict(body["spec"])}


def body_of(package: dict[str, Any]) -> dict[str, Any]:
    return revision_object(package, name="prov-1", digest="sha256:ab", number=1, state=ACTIVE)


def test_a_stored_revision_does_not_differ_from_what_was_applied():
    body = body_of(make_package(commonLabels={"a": "b"}))
    live = stored(body)
    live["metadata"]["labels"] = {**body["metadata"]["labels"], "added-by": "others"}
    assert not differs(body, live)


@pytest.mark.parametrize(
    "change",
    [
        {"commonLabels": {"a": "c"}},
        {"commonLabels": {}},
        {"packagePullPolicy": "Always"},
        {"packagePullSecrets": [{"name": "s"}]},
        {"ignoreCrossplaneConstraints": True},
    ],
)
def test_every_inherited_field_reaches_an_existing_revision(change):
    live = stored(body_of(make_package(commonLabels={"a": "b"})))
    wanted = body_of(make_package(**{"commonLabels": {"a": "b"}, **change}))
    assert differs(wanted, live)


def test_a_revision_without_its_finalizer_or_owner_differs():
    body = body_of(make_package())
    assert body["metadata"]["finalizers"] == [FINALIZER_REVISION]
    for lost in ("finalizers", "ownerReferences"):
        live = stored(body)
        live["metadata"][lost] = []
        assert differs(body, live)
