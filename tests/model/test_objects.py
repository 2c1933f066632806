from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.model import objects
from controller.model.objects import (
    CRD,
    DEPLOYMENT,
    LOCK,
    PROVIDER,
    PROVIDER_REVISION,
    SERVICE,
    Key,
    controller_of,
    dns_label,
    friendly_id,
    owner_reference,
    package_kind,
    resource_of,
    revision_name,
    revision_resource,
)

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
HEX = "552a394a8accd2b4d37fc5858abe93d311e727eafb3c00636e11c72572873e48"


@pytest.mark.parametrize(
    ("name", "identifier", "expected"),
    [
        ("provider-aws", "1234567", "provider-aws-1234567"),
        (
            "provider-aws-plusabunchofothernonsensethatisgoingtogetslicedoff",
            "1234567",
            "provider-aws-plusabunchofothernonsensethatisgoingt-1234567",
        ),
        ("provider-aws", "1234567891234567", "provider-aws-123456789123"),
        (
            "provider-aws-plusabunchofothernonsensethatisgoingtogetslicedoff",
            "1234567891234567",
            "provider-aws-plusabunchofothernonsensethatisgoingt-123456789123",
        ),
        ("test", "72ef8246515347", "test-72ef82465153"),
        (
            "xpkg.crossplane.io/crossplane-contrib/provider-nop",
            f"sha256:{HEX}",
            "xpkg-crossplane-io-crossplane-contrib-provider-nop-sha256-552a3",
        ),
        ("prov.aws", "abc", "prov-aws-abc"),
        ("", "abc", "abc"),
    ],
)
def test_friendly_id(name, identifier, expected):
    assert friendly_id(name, identifier) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("crossplane/provider-nop", "crossplane-provider-nop"),
        ("a.b/c:d-e", "a-b-c-d-e"),
        ("UPPERlower9", "lower9"),
        ("a_b c", "abc"),
        ("--a--", "a"),
        ("...a", "a"),
        ("ä\u00df\u0661a", "a"),
        ("", ""),
        ("___", ""),
        ("a" * 70, "a" * 63),
        ("a" * 62 + "/b", "a" * 62),
        ("X" * 63 + "a", ""),
    ],
)
def test_dns_label(text, expected):
    assert dns_label(text) == expected


@given(st.one_of(st.text(), st.text("aZ9./:-_ä", max_size=80)))
def test_dns_label_is_a_label_or_empty_and_stable(text):
    label = dns_label(text)
    assert label == "" or (LABEL.fullmatch(label) and len(label) <= 63)
    assert dns_label(label) == label


@given(st.text("abc-9", min_size=1, max_size=80), st.text("0123456789abcdef", min_size=64))
def test_friendly_id_is_a_label_that_ends_in_the_identifier(name, identifier):
    label = friendly_id(name, identifier)
    assert LABEL.fullmatch(label)
    assert len(label) <= 63
    assert label.endswith(identifier[:12])


def test_revision_name_is_the_package_and_the_digest():
    assert revision_name("provider-nop", f"sha256:{HEX}") == "provider-nop-552a394a8acc"
    assert revision_name("provider-nop", HEX) == "provider-nop-552a394a8acc"


def test_revision_name_tells_runtime_configurations_apart():
    config = "DeploymentRuntimeConfig/big"
    mixed = hashlib.sha256(f"{HEX}|{config}".encode()).hexdigest()
    named = revision_name("provider-nop", f"sha256:{HEX}", config)
    assert named == f"provider-nop-{mixed[:12]}"
    assert named != revision_name("provider-nop", f"sha256:{HEX}")
    assert named != revision_name("provider-nop", f"sha256:{HEX}", config + "ger")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["provider-x", "provider-x-long-name"]),
            st.binary(min_size=32, max_size=32).map(bytes.hex),
            st.sampled_from(["", "DeploymentRuntimeConfig/a"]),
        ),
        unique=True,
        max_size=10,
    )
)
def test_revision_names_are_equal_only_for_equal_inputs(inputs):
    names = [revision_name(package, f"sha256:{hex_}", config) for package, hex_, config in inputs]
    told_apart = {(p, hex_ if config else hex_[:12], config) for p, hex_, config in inputs}
    assert len(set(names)) == len(told_apart)


OWNER = {"metadata": {"name": "p", "uid": "u-1"}}


def test_owner_reference_of_an_object_that_carries_no_kind():
    assert owner_reference(OWNER, PROVIDER) == {
        "apiVersion": "pkg.crossplane.io/v1",
        "kind": "Provider",
        "name": "p",
        "uid": "u-1",
    }


def test_controller_reference_blocks_the_owners_deletion():
    reference = owner_reference(OWNER, PROVIDER_REVISION, controller=True)
    assert (reference["controller"], reference["blockOwnerDeletion"]) == (True, True)


@pytest.mark.parametrize(
    ("references", "found"),
    [
        (None, None),
        ([], None),
        ([{"uid": "a"}], None),
        ([{"uid": "a", "controller": False}, {"uid": "b", "controller": True}], "b"),
    ],
)
def test_controller_of(references, found):
    controller = controller_of({"metadata": {"ownerReferences": references}})
    assert (controller and controller["uid"]) == found
    assert controller_of({"metadata": {}}) is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (PROVIDER.path(), "/apis/pkg.crossplane.io/v1/providers"),
        (PROVIDER.path("p"), "/apis/pkg.crossplane.io/v1/providers/p"),
        (PROVIDER.path("p", subresource="status"), "/apis/pkg.crossplane.io/v1/providers/p/status"),
        (SERVICE.path("s", namespace="n"), "/api/v1/namespaces/n/services/s"),
        (SERVICE.path(), "/api/v1/services"),
        (DEPLOYMENT.path(namespace="n"), "/apis/apps/v1/namespaces/n/deployments"),
        (LOCK.path("lock"), "/apis/pkg.crossplane.io/v1beta1/locks/lock"),
    ],
)
def test_paths_of_the_api(path, expected):
    assert path == expected


def test_kinds_of_packages_and_revisions_belong_together():
    for kind, resource in objects.PACKAGES.items():
        revision = revision_resource(kind)
        assert package_kind(revision.kind) == kind
        assert resource_of(kind) is resource
        assert resource_of(revision.kind) is revision
    with pytest.raises(KeyError):
        resource_of("Lock")


def test_api_versions():
    assert (SERVICE.api_version, CRD.api_version) == ("v1", "apiextensions.k8s.io/v1")


@pytest.mark.parametrize(
    ("annotations", "paused"),
    [(None, False), ({}, False), ({"crossplane.io/paused": "true"}, True),
     ({"crossplane.io/paused": "True"}, False), ({"crossplane.io/paused": ""}, False)],
)  # fmt: skip
def test_only_the_exact_annotation_pauses(annotations, paused):
    assert objects.is_paused({"metadata": {"annotations": annotations}}) is paused


def test_absent_metadata_reads_as_empty():
    bare = {"metadata": {"name": "p"}}
    assert objects.name_of(bare) == "p"
    assert (objects.uid_of(bare), objects.generation_of(bare)) == ("", 0)
    assert (objects.labels_of(bare), objects.annotations_of(bare)) == ({}, {})
    assert not objects.is_deleting(bare)
    assert objects.is_deleting({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})


def test_keys_read_as_kind_and_name():
    assert str(Key("Provider", "p")) == "Provider/p"
