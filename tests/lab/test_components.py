"""Command lines keep to loopback and to the lab's folder, and check rights as clusters do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from tests.lab import components, credentials
from tests.lab.components import API_SERVER, NAMES, Layout, Options, Ports


@pytest.fixture
def layout(tmp_path):
    (tmp_path / "credentials").mkdir()
    return Layout(tmp_path)


PORTS = Ports(*range(20_001, 20_001 + len(Ports.__dataclass_fields__)))


def plan(layout, **options):
    return components.plan(
        binaries={name: Path("/bin") / name for name in NAMES},
        layout=layout,
        ports=PORTS,
        credentials=credentials.provide(layout.credentials),
        options=Options(**options),
    )


def test_every_component_has_a_command_and_a_health_address_on_loopback(layout):
    found = plan(layout)
    assert tuple(found) == NAMES
    for component in found.values():
        assert component.command[0] == f"/bin/{component.name}"
        assert re.match(r"https?://127\.0\.0\.1:2000\d/", component.health)
        assert not [each for each in component.command if "0.0.0.0" in each]


def test_the_api_server_checks_rights_as_real_clusters_do(layout):
    command = plan(layout)[API_SERVER].command
    assert "--authorization-mode=Node,RBAC" in command
    assert "--enable-admission-plugins=OwnerReferencesPermissionEnforcement" in command


def test_the_audit_log_is_written_on_request_alone(layout):
    def audits(command):
        return [each for each in command if each.startswith("--audit")]

    assert audits(plan(layout)[API_SERVER].command) == []
    assert f"--audit-log-path={layout.audit_log}" in audits(
        plan(layout, audit=True)[API_SERVER].command
    )


def test_arguments_of_the_caller_come_last(layout):
    command = plan(layout, api_server_arguments=("--v=4",))[API_SERVER].command
    assert command[-1] == "--v=4"


def test_no_secret_stands_on_a_command_line(layout):
    made = credentials.provide(layout.credentials)
    shown = " ".join(" ".join(each.command) for each in plan(layout).values())
    assert not [user for user in credentials.USERS if made.token(user) in shown]


def test_the_files_that_command_lines_name_are_written(layout):
    made = credentials.provide(layout.credentials)
    components.write_files(layout=layout, ports=PORTS, credentials=made, options=Options())
    named = {
        Path(argument.partition("=")[2])
        for component in plan(layout, audit=True).values()
        for argument in component.command
        if re.search(r"(kubeconfig|config|-file)=/", argument)
    }
    assert [path for path in named if not path.is_file()] == []
    registry = json.loads((layout.credentials / "registry.yaml").read_text())
    assert registry["storage"]["delete"] == {"enabled": True}
    assert registry["http"]["addr"] == f"127.0.0.1:{PORTS.registry}"


def test_stage_files_of_the_caller_replace_those_of_the_lab(layout, tmp_path):
    stages = tmp_path / "stages"
    stages.mkdir()
    (stages / "one.yaml").write_text("kind: Stage\n")
    made = credentials.provide(layout.credentials)
    components.write_files(
        layout=layout, ports=PORTS, credentials=made, options=Options(stages=stages)
    )
    documents = list(yaml.safe_load_all((layout.credentials / "stages.yaml").read_text()))
    assert documents == [{"kind": "Stage"}]
