"""Which write an object of a package needs, and what is written."""

from typing import Any

import pytest

from controller.model.establishment import (
    EnrichmentError,
    Owners,
    Webhook,
    Write,
    content_hash,
    decide,
    is_untouched,
    owner_references,
    package_object,
    with_note,
)
from controller.model.objects import ANNOTATION_APPLIED

REVISION = {"kind": "ProviderRevision", "name": "p-2", "uid": "r2", "controller": True}
PACKAGE = {"kind": "Provider", "name": "p", "uid": "p1"}
OWNERS = Owners(revision=REVISION, package=PACKAGE)
WEBHOOK = Webhook(service="p", namespace="crossplane-system", ca_bundle="Q0E=")


def stored(
    *, note: str = "abc.1", generation: int = 1, owners: Any = None, labels: Any = None
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": "things.example.org",
        "generation": generation,
        "ownerReferences": [REVISION, PACKAGE] if owners is None else owners,
    }
    if note:
        metadata["annotations"] = {ANNOTATION_APPLIED: note}
    if labels:
        metadata["labels"] = labels
    return {"kind": "CustomResourceDefinition", "metadata": metadata}


OTHER = {"kind": "ProviderRevision", "name": "q-1", "uid": "q1", "controller": True}
OLD = {"kind": "ProviderRevision", "name": "p-1", "uid": "r1", "controller": True}


@pytest.mark.parametrize(
    ("metadata", "write"),
    [
        (None, Write.CREATE),
        (stored(), Write.NOTHING),
        (stored(note=""), Write.CHANGE),
        (stored(note="other.1"), Write.CHANGE),
        (stored(generation=2), Write.CHANGE),
        (stored(owners=[]), Write.ADOPT),
        (stored(owners=[REVISION]), Write.ADOPT),
        (stored(owners=[OLD, PACKAGE]), Write.ADOPT),
        (stored(owners=[OLD, PACKAGE], note="other.1"), Write.CHANGE),
        (stored(owners=[OTHER]), Write.REFUSE),
        (stored(owners=[{**OTHER, "controller": False}, REVISION, PACKAGE]), Write.NOTHING),
    ],
)
def test_metadata_tells_which_write_an_object_needs(metadata, write):
    found = decide(
        metadata,
        content="abc",
        labels={},
        owners=OWNERS,
        may_replace=lambda owner: owner["uid"] == "r1",
    )
    assert found is write


@pytest.mark.parametrize(("labels", "write"), [({}, Write.ADOPT), ({"a": "b"}, Write.NOTHING)])
def test_a_common_label_that_was_removed_is_put_back(labels, write):
    found = decide(
        stored(labels=labels),
        content="abc",
        labels={"a": "b"},
        owners=OWNERS,
        may_replace=lambda _: False,
    )
    assert found is write


def test_the_controller_before_is_named_as_a_plain_owner_in_the_same_write():
    references = owner_references(OWNERS, stored(owners=[OLD, PACKAGE]))
    assert [r for r in references if r.get("controller")] == [REVISION]
    assert {**OLD, "controller": False, "blockOwnerDeletion": False} in references


def test_claiming_ones_own_object_again_adds_no_owner():
    assert owner_references(OWNERS, stored()) == [REVISION, PACKAGE]


def test_an_object_is_untouched_while_its_generation_is_the_noted_one():
    assert is_untouched(stored(note="abc-added.1"), OWNERS, {}, "added")
    assert not is_untouched(stored(note="abc-added.1", generation=2), OWNERS, {}, "added")
    assert not is_untouched(stored(note="abc-added.1", owners=[PACKAGE]), OWNERS, {}, "added")
    assert not is_untouched(None, OWNERS, {}, "added")


def test_an_object_that_lost_a_label_of_its_package_is_not_untouched():
    labels = {"pkg.crossplane.io/package": "p"}
    assert is_untouched(stored(note="abc-added.1", labels=labels), OWNERS, labels, "added")
    assert not is_untouched(stored(note="abc-added.1"), OWNERS, labels, "added")


def test_an_object_is_not_right_when_what_is_added_to_it_changed():
    assert not is_untouched(stored(note="abc-before.1"), OWNERS, {}, "after")


def build(obj: dict[str, Any], webhook: Webhook | None = WEBHOOK) -> dict[str, Any]:
    return package_object(
        obj,
        labels={"team": "a"},
        annotations={"note": "b"},
        webhook=webhook,
        webhook_name="crossplane-provider-p",
    )


def crd(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "a", "labels": {"team": "x", "own": "y"}, "creationTimestamp": None},
        "spec": spec,
        "status": {"conditions": []},
    }


def test_common_labels_and_annotations_are_added_and_server_fields_left_out():
    original = crd(group="example.org")
    built = build(original)
    assert built["metadata"] == {
        "name": "a",
        "labels": {"team": "a", "own": "y"},
        "annotations": {"note": "b"},
    }
    assert "status" not in built
    assert original["metadata"]["labels"] == {"team": "x", "own": "y"}


def test_webhook_configurations_get_name_certificate_and_service_but_keep_their_path():
    built = build(
        {
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "any"},
            "webhooks": [
                {"name": "w", "clientConfig": {"service": {"path": "/v", "name": "old"}}},
                {"name": "x", "clientConfig": {"url": "https://elsewhere"}},
            ],
        }
    )
    assert built["metadata"]["name"] == "crossplane-provider-p"
    service = {"name": "p", "namespace": "crossplane-system", "port": 9443}
    assert built["webhooks"][0]["clientConfig"] == {
        "caBundle": "Q0E=",
        "service": {**service, "path": "/v"},
    }
    assert built["webhooks"][1]["clientConfig"] == {"caBundle": "Q0E=", "service": service}


def test_a_definition_that_converts_by_webhook_is_pointed_at_the_package():
    built = build(crd(conversion={"strategy": "Webhook"}))
    hook = built["spec"]["conversion"]["webhook"]
    assert hook["clientConfig"]["caBundle"] == "Q0E="
    assert hook["conversionReviewVersions"] == ["v1"]


def test_a_definition_that_converts_by_webhook_needs_a_certificate():
    with pytest.raises(EnrichmentError, match="without having a TLS bundle"):
        build(crd(conversion={"strategy": "Webhook"}), webhook=None)


def test_the_note_names_content_and_generation():
    noted = with_note(build(crd()), content="abc", generation=3, references=[REVISION])
    assert noted["metadata"]["annotations"][ANNOTATION_APPLIED] == "abc.3"
    assert noted["metadata"]["annotations"]["note"] == "b"
    assert noted["metadata"]["ownerReferences"] == [REVISION]


def test_content_hash_ignores_the_order_of_keys():
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1})
    assert content_hash({"a": 1}) != content_hash({"a": 2})
