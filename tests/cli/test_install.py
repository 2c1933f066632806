"""The package object that ``install`` creates."""

from __future__ import annotations

import pytest

from controller.cli.install import InstallFlags, package_object
from controller.cli.session import UsageError
from controller.model.objects import CONFIGURATION, FUNCTION, PROVIDER

REF = "registry.example.com/acme/nop:v1"


def test_only_what_was_asked_for_is_sent():
    assert package_object(PROVIDER, REF, None, InstallFlags()) == {
        "apiVersion": "pkg.crossplane.io/v1",
        "kind": "Provider",
        "metadata": {"name": "acme-nop"},
        "spec": {"package": REF, "revisionActivationPolicy": "Automatic"},
    }


def test_every_flag_has_its_field():
    flags = InstallFlags(
        manual_activation=True,
        revision_history_limit=0,
        package_pull_secrets=["a,b", "c"],
        runtime_config="big",
    )
    assert package_object(FUNCTION, REF, "mine", flags)["spec"] == {
        "package": REF,
        "revisionActivationPolicy": "Manual",
        "revisionHistoryLimit": 0,
        "packagePullSecrets": [{"name": "a"}, {"name": "b"}, {"name": "c"}],
        "runtimeConfigRef": {"name": "big"},
    }


@pytest.mark.parametrize("limit", [-1, 2**63])
def test_a_history_limit_that_cannot_be_is_refused(limit):
    with pytest.raises(UsageError, match="expected 0 or more"):
        package_object(PROVIDER, REF, None, InstallFlags(revision_history_limit=limit))


def test_a_configuration_has_no_runtime():
    with pytest.raises(UsageError, match="does not support runtime configuration"):
        package_object(CONFIGURATION, REF, None, InstallFlags(runtime_config="big"))
