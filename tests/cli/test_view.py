"""What is said about packages and revisions."""

from __future__ import annotations

import pytest

from controller.cli.view import (
    Readiness,
    package_status,
    readiness,
    revision_health,
    revision_status,
    version_of,
)


def package(*conditions, generation=1):
    stated = [
        {"type": kind, "status": status, "reason": reason, "message": message}
        for kind, status, reason, message in conditions
    ]
    return {
        "kind": "Provider",
        "metadata": {"name": "nop", "generation": generation},
        "spec": {"package": "registry.example.com/nop:v1"},
        "status": {"conditions": stated},
    }


INSTALLED = ("Installed", "True", "ActivePackageRevision", "")
HEALTHY = ("Healthy", "True", "HealthyPackageRevision", "")
UNHEALTHY = ("Healthy", "False", "UnhealthyPackageRevision", "runtime is not ready")


@pytest.mark.parametrize(
    ("reference", "version"),
    [
        ("registry.example.com/a/b:v1.2", "v1.2"),
        ("127.0.0.1:5000/a/b:v1.2", "v1.2"),
        ("127.0.0.1:5000/a/b", ""),
        (f"127.0.0.1:5000/a/b@sha256:{'a' * 64}", ""),
        (f"127.0.0.1:5000/a/b:v1@sha256:{'a' * 64}", "v1"),
        ("", ""),
    ],
)
def test_the_version_is_the_tag(reference, version):
    assert version_of(reference) == version


@pytest.mark.parametrize(
    ("conditions", "text"),
    [
        ([], ""),
        ([INSTALLED, HEALTHY], "HealthyPackageRevision"),
        ([INSTALLED, UNHEALTHY], "UnhealthyPackageRevision: runtime is not ready"),
        (
            [("Installed", "False", "UnpackingPackage", "no such tag"), UNHEALTHY],
            "UnpackingPackage: no such tag",
        ),
        (
            [INSTALLED, HEALTHY, ("Upgradeable", "False", "NotParsed", "line 3")],
            "NotParsed: line 3",
        ),
        (
            [("Synced", "False", "ReconcilePaused", "paused"), INSTALLED, HEALTHY],
            "ReconcilePaused: paused",
        ),
    ],
)
def test_a_packages_status_is_its_health_or_what_keeps_it_from_it(conditions, text):
    assert package_status(package(*conditions)) == text


def test_a_package_that_nobody_answered_is_not_ready():
    assert readiness(package(), manual=False) == Readiness(
        done=False, text="no answer from the manager yet"
    )


def test_a_healthy_package_is_ready():
    assert readiness(package(INSTALLED, HEALTHY), manual=False).done


def test_health_of_an_older_spec_does_not_make_a_package_ready():
    seen = package(INSTALLED, HEALTHY, generation=2)
    for condition in seen["status"]["conditions"]:
        condition["observedGeneration"] = 1
    assert not readiness(seen, manual=False).done


def test_a_version_that_cannot_be_installed_is_not_ready():
    seen = package(INSTALLED, HEALTHY, ("Upgradeable", "False", "NotParsed", "line 3"))
    assert readiness(seen, manual=False) == Readiness(done=False, text="NotParsed: line 3")


def test_what_keeps_the_source_from_being_resolved_comes_first():
    seen = package(
        ("Installed", "False", "UnpackingPackage", "later"), ("Resolved", "False", "NotFound", "no")
    )
    assert readiness(seen, manual=False).text == "NotFound: no"


def test_an_inactive_package_is_ready_only_where_a_person_activates():
    seen = package(("Installed", "False", "InactivePackageRevision", "Package is inactive"))
    assert readiness(seen, manual=True).done
    assert not readiness(seen, manual=False).done


def test_a_revision_is_as_healthy_as_its_parts():
    def revision(**statuses):
        return {
            "status": {
                "conditions": [
                    {"type": kind, "status": status, "reason": "R", "message": ""}
                    for kind, status in statuses.items()
                ]
            }
        }

    assert revision_health(revision()) == "-"
    assert revision_health(revision(RevisionHealthy="True")) == "True"
    assert revision_health(revision(RevisionHealthy="True", RuntimeHealthy="False")) == "False"
    assert revision_health(revision(RevisionHealthy="Unknown", RuntimeHealthy="True")) == "Unknown"
    assert revision_status(revision(RevisionHealthy="True", RuntimeHealthy="True")) == "R"
    assert revision_status(revision()) == ""


def test_a_revisions_words_are_told_without_what_the_package_puts_before_them():
    message = 'Package revision health is "False" with message: no such tag'
    seen = package(INSTALLED, ("Healthy", "False", "UnhealthyPackageRevision", message))
    assert package_status(seen) == "UnhealthyPackageRevision: no such tag"
