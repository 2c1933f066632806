"""What counts as wanted, as missing and as left over."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.integration.harness import crd
from tests.soak.world import Cluster, Slot, Wanted, leftovers, missing

SLOT = Slot("Provider", "p", "soak/p")
IMAGE = "registry.example.org/soak/p:v1.0.0"
WANTED = {SLOT: Wanted(1, "n1")}
OWNER = {"kind": "ProviderRevision", "name": "p-abc", "uid": "u", "controller": True}
TRUE = {"status": "True", "observedGeneration": 1}


def metadata(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "labels": {"soak": "n1"}, "ownerReferences": [OWNER], **more}


def whole() -> Cluster:
    """Return a cluster in which the package is as wanted."""
    found = Cluster()
    conditions = [{"type": kind, **TRUE} for kind in ("Installed", "Healthy")]
    found.packages["Provider", "p"] = {
        "metadata": {"name": "p", "generation": 1},
        "spec": {"package": IMAGE},
        "status": {"conditions": conditions},
    }
    revision = {
        "metadata": {"name": "p-abc", "uid": "u"},
        "spec": {"desiredState": "Active", "image": IMAGE},
    }
    found.revisions["Provider", "p"] = [revision]
    for name in SLOT.definitions(1):
        definition = copy.deepcopy(crd(SLOT.group, name.partition(".")[0]))
        definition["metadata"] = metadata(name)
        definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] = "version 1"
        found.definitions[name] = definition
    template = {"spec": {"containers": [{"image": IMAGE}]}}
    found.deployments = [{"metadata": metadata("p-abc"), "spec": {"template": template}}]
    found.services["p"] = {"metadata": metadata("p")}
    for side in ("server", "client"):
        found.secrets[f"p-tls-{side}"] = {"data": {"tls.crt": "LS0tLS1CRUdJTi"}}
    return found


def test_a_package_with_all_its_objects_is_as_wanted():
    assert list(missing(WANTED, {SLOT: IMAGE}, whole())) == []
    assert list(leftovers(WANTED, whole())) == []


def change_package(found: Cluster) -> None:
    found.packages["Provider", "p"]["spec"]["package"] = "other"


def age_package(found: Cluster) -> None:
    found.packages["Provider", "p"]["metadata"]["generation"] = 2


def fail_package(found: Cluster) -> None:
    found.packages["Provider", "p"]["status"]["conditions"][1]["status"] = "False"


def change_revision(found: Cluster) -> None:
    found.revisions["Provider", "p"][0]["spec"]["image"] = "other"


def edit_definition(found: Cluster) -> None:
    version = found.definitions[f"things.{SLOT.group}"]["spec"]["versions"][0]
    version["schema"]["openAPIV3Schema"]["description"] = "Foreign"


def strip_labels(found: Cluster) -> None:
    found.definitions[f"things.{SLOT.group}"]["metadata"]["labels"] = None


def strip_owners(found: Cluster) -> None:
    found.definitions[f"things.{SLOT.group}"]["metadata"]["ownerReferences"] = None


def edit_deployment(found: Cluster) -> None:
    container = found.deployments[0]["spec"]["template"]["spec"]["containers"][0]
    container["image"] = "foreign"


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found.packages.clear(),
        lambda found: found.definitions.popitem(),
        lambda found: found.deployments.clear(),
        lambda found: found.services.clear(),
        lambda found: found.secrets["p-tls-server"]["data"].update({"tls.crt": "YnJva2Vu"}),
        lambda found: found.secrets.popitem(),
        change_package,
        age_package,
        fail_package,
        change_revision,
        edit_definition,
        strip_labels,
        strip_owners,
        edit_deployment,
    ],
)
def test_whatever_is_not_as_wanted_is_missing(change):
    found = whole()
    change(found)
    assert list(missing(WANTED, {SLOT: IMAGE}, found))


def test_an_unwanted_package_is_left_over_with_each_of_its_objects():
    found = list(leftovers({SLOT: None}, whole()))
    assert len(found) == 1 + 1 + len(SLOT.definitions(1)) + 1  # revision, package, CRDs, Deployment
    assert list(missing({SLOT: None}, {}, whole())) == []


def test_an_object_that_a_stranger_made_nobodys_may_stay():
    found = whole()
    found.packages.clear()
    found.revisions.clear()
    found.deployments.clear()
    for definition in found.definitions.values():
        definition["metadata"].pop("ownerReferences")
    assert list(leftovers({SLOT: None}, found)) == []


def test_a_revision_that_is_on_its_way_out_is_left_over():
    found = whole()
    old = {"metadata": {"name": "p-old", "deletionTimestamp": "now"}, "spec": {}}
    found.revisions["Provider", "p"].append(old)
    (line,) = leftovers(WANTED, found)
    assert "p-old" in line
