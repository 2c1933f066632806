"""The definitions of core kinds have the names, scope and subresources of Crossplane's own."""

from __future__ import annotations

import pytest
import yaml

from tests.lab import core

FILES = sorted(core.FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_definition_is_cluster_wide_keeps_everything_and_has_a_status(path):
    definition = yaml.safe_load(path.read_text())
    spec = definition["spec"]
    assert definition["metadata"]["name"] == path.stem
    assert path.stem == f"{spec['names']['plural']}.{spec['group']}"
    assert spec["scope"] == "Cluster"
    assert [each["storage"] for each in spec["versions"]].count(True) == 1
    for version in spec["versions"]:
        assert version["served"]
        assert version["subresources"] == {"status": {}}
        fields = version["schema"]["openAPIV3Schema"]["properties"]
        for name in ("spec", "status"):
            assert fields[name]["x-kubernetes-preserve-unknown-fields"]


def test_managed_resource_definitions_are_defined_on_request_alone():
    assert core.MANAGED not in core.names()
    assert core.MANAGED in {path.stem for path in FILES}
    assert len(core.names()) == len(FILES) - 1
